"""Chains, and references to what another run leaves."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from recipes import ProblemsError, Stage, chain, find
from recipes.experiment.chain import wired
from recipes.experiment.examine import examine
from recipes.experiment.prepare import prepare_all
from recipes.experiment.stage import Options
from recipes.experiment.store import RunFolder
from scripts.run.record import Record

PROFILES = """
slurm: {account: a, image: "nvcr.io/nvidia/nemo:26.06", job_dir: /lustre/me, mounts: ["/data:/data"]}
"""


@pytest.fixture
def options(tmp_path: Path) -> Options:
    (tmp_path / "executors.yaml").write_text(PROFILES)
    return Options(profiles=tmp_path / "executors.yaml")


def build(*names: str) -> list[Any]:
    return [find(name).build() for name in names]


@pytest.mark.parametrize(
    ("recipes", "stages"),
    [
        (["quantize_fp8", "generate"], ["quantize_fp8", "generate"]),
        (["quantize_fp8", "generate_vllm"], ["quantize_fp8", "export", "generate_vllm"]),
        (
            ["quantize_modelopt", "qad", "generate_vllm"],
            ["quantize_modelopt", "qad", "export_modelopt", "generate_vllm"],
        ),
        (
            ["prune_fixed", "distill_mock", "generate_vllm"],
            ["prune_fixed", "distill_mock", "megatron_to_hf", "generate_vllm"],
        ),
        (["prepare_data", "distill", "evaluate"], ["prepare_data", "distill", "megatron_to_hf", "evaluate"]),
        (["quantize_fp8", "evaluate"], ["quantize_fp8", "export", "evaluate"]),
        (["merge_lora", "quantize_fp8"], ["merge_lora", "megatron_to_hf", "quantize_fp8"]),
        (
            ["mlm_convert", "mlm_quantize", "generate_vllm"],
            ["mlm_convert", "mlm_quantize", "mlm_export", "generate_vllm"],
        ),
    ],
)
def test_a_chain_converts_where_it_crosses_formats(recipes: list[str], stages: list[str]) -> None:
    made = wired(chain(*build(*recipes)))
    assert [stage.name for stage in made] == stages
    assert [list(stage.after) for stage in made] == [[], *([name] for name in stages[:-1])]


def test_what_a_stage_takes_is_where_the_one_before_it_writes(options: Options) -> None:
    prune, distill, generate = build("prune_fixed", "distill_mock", "generate_vllm")
    distill.args.teacher_hf_path = prune.args.hf_model_name_or_path
    generate.script.release = "0.46"  # newer than what that image holds
    stages = prepare_all(chain(prune, distill, generate), "slurm", options)
    pruned, distilled, converted, said = (stage.resolved for stage in stages)
    assert distilled.student_hf_path == pruned.output_hf_path
    assert distilled.teacher_hf_path == "Qwen/Qwen3-8B", "the teacher stays what it was"
    assert converted.megatron_path == f"{distilled.output_dir}/checkpoints"
    assert converted.hf_model == pruned.output_hf_path, "the shape is the pruned model's"
    assert said.model == converted.hf_path
    assert all(before.id in stage.after for before, stage in pairwise(stages))


def test_prepared_data_becomes_what_the_training_takes(options: Options) -> None:
    prepare, distill = build("prepare_data", "distill")
    prepare.args.jsonl_paths = ["/data/a.jsonl"]
    made, taught = (stage.resolved for stage in prepare_all(chain(prepare, distill), "slurm", options))
    assert taught.data_paths == [made.output_dir]


def test_what_distillation_taught_is_not_pruned_away() -> None:
    with pytest.raises(ProblemsError, match="prune_after_distill"):
        chain(*build("distill", "prune"))


def test_what_cannot_be_handed_over_is_told() -> None:
    with pytest.raises(ProblemsError, match="nothing_to_hand_over"):
        chain(*build("generate", "prune"))


def test_a_reference_makes_its_stage_wait(options: Options) -> None:
    quantize, export = build("quantize_fp8", "export")
    export.args.megatron_load_path, export.args.hf_model_id = "${artifact:first}", quantize.args.hf_model_id
    first, second = prepare_all(
        [Stage(name="second", partial=export), Stage(name="first", partial=quantize)], "slurm", options
    )
    assert (first.name, second.name, second.after) == ("first", "second", (first.id,))
    assert second.resolved.megatron_load_path == first.resolved.megatron_save_path


def test_of_several_things_a_reference_takes_what_its_key_stands_for(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of the bridge engine leaves a checkpoint and a report."""
    monkeypatch.setattr("nemo_run.config._NEMORUN_HOME", str(tmp_path))
    folder = RunFolder.of("quantize_fp8_1795214403955-ad07")
    left = [{"type": kind, "path": f"/left/{kind}"} for kind in ("eval_results", "checkpoint_megatron")]
    of = {"recipe": "quantize_fp8", "algorithm": "quantize", "executor": {"name": "x", "kind": "local"}}
    Record.submit(folder.dir, id=folder.id, values={}, expects=left, run_dir=str(folder.dir), **of)
    (export,) = build("export")
    export.args.megatron_load_path = f"${{artifact:{folder.id}}}"
    examined = examine([Stage(name="export", partial=export)], "slurm", options)
    assert [str(one) for one in examined.problems if one.name == "unknown_artifact"] == []
    assert examined.jobs[0].resolved.megatron_load_path == "/left/checkpoint_megatron"


@pytest.mark.parametrize(
    ("reference", "remedy"),
    [
        ("${artifact:frist}", "Did you mean first?"),
        ("${artifact:first.checkpoint_hf}", "first leaves checkpoint_megatron, no checkpoint_hf"),
    ],
)
def test_a_reference_to_nothing_names_the_nearest(options: Options, reference: str, remedy: str) -> None:
    quantize, export = build("quantize_fp8", "export")
    export.args.megatron_load_path = reference
    stages = [Stage(name="first", partial=quantize), Stage(name="second", partial=export, after=["first"])]
    with pytest.raises(ProblemsError, match="unknown_artifact") as caught:
        prepare_all(stages, "slurm", options)
    assert any(remedy in str(problem) for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("recipe", "field"),
    [("export", "megatron_load_path"), ("evaluate", "checkpoint"), ("qat", "pretrained_checkpoint")],
)
def test_an_artifact_of_nobody_is_one_problem_among_the_others(recipe: str, field: str, options: Options) -> None:
    def problems(**values: Any) -> list[tuple[str, str]]:
        partial = find(recipe).build()
        for name, value in values.items():
            setattr(partial.args, name, value)
        partial.torchrun.nnodes = -1
        found = examine([Stage(name="it", partial=partial)], "slurm", options).problems
        return [(one.name, one.key) for one in found if one.severity == "error"]

    of_nobody = problems(**{field: "${artifact:nosuch}"})
    assert of_nobody[0] == ("unknown_artifact", f"args.{field}")
    assert ("out_of_range", "torchrun.nnodes") in of_nobody
    assert set(of_nobody[1:]) <= set(problems(**{field: "/lustre/there"}))
