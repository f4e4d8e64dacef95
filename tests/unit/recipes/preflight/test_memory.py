"""A model that does not fit whole goes layer by layer unasked; where it cannot, the refusal says what to change."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from recipes import ProblemsError, chain, evaluate, find, pipeline, plan, prepare, quantize_fp8
from recipes.experiment.examine import Examined, examine
from recipes.experiment.fingerprint import fingerprint
from recipes.experiment.index import refreshed
from recipes.experiment.job import Job
from recipes.experiment.prepare import prepare_all, wired_at
from recipes.experiment.stage import Options, Stage, stages_of
from scripts.run.problems import Problem

TOLD, REFUSED = "goes_layer_by_layer", "does_not_fit"
FITS, LARGER_THAN_MEMORY = 16 << 30, 600 << 20
OF_ANOTHER_RUN = ("id", "run_dir", "resolved", "given", "request", "warnings")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """A machine in which the built-in models fit layer by layer alone."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NEMORUN_HOME", str(home))
    with_memory(monkeypatch, LARGER_THAN_MEMORY)


def with_memory(monkeypatch: pytest.MonkeyPatch, total: int) -> None:
    memory = psutil.virtual_memory()._replace(total=total)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def quantizing(**args: Any) -> Any:
    partial = find("quantize_fp8").build()
    for name, value in {"hf_model_id": "tiny:qwen3", **args}.items():
        setattr(partial.args, name, value)
    return partial


def refused(partial: Any, *place: Any) -> list[Problem]:
    with pytest.raises(ProblemsError) as error:
        prepare(partial, *place)
    return [one for one in error.value.problems if one.severity == "error"]


def on_gpus(model: str, gpu: str | None) -> Examined:
    place = {"image": "null", "output_root": "/lustre/runs"} | ({"gpu": gpu} if gpu else {})
    stage = Stage(name="quantize", partial=quantizing(hf_model_id=model))
    force = frozenset({"gated_without_token"})
    return examine([stage], "slurm", Options(online=False, overrides=place, force=force))


def digest(job: Job) -> str:
    with refreshed() as index:
        return fingerprint(job, {}, index).digest


def test_it_is_the_job_that_asks_for_it() -> None:
    chosen, asked = prepare(quantizing()), prepare(quantizing(memory="auto"))
    assert chosen.resolved.memory == chosen.args.memory == chosen.values["args"]["memory"] == "auto"
    assert chosen.partial is not None and chosen.partial.args.memory == "auto", "what the job gets"
    assert [kind for _, kind, _ in chosen.outputs] == ["checkpoint_hf"]
    assert digest(chosen) == digest(asked)
    ours, theirs = (
        {key: value for key, value in job.as_data().items() if key not in OF_ANOTHER_RUN} for job in (chosen, asked)
    )
    assert ours == theirs
    again = Job.from_data(json.loads(json.dumps(chosen.as_data())))
    assert again.resolved == chosen.resolved and again.warnings == chosen.warnings
    assert chosen.request is not None and chosen.request["values"]["args.memory"] is None, "rerun decides anew"
    (told,) = chosen.warnings
    assert (told.name, told.key, told.value) == (TOLD, "args.memory", "auto")
    assert "in calibrate needs" in told.cause and "has 0.6 GiB" in told.cause
    assert told.remedy.startswith("args.modelopt_save_path is not written.")
    assert asked.warnings == ()


def test_a_plan_says_so() -> None:
    found = plan(quantizing())
    assert found.fits and not found.refused and [one.name for one in found.problems] == [TOLD]
    assert "Warning goes_layer_by_layer   args.memory=auto: it goes layer by layer" in str(found)
    assert found.as_data()["problems"][0]["name"] == TOLD


def test_what_fits_is_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, FITS)
    assert prepare(quantizing()).resolved.memory is None


def test_who_wants_the_whole_model_gets_it() -> None:
    job = prepare(quantizing(), force=frozenset({REFUSED}))
    assert job.resolved.memory is None and [one.severity for one in job.warnings] == ["forced"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"modelopt_save_path": "/lustre/m"}, ["args.modelopt_save_path is not written: use args.modelopt_save_path="]),
        (
            {"export_kv_cache_quant": "fp8", "compress": True},
            [
                "for args.export_kv_cache_quant=fp8: the key/value cache is calibrated with the whole model",
                "Use args.export_kv_cache_quant=none.",
                "Use args.compress=false.",
            ],
        ),
        ({"export_dir": None}, ["for args.export_dir=None", "Name a folder."]),
        ({"export_quant_cfg": "INT8_DEFAULT_CFG"}, ["Whether INT8_DEFAULT_CFG can be had", "args.memory=auto"]),
    ],
)
def test_what_keeps_it_whole_is_told_with_what_to_change(args: dict[str, Any], says: list[str]) -> None:
    (problem,) = refused(quantizing(**args))
    assert (problem.name, problem.key) == (REFUSED, "executor")
    assert all(one in problem.remedy for one in says) and "args.memory=null" not in problem.remedy
    changed = {"modelopt_save_path": None, "export_kv_cache_quant": "none", "compress": False}
    if "export_dir" not in args and "export_quant_cfg" not in args:
        assert prepare(quantizing(**args | {key: changed[key] for key in args})).resolved.memory == "auto"


def test_a_model_type_that_was_not_tried_is_told() -> None:
    (problem,) = on_gpus("nvidia/Nemotron-H-47B-Reasoning-128K", "l4").errors
    assert problem.name == REFUSED and "nemotron_h was not tried layer by layer" in problem.remedy


def test_more_memory_than_layers_need_too_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 100 << 20)
    (problem,) = refused(quantizing())
    assert "Layer by layer too its one process, in calibrate needs 0.5 GiB and has 0.1 GiB" in problem.remedy


def test_a_gpu_of_this_machine_that_nobody_knows_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.preflight.memory.gpus_here", lambda: 1)
    (problem,) = refused(quantizing())
    assert problem.remedy.startswith("Which GPU this machine has is not known: executor.gpu=")
    assert prepare(quantizing(device="cpu")).resolved.memory == "auto"
    assert prepare(quantizing(), "local", {"gpu": "l4"}).resolved.memory is None, "it fits that"


def test_ranks_that_were_asked_for_are_not_taken_away() -> None:
    partial = quantizing()
    partial.torchrun.nproc_per_node = 2
    (problem,) = refused(partial)
    assert "Use torchrun.nproc_per_node=1." in problem.remedy and "Or use args.fsdp=true, which" in problem.remedy


@pytest.mark.parametrize(("gpu", "memory"), [("l4", "auto"), ("h200", None), (None, None)])
def test_on_gpus_it_goes_by_those_that_are_known(gpu: str | None, memory: str | None) -> None:
    """Of one that the recipe is made for, nobody knows whether it is that."""
    found = on_gpus("Qwen/Qwen3-32B" if gpu else "meta-llama/Llama-3.1-70B-Instruct", gpu)
    (job,) = found.jobs
    assert job.resolved.memory == memory and (job.processes == 1) is bool(memory)
    assert [one.name for one in job.warnings if one.name in (TOLD, REFUSED)] == {"h200": []}.get(
        gpu or "", [TOLD if gpu else REFUSED]
    )


def test_a_checkpoint_that_a_later_stage_takes_is_not_left_out() -> None:
    values = {"args.hf_model_id": "tiny:qwen3", "args.tasks": "[wikitext]"}
    taking = {"evaluate.args.checkpoint": "${artifact:quantize.checkpoint_modelopt}"}
    (problem,) = (
        one for one in examine(pipeline("quantize_and_evaluate", values | taking)).errors if one.name == REFUSED
    )
    assert problem.remedy.startswith(
        "Layer by layer no checkpoint_modelopt is left, which evaluate.args.checkpoint takes: "
        "use evaluate.args.checkpoint=${artifact:quantize.checkpoint_hf}."
    )
    taking = {"evaluate.args.checkpoint": "${artifact:quantize.checkpoint_hf}"}
    found = examine(pipeline("quantize_and_evaluate", values | taking))
    assert REFUSED not in {one.name for one in found.errors}
    assert (TOLD, "quantize.args.memory") in {(one.name, one.key) for one in found.problems}
    assert next(job for job in found.jobs if job.name == "quantize").resolved.memory == "auto"


def test_a_chain_hands_over_what_is_left_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without vLLM an evaluation takes the ModelOpt checkpoint, where there is one."""
    monkeypatch.setattr("scripts.evaluation.checks.has_vllm", lambda: False)
    for memory, kind in (("auto", "checkpoint_hf"), (None, "checkpoint_modelopt")):
        first = quantizing(memory=memory)
        taking = wired_at(chain(first, evaluate()), "local", Options())[-1]
        assert taking.partial.args.checkpoint == f"${{artifact:quantize_fp8.{kind}}}"


def test_each_run_of_a_sweep_goes_its_own_way() -> None:
    stages = stages_of(quantizing(), {"args.memory": ["null", "2GiB"], "args.export_quant_cfg": ["fp8", "nvfp4"]})
    assert [job.resolved.memory for job in prepare_all(stages)] == ["auto", "auto", "2GiB", "2GiB"]


def test_from_python_it_is_the_same() -> None:
    recipe = quantize_fp8()
    recipe.args.hf_model_id = "tiny:llama"
    assert prepare(recipe).resolved.memory == "auto" and recipe.args.memory is None, "what was given stays as it is"
