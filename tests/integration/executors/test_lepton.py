"""Lepton from submission to record: the real SDK, the real NeMo-Run, real job processes.

Lepton's service itself cannot exist here; tests/testbed/lepton.py stands in for it.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from executors.base import SchedulerJob, SubmitError, UnreachableError
from executors.lepton.api import LeptonApi
from executors.lepton.job import PACKAGE_LIMIT, job_name, job_specification, readable
from executors.lepton.place import LeptonPlace, LeptonProfile
from executors.packaging.code import package, plan
from tests.jobs import PlainJob
from tests.testbed.lepton import NODE_GROUP, LeptonWorkspace

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="the stand-in starts jobs in name spaces, which needs root"),
]
MARKER = "marker-5f0c-of-a-secret"
HOSTILE = "a b 'c' \"d\" $HOME $(HOME) $$ `id` \\ ; & \n second line"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LeptonWorkspace]:
    """A workspace that this process is logged in to."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with LeptonWorkspace(tmp_path / "lepton", secrets={"HF_TOKEN": "hf-value", "my-wandb": "wandb-value"}) as service:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        yield service


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own packages, packed as they are for every remote job."""
    folder = tmp_path_factory.mktemp("code")
    found = package(folder, folder / "code.tar.gz", packager="none", include=[]).archive
    assert found
    return found


def profile(**values: Any) -> LeptonProfile:
    mounts = [{"path": "/project", "mount_path": "/mnt/shared", "from": "node-nfs:testbed"}]
    given = {"image": "registry.example/image:1", "node_group": NODE_GROUP, "resource_shape": "cpu.small"}
    return LeptonProfile(**{**given, "nemo_run_dir": "/mnt/shared/nemo", "mounts": mounts, **values})


def place(**values: Any) -> LeptonPlace:
    return LeptonPlace(profile(**values), LeptonApi(timeout=10, pause=0.05))


def impatient(**values: Any) -> LeptonPlace:
    return LeptonPlace(profile(**values), LeptonApi(timeout=2, tries=2, pause=0.05))


def launch(where: LeptonPlace, tail: str = "1795214403955-ad07", **values: Any) -> PlainJob:
    run_id = f"probe_{tail}"
    return PlainJob(id=run_id, recipe="probe", run_dir=Path(f"{where.run_root()}/{run_id}"), **values)


def submit(where: LeptonPlace, how: PlainJob, home: Path, **args: Any) -> SchedulerJob:
    """Submit a probe by a stock experiment."""
    import nemo_run as run

    from scripts.args.meaning import Torchrun
    from scripts.args.probe import ProbeArgs
    from scripts.entrypoints import probe

    task = run.Partial(probe, args=run.Config(ProbeArgs, **args), torchrun=run.Config(Torchrun))
    options = {"base_dir": str(home), "skip_status_at_exit": True, "enable_goodbye_message": False}
    with run.Experiment("probe", id=how.id, log_level="WARN", **options) as experiment:
        experiment.add(task, executor=where.executor(how), name=how.recipe)
        return where.submit(experiment, how)


def end_of(where: LeptonPlace, job: SchedulerJob, seconds: float = 90) -> Any:
    """The state a job ended in."""
    return wait_for(where, job, ("succeeded", "failed", "cancelled"), seconds)


def wait_for(where: LeptonPlace, job: SchedulerJob, states: tuple[str, ...], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        state = where.states([job])[job.run_id]
        if state and state.state in states:
            return state
        assert time.monotonic() < deadline, f"{state}\n{where.log(job, 'rank0.log', 0).decode()}"
        time.sleep(0.3)


def told(where: LeptonPlace, job: SchedulerJob, text: str, seconds: float = 60) -> str:
    """The log of a job, once it contains `text`."""
    deadline = time.monotonic() + seconds
    while text not in (log := where.log(job, "rank0.log", 0).decode()):
        assert time.monotonic() < deadline, log
        time.sleep(0.3)
    return log


def report(workspace: LeptonWorkspace, job: SchedulerJob) -> list[dict[str, Any]]:
    """What the ranks of a probe wrote into the run directory, on the storage."""
    folder = workspace.storage(job.run_dir.replace("/mnt/shared", "/project"))
    ranks: list[dict[str, Any]] = json.loads((folder / "report" / "probe.json").read_text())["ranks"]
    return ranks


def test_a_run_succeeds_and_its_record_is_read_back(workspace: LeptonWorkspace, archive: Path, tmp_path: Path) -> None:
    where = place()
    job = submit(where, launch(where, archive=archive), tmp_path / "home", message="hello from afar")
    assert job.id == "probe-1795214403955-ad07"
    assert end_of(where, job).state == "succeeded"
    record = where.records([job])[job.run_id]
    assert record["state"] == "succeeded"
    assert record["id"] == job.run_id
    (rank,) = report(workspace, job)
    assert rank["message"] == "hello from afar"
    assert rank["code"] == "/nemo_run/code/.recipes/scripts"  # what was packed ran, and not what is installed
    assert rank["cwd"] == "/nemo_run/code"
    log = where.log(job, "rank0.log", 0)
    assert b"hello from afar" in log
    assert b"DOWNLOAD" not in log
    assert where.log(job, "rank0.log", 10) == log[10:]
    others = [replace(job, run_id=f"other_{n}", id=f"other-{n}") for n in range(4)]  # enough to ask for a list
    states = where.states([job, *others])
    assert [state and state.state for state in states.values()] == ["succeeded", None, None, None, None]
    assert [request["kind"] for request in workspace.requests].count(
        "create"
    ) == 1  # one job, no second that moves data


def test_a_failure_is_told_with_its_record(workspace: LeptonWorkspace, archive: Path, tmp_path: Path) -> None:
    where = place()
    job = submit(where, launch(where, archive=archive), tmp_path / "home", exit_code=7)
    state = end_of(where, job)
    assert (state.state, state.name) == ("failed", "job_failed")
    assert where.records([job])[job.run_id]["error"]["name"] == "told_to_fail"


def test_cancel_lets_the_job_record_it_and_keeps_the_log(
    workspace: LeptonWorkspace, archive: Path, tmp_path: Path
) -> None:
    where = place()
    job = submit(where, launch(where, archive=archive), tmp_path / "home", message="staying", seconds=120)
    told(where, job, "staying")
    assert where.records([job]) == {}
    began = time.monotonic()
    assert b"staying" in where.log(job, "rank0.log", 0)
    assert time.monotonic() - began < 4
    where.cancel(job)
    assert end_of(where, job).state == "cancelled"
    where.cancel(job)
    assert where.records([job])[job.run_id]["state"] == "cancelled"
    assert b"cancelled by SIGTERM" in where.log(job, "rank0.log", 0)


def test_cancel_of_an_ended_job_does_not_rename_its_end(
    workspace: LeptonWorkspace, archive: Path, tmp_path: Path
) -> None:
    where = place()
    job = submit(where, launch(where, archive=archive), tmp_path / "home")
    end_of(where, job)
    where.cancel(job)
    assert end_of(where, job).state == "succeeded"
    assert "stop" not in [request["kind"] for request in workspace.requests]


def test_two_submissions_at_the_same_moment(workspace: LeptonWorkspace, archive: Path, tmp_path: Path) -> None:
    where = place()
    jobs: list[SchedulerJob] = []

    def one(tail: str) -> None:
        jobs.append(submit(where, launch(where, tail, archive=archive), tmp_path / "home", message=tail))

    threads = [threading.Thread(target=one, args=(f"1795214403955-00{n}{n}",)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({job.id for job in jobs}) == 2
    for job in jobs:
        assert end_of(where, job).state == "succeeded"
        assert report(workspace, job)[0]["message"] == job.run_id.removeprefix("probe_")


def test_torchrun_on_two_nodes_with_two_processes_each(
    workspace: LeptonWorkspace, archive: Path, tmp_path: Path
) -> None:
    where = place()
    how = launch(where, archive=archive, nodes=2, processes=2, ranked=True)
    job = submit(where, how, tmp_path / "home")
    assert end_of(where, job, 120).state == "succeeded", where.log(job, "rank0.log", 0).decode()
    ranks = report(workspace, job)
    assert [rank["rank"] for rank in ranks] == [0, 1, 2, 3]
    assert {rank["host"] for rank in ranks} == {f"{job.id}-0", f"{job.id}-1"}
    assert {rank["sum_of_ranks"] for rank in ranks} == {6}
    assert where.records([job])[job.run_id]["state"] == "succeeded"
    (created,) = [request["body"] for request in workspace.requests if request["kind"] == "create"]
    assert created["spec"]["completions"] == created["spec"]["parallelism"] == 2
    assert created["spec"]["intra_job_communication"] is True


def test_two_nodes_without_torchrun_run_one_process(workspace: LeptonWorkspace, archive: Path, tmp_path: Path) -> None:
    where = place()
    job = submit(where, launch(where, archive=archive, nodes=2), tmp_path / "home", message="alone")
    assert end_of(where, job).state == "succeeded"
    assert [rank["host"] for rank in report(workspace, job)] == [f"{job.id}-0"]
    assert where.log(job, "node1.log", 0) == b""


def test_hostile_values_arrive_as_written(workspace: LeptonWorkspace, archive: Path, tmp_path: Path) -> None:
    shown = "printf '%s' \"$HOSTILE\" > /mnt/shared/seen; printf '%s' $$ > /mnt/shared/pid"
    where = place(env={"HOSTILE": HOSTILE, "PYTHONPATH": "/user/path"}, pre_launch=[shown])
    job = submit(where, launch(where, archive=archive), tmp_path / "home", message=HOSTILE)
    assert end_of(where, job).state == "succeeded"
    assert report(workspace, job)[0]["message"] == HOSTILE
    assert workspace.storage("/project/seen").read_text() == HOSTILE
    assert workspace.storage("/project/pid").read_text().isdigit()
    variables = {env["name"]: env.get("value") for env in workspace.jobs[job.id].body["spec"]["envs"]}
    assert variables["PYTHONPATH"] == "/nemo_run/code/.recipes:/nemo_run/code:/user/path"


def test_a_failing_pre_launch_line_fails_the_job(workspace: LeptonWorkspace, archive: Path, tmp_path: Path) -> None:
    where = place(pre_launch=["true", "ls /no/such/folder"])
    job = submit(where, launch(where, archive=archive), tmp_path / "home")
    assert end_of(where, job).state == "failed"
    assert b"failed: pre_launch: ls /no/such/folder" in where.log(job, "rank0.log", 0)


def test_secrets_travel_by_reference_only(
    workspace: LeptonWorkspace, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", MARKER)
    monkeypatch.setenv("WANDB_API_KEY", MARKER)
    check = '[ "$HF_TOKEN" = hf-value ] && [ "$WANDB_API_KEY" = wandb-value ]'
    where = place(secrets=["HF_TOKEN", "WANDB_API_KEY"], secret_names={"WANDB_API_KEY": "my-wandb"}, pre_launch=[check])
    job = submit(where, launch(where, archive=archive), tmp_path / "home")
    assert end_of(where, job).state == "succeeded", where.log(job, "rank0.log", 0).decode()
    envs = {env["name"]: env for env in workspace.jobs[job.id].body["spec"]["envs"]}
    assert envs["WANDB_API_KEY"] == {"name": "WANDB_API_KEY", "value_from": {"secret_name_ref": "my-wandb"}}
    assert MARKER not in json.dumps(workspace.requests)
    from nemo_run.run.torchx_backend.schedulers.lepton import LEPTON_JOB_DIRS

    files = [file for file in [*tmp_path.rglob("*"), Path(LEPTON_JOB_DIRS)] if file.is_file()]
    assert [file for file in files if MARKER.encode() in file.read_bytes()] == []
    assert any(file.name == "run.json" for file in files)  # the search looked where things are


def test_unauthorized_says_how_to_log_in(
    workspace: LeptonWorkspace, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEPTON_WORKSPACE_TOKEN", "not-the-token")
    where = place()
    with pytest.raises(SubmitError, match=r"lepton_unauthorized.*lep login") as error:
        submit(where, launch(where, archive=archive), tmp_path / "home")
    assert "not-the-token" not in str(error.value)
    job = SchedulerJob(run_id="x", id="x", run_dir="/x", folder="/nemo_run")
    with pytest.raises(UnreachableError, match="lepton_unauthorized"):
        where.states([job])
    workspace.fail("create", 401)
    monkeypatch.setenv("LEPTON_WORKSPACE_TOKEN", workspace.environment["LEPTON_WORKSPACE_TOKEN"])
    with pytest.raises(SubmitError, match="lepton_unauthorized"):
        submit(where, launch(where, "2", archive=archive), tmp_path / "home")
    assert workspace.jobs == {}


@pytest.mark.parametrize("answer", [500, "hang"])
def test_a_create_whose_answer_was_lost_is_taken_up(
    workspace: LeptonWorkspace, archive: Path, tmp_path: Path, answer: int | str
) -> None:
    where = impatient()
    workspace.fail("create", answer, done=True)
    job = submit(where, launch(where, archive=archive), tmp_path / "home")
    assert list(workspace.jobs) == [job.id]
    assert end_of(where, job).state == "succeeded"


def test_409_of_our_own_earlier_attempt_is_taken_up(workspace: LeptonWorkspace, archive: Path, tmp_path: Path) -> None:
    where = place()
    first = submit(where, launch(where, archive=archive), tmp_path / "one", seconds=1)
    again = submit(where, launch(where, archive=archive), tmp_path / "two", seconds=1)
    assert first == again
    assert [request["kind"] for request in workspace.requests].count("create") == 2
    assert end_of(where, again).state == "succeeded"


def test_409_of_another_job_is_refused_and_leaves_it_alone(
    workspace: LeptonWorkspace, archive: Path, tmp_path: Path
) -> None:
    other = place(nemo_run_dir="/mnt/shared/somebody-else")
    theirs = submit(other, launch(other, archive=archive), tmp_path / "one", seconds=1)
    where = place()
    with pytest.raises(SubmitError, match="name_taken"):
        submit(where, launch(where, archive=archive), tmp_path / "two")
    assert end_of(other, theirs).state == "succeeded"


def test_500_once_is_tried_again(workspace: LeptonWorkspace, archive: Path, tmp_path: Path) -> None:
    where = place()
    for kind in ("groups", "create", "job", "replicas", "log"):
        workspace.fail(kind, 500)
    job = submit(where, launch(where, archive=archive), tmp_path / "home")
    assert end_of(where, job).state == "succeeded"
    assert where.records([job])[job.run_id]["state"] == "succeeded"
    assert len(workspace.jobs) == 1


def test_500_always_ends_in_one_clear_error(workspace: LeptonWorkspace, archive: Path, tmp_path: Path) -> None:
    where = place()
    workspace.fail("create", 500, times=99)
    with pytest.raises(SubmitError, match=r"lepton_server_error.*answered 500 \(creating the job\)"):
        submit(where, launch(where, archive=archive), tmp_path / "home")
    assert [request["kind"] for request in workspace.requests].count("create") == 3
    assert workspace.jobs == {}


def test_a_service_that_never_answers(workspace: LeptonWorkspace, archive: Path, tmp_path: Path) -> None:
    where = impatient()
    how = launch(where, archive=archive)
    workspace.fail("create", "hang", times=99)
    with pytest.raises(SubmitError, match=r"lepton_timeout.*no answer within 2 s"):
        submit(where, how, tmp_path / "one")
    workspace.fail("job", "hang", times=99)  # and now it cannot even be told whether the job is there
    with pytest.raises(SubmitError, match=rf"lepton_timeout.*cannot be told.*lep job get --id {job_name(how.id)}"):
        submit(where, how, tmp_path / "two")
    with pytest.raises(UnreachableError, match="lepton_timeout"):
        where.states([SchedulerJob(run_id="x", id="x", run_dir="/x", folder="/nemo_run")])


def test_a_log_that_hangs_is_left(workspace: LeptonWorkspace, archive: Path, tmp_path: Path) -> None:
    where = place()
    job = submit(where, launch(where, archive=archive), tmp_path / "home")
    end_of(where, job)
    workspace.fail("log", "hang")
    began = time.monotonic()
    assert where.log(job, "rank0.log", 0) == b""
    assert time.monotonic() - began < 3
    workspace.fail("log", "hang", times=99)
    with pytest.raises(UnreachableError, match="lepton_timeout"):
        where.records([job])


def test_a_service_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEPTON_WORKSPACE_ID", "testbed")
    monkeypatch.setenv("LEPTON_WORKSPACE_TOKEN", "any")
    monkeypatch.setenv("LEPTON_WORKSPACE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    where = place()
    with pytest.raises(SubmitError, match="lepton_unreachable"):
        submit(where, launch(where), tmp_path / "home")


def test_a_broken_bookkeeping_does_not_lose_a_job_that_was_made(
    workspace: LeptonWorkspace, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemo_run.run.torchx_backend.schedulers import lepton as books

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(books, "_save_job_dir", full)
    where = place()
    job = submit(where, launch(where, archive=archive), tmp_path / "home")
    assert end_of(where, job).state == "succeeded"


def test_a_package_too_large_is_refused_before_anything_is_asked(workspace: LeptonWorkspace, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "weights.bin").write_bytes(os.urandom(900_000))
    archive = package(code, tmp_path / "code.tar.gz", packager="pattern", include=["*"]).archive
    where = place()
    with pytest.raises(SubmitError, match=r"package_too_large.*packager: pattern"):
        submit(where, launch(where, archive=archive), tmp_path / "home")
    assert workspace.requests == []


def test_a_package_of_several_pieces_arrives_whole(workspace: LeptonWorkspace, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    left = PACKAGE_LIMIT * 3 // 4 - plan(code, packager="none", include=[]).bytes
    (code / "data.bin").write_bytes(os.urandom(left // 2))
    archive = package(code, tmp_path / "code.tar.gz", packager="pattern", include=["*"]).archive
    where = place(pre_launch=["cp /nemo_run/code/data.bin /mnt/shared/data.bin"])
    job = submit(where, launch(where, archive=archive), tmp_path / "home")
    assert end_of(where, job).state == "succeeded"
    assert workspace.storage("/project/data.bin").read_bytes() == (code / "data.bin").read_bytes()
    pieces = workspace.jobs[job.id].body["spec"]["container"]["command"][4:]
    assert len(pieces) > 4
    assert max(map(len, pieces)) < 100 * 1024


def test_the_text_is_what_is_sent(workspace: LeptonWorkspace, archive: Path, tmp_path: Path) -> None:
    import nemo_run as run

    from scripts.entrypoints import probe

    where = place(queue_priority="high-7000", image_pull_secrets=["registry"], secrets=["HF_TOKEN"])
    how = launch(where, archive=archive)
    with run.Experiment("probe", id=how.id, log_level="WARN", base_dir=str(tmp_path / "home")) as experiment:
        experiment.add(run.Partial(probe), executor=where.executor(how), name=how.recipe)
        text, _, script = where.text(experiment, how).partition("\n\n# launch.sh, in the package:\n")
        assert workspace.requests == []
        assert not (tmp_path / "home" / "experiments" / "probe" / how.id).exists()
        where.submit(experiment, how)
    shown = json.loads(text)
    (sent,) = [request["body"] for request in workspace.requests if request["kind"] == "create"]
    from leptonai.api.v1.types.job import LeptonJob

    assert shown["spec"]["affinity"]["allowed_dedicated_node_groups"] == [f"<id of node group {NODE_GROUP}>"]
    shown["spec"]["affinity"] = sent["spec"]["affinity"]
    assert readable(LeptonJob(**sent)) == shown
    assert shown["spec"]["queue_config"] == {"priority_class": "high-7000"}
    assert shown["spec"]["image_pull_secrets"] == ["registry"]
    assert script.endswith(
        "exec python -m nemo_run.core.runners.fdl_runner -n probe /nemo_run/configs/probe_fn_or_script\n"
    )


def test_a_job_that_is_gone_is_not_known(workspace: LeptonWorkspace) -> None:
    jobs = [SchedulerJob(run_id=f"r{n}", id=f"gone-{n}", run_dir="/x", folder="/nemo_run") for n in range(5)]
    where = place()
    assert where.states(jobs[:1]) == {"r0": None}
    assert where.states(jobs) == {job.run_id: None for job in jobs}
    assert where.records(jobs) == {}
    assert where.log(jobs[0], "rank0.log", 0) == b""
    where.cancel(jobs[0])


def test_logs_outlive_the_pods(workspace: LeptonWorkspace, archive: Path, tmp_path: Path) -> None:
    where = place()
    job = submit(where, launch(where, archive=archive), tmp_path / "home", message="remembered")
    end_of(where, job)
    before = where.log(job, "rank0.log", 0)
    workspace.forget_pods(job.id)
    assert where.log(job, "rank0.log", 0) == before
    assert where.records([job])[job.run_id]["state"] == "succeeded"


def test_probes_of_a_good_and_of_a_bad_profile(workspace: LeptonWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    good = list(place(secrets=["HF_TOKEN"], nodes=2).probes())
    assert [probe.name for probe in good] == ["profile", "login", "service", "node group", "nodes", "secrets"]
    assert all(probe.passed for probe in good)
    bad = {probe.name: probe for probe in place(secrets=["NGC_CLI_API_KEY"], nodes=3, image="").probes()}
    assert not bad["profile"].passed
    assert not bad["nodes"].passed
    assert "NGC_CLI_API_KEY" in bad["secrets"].detail
    (group,) = [probe for probe in place(node_group="elsewhere").probes() if not probe.passed]
    assert NODE_GROUP in group.remedy
    monkeypatch.setenv("LEPTON_WORKSPACE_TOKEN", "wrong")
    last = list(place().probes())[-1]
    assert not last.passed
    assert "lep login" in last.remedy


def test_no_login_at_all(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LEPTON_")}
    env["LEPTON_CACHE_DIR"] = str(tmp_path)  # the SDK reads it once, when it is imported; no login is in it
    code = "from executors.lepton.api import LeptonApi; LeptonApi().node_groups()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1]
    assert "lepton_login_missing" in last
    assert "lep login" in last


def test_an_image_whose_root_cannot_be_written_says_so(tmp_path: Path) -> None:
    start = job_specification(profile(), launch(place()), {}, b"", "ng").spec.container.command
    nobody = 65534
    done = subprocess.run(start, user=nobody, group=nobody, cwd="/", capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "failed: image_read_only" in done.stderr


STOCK = """
import nemo_run as run

from executors.kinds import executor_of
from executors.lepton.place import LeptonProfile
from tests.integration.executors.test_lepton import profile

if __name__ == "__main__":
    script = run.Script(inline="echo rendezvous $MASTER_ADDR $MASTER_PORT $NNODES $NODE_RANK; sleep 3")
    executor = executor_of(profile(), nodes=2)
    with run.Experiment("stock", skip_status_at_exit=True, enable_goodbye_message=False) as experiment:
        experiment.add(script, executor=executor, name="stock")
        experiment.run(detach=True)
"""


def test_the_factory_in_an_experiment_of_nemo_run_itself(workspace: LeptonWorkspace, tmp_path: Path) -> None:
    """Everything here is NeMo-Run's: data mover, launch script, job name. Nothing is downloaded all the same."""
    program = tmp_path / "stock.py"
    program.write_text(STOCK)
    env = {**os.environ, "NEMORUN_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    where = place()
    job = SchedulerJob(run_id="stock", id="stock", run_dir="/x", folder="/nemo_run")
    assert end_of(where, job).state == "succeeded", where.log(job, "rank0.log", 0).decode()
    for index in (0, 1):
        log = where.log(job, f"node{index}.log", 0).decode()
        assert f"rendezvous stock-0.stock-job-svc 29400 2 {index}" in log
        assert "DOWNLOAD" not in log
