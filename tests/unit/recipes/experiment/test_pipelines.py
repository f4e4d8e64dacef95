"""Pipelines: their files, the words that set values in them, how stages are wired, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes import ProblemsError, pipeline
from recipes.cli.asked import Line, asked_for, looked_at
from recipes.cli.completion import runnable
from recipes.experiment import fingerprint
from recipes.experiment.examine import Examined, examine
from recipes.experiment.pipeline import build, pipelines, read
from recipes.experiment.prepare import wired_at
from recipes.experiment.run_ids import new_ids, pipeline_of, runs_of_pipeline
from recipes.experiment.stage import Options
from tests.answers import answer_of
from tests.runs import Shell, recorded

PROFILES = """
slurm: {account: a, image: "nvcr.io/nvidia/nemo:26.08", job_dir: /lustre/me, mounts: ["/data:/data"]}
"""
#: What the shipped pipelines leave to their user.
GIVEN = {
    "prepare_distill_evaluate": ["args.jsonl_paths=[/data/text.jsonl]"],
    "prune_distill_evaluate": ["args.data_paths=[1.0, /data/tokens]"],
    "prune_distill_quantize": ["args.data_paths=[1.0, /data/tokens]"],
    "quantize_qad_evaluate": ["args.data_paths=[1.0, /data/tokens]"],
}
#: Their stages, with the conversions between.
STAGES = {
    "best_and_evaluate": ["baseline", "best", "evaluate"],
    "quantize_and_evaluate": ["baseline", "quantize", "export", "evaluate"],
    "prune_distill_evaluate": ["baseline", "prune", "distill", "megatron_to_hf", "evaluate"],
    "prune_distill_quantize": ["baseline", "prune", "distill", "megatron_to_hf", "quantize", "export", "evaluate"],
    "prepare_distill_evaluate": ["baseline", "data", "distill", "megatron_to_hf", "evaluate"],
    "quantize_qad_evaluate": ["baseline", "quantize", "qad", "export_modelopt", "evaluate"],
}


@pytest.fixture
def asked(tmp_path: Path, home: Path) -> Callable[..., tuple[list[str], Examined]]:
    """What is found of a pipeline, and the names of its stages."""
    profiles = tmp_path / "executors.yaml"
    profiles.write_text(PROFILES)

    def ask(name: str, *words: str) -> tuple[list[str], Examined]:
        options = Options(profiles=profiles, online=False, force=frozenset({"gated_without_token"}))
        stages, examined = looked_at(asked_for(name, Line(words=words), options).at(None, None))
        return [stage.name for stage in stages], examined

    return ask


def document(folder: Path, stages: Any, **more: Any) -> str:
    file = folder / "mine.yaml"
    file.write_text(json.dumps({"stages": stages, **more}))
    return str(file)


def errors(examined: Examined) -> set[tuple[str, str]]:
    return {(one.name, one.key) for one in examined.errors}


@pytest.mark.parametrize("name", pipelines())
def test_each_that_ships_is_sound_on_a_cluster(name: str, asked: Callable[..., tuple[list[str], Examined]]) -> None:
    stages, examined = asked(name, "executor=slurm", *GIVEN.get(name, []))
    assert stages == STAGES[name]
    assert {one.name for one in examined.errors} <= {"missing_input"}, examined.errors  # data that is not on this disk
    assert {job.pipeline for job in examined.jobs} == {pipeline_of(examined.jobs[0].id, examined.jobs[0].name)}
    last = examined.jobs[-1]
    assert len(last.after) == 2 and last.resolved.baseline.endswith("/report")


def test_the_winner_of_a_search_is_held_to_tasks(asked: Callable[..., tuple[list[str], Examined]]) -> None:
    _, examined = asked("best_and_evaluate", "executor=slurm", "args.max_kl=0.02", "evaluate.gate.max_drop=0.01")
    jobs = {job.name: job for job in examined.jobs}
    assert jobs["best"].resolved.limits == {"max_kl": 0.02}
    assert jobs["evaluate"].resolved.checkpoint == jobs["best"].resolved.export_dir
    assert jobs["evaluate"].resolved.gate == {"max_drop": 0.01}


def test_words_set_values_of_the_pipeline_of_a_stage_and_of_all(
    asked: Callable[..., tuple[list[str], Examined]],
) -> None:
    _, examined = asked(
        *(
            "quantize_and_evaluate",
            "executor=slurm",
            "args.hf_model_id=Qwen/Qwen3-4B",
            "quantize.recipe=quantize_nvfp4",
        ),
        *("quantize.args.calib_size=64", "engine=bridge", "torchrun.nproc_per_node=4", "quantize.gate.max_kl=1%"),
    )
    jobs = {job.name: job for job in examined.jobs}
    assert (jobs["quantize"].resolved.hf_model_id, jobs["baseline"].resolved.checkpoint) == ("Qwen/Qwen3-4B",) * 2
    assert (jobs["quantize"].resolved.calib_size, jobs["quantize"].resolved.export_quant_cfg) == (64, "nvfp4")
    assert {name: job.engine for name, job in jobs.items()} == {
        **{"baseline": None, "evaluate": None},
        **{"quantize": "bridge", "export": "bridge"},
    }
    assert jobs["quantize"].resolved.gate == {"max_kl": "1%"}
    assert (jobs["quantize"].processes, jobs["evaluate"].processes) == (4, 1)


def test_a_stage_has_an_executor_of_its_own(asked: Callable[..., tuple[list[str], Examined]]) -> None:
    words = ("executor=slurm", "executor.partition=big", "baseline.executor=local", "quantize.executor.nodes=2")
    jobs = {job.name: job for job in asked("quantize_and_evaluate", *words)[1].jobs}
    assert {name: job.executor for name, job in jobs.items() if name != "baseline"} == dict.fromkeys(
        ("quantize", "export", "evaluate"), "slurm"
    )
    assert (jobs["quantize"].nodes, jobs["evaluate"].nodes, jobs["quantize"].profile.partition) == (2, 1, "big")


@pytest.mark.parametrize(
    ("words", "name", "key"),
    [
        (["args.hf_modl_id=x"], "unknown_key", "args.hf_modl_id"),
        (["quantise.args.calib_size=4"], "unknown_key", "quantise.args.calib_size"),
        (["quantize.args.calib_siz=4"], "unknown_key", "quantize.args.calib_siz"),
        (["quantize.recipe=quantise_fp8"], "unknown_recipe", "quantize.recipe"),
        (["quantize.gate.max_kul=1"], "bad_gate", "quantize.args.gate"),
        (["quantize.gate.max_kl=x"], "bad_gate", "quantize.args.gate"),
        (["quantize.gate.max_size=1", "engine=bridge"], "gate_cannot_be_judged", "quantize.args.gate.max_size"),
        (["quantize.gate.max_kl=1", "engine=script"], "gate_cannot_be_judged", "quantize.args.gate"),
        (["evaluate.gate.max_kl=1"], "gate_cannot_be_judged", "evaluate.args.gate.max_kl"),
    ],
)
def test_a_value_that_does_not_fit_is_told_with_its_stage(
    words: list[str], name: str, key: str, asked: Callable[..., tuple[list[str], Examined]]
) -> None:
    assert (name, key) in errors(asked("quantize_and_evaluate", "executor=slurm", *words)[1])


@pytest.mark.parametrize(
    ("stages", "name", "says"),
    [
        ([], "wrong_value", "a pipeline has stages"),
        ({"args": {"recipe": "probe"}}, "bad_stage_name", "none of a section"),
        ({"a" * 21: {"recipe": "probe"}}, "bad_stage_name", "at most 20"),
        ({"one": "probe"}, "wrong_value", "a mapping with a recipe"),
        ({"one": {"recipe": "probe", "afer": "x"}}, "unknown_key", "Did you mean after?"),
        ({"one": {"recipe": "probe", "after": "two"}}, "unknown_stage", "no stage has that name"),
        ({"one": {"recipe": "probe", "executor": {"name": "slurm"}}}, "wrong_value", "the name of an executor"),
    ],
)
def test_a_file_that_is_no_pipeline_is_refused(stages: Any, name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ProblemsError) as refused:
        read(Path(document(tmp_path, stages)))
    assert name in {one.name for one in refused.value.problems} and says in str(refused.value)


def test_all_that_is_wrong_with_a_file_is_told_at_once(
    tmp_path: Path, asked: Callable[..., tuple[list[str], Examined]]
) -> None:
    quantize = {
        "recipe": "quantize_fp8",
        "args": {"hf_model_id": "${args.modl}", "calib_sze": 3},
        "gate": {"max_dorp": 1},
    }
    stages = {"quantize": quantize, "try": {"recipe": "prob"}, "last": {"recipe": "evaluate", "executor": "nowhere"}}
    file = document(tmp_path, stages, args={"model": "tiny:qwen3"})
    expected = {
        *(("unknown_key", "quantize.args.hf_model_id"), ("unknown_key", "quantize.args.calib_sze")),
        *(("unknown_recipe", "try.recipe"), ("bad_gate", "quantize.args.gate"), ("unknown_executor", "executor")),
    }
    assert errors(asked(file)[1]) == expected
    file = document(tmp_path, {**stages, "more": {"recipe": "probe", "after": "nothing"}}, args={"model": "tiny:qwen3"})
    with pytest.raises(ProblemsError) as refused:
        asked(file)
    told = {(one.name, one.key) for one in refused.value.problems}
    assert told == expected - {("unknown_executor", "executor")} | {("unknown_stage", "more.after")}


def test_what_nothing_here_could_score_is_refused_before_it_is_made(home: Path) -> None:
    def refused(fmt: str) -> set[tuple[str, str]]:
        words = {"args.hf_model_id": "tiny:qwen3", "quantize.args.export_quant_cfg": fmt}
        stages = wired_at(pipeline("quantize_and_evaluate", words), "local", Options())
        return {(one.name, one.key) for one in examine(stages, "local", Options(online=False)).errors}

    assert ("backend_cannot_load", "evaluate.args.checkpoint") in refused("nvfp4")
    assert not any(name.startswith("backend_") for name, _ in refused("fp8"))


def test_what_is_no_text_names_no_stage(tmp_path: Path) -> None:
    (file := tmp_path / "mine.yaml").write_text("stages: {yes: {recipe: probe}, null: {recipe: probe}}")
    with pytest.raises(ProblemsError, match="Write it in quotes"):
        read(file)


def test_runs_can_be_called_after_a_file(tmp_path: Path) -> None:
    (file := tmp_path / "日本.yaml").write_text("stages: {one: {recipe: probe}}")
    with pytest.raises(ProblemsError, match="bad_run_name"):
        read(file)
    assert all(one.startswith("x-one_") for one in new_ids(pipeline(str(file.rename(tmp_path / "-x.yaml")))).values())


@pytest.mark.parametrize(
    ("recipes", "name"),
    [
        (["distill", "prune"], "prune_after_distill"),
        (["quantize_modelopt", "distill"], "distill_after_quantize"),
        (["prepare_data", "generate_vllm"], "nothing_to_hand_over"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(
    recipes: list[str], name: str, tmp_path: Path, asked: Callable[..., tuple[list[str], Examined]]
) -> None:
    file = document(tmp_path, {recipe: {"recipe": recipe} for recipe in recipes})
    assert name in {one.name for one in asked(file, "executor=slurm")[1].errors}


def test_a_stage_may_wait_for_one_that_leaves_nothing(
    tmp_path: Path, asked: Callable[..., tuple[list[str], Examined]]
) -> None:
    file = document(tmp_path, {"try": {"recipe": "probe"}, "quantize": {"recipe": "quantize_tiny"}})
    names, examined = asked(file, "executor=slurm", "quantize.engine=hf")
    assert names == ["try", "quantize"] and not examined.errors
    assert examined.jobs[1].after == (examined.jobs[0].id,)


def test_from_python_it_is_stages(home: Path) -> None:
    stages = pipeline("quantize_and_evaluate", {"args.hf_model_id": "tiny:qwen3", "quantize.args.calib_size": "16"})
    assert [stage.name for stage in stages] == ["baseline", "quantize", "evaluate"]
    assert stages[1].partial.args.calib_size == 16
    # Here is no vLLM, and so what ModelOpt restores is what is scored.
    assert wired_at(stages, "local", Options())[2].partial.args.checkpoint == "${artifact:quantize.checkpoint_modelopt}"
    with pytest.raises(ProblemsError, match="unknown_key"):
        pipeline("quantize_and_evaluate", {"args.x": "1"})
    with pytest.raises(ProblemsError, match="Did you mean quantize_and_evaluate"):
        pipeline("quantize_and_evaluat")


def test_what_is_refused_or_only_asked_leaves_nothing(home: Path, tmp_path: Path) -> None:
    file = document(tmp_path, {"one": {"recipe": "probe", "args": {"seconds": "${args.seconds}"}}}, args={"seconds": 0})
    for words in (["run", file, "one.args.secnds=1"], ["run", file, "--dryrun"], ["plan", file]):
        assert Shell()(*words, seconds=30).exit_code in (0, 2)
    assert not list(home.iterdir())


def test_a_circle_is_told(tmp_path: Path, asked: Callable[..., tuple[list[str], Examined]]) -> None:
    file = document(tmp_path, {"a": {"recipe": "prune", "after": "b"}, "b": {"recipe": "distill", "after": "a"}})
    assert {one.name for one in asked(file, "executor=slurm")[1].errors} == {"stages_in_a_circle"}


def test_what_the_words_of_a_pipeline_cannot_be(tmp_path: Path) -> None:
    done = Shell()("run", "quantize_and_evaluate", "--sweep", "qantize.args.calib_size=1,2", "--dryrun", seconds=30)
    assert done.exit_code == 2 and done.stderr.count("unknown_key") == 1 and "Did you mean quantize?" in done.stderr
    done = Shell()("run", "quantize_and_evaluat", "--dryrun", seconds=30)
    assert done.exit_code == 2 and "Did you mean quantize_and_evaluate?" in done.stderr


def test_arguments_of_a_pipeline_stand_where_they_are_named(tmp_path: Path) -> None:
    stages = {"one": {"recipe": "quantize_fp8", "args": {"prompts": "of ${args.name}", "calib_size": "${args.size}"}}}
    built = build(read(Path(document(tmp_path, stages, args={"name": "x", "size": 8}))), {"args.size": "16"})
    (stage,) = built.stages
    assert (stage.partial.args.prompts, stage.partial.args.calib_size, built.problems) == ("of x", 16, [])
    lacking = build(read(Path(document(tmp_path, stages, args={"name": "x"}))), {})
    assert ("unknown_key", "one.args.calib_size") in {(one.name, one.key) for one in lacking.problems}


def test_ids_of_a_pipeline_belong_together(home: Path, tmp_path: Path) -> None:
    stages = {name: {"recipe": "probe", "after": []} for name in ("a", "b")}
    ids = new_ids(build(read(Path(document(tmp_path, stages))), {}).stages)
    assert len({pipeline_of(run_id, name) for name, run_id in ids.items()}) == 1
    for run_id in ids.values():
        recorded(home, run_id)
    found = runs_of_pipeline(pipeline_of(ids["a"], "a"))
    assert sorted(folder.id for folder in found) == sorted(ids.values()) and runs_of_pipeline("x") == []


def test_plan_says_what_each_stage_needs(home: Path, tmp_path: Path) -> None:
    (tmp_path / "executors.yaml").write_text(PROFILES)
    words = ("quantize_and_evaluate", "executor=slurm", "--profiles", str(tmp_path / "executors.yaml"))
    done = Shell()("plan", *words, seconds=30)
    assert done.exit_code == 0, done.output
    assert "quantize_fp8" in done.stdout and "run would submit it." in done.stdout
    found = answer_of(Shell()("plan", *words, "--json", seconds=30).stdout)["data"]
    assert [stage["stage"] for stage in found["stages"]] == STAGES["quantize_and_evaluate"]
    assert all(stage["plan"]["memory"] for stage in found["stages"] if stage["stage"] in ("quantize", "export"))


def test_what_differs_is_told_value_by_value() -> None:
    before = {"args.x": 1, "inputs": {"args.m": ["a"]}, "versions": {"torch": "1"}, "code": "a"}
    now = {"args.x": 2, "inputs": {"args.m": ["b"]}, "versions": {"torch": "2"}, "code": "b"}
    assert fingerprint.differences(before, now) == [
        *("args.x 1 -> 2", "the content of args.m", 'versions.torch "1" -> "2"', "the code of this product"),
    ]
    assert fingerprint.differences(now, now) == []


def test_a_pipeline_is_offered_after_tab() -> None:
    assert [name for name, _ in runnable("quantize_and")] == ["quantize_and_evaluate"]


def test_stages_of_a_rehearsal_are_those_of_the_pipeline() -> None:
    done = Shell()("rehearse", "quantize_and_evaluate", "--only", "quantise", seconds=30)
    assert done.exit_code == 2 and "unknown_stage" in done.stderr and "quantize" in done.stderr
    done = Shell()("rehearse", "probe", "--only", "quantize", seconds=30)
    assert done.exit_code == 2 and "contradiction" in done.stderr


def test_names_that_would_become_one_are_none(tmp_path: Path) -> None:
    with pytest.raises(ProblemsError, match="bad_stage_name"):
        read(Path(document(tmp_path, {"a": {"recipe": "probe"}, "a-": {"recipe": "probe"}})))


def test_a_problem_of_an_executor_says_of_which_stages(tmp_path: Path, asked: Callable[..., Any]) -> None:
    model = {"args": {"hf_model_id": "tiny:qwen3"}, "recipe": "quantize_fp8", "after": []}
    file = document(tmp_path, {"one": model, "two": model})
    for words, key in ((["executor.nodes=2"], "executor.nodes"), (["two.executor.nodes=2"], "two.executor.nodes")):
        _, examined = asked(file, *words)
        assert [one.key for one in examined.errors if one.name == "too_many_nodes"] == [key]


def test_a_pipeline_is_no_stage(tmp_path: Path) -> None:
    file = document(tmp_path, {"one": {"recipe": "quantize_and_evaluate"}})
    with pytest.raises(ProblemsError, match="that is a pipeline, and a stage is a recipe"):
        pipeline(file)
