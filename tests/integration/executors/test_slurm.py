"""Jobs on a real Slurm cluster of two nodes, on its login node and over SSH.

Stand-ins: Pyxis (a SPANK plugin that does mounts and chroot, tests/testbed/minipyxis.c) and enroot
(a script that writes a file), neither of which Debian has. Everything else is the real thing.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from executors.base import JobState, SchedulerJob, SubmitError, UnreachableError
from executors.slurm.place import SlurmPlace, SlurmProfile
from executors.slurm.submit import SubmissionUnknownError
from scripts.args.probe import ProbeArgs
from tests.jobs import PlainJob
from tests.testbed.slurm import ENROOT, Cluster, Login, executable, slurm_cluster
from tests.testbed.waiting import until

pytestmark = pytest.mark.integration

#: The job's Python is this one, as a user's `source venv/bin/activate` would have it.
PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
FINAL = ("succeeded", "failed", "cancelled")


@dataclass
class Site:
    """One test's view of the cluster: a home for NeMo-Run, a folder for job files, and short names."""

    cluster: Cluster
    folder: Path
    profile: SlurmProfile

    def place(self, **values: Any) -> SlurmPlace:
        return SlurmPlace(profile=replace(self.profile, **values))

    def launch(self, place: SlurmPlace, **values: Any) -> PlainJob:
        run_id = f"probe_{time.time_ns() // 1_000_000}-{secrets.token_hex(2)}"
        return PlainJob(**{"id": run_id, "recipe": "probe", "run_dir": Path(f"{place.run_root()}/{run_id}"), **values})

    def submit(self, place: SlurmPlace, launch: PlainJob, **args: Any) -> SchedulerJob:
        with experiment(place, launch, **args) as opened:
            return place.submit(opened, launch)

    def run(self, place: SlurmPlace, launch: PlainJob | None = None, **args: Any) -> SchedulerJob:
        return self.submit(place, launch or self.launch(place), **args)


@contextmanager
def experiment(place: SlurmPlace, launch: PlainJob, **args: Any) -> Iterator[Any]:
    import nemo_run as run
    from rich.console import Console

    from scripts.entrypoints import probe

    title = launch.id.rpartition("_")[0]
    opened = run.Experiment(
        title, id=launch.id, log_level="WARN", enable_goodbye_message=False, skip_status_at_exit=True
    )
    opened.console = Console(quiet=True)
    with opened:
        opened.add(run.Partial(probe, args=run.Config(ProbeArgs, **args)), place.executor(launch), name=launch.recipe)
        try:
            yield opened
        finally:
            opened.detach = True


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    from nemo_run.config import get_nemorun_home, set_nemorun_home

    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = get_nemorun_home()
    set_nemorun_home(str(tmp_path / "home"))
    profile = SlurmProfile(env={"PATH": PATH, "OMP_NUM_THREADS": "1"}, account="acct", time="10")
    with Path(os.devnull).open() as nothing:  # NeMo-Run's shell commands read from the terminal, and pytest has none
        monkeypatch.setattr(sys, "stdin", nothing)
        yield Site(cluster=cluster, folder=tmp_path, profile=profile)
    set_nemorun_home(before)


@pytest.fixture
def remote(site: Site, login: Login, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The same cluster for somebody who is elsewhere: no SLURM_CONF, only ssh."""
    monkeypatch.delenv("SLURM_CONF")
    for name, value in login.env.items():
        monkeypatch.setenv(name, value)
    profile = replace(
        site.profile,
        host=login.host,
        port=login.port,
        user=login.user,
        identity=login.identity,
        job_dir=f"{site.folder}/remote",
        env={"PATH": PATH, "OMP_NUM_THREADS": "1"},
    )
    place = SlurmPlace(profile=profile)
    yield replace(site, profile=profile)
    (login.bin / "sbatch").unlink(missing_ok=True)
    site.cluster.revive(login.daemon)
    place.shell.close()


def state(place: SlurmPlace, job: SchedulerJob) -> JobState:
    found = place.states([job])[job.run_id]
    assert found is not None
    return found


def ended(place: SlurmPlace, job: SchedulerJob, seconds: float = 90.0) -> JobState:
    until(lambda: state(place, job).state in FINAL, seconds)
    return state(place, job)


def record(place: SlurmPlace, job: SchedulerJob) -> dict[str, Any]:
    return place.records([job])[job.run_id]


def report(job: SchedulerJob) -> list[dict[str, Any]]:
    ranks: list[dict[str, Any]] = json.loads((Path(job.run_dir) / "report" / "probe.json").read_text())["ranks"]
    return ranks


def launcher_log(job: SchedulerJob) -> str:
    return "\n".join(file.read_text(errors="replace") for file in sorted(Path(job.folder).glob("*.out")))


def test_a_job_is_seen_from_submission_to_its_end(site: Site) -> None:
    place = site.place()
    began = time.monotonic()
    job = site.run(place, message='it\'s $HOME "quoted"', seconds=1.0)
    assert time.monotonic() - began < 10
    assert job.id.isdigit()
    assert state(place, job).state in ("submitted", "running")
    assert ended(place, job) == JobState(state="succeeded", detail="COMPLETED"), launcher_log(job)
    assert record(place, job)["state"] == "succeeded"
    assert report(job)[0]["message"] == 'it\'s $HOME "quoted"'
    log = place.log(job, "rank0.log", 0)
    assert b"rank 0 of 1" in log
    assert place.log(job, "rank0.log", 10) == log[10:]


def test_four_ranks_on_two_nodes_find_each_other(site: Site) -> None:
    place = site.place()
    job = site.run(place, site.launch(place, nodes=2, processes=2, ranked=True))
    assert ended(place, job, 240).state == "succeeded", launcher_log(job)
    ranks = report(job)
    assert [rank["sum_of_ranks"] for rank in ranks] == [6, 6, 6, 6]
    assert sorted(rank["environment"]["SLURM_NODEID"] for rank in ranks) == ["0", "0", "1", "1"]
    assert b"rank 3 of 4" in place.log(job, "rank3.log", 0)


def test_without_torchrun_two_nodes_run_one_process(site: Site) -> None:
    place = site.place()
    job = site.run(place, site.launch(place, nodes=2))
    assert ended(place, job).state == "succeeded", launcher_log(job)
    assert site.cluster.run("sacct", "-XnPj", job.id, "-o", "NNodes").strip() == "2"
    assert [rank["environment"]["SLURM_NODEID"] for rank in report(job)] == ["0"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_container_sees_its_mounts_and_nothing_else_stays(site: Site, nodes: int) -> None:
    inside = site.folder / "the $data"
    inside.mkdir()
    (inside / "file").write_text("here")
    place = site.place(
        image="nvcr.io/nvidia/nemo:25.09", mounts=[f"{inside}:/mounted/my data:ro"], workdir="/mounted/my data"
    )
    launch = site.launch(place, nodes=nodes, processes=nodes, ranked=nodes > 1)
    job = site.run(place, launch)
    assert ended(place, job, 240).state == "succeeded", launcher_log(job)
    ranks = report(job)
    assert [rank["cwd"] for rank in ranks] == ["/mounted/my data"] * nodes**2
    assert not Path("/mounted").exists()
    script = (Path(job.folder).parent / "probe_sbatch.sh").read_text()
    assert "--container-image 'nvcr.io#nvidia/nemo:25.09'" in script


def test_what_the_image_sets_does_not_displace_what_the_job_needs(site: Site) -> None:
    """An image of its own: empty but for its environment, with this machine's Python mounted."""
    root = site.cluster.folder / "images" / "own_1"
    (root / "etc").mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "etc" / "minipyxis.env").write_text(
        "PYTHONPATH=/of/the/image\nPATH=/of/the/image\nOF_IMAGE=1\nNEMO_RUN_DIR=/x\n"
    )
    here = {Path(sys.prefix), Path(sys.base_prefix), Path(__file__).resolve().parents[3], Path("/usr")}
    mounts = [f"{folder}:{folder}:ro" for folder in sorted(here)]
    place = site.place(image="own:1", mounts=mounts)
    job = site.run(place)
    assert ended(place, job).state == "succeeded", launcher_log(job)
    assert "OF_IMAGE" in report(job)[0]["variables"]


def test_an_image_is_imported_once_and_again_when_forced(site: Site) -> None:
    tools = site.folder / "tools"
    tools.mkdir()
    executable(tools / "enroot", ENROOT)
    place = site.place(
        image="nvcr.io/nvidia/nemo:25.09",
        squash_dir=f"{site.folder}/squash",
        env={**site.profile.env, "PATH": f"{tools}:{PATH}"},
    )
    both = [site.run(place), site.run(place)]  # at the same time
    assert [ended(place, job).state for job in both] == ["succeeded", "succeeded"], launcher_log(both[0])
    file = site.folder / "squash" / "nvcr.io+nvidia+nemo+25.09.sqsh"
    assert file.read_text() == "squashed docker://nvcr.io#nvidia/nemo:25.09\n"
    assert (tools / "imports.log").read_text().count("\n") == 1
    forced = site.run(place, site.launch(place, force_squash=True))
    assert ended(place, forced).state == "succeeded", launcher_log(forced)
    assert (tools / "imports.log").read_text().count("\n") == 2
    assert [path.name for path in file.parent.glob("*.part")] == []

    failing = site.place(image="absent/image", squash_dir=f"{site.folder}/squash", env=place.profile.env)
    job = site.run(failing)
    assert ended(failing, job) == JobState(
        state="failed", name="job_failed", detail="FAILED exit code 1:0 (NonZeroExitCode)"
    )
    assert b"404 Not Found" in failing.log(job, "rank0.log", 0)


def test_a_failing_job_says_so_and_another_attempt_succeeds(site: Site) -> None:
    place = site.place()
    job = site.run(place, exit_code=3)
    again = site.place(retries=1)
    retried = site.run(again, exit_code=3, fail_attempts=1)
    failed = ended(place, job)
    assert (failed.state, failed.name) == ("failed", "job_failed")
    assert "exit code 3:0" in failed.detail
    assert record(place, job)["error"]["name"] == "told_to_fail"
    assert ended(again, retried, 120).state == "succeeded", launcher_log(retried)
    assert [attempt["state"] for attempt in record(again, retried)["attempts"]] == ["failed"]


def test_cancel_ends_a_waiting_and_a_running_job(site: Site) -> None:
    held = site.place(additional={"hold": ""})
    waiting = site.run(held)
    assert state(held, waiting).state == "submitted"
    assert "JobHeldUser" in state(held, waiting).detail
    held.cancel(waiting)
    assert ended(held, waiting).state == "cancelled"

    place = site.place(retries=3)  # none of which may follow
    job = site.run(place, seconds=120.0)
    until(lambda: (Path(job.run_dir) / "run.json").exists() and record(place, job)["state"] == "running")
    place.cancel(job)
    assert ended(place, job) == JobState(state="cancelled", name="cancelled", detail="CANCELLED")
    until(lambda: record(place, job)["state"] == "cancelled")
    assert "Restarts=0 " in site.cluster.run("scontrol", "show", "job", job.id)
    assert state(place, job).state == "cancelled"
    place.cancel(job)  # what has ended is no error
    assert place.log(replace(job, run_dir="/nowhere"), "rank0.log", 0)  # the launcher's own


def test_a_lost_node_is_named_and_requeue_can_be_forbidden(site: Site) -> None:
    place = site.place(requeue=False, nodelist="n2")
    job = site.run(place, seconds=120.0)
    until(lambda: state(place, job).state == "running" and (Path(job.run_dir) / "run.json").exists())
    site.cluster.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    try:
        assert ended(place, job) == JobState(state="failed", name="node_failed", detail="NODE_FAIL (NodeDown)")
    finally:
        site.cluster.run("scontrol", "update", "NodeName=n2", "State=RESUME", check=False)  # refused when it is back
        site.cluster.wait_for("sinfo", "-hn", "n2", "-t", "idle", "-o", "%N", until=lambda text: "n2" in text)


def test_an_array_is_one_job_with_a_log_for_each_element(site: Site) -> None:
    import nemo_run as run

    from recipes.experiment.job import serialized
    from scripts.entrypoints import probe
    from scripts.run.session import run_element

    place = site.place()
    launch = site.launch(place, array=4)
    run_dirs = [f"{place.run_root()}/{launch.id}-{i}" for i in range(4)]
    jobs = [run.Partial(probe, args=run.Config(ProbeArgs, message=f"no {i}", exit_code=i % 2)) for i in range(4)]
    opened = run.Experiment("array", id=launch.id, log_level="WARN", skip_status_at_exit=True)
    with opened:
        partial = run.Partial(run_element, run_dirs=run_dirs, jobs=list(map(serialized, jobs)))
        opened.add(partial, executor=place.executor(launch), name=launch.recipe)
        whole = place.submit(opened, launch)
    elements = [replace(whole, id=f"{whole.id}_{i}", run_id=f"{launch.id}-{i}", run_dir=run_dirs[i]) for i in range(4)]
    assert {found.state for found in place.states(elements).values() if found} <= {"submitted", "running"}
    until(lambda: all(found and found.state in FINAL for found in place.states(elements).values()))
    found = place.states(elements)
    assert [found[element.run_id].state for element in elements] == ["succeeded", "failed"] * 2  # type: ignore[union-attr]
    for i, element in enumerate(elements):
        assert record(place, element)["values"]["args"]["message"] == f"no {i}"
        own = place.log(element, "rank0.log", 0)
        theirs = place.log(replace(element, run_dir="/nowhere"), "rank0.log", 0)
        assert f"no {i}".encode() in own
        assert f"no {i}".encode() in theirs


def test_a_job_waits_for_others_and_goes_with_them(site: Site) -> None:
    place = site.place()
    first, failing = site.run(place, seconds=2.0), site.run(place, exit_code=1)
    second = site.run(place, site.launch(place, waits_for=(first.id,)))
    third = site.run(place, site.launch(place, waits_for=(first.id, failing.id)))
    assert "Dependency" in state(place, second).detail
    assert ended(place, second).state == "succeeded"
    assert record(place, second)["started_at"] > record(place, first)["finished_at"]
    gone = ended(place, third)
    assert (gone.state, gone.name) == ("cancelled", "dependency_failed")
    with pytest.raises(SubmitError) as refused:
        site.run(place, site.launch(place, waits_for=("999999",)))
    assert refused.value.name == "dependency_failed"
    assert "999999" in refused.value.cause  # which Slurm itself would take for one that succeeded


HOSTILE = {
    "lower_case": "kept",
    "SPACES": "  two  words  ",
    "QUOTES": 'it\'s "so" `x` \\ \\n',
    "DOLLAR": "$HOME ${HOME} $(id) !! ; rm -rf x & | > <",
    "LINES": "one\ntwo\n#SBATCH --nodes=99\n",
    "DOS": "a\r\nb'c\\d",
    "FOLDER": "/srv/nemo_run/code and /nemo_run",
    "DOS_FOLDER": "/srv/nemo_run\r",
    "EMPTY": "",
    "UNICODE": "žluťoučký",
}


@pytest.mark.parametrize("image", [None, "any"])
def test_values_arrive_as_written(site: Site, image: str | None) -> None:
    out = site.folder / "environment"
    here = f"""{site.folder}/it's $1 "a" \\ b"""
    comment = 'it\'s $HOME "quoted" \\ # not a comment'
    place = site.place(
        image=image,
        env={**site.profile.env, **HOSTILE},
        comment=comment,
        setup=[
            f"env -0 > '{out}'",
            f'mkdir -p {json.dumps(here)[:-1].replace("$", chr(92) + "$")}" # /nemo_run stays',
            f"echo '/nemo_run/code' > '{site.folder}/literal'",
            'export ALSO="$lower_case/nemo_run"',
            f'printf "%s" "$ALSO" > "{site.folder}/also"',
        ],
    )
    job = site.run(place)
    assert ended(place, job).state == "succeeded", launcher_log(job)
    found = dict(item.split("=", 1) for item in out.read_bytes().decode().split("\0") if item)
    assert {name: found.get(name) for name in HOSTILE} == HOSTILE
    assert Path(here).is_dir()
    assert (site.folder / "literal").read_text() == "/nemo_run/code\n"
    assert (site.folder / "also").read_text() == "kept/nemo_run"
    assert site.cluster.run("squeue", "-hj", job.id, "-t", "all", "-o", "%k").rstrip("\n") == comment
    assert set(HOSTILE) <= set(report(job)[0]["variables"])


def test_the_submitters_secrets_and_options_stay_with_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = f"marker-{secrets.token_hex(8)}"
    monkeypatch.setenv("HF_TOKEN", marker)
    monkeypatch.setenv("SBATCH_JOB_NAME", "theirs")
    monkeypatch.setenv("SBATCH_WAIT", "1")
    monkeypatch.setenv("SBATCH_ACCOUNT", "nobody")
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    place = site.place(secrets=["HF_TOKEN"], additional={"hold": ""})
    launch = site.launch(place)
    path = place.secrets_path(launch.id)
    assert path is not None
    place.stage({path: json.dumps({"HF_TOKEN": marker}).encode()})
    assert Path(path).stat().st_mode & 0o777 == 0o600
    job = site.run(place, replace(launch, secrets=path))
    assert site.cluster.run("squeue", "-hj", job.id, "-o", "%j").strip() == f"{launch.id}.probe"
    files = [file for folder in (site.cluster.folder, site.folder) for file in folder.rglob("*") if file.is_file()]
    holding = [file for file in files if marker.encode() in file.read_bytes()]
    assert holding == [Path(path)]
    environments = list(site.cluster.state.rglob(f"job.{job.id}/environment"))
    assert environments and b"PATH=" in environments[0].read_bytes()  # that was the right place to look
    site.cluster.run("scontrol", "release", job.id)
    assert ended(place, job).state == "succeeded", launcher_log(job)
    assert "HF_TOKEN" in report(job)[0]["variables"]
    assert not Path(path).exists()  # the job has used it up
    place.unstage([path])
    assert not Path(path).parent.exists()


def test_the_text_is_the_script_that_is_submitted(site: Site) -> None:
    place = site.place(image="any", retries=2, gpus=1)
    launch = site.launch(place, nodes=2, processes=2, ranked=True)
    with experiment(place, launch) as opened:
        text = place.text(opened, launch)
    assert not site.cluster.run("squeue", "-h", "-t", "all", f"--name={launch.id}.probe")
    place = site.place(image="any", retries=2, gpus=1, additional={"hold": ""})
    with experiment(place, launch) as opened:
        # An experiment's folder is made once; the first of the two was only looked at.
        shutil.rmtree(opened._exp_dir)
        job = place.submit(opened, launch)
    submitted = site.cluster.run("scontrol", "write", "batch_script", job.id, "-")
    assert (
        submitted.strip()
        == text.replace("#SBATCH --gpus-per-node=1\n", "#SBATCH --gpus-per-node=1\n#SBATCH --hold\n").strip()
    )
    place.cancel(job)


def test_files_of_a_login_node_with_a_folder_of_its_own(site: Site) -> None:
    """A job_dir that is not NeMo-Run's home: everything the job needs lies there."""
    place = site.place(job_dir=f"{site.folder}/shared")
    job = site.run(place)
    assert ended(place, job).state == "succeeded", launcher_log(job)
    assert job.folder.startswith(f"{site.folder}/shared/experiments/")
    assert job.run_dir.startswith(f"{site.folder}/shared/runs/")


@pytest.mark.parametrize(
    ("values", "name", "words"),
    [
        ({"partition": "nowhere"}, "invalid_partition", "invalid partition specified: nowhere"),
        ({"account": None, "additional": {"begin": "yesterday-ish"}}, "submission_failed", "begin"),
        ({"gpus": 99}, "invalid_request", "Requested node configuration is not available"),
    ],
)
def test_what_slurm_refuses_is_told_in_one_line(site: Site, values: dict[str, Any], name: str, words: str) -> None:
    place = site.place(**values)
    with pytest.raises(SubmitError) as refused:
        site.run(place)
    assert refused.value.name == name
    assert words in refused.value.cause
    assert refused.value.remedy


def test_a_controller_that_is_down(site: Site) -> None:
    place = site.place()
    job = site.run(place)
    assert ended(place, job).state == "succeeded"
    until(lambda: "COMPLETED" in site.cluster.run("sacct", "-XnPj", job.id, "-o", "State"))
    with site.cluster.without("slurmctld"):
        launch = site.launch(place)
        with pytest.raises(SubmitError) as refused:
            site.run(place, launch)
        assert refused.value.name == "slurm_down", refused.value
        assert state(place, job).state == "succeeded"  # accounting remembers
        with pytest.raises(UnreachableError):
            place.cancel(job)
        failed = {probe.name: probe for probe in place.probes() if not probe.passed}
        assert set(failed) == {"controller"}
        assert all(probe.remedy for probe in failed.values())
    assert not site.cluster.run("squeue", "-h", "-t", "all", f"--name={launch.id}.probe")


def test_without_accounting_the_controller_is_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with slurm_cluster(nodes=1, accounting=False) as bare:
        monkeypatch.setenv("SLURM_CONF", bare.env["SLURM_CONF"])
        place = site.place(account=None)
        job = site.run(place, exit_code=4)
        failed = ended(place, job)
        assert (failed.state, failed.name) == ("failed", "job_failed")
        assert "exit code 4:0" in failed.detail
        absent = replace(job, id="12345", run_id="absent")
        assert place.states([absent]) == {"absent": None}
        assert [probe.name for probe in place.probes() if not probe.passed] == ["accounting"]


def test_ctrl_c_while_submitting_leaves_no_job(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = site.folder / "sbatch"
    executable(wrapper, f'#!/bin/sh\nkill -INT {os.getpid()}\nsleep 1\nexec {shutil.which("sbatch")} "$@"\n')
    monkeypatch.setenv("PATH", f"{site.folder}:{os.environ['PATH']}")
    place = site.place(additional={"hold": ""})
    launch = site.launch(place)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            site.run(place, launch)
    finally:
        signal.signal(signal.SIGINT, before)
    states = site.cluster.run("squeue", "-ht", "all", f"--name={launch.id}.probe", "-o", "%T")
    assert states.split() == ["CANCELLED"]


def test_a_full_disk(site: Site) -> None:
    small = site.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", small], check=True)
    try:
        place = site.place(job_dir=str(small))
        with pytest.raises(SubmitError) as refused:
            site.run(place)
        assert refused.value.name == "disk_full"
        assert [probe.name for probe in place.probes() if not probe.passed] == ["job_dir", "run_dirs"]
    finally:
        subprocess.run(["umount", small], check=True)


def test_the_probes_of_a_cluster_that_is_ready(site: Site) -> None:
    found = list(site.place(squash_dir=f"{site.folder}/squash", image="any").probes())
    passed = [probe.name for probe in found if probe.passed]
    assert passed == [
        "commands",
        "controller",
        "accounting",
        "allocation",
        "job_dir",
        "run_dirs",
        "squash_dir",
        "containers",
    ]
    assert [(probe.name, bool(probe.remedy)) for probe in found if not probe.passed] == [("image", True)]  # no enroot
    outside = {probe.name: probe for probe in site.place().probes()}
    assert outside["python"].passed, outside["python"]
    broken = {
        probe.name: probe
        for probe in site.place(
            account="nobody", partition="nowhere", env={}, setup=["false; python() { return 1; }"]
        ).probes()
    }
    assert not broken["allocation"].passed
    assert "nowhere" in broken["allocation"].detail
    assert not broken["python"].passed


def test_the_factory_gives_an_executor_for_an_experiment_of_ones_own(site: Site) -> None:
    import nemo_run as run

    from executors.kinds import executor_of

    executor = executor_of(site.profile, nodes=2, comment="a b")
    with run.Experiment("own", log_level="WARN", skip_status_at_exit=True) as opened:
        opened.add(run.Script(inline="hostname"), executor=executor)
        opened.dryrun(log=False)
        script = opened.jobs[0]._dryrun_info.request.materialize()
    assert "#SBATCH --nodes=2" in script
    assert "#SBATCH --comment='a b'" in script


def test_over_ssh_a_job_goes_all_the_way(remote: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = f"marker-{secrets.token_hex(8)}"
    monkeypatch.setenv("HF_TOKEN", marker)
    place = remote.place(secrets=["HF_TOKEN"], comment="it's $HOME")
    launch = remote.launch(place)
    path = place.secrets_path(launch.id)
    assert path is not None
    place.stage({path: json.dumps({"HF_TOKEN": marker}).encode(), f"{launch.run_dir}/other": b"x" * 300_000})
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert (Path(launch.run_dir) / "other").stat().st_size == 300_000
    job = remote.submit(place, replace(launch, secrets=path), seconds=1.0)
    assert job.folder.startswith(f"{remote.folder}/remote/experiments/probe/")
    assert ended(place, job).state == "succeeded", launcher_log(job)
    assert record(place, job)["state"] == "succeeded"
    assert b"rank 0 of 1" in place.log(job, "rank0.log", 0)
    assert place.records([replace(job, run_id="none", run_dir="/nowhere"), job]).keys() == {job.run_id}
    holding = [
        file for file in remote.cluster.folder.rglob("*") if file.is_file() and marker.encode() in file.read_bytes()
    ]
    assert holding == []
    place.unstage([path, f"{launch.run_dir}/other"])
    assert not Path(path).parent.exists()
    running = remote.run(place, seconds=120.0)
    until(lambda: state(place, running).state == "running")
    place.cancel(running)
    assert ended(place, running).state == "cancelled"


def test_over_ssh_four_ranks_in_containers(remote: Site) -> None:
    place = remote.place(image="any")
    job = remote.run(place, remote.launch(place, nodes=2, processes=2, ranked=True))
    assert ended(place, job, 240).state == "succeeded", launcher_log(job)
    assert [rank["sum_of_ranks"] for rank in report(job)] == [6, 6, 6, 6]


def test_over_ssh_many_states_are_one_fast_question(remote: Site) -> None:
    place = remote.place(additional={"hold": ""})
    job = remote.run(place)
    jobs = [replace(job, run_id=f"{job.run_id}-{i}") for i in range(200)]
    began = time.monotonic()
    assert {found.state for found in place.states(jobs).values() if found} == {"submitted"}
    assert time.monotonic() - began < 2
    place.cancel(job)


#: An sbatch of the login node whose ssh session ends after it, or with the whole ssh daemon.
DROP = """#!/bin/sh
up() { while [ "$(cat /proc/$p/comm)" != sshd ]; do p=$(cut -d ' ' -f 4 /proc/$p/stat); done; }
real=/usr/bin/sbatch
p=$$; up; session=$p
p=$(cut -d ' ' -f 4 /proc/$p/stat); up; daemon=$p
case WHEN in
after) $real "$@" > /dev/null; kill -9 $session ;;
all) $real "$@" > /dev/null; kill -9 $daemon $session ;;
esac
"""


def test_a_submission_whose_answer_is_lost_is_completed(remote: Site, login: Login) -> None:
    executable(login.bin / "sbatch", DROP.replace("WHEN", "after"))
    place = remote.place()
    job = remote.run(place)
    assert job.id.isdigit()
    assert ended(place, job).state == "succeeded", launcher_log(job)
    assert len(remote.cluster.run("squeue", "-ht", "all", f"--name={job.run_id}.probe").splitlines()) == 1


def test_a_login_node_that_goes_silent_leaves_a_job_that_is_found_later(remote: Site, login: Login) -> None:
    executable(login.bin / "sbatch", DROP.replace("WHEN", "all"))
    place = remote.place()
    with pytest.raises(SubmissionUnknownError) as lost:
        remote.run(place, seconds=1.0)
    assert lost.value.name == "submission_unknown"
    job = lost.value.job
    with pytest.raises(UnreachableError):
        place.states([job])
    with pytest.raises(SubmitError) as refused:  # and a new one is refused at once
        remote.run(place)
    assert refused.value.name == "unreachable"
    failed = [probe for probe in place.probes() if not probe.passed]
    assert [(probe.name, bool(probe.remedy)) for probe in failed] == [("connection", True)]
    remote.cluster.restart(login.daemon)
    until(lambda: _answers(place))
    assert ended(place, job).state == "succeeded", launcher_log(job)
    assert b"rank 0" in place.log(replace(job, run_dir="/nowhere"), "rank0.log", 0)
    (login.bin / "sbatch").unlink()
    never = replace(job, run_id="probe_1-0000", folder="/nowhere/probe_1-0000/probe")
    assert place.states([never]) == {never.run_id: None}


def _answers(place: SlurmPlace) -> bool:
    try:
        return place.shell.run(["true"]).code == 0
    except UnreachableError:
        return False


def test_ssh_that_would_ask_is_explained(remote: Site, tmp_path: Path) -> None:
    strange = remote.place(user="nobody").shell
    with pytest.raises(UnreachableError) as refused:
        strange.run(["true"])
    assert "Permission denied" in refused.value.cause
    assert "identity" in refused.value.remedy
    unknown = remote.place(host="localhost").shell  # the same daemon, under a name that no host key is known for
    with pytest.raises(UnreachableError) as refused:
        unknown.run(["true"])
    assert "Host key verification failed" in refused.value.cause
    assert "Compare" in refused.value.remedy


def test_the_probes_over_ssh(remote: Site) -> None:
    found = list(remote.place().probes())
    assert [probe.name for probe in found if not probe.passed] == []
    assert found[0].name == "connection"
