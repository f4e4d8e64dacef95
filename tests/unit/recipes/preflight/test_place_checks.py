"""A job's paths where it runs: mounted, there, free to write, and nobody else's at the time."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.experiment.store import RunFolder
from recipes.preflight import access, contradictions, history, inputs, places
from scripts.engines.script.flags.tables import newest_container
from scripts.run.identity import identity
from scripts.run.record import Record
from scripts.run.registry import REGISTRY, carry_out, checks_of
from tests.jobs import found, job_of, write_sparse_weights

FakeModel = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("away")


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    mounts = f"['{tmp_path}/disk:/data:ro', '{tmp_path}/disk/out:/data/out', 'volume:/vol']"
    (tmp_path / "executors.yaml").write_text(
        f"box: {{kind: docker, image: i, mounts: {mounts}}}\n"
        f"site: {{kind: slurm, account: a, image: i, mounts: ['{tmp_path}/disk:/data:ro', '/lustre:/lustre']}}\n"
        "far: {kind: slurm, account: a, image: i, host: login, job_dir: /shared/me, mounts: ['/lustre:/lustre']}\n"
        "bare: {kind: slurm, account: a}\n"
        "wide: {kind: slurm, account: a, image: i, output_root: /lustre/runs, mounts: ['/lustre:/lustre']}\n"
        "moved: {extends: wide, mounts: ['/other:/lustre/runs']}\n"
        "cloud: {kind: lepton, image: i, node_group: g, resource_shape: s, nemo_run_dir: /m/me, mounts:"
        " [{path: /, mount_path: /m, from: 'node-nfs:n'},"
        " {path: /, mount_path: /ro, from: 'node-nfs:n', mount_options: {read_only: true}}]}\n"
    )
    return tmp_path / "executors.yaml"


def told(executor: str, profiles: Path, recipe: str = "export", **given: Any) -> list[tuple[str, str, str]]:
    checks = [REGISTRY[name] for name in ("not_mounted", "read_only", "missing_where_mounted")]
    problems = carry_out(checks, job_of(recipe, executor, profiles, **given)).problems
    return [(one.name, one.key, one.severity) for one in problems]


UNSEEN = ("path_not_mounted", "args.megatron_load_path", "error")


@pytest.mark.parametrize(
    ("executor", "path", "seen"),
    [
        ("box", "/elsewhere/c", False),
        ("box", "/vol/c", True),
        ("site", "/elsewhere/c", False),
        ("site", "/lustre/c", True),
        ("site", "/lustre-of-others/c", False),
        ("site", "/lustre/../elsewhere/c", False),
        ("far", "/shared/me/runs/x/c", True),
        ("far", "/shared/me/c", False),
        ("far", "/lustre/c", True),
        ("cloud", "/elsewhere/c", False),
        ("cloud", "/m/c", True),
        ("bare", "/elsewhere/c", True),
    ],
)
def test_a_container_sees_what_is_mounted(profiles: Path, executor: str, path: str, seen: bool) -> None:
    assert (UNSEEN in told(executor, profiles, args__megatron_load_path=path)) is not seen


def test_how_to_mount_it_is_said(profiles: Path) -> None:
    spec = job_of("export", "site", profiles, args__megatron_load_path="/elsewhere/c")
    (problem,) = found(checks_of(places), spec, "path_not_mounted")
    assert "/elsewhere:/elsewhere" in problem.remedy
    assert "it sees /data, /lustre" in problem.cause
    assert problem.can_force


def test_what_an_image_may_hold_is_a_warning(profiles: Path) -> None:
    warning = ("path_not_mounted", "args.megatron_load_path", "warning")
    assert told("site", profiles, args__megatron_load_path="/workspace/c") == [warning]


@pytest.mark.parametrize(
    ("path", "seen"), [("/opt/mine.py", True), ("/lustre/mine.py", True), ("/home/me/mine.py", False)]
)
def test_a_script_is_in_the_image_or_on_a_mount(profiles: Path, path: str, seen: bool) -> None:
    told_of = told("site", profiles, args__megatron_load_path="/lustre/c", script__path=path)
    assert told_of == ([] if seen else [("path_not_mounted", "script.path", "error")])


def test_each_item_of_a_list_is_looked_for(profiles: Path) -> None:
    blend = [0.5, "/lustre/a", 0.5, "/elsewhere/b"]
    assert told("site", profiles, "distill", args__data_paths=blend) == [
        ("path_not_mounted", "args.data_paths", "error")
    ]


@pytest.mark.parametrize(
    ("executor", "path", "name"),
    [
        ("site", "/elsewhere/out", "path_not_mounted"),
        ("site", "/opt/out", "path_not_mounted"),
        ("site", "/lustre/out", None),
        ("site", "/data/out", "output_on_readonly_mount"),
        ("box", "/data/new", "output_on_readonly_mount"),
        ("box", "/data/out/new", None),
        ("cloud", "/ro/out", "output_on_readonly_mount"),
        ("cloud", "/m/out", None),
    ],
)
def test_an_output_must_outlive_the_container(profiles: Path, executor: str, path: str, name: str | None) -> None:
    problems = told(executor, profiles, "prune", args__output_hf_path=path)
    assert problems == ([(name, "args.output_hf_path", "error")] if name else [])


def test_the_default_outputs_are_in_the_run_directory_which_is_mounted(profiles: Path) -> None:
    for recipe in ("quantize_fp8", "prune", "distill_mock", "hf_to_megatron"):
        for executor in ("box", "site", "far", "cloud"):
            assert told(executor, profiles, recipe) == []


@pytest.mark.parametrize(
    ("executor", "runs"), [("box", "{home}/runs"), ("site", "{home}/runs"), ("far", "/shared/me/runs")]
)
def test_another_run_s_directory_is_there_to_be_read(tmp_path: Path, profiles: Path, executor: str, runs: str) -> None:
    other = Path(runs.format(home=tmp_path / "nemo-home")) / "other"
    if executor != "far":
        other.mkdir(parents=True)
    assert told(executor, profiles, args__megatron_load_path=str(other)) == []
    read_only = [("output_on_readonly_mount", "args.output_hf_path", "error")]
    assert told(executor, profiles, "prune", args__output_hf_path=str(other / "out")) == read_only


def test_a_profile_that_mounts_the_run_root_itself_says_how(profiles: Path) -> None:
    assert told("wide", profiles, args__megatron_load_path="/lustre/runs/other/c") == []
    assert told("wide", profiles, "prune", args__output_hf_path="/lustre/runs/pruned") == []
    assert told("moved", profiles, "prune", args__output_hf_path="/lustre/runs/pruned") == []


@pytest.mark.parametrize(("executor", "can_force"), [("box", False), ("site", True)])
def test_what_is_mounted_must_be_there(tmp_path: Path, profiles: Path, executor: str, can_force: bool) -> None:
    spec = job_of("export", executor, profiles, args__megatron_load_path="/data/c")
    (problem,) = found(checks_of(places), spec, "missing_input")
    assert (problem.key, problem.can_force) == ("args.megatron_load_path", can_force)
    assert str(tmp_path / "disk" / "c") in problem.cause
    (tmp_path / "disk" / "c").mkdir()
    assert found(checks_of(places), spec, "missing_input") == []


def test_prepared_data_is_looked_for_by_its_prefix(tmp_path: Path) -> None:
    prefix = tmp_path / "text_document"
    missing = ("missing_input", "args.data_paths", "error")
    assert told("local", tmp_path / "none.yaml", "distill", args__data_paths=[1.0, str(prefix)]) == [missing]
    for ending in (".bin", ".idx"):
        prefix.with_suffix(ending).touch()
    assert told("local", tmp_path / "none.yaml", "distill", args__data_paths=[1.0, str(prefix)]) == []


@pytest.mark.parametrize(("output", "removed"), [("model", False), ("model/below", False), ("other", True)])
def test_nobody_is_told_to_remove_an_input(output: str, removed: bool, tmp_path: Path) -> None:
    for folder in ("model/below", "other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    args = {"args__hf_model_name_or_path": str(tmp_path / "model"), "args__output_hf_path": str(tmp_path / output)}
    spec = job_of("prune", "local", tmp_path / "none.yaml", **args)
    (problem,) = (one for one in carry_out(checks_of(places), spec).problems if one.name == "output_exists")
    assert ("remove it" in problem.remedy) == removed


def test_an_output_that_is_there_is_seen_through_a_mount(tmp_path: Path, profiles: Path) -> None:
    (tmp_path / "disk" / "out" / "old").mkdir(parents=True)
    spec = job_of("prune", "box", profiles, args__output_hf_path="/data/out")
    found = [problem.name for problem in carry_out(checks_of(places), spec).problems]
    assert set(found) - {"not_enough_disk"} == {"output_exists"}  # the model is an 8B one, the disk this machine's


def test_an_output_in_the_model_whose_shape_is_taken(fake_model: FakeModel) -> None:
    model = fake_model()
    spec = job_of("export", args__hf_model_id=str(model), args__export_dir=str(model / "out"))
    assert [problem.name for problem in carry_out(checks_of(places), spec).problems] == ["output_overlaps_input"]


@pytest.mark.parametrize(("share", "keys"), [(0.3, []), (0.8, ["args.export_dir"]), (3.0, ["args.modelopt_save_path"])])
def test_outputs_on_one_disk_need_room_together(
    fake_model: FakeModel, tmp_path: Path, share: float, keys: list[str]
) -> None:
    """The restorable checkpoint is as large as the model, the FP8 export half of that."""
    elements = int(shutil.disk_usage(tmp_path).free * share / 2) // 1024 * 1024
    write_sparse_weights((folder := fake_model()) / "model.safetensors", elements)
    spec = job_of("quantize_fp8", engine="hf", args__hf_model_id=str(folder))
    assert [problem.key for problem in places.disk(spec)] == keys


def test_storage_that_a_login_node_lacks_is_not_measured(fake_model: FakeModel, tmp_path: Path) -> None:
    write_sparse_weights((folder := fake_model()) / "model.safetensors", 1 << 42)
    (tmp_path / "executors.yaml").write_text("bare: {kind: slurm, account: a, job_dir: /no-such-storage/me}")
    given = {"args__hf_model_id": str(folder), "engine": "script"}
    assert list(places.disk(job_of("quantize_fp8", "bare", tmp_path / "executors.yaml", **given))) == []
    assert len(list(places.disk(job_of("quantize_fp8", **given)))) == 1


def test_the_shipped_places_run_nvidia_s_script_and_measure_no_disk_of_this_machine(
    fake_model: FakeModel, tmp_path: Path
) -> None:
    (tmp_path / "nemo-home" / "runs").mkdir(parents=True)
    write_sparse_weights((folder := fake_model()) / "model.safetensors", 1 << 42)
    for executor in ("slurm", "docker", "lepton"):
        job = job_of("quantize_fp8", executor, args__hf_model_id=str(folder))
        assert (job.engine, job.ranked, job.place.image) == ("script", True, newest_container())
        assert list(places.disk(job)) == []


def running(output: Path, run_id: str = "prune_1-a", state: str = "running", **facts: Any) -> RunFolder:
    folder = RunFolder.of(run_id)
    record = Record.submit(
        folder.dir,
        id=run_id,
        algorithm="prune",
        executor={"kind": "local"},
        values={"args": {}},
        expects=[{"type": "checkpoint_hf", "path": str(output)}],
        run_dir=str(folder.dir),
    )
    record.update(state=state, **facts)
    return folder


@pytest.mark.parametrize(
    ("facts", "taken"),
    [
        ({}, True),
        ({"state": "submitted"}, True),
        ({"state": "succeeded"}, False),
        ({"process": {**identity(), "pid": 1 << 22, "started": 1.0}}, False),
        ({"executor": {"kind": "slurm", "host": "login"}}, False),
    ],
)
def test_two_runs_do_not_write_in_one_folder(tmp_path: Path, facts: dict[str, Any], taken: bool) -> None:
    running(tmp_path / "out", **facts)
    names = {}
    for where in ("out", "out/below", "other"):
        spec = job_of("prune", args__output_hf_path=str(tmp_path / where))
        names[where] = [one.key for one in found(checks_of(places), spec, "output_of_a_running_run")]
    there = ["args.output_hf_path"] if taken else []
    assert names == {"out": there, "out/below": there, "other": []}


def test_one_run_among_two_hundred_is_found(tmp_path: Path) -> None:
    for number in range(200):
        running(tmp_path / f"out{number}", f"prune_{number:04}-a", "running" if number < 5 else "succeeded")
    spec = job_of("prune", args__output_hf_path=str(tmp_path / "out3"))
    (problem,) = found(checks_of(places), spec, "output_of_a_running_run")
    assert "prune_0003-a" in problem.cause


@pytest.mark.parametrize(
    "text", ["a" * 5000, "/" + "a" * 300, "~nobody/x", "/proc/1/root/x", "\ud800", "a\0b", "/..", ""]
)
def test_no_path_ends_in_a_traceback(profiles: Path, text: str) -> None:
    modules = (access, history, inputs, places, contradictions)
    checks = [check for module in modules for check in checks_of(module)]
    for recipe, field in (("distill", "data_paths"), ("prune", "hf_model_name_or_path"), ("prune", "output_hf_path")):
        for executor in ("local", "box", "site", "far", "cloud"):
            value: Any = [1.0, text] if field == "data_paths" else text
            try:
                spec = job_of(recipe, executor, profiles, **{f"args__{field}": value})
            except (OSError, ValueError):
                continue  # other checks' and the frame's own
            carry_out(checks, spec)
            assert spec.expects is not None
