"""Texts that name models, data, checkpoints and folders: refused where the job could not find what is meant."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.catalogue import FAMILIES, config_of
from recipes.experiment.examine import examine
from recipes.experiment.stage import Options, Stage
from recipes.preflight import hf_engine, references, script_engine
from scripts.run.problems import Problem, ProblemsError
from scripts.run.registry import checks_of
from tests.jobs import found, job_of

FakeModel = Callable[..., Path]
ELSEWHERE = ["site", "far", "box", "cloud", "bare"]
LONG = ["/" + "x" * 300, "x" * 300, "a/" + "x" * 300, "/" + "ab/" * 1700, "x" * 5000]


pytestmark = pytest.mark.usefixtures("away")


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    of_nemo = "image: 'nvcr.io/nvidia/nemo:26.06', gpus: 8, gpu: h100-80gb"
    (tmp_path / "executors.yaml").write_text(
        f"box: {{kind: docker, {of_nemo}, mounts: ['{tmp_path}/disk:/data']}}\n"
        f"site: {{kind: slurm, account: a, {of_nemo}, mounts: ['{tmp_path}/disk:/data']}}\n"
        f"far: {{kind: slurm, account: a, {of_nemo}, host: login, job_dir: /shared/me, mounts: ['/data:/data']}}\n"
        "bare: {kind: slurm, account: a, host: login, job_dir: /shared/me}\n"
        f"cloud: {{kind: lepton, {of_nemo}, node_group: g, resource_shape: s, nemo_run_dir: /m/me, mounts:"
        " [{path: /, mount_path: /m, from: 'node-nfs:n'}]}\n"
    )
    return tmp_path / "executors.yaml"


def said(recipe: str, executor: str, profiles: Path | None, **values: Any) -> list[Problem]:
    job = job_of(recipe, executor, profiles, **values)
    return [*references.faults(job)]


@pytest.mark.parametrize("executor", ELSEWHERE)
@pytest.mark.parametrize(
    ("text", "name", "right"),
    [
        ("", "missing_input", "args.hf_model_id"),
        (" ", "missing_input", "args.hf_model_id"),
        ("null", "missing_input", "args.hf_model_id"),
        ("Qwen3-8B", "missing_model", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B/", "wrong_value", "Use Qwen/Qwen3-8B."),
        (" Qwen/Qwen3-8B", "wrong_value", "Use Qwen/Qwen3-8B."),
        ("https://huggingface.co/Qwen/Qwen3-8B", "wrong_value", "Use Qwen/Qwen3-8B."),
        ("https://huggingface.co/Qwen/Qwen3-8B/tree/main?x=1", "wrong_value", "Use Qwen/Qwen3-8B."),
        ("huggingface.co/Qwen/Qwen3-8B.git", "wrong_value", "Use Qwen/Qwen3-8B."),
        ("hf://Qwen/Qwen3-8B", "wrong_value", "Use Qwen/Qwen3-8B."),
        ("memory://bucket/Qwen3-8B", "wrong_value", "Name a folder"),
        ("$HOME/models/q", "wrong_value", "${oc.env:HOME}/models/q"),
        ("/data/${USER}/q", "wrong_value", "${oc.env:USER}/q"),
        ("~/models/q", "wrong_value", "from / on"),
        ("~nobody/models/q", "wrong_value", "from / on"),
    ],
)
def test_a_model_that_is_none_is_refused_wherever_the_job_runs(
    profiles: Path, executor: str, text: str, name: str, right: str
) -> None:
    if "${USER" in text:
        text = text.replace("${USER}", "$USER")  # the other is OmegaConf's, and refused by it
    (problem,) = said("quantize_fp8", executor, profiles, engine="script", args__hf_model_id=text)
    assert (problem.name, problem.key, problem.value) == (name, "args.hf_model_id", text)
    assert right in problem.remedy


@pytest.mark.parametrize("executor", ELSEWHERE)
@pytest.mark.parametrize(
    ("recipe", "field", "text"),
    [
        ("quantize_fp8", "hf_model_id", "./no-model"),
        ("quantize_fp8", "hf_model_id", "models/deep/q"),
        ("quantize_fp8", "calib_dataset", "./p.jsonl"),
        ("quantize_fp8", "calib_dataset", "p.txt"),
        ("export", "megatron_load_path", "./megatron"),
        ("mlm_validate", "prompts_path", "prompts.jsonl"),
        ("evaluate", "include_path", "tasks"),
        ("prune", "output_hf_path", "out/pruned"),
        ("mlm_mmlu", "cache_dir", "cache"),
        ("quantize_modelopt", "recipe", "./mine.yaml"),
    ],
)
def test_a_relative_path_means_nothing_elsewhere(
    profiles: Path, executor: str, recipe: str, field: str, text: str
) -> None:
    (problem,) = (one for one in said(recipe, executor, profiles, **{f"args__{field}": text}) if one.key != "args.load")
    expected = "missing_input" if executor == "bare" else "path_not_mounted"
    assert (problem.name, problem.key, problem.can_force) == (expected, f"args.{field}", True)


def test_a_folder_here_is_no_name_of_the_hub_elsewhere(profiles: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "q").mkdir(parents=True)
    (problem,) = said("quantize_fp8", "site", profiles, args__hf_model_id="models/q")
    assert problem.name == "path_not_mounted"
    assert not said("quantize_fp8", "site", profiles, args__hf_model_id="Qwen/Qwen3-8B")


@pytest.mark.parametrize("executor", ["local", *ELSEWHERE])
def test_what_is_right_is_let_through(profiles: Path, executor: str) -> None:
    for recipe, field, value in (
        ("quantize_fp8", "hf_model_id", "Qwen/Qwen3-8B"),
        ("quantize_fp8", "hf_model_id", "tiny:qwen3"),
        ("quantize_fp8", "hf_model_id", "/data/Qwen3-8B/"),
        ("quantize_fp8", "hf_model_id", "/data/a$b c"),
        ("quantize_modelopt", "calib_dataset_name", "cnn_dailymail"),
        ("quantize_modelopt", "recipe", "general/ptq/fp8_default-kv_fp8"),
        ("prepare_data", "jsonl_paths", ["tiny:text", "/data/a.jsonl"]),
        ("distill", "data_paths", [1.0, "/data/a_text_document"]),
    ):
        assert said(recipe, executor, profiles, **{f"args__{field}": value}) == []


@pytest.mark.parametrize("executor", ["local", "site"])
def test_a_checkpoint_is_no_name_of_the_hub(profiles: Path, executor: str) -> None:
    (problem,) = said("export", executor, profiles, args__megatron_load_path="Qwen/Qwen3-8B")
    assert (problem.name, problem.key) == ("wrong_checkpoint_kind", "args.megatron_load_path")
    assert "checkpoint_megatron" in problem.cause and "hf_to_megatron" in problem.remedy
    (other,) = said("export", executor, profiles, args__export_dir="s3://bucket/x", args__megatron_load_path="/c")
    assert (other.key, other.name) == ("args.export_dir", "wrong_value")


@pytest.mark.parametrize("engine", ["hf", "script"])
@pytest.mark.parametrize("text", ["", "$HOME/q", "https://huggingface.co/Qwen/Qwen3-8B", "Qwen/Qwen3-8B/"])
def test_a_fault_is_said_once_on_this_machine(engine: str, text: str) -> None:
    job = job_of("quantize_fp8", engine=engine, args__hf_model_id=text)
    checks = checks_of(references, hf_engine, script_engine)
    problems = [one for check in checks if check.is_for(job) for one in check.found(job)]
    assert [one.key for one in problems if isinstance(one, Problem)].count("args.hf_model_id") == 1


def test_home_is_that_of_this_machine_where_the_job_sees_it(
    fake_model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_model()
    monkeypatch.setenv("HOME", str(folder.parent))
    job = job_of("quantize_fp8", engine="script", args__hf_model_id=f"~/{folder.name}")
    assert job.resolved.hf_model_id == str(folder)
    assert str(folder) in job.command.words, "no script expands it"
    (problem,) = said("export", "local", None, args__megatron_load_path="~nobody-here/x", args__hf_model_id="a/b")
    assert "there is no user nobody-here here" in problem.cause


def test_what_is_mounted_is_looked_at(profiles: Path, tmp_path: Path, fake_model: FakeModel) -> None:
    whole, broken = fake_model("disk/whole"), tmp_path / "disk" / "broken"
    broken.mkdir()
    for executor in ("site", "box"):
        for folder, names in ((whole, []), (broken, ["missing_model"])):
            for engine in ("hf", "script"):
                values = {"engine": engine, "args__hf_model_id": f"/data/{folder.name}"}
                job = job_of("quantize_fp8", executor, profiles, **values)
                checks = checks_of(references, hf_engine, script_engine)
                assert [one.name for one in found(checks, job, "missing_model")] == names


@pytest.mark.parametrize("path", LONG)
def test_a_path_longer_than_any_file_system_takes_is_a_problem(profiles: Path, path: str) -> None:
    keys = {
        "quantize_fp8": ("args__hf_model_id", "args__calib_dataset", "script__path"),
        "serve": ("args__checkpoint", "script__path"),
        "export": ("args__megatron_load_path", "args__export_dir"),
        "prepare_data": ("args__input_dir", "args__output_dir"),
        "evaluate": ("args__checkpoint", "args__baseline", "args__include_path"),
        "distill": ("args__data_path_to_cache",),
    }
    for recipe, named in keys.items():
        for key in named:
            for executor in ("local", "site"):
                problems = said(recipe, executor, profiles, **{key: path})
                assert [one.key for one in problems if "no file system" in one.cause] == [key.replace("__", ".")]
                assert all(len(str(one)) < 400 for one in problems)
    job_of("quantize_fp8", engine="hf", args__export_quant_cfg=f"{path}.yaml")
    with pytest.raises(ProblemsError, match="unknown_config"):
        config_of(FAMILIES["quantize"], path)


@pytest.mark.parametrize("executor", ["local", "box"])
@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("FILE", "output_not_writable"),
        ("FILE/below", "output_not_writable"),
        ("/" + "x" * 300, "wrong_value"),
        ("$HOME/runs", "wrong_value"),
        ("memory://bucket/runs", "wrong_value"),
    ],
)
def test_runs_are_kept_in_a_folder(profiles: Path, tmp_path: Path, executor: str, root: str, name: str) -> None:
    (tmp_path / "file").touch()
    root = root.replace("FILE", str(tmp_path / "file"))
    partial_job = job_of("quantize_fp8", executor, profiles, args__hf_model_id="tiny:qwen3").partial
    assert partial_job is not None
    options = Options(profiles=profiles, online=False, overrides={"output_root": root})
    problems = examine([Stage(name="one", partial=partial_job)], executor, options).problems
    assert {one.name for one in problems if one.key == "executor.output_root"} == {name}


def test_a_mount_of_nothing_is_refused_where_the_engine_is_here(profiles: Path, tmp_path: Path) -> None:
    profiles.write_text(
        f"{profiles.read_text()}nothing: {{kind: docker, image: i, mounts: ['{tmp_path}/nope:/models']}}\n"
        f"there: {{kind: docker, host: 'unix://{tmp_path}/no.sock', image: i, mounts: ['{tmp_path}/nope:/models']}}\n"
    )
    stage = Stage(name="one", partial=job_of("probe").partial)  # type: ignore[arg-type]
    told = {
        name: [one.name for one in examine([stage], name, Options(profiles=profiles, online=False)).problems]
        for name in ("box", "nothing", "there")
    }
    assert told == {"box": [], "nothing": ["mount_missing"], "there": []}


@pytest.mark.parametrize("kind", ["fifo", "device", "deep"])
def test_a_config_json_that_cannot_be_read_holds_nobody_up(tmp_path: Path, kind: str) -> None:
    config = tmp_path / "m" / "config.json"
    config.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(config)
    elif kind == "device":
        config.symlink_to("/dev/zero")
    else:
        config.write_text("[" * 100_000)
    for engine in ("hf", "script"):
        job = job_of("quantize_fp8", engine=engine, args__hf_model_id=str(config.parent))
        assert found(checks_of(hf_engine, script_engine), job, "missing_model")
