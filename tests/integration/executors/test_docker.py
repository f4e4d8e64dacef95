"""Docker for real: a private dockerd, containers that run this checkout, and what is left of them."""

import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from executors.base import JobState, SchedulerJob, SubmitError, UnreachableError
from executors.docker.place import DockerPlace
from executors.docker.profile import DockerProfile
from scripts.run.secrets import pack_secrets
from tests.jobs import PlainJob
from tests.testbed.docker import IMAGE, Engine, docker_engine, host_mounts, host_path
from tests.testbed.waiting import until

pytestmark = pytest.mark.integration

HOSTILE = {
    "SPACES": "a  b ",
    "QUOTES": 'it\'s "quoted"',
    "DOLLARS": "$HOME ${PATH} $(id) `id` \\$X",
    "LINES": "one\ntwo",
    "EMPTY": "",
    "lower_Case": "å=1;2&3|4",
}


@pytest.fixture(autouse=True)
def nemorun_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import nemo_run.core.execution.docker as nemo_run_docker

    monkeypatch.setattr("nemo_run.config._NEMORUN_HOME", str(home))
    monkeypatch.setattr(nemo_run_docker, "DOCKER_JOB_DIRS", str(home / ".docker_jobs.json"))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")  # the profile's engine, or none
    with Path(os.devnull).open() as nothing:  # NeMo-Run's `mkdir` reads standard input, which pytest forbids
        monkeypatch.setattr("sys.stdin", nothing)
        yield home


@dataclass
class Tried:
    """A submitted job and where it runs."""

    place: DockerPlace
    launch: PlainJob
    job: SchedulerJob

    @property
    def run_dir(self) -> Path:
        return Path(self.launch.run_dir)

    @property
    def state(self) -> JobState | None:
        return self.place.states([self.job])[self.job.run_id]

    def ended(self) -> JobState:
        state = until(self._over)
        assert state is not None
        return state

    def _over(self) -> JobState | None:
        state = self.state
        assert state is not None, "the engine and the run directory have lost it"
        return state if state.state not in ("submitted", "running") else None

    @property
    def record(self) -> dict[str, Any]:
        return self.place.records([self.job])[self.job.run_id]

    @property
    def printed(self) -> str:
        return self.place.log(self.job, "launcher.log", 0).decode()


def place_on(engine: Engine, **values: Any) -> DockerPlace:
    env = {"PATH": host_path(), "OMP_NUM_THREADS": "1", **values.pop("env", {})}
    mounts = host_mounts() + values.pop("mounts", [])
    return DockerPlace(DockerProfile(**{"image": IMAGE, "host": engine.host, "env": env, "mounts": mounts} | values))


def launch_on(place: DockerPlace, name: str = "probe", **values: Any) -> PlainJob:
    run_id = f"{name}_{time.time_ns() // 1_000_000}-{os.urandom(3).hex()}"
    secrets = place.secrets_path(run_id)
    run_dir = Path(f"{place.run_root()}/{run_id}")
    return PlainJob(id=run_id, recipe=name, run_dir=run_dir, secrets=secrets, place=place, **values)


def probing(**args: Any) -> Any:
    import nemo_run as run

    from scripts.args.probe import ProbeArgs
    from scripts.entrypoints import probe

    return run.Partial(probe, args=run.Config(ProbeArgs, **args))


def script(folder: Path, text: str) -> Any:
    """A task that runs a Python file; `folder` must be mounted."""
    import nemo_run as run

    path = folder / "script.py"
    path.write_text(text)
    return run.Partial(runpy.run_path, path_name=str(path), run_name="__main__")


def submit(place: DockerPlace, partial: Any, launch: PlainJob) -> Tried:
    """As a submission does: the experiment is left, and its object gone, while the job runs."""
    from recipes.experiment.experiment import opened_experiment

    with opened_experiment(launch, partial) as experiment:
        job = place.submit(experiment, launch)
    return Tried(place, launch, job)


def containers(engine: Engine) -> list[str]:
    with engine.client() as client:
        return [container.name for container in client.containers.list(all=True, ignore_removed=True)]


def nothing_left(engine: Engine, home: Path, launch: PlainJob) -> bool:
    """Whether a failed submission left nothing: no container, no experiment, no word in the run directory."""
    logs = Path(launch.run_dir) / "logs"
    return (
        launch.id.replace("_", "-") not in str(containers(engine))
        and not list(home.glob(f"experiments/*/{launch.id}"))
        and not (logs.exists() and list(logs.iterdir()))
    )


def test_a_job_succeeds_and_variables_arrive_as_written(engine: Engine, tmp_path: Path) -> None:
    shared = tmp_path / "shared folder"
    shared.mkdir()
    place = place_on(engine, env=HOSTILE, mounts=[f"{shared}:{shared}"])
    dump = "import json, os, sys\nout = open(os.environ['NEMO_RUN_DIR'] + '/env.json', 'w')\n"
    dump += "json.dump(dict(os.environ) | {'sys.path': sys.path, 'cwd': os.getcwd()}, out)\nprint('words')\n"
    tried = submit(place, script(shared, dump), launch_on(place))
    assert tried.ended() == JobState(state="succeeded")
    found = json.loads((tried.run_dir / "env.json").read_text())
    assert {name: found[name] for name in HOSTILE} == HOSTILE
    assert found["PYTHONPATH"] == "/nemo_run/code/.recipes:/nemo_run/code"
    assert "" not in found["sys.path"] and "/nemo_run/code" not in found["sys.path"][:1]
    assert found["cwd"] == "/nemo_run/code"
    assert (found["MODELOPT_RECIPES_IMAGE"], found["MODELOPT_RECIPES_IMAGE_ID"]) == (IMAGE, engine.image_id)
    assert tried.printed == "words\n"
    assert tried.place.log(tried.job, "rank0.log", 3) == b"ds\n"  # it has none: the launcher's, from byte 3 on
    until(lambda: tried.job.id not in containers(engine))
    assert tried.state == JobState(state="succeeded"), "known without its container"


def test_a_failure_keeps_its_exit_status_and_its_cause(engine: Engine) -> None:
    place = place_on(engine)
    tried = submit(place, probing(exit_code=7), launch_on(place))
    assert tried.ended() == JobState(state="failed", name="job_failed", detail="exit status 7")
    assert (tried.record["state"], tried.record["error"]["name"]) == ("failed", "told_to_fail")
    assert b"told to fail with 7" in place.log(tried.job, "rank0.log", 0)
    place.cancel(tried.job)  # too late, and no error
    assert tried.state == JobState(state="failed", name="job_failed", detail="exit status 7")


def test_cancel_lets_the_job_record_it(engine: Engine) -> None:
    place = place_on(engine)
    tried = submit(place, probing(seconds=100.0), launch_on(place))
    until(lambda: (tried.run_dir / "progress.json").exists())
    assert tried.state == JobState(state="running")
    began = time.monotonic()
    place.cancel(tried.job)
    assert time.monotonic() - began < 20
    assert tried.record["state"] == "cancelled"
    assert tried.record["error"]["message"] == "stopped by SIGTERM"
    assert tried.state == JobState(state="cancelled", detail="exit status 143")
    until(lambda: tried.job.id not in containers(engine))  # docker removes what has ended, by and by
    place.cancel(tried.job)
    assert "cancelled by SIGTERM" in tried.printed, "its last words reached the log"


def test_cancel_ends_a_job_that_does_not_listen(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By its module's name: `executors.docker.place` is the factory of that name.
    monkeypatch.setattr(sys.modules["executors.docker.place"], "_GRACE_SECONDS", 2.0)
    place = place_on(engine, mounts=[f"{tmp_path}:{tmp_path}"])
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\n"
    tried = submit(place, script(tmp_path, deaf + "time.sleep(100)"), launch_on(place))
    until(lambda: "deaf" in tried.printed)
    place.cancel(tried.job)
    assert tried.ended().state == "cancelled"
    until(lambda: tried.job.id not in containers(engine))  # docker removes what has ended, by and by


def test_torchrun_with_two_ranks_on_the_hosts_network(engine: Engine) -> None:
    place = place_on(engine)
    # The last 32 characters of this container's name, which are its host name, begin with `-`.
    launch = PlainJob(
        id=f"probe_{time.time_ns() // 1_000_000}-ad07",
        recipe="quantize_fp8",
        run_dir=Path(f"{place.run_root()}/two"),
        processes=2,
        ranked=True,
        place=place,
    )
    tried = submit(place, probing(message="here"), launch)
    assert tried.ended() == JobState(state="succeeded"), tried.printed
    ranks = json.loads((tried.run_dir / "report" / "probe.json").read_text())["ranks"]
    assert [(rank["rank"], rank["world"], rank["sum_of_ranks"]) for rank in ranks] == [(0, 2, 1), (1, 2, 1)]
    assert {rank["host"] for rank in ranks} == {tried.job.id[-32:]}
    assert ranks[0]["host"].startswith("-")


def test_cancel_of_torchrun_reaches_its_ranks_once(engine: Engine) -> None:
    place = place_on(engine)
    tried = submit(place, probing(seconds=100.0), launch_on(place, processes=2, ranked=True))
    until(lambda: (tried.run_dir / "progress.json").exists())
    place.cancel(tried.job)
    assert tried.record["state"] == "cancelled"
    assert tried.ended().state == "cancelled"
    until(lambda: tried.job.id not in containers(engine))  # docker removes what has ended, by and by


def test_the_files_of_a_run_belong_to_the_profiles_user(engine: Engine) -> None:
    place = place_on(engine, user="12345:23456")
    tried = submit(place, probing(), launch_on(place))
    assert tried.ended() == JobState(state="succeeded"), tried.printed
    for path in (tried.run_dir / "run.json", tried.run_dir / "report" / "probe.json", tried.run_dir / "logs"):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456), path
    assert {"HOME", "USER"} <= set(json.loads((tried.run_dir / "ranks" / "0.json").read_text())["variables"])


@pytest.mark.parametrize("user", [None, "12345:23456"])
def test_secrets_reach_the_job_and_stay_nowhere(
    engine: Engine, nemorun_home: Path, monkeypatch: pytest.MonkeyPatch, user: str | None
) -> None:
    marker = "hf_marker" + os.urandom(8).hex()
    monkeypatch.setenv("HF_TOKEN", marker)
    place = place_on(engine, secrets=["HF_TOKEN", "NOT_SET_HERE"], user=user)
    launch = launch_on(place)
    packed = pack_secrets(place.profile.secrets)
    assert launch.secrets and packed
    place.stage({launch.secrets: packed})
    assert Path(launch.secrets).stat().st_mode & 0o777 == 0o600
    monkeypatch.delenv("HF_TOKEN")
    tried = submit(place, probing(seconds=2.0), launch)
    until(lambda: (tried.run_dir / "progress.json").exists())
    with engine.client() as client:
        inspected = json.dumps(client.api.inspect_container(tried.job.id))
    assert tried.ended() == JobState(state="succeeded"), tried.printed
    assert marker not in inspected
    assert "HF_TOKEN" in json.loads((tried.run_dir / "ranks" / "0.json").read_text())["variables"]
    assert not Path(launch.secrets).exists()
    place.unstage([launch.secrets])
    assert not Path(launch.secrets).parent.exists()
    left = [path for path in nemorun_home.rglob("*") if path.is_file() and marker.encode() in path.read_bytes()]
    assert not left
    assert marker not in engine.log


def test_a_job_out_of_memory_says_so(engine: Engine, tmp_path: Path) -> None:
    place = place_on(
        engine, mounts=[f"{tmp_path}:{tmp_path}"], additional={"mem_limit": "700m", "memswap_limit": "700m"}
    )
    tried = submit(place, script(tmp_path, "b = [bytearray(1 << 26) for _ in range(64)]"), launch_on(place))
    state = tried.ended()
    assert (state.state, state.name) == ("failed", "out_of_memory"), (state, tried.printed)


def test_a_container_killed_from_outside_is_no_success(engine: Engine) -> None:
    place = place_on(engine)
    tried = submit(place, probing(seconds=100.0), launch_on(place))
    with engine.client() as client:
        client.containers.get(tried.job.id).kill()
    assert tried.ended() == JobState(state="failed", name="killed", detail="exit status 137: SIGKILL")


def test_two_runs_at_once_are_told_apart(engine: Engine) -> None:
    place = place_on(engine)
    good = submit(place, probing(message="one"), launch_on(place))
    bad = submit(place, probing(exit_code=3), launch_on(place))
    assert set(place.states([good.job, bad.job])) == {good.job.run_id, bad.job.run_id}
    assert (good.ended().state, bad.ended().state) == ("succeeded", "failed")
    records = place.records([good.job, bad.job])
    assert [records[tried.job.run_id]["state"] for tried in (good, bad)] == ["succeeded", "failed"]


def test_what_text_shows_is_what_the_engine_receives(engine: Engine, nemorun_home: Path) -> None:
    from recipes.experiment.experiment import opened_experiment

    place = place_on(engine, env={"DOLLARS": "$HOME"}, ulimits=["core=0", "nofile=1024:2048"], ipc="host")
    launch = launch_on(place)
    elsewhere = nemorun_home.parent / "elsewhere"
    with opened_experiment(launch, probing(), base_dir=str(elsewhere)) as experiment:
        experiment.dryrun(log=False)
        shown = json.loads(place.text(experiment, launch))
    assert shown["image"] == {"name": IMAGE, "id": engine.image_id, "pull": "missing"}
    tried = submit(place, probing(), launch)
    assert tried.ended().state == "succeeded"
    (request,) = shown["requests"]
    assert request["request"] == f"POST /containers/create?name={tried.job.id}"
    assert comparable(request["body"]) == comparable(_received(engine, tried.job.id))


def _received(engine: Engine, container: str) -> dict[str, Any]:
    """The body of the request that made `container`, from the engine's own debug log."""
    for line in engine.log.splitlines():
        if 'msg="form data: ' in line and f"log_{container}.out" in line:
            quoted = line[line.index("msg=") + 4 :]
            body = json.loads(json.loads(quoted).removeprefix("form data: "))
            assert isinstance(body, dict)
            return body
    raise AssertionError("the engine's log has no such request")


def comparable(body: Mapping[str, Any]) -> Any:
    """Without empty values, without what is drawn at random for each submission, variables in order."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: item for key, raw in value.items() if (item := clean(raw)) not in (None, False, "", [], {})}
        return value

    cleaned = clean(body)
    cleaned["Labels"] = {key: "" if key == "nemo-run/id" else item for key, item in cleaned["Labels"].items()}
    unique = body["Labels"]["nemo-run/id"]
    return cleaned | {"Env": sorted(cleaned["Env"]), "Cmd": [word.replace(unique, "UNIQUE") for word in cleaned["Cmd"]]}


def test_an_image_that_is_here_is_not_asked_for_elsewhere(engine: Engine) -> None:
    pull = "POST /v1.41/images/create?"
    before = engine.log.count(pull)
    place = place_on(engine)
    assert submit(place, probing(), launch_on(place)).ended().state == "succeeded"
    assert engine.log.count(pull) == before
    place = place_on(engine, pull="always")  # and this is how it would show
    with pytest.raises(SubmitError, match="image_missing: hostroot cannot be pulled"):
        submit(place, probing(), launch_on(place))
    assert engine.log.count(pull) > before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": "nowhere.invalid/none:1", "pull": "never"}, r"image_missing: the engine has no image nowhere"),
        ({"image": "nowhere.invalid/none:1"}, r"image_missing: nowhere.invalid/none:1 cannot be pulled"),
        ({"image": "sha256:" + "0" * 64}, r"image_missing: the engine has no image sha256"),
        ({"image": "No Such Name"}, r"wrong_image: No Such Name"),
        ({"mounts": ["/does/not/exist:/data"]}, r"mount_missing: not on this machine: /does/not/exist"),
        ({"gpus": 1}, r"docker_refused: .*could not select device driver.* NVIDIA Container Toolkit"),
        ({"ulimits": ["nofile=99999999999"]}, r"docker_refused: .*rlimit.* executor.ulimits"),
        ({"runtime": "nvidia"}, r"docker_refused: .*[Uu]nknown runtime.* Correct executor.runtime"),
    ],
)
def test_what_cannot_run_is_refused_and_leaves_nothing(
    engine: Engine, nemorun_home: Path, values: dict[str, Any], message: str
) -> None:
    place = place_on(engine, **values)
    launch = launch_on(place)
    with pytest.raises(SubmitError, match=message):
        submit(place, probing(), launch)
    assert nothing_left(engine, nemorun_home, launch)
    assert not Path("/does/not/exist").exists()


def test_a_name_that_is_taken_is_left_alone(engine: Engine, nemorun_home: Path) -> None:
    place = place_on(engine)
    launch = launch_on(place)
    name = f"{launch.id}_probe".replace("_", "-")
    with engine.client() as client:
        other = client.containers.create(IMAGE, ["true"], name=name)
        try:
            with pytest.raises(SubmitError, match="name_taken"):
                submit(place, probing(), launch)
            assert other.id == client.containers.get(name).id
        finally:
            other.remove()
    assert nothing_left(engine, nemorun_home, launch)


def test_an_engine_that_is_gone_is_said_to_be(tmp_path: Path, nemorun_home: Path) -> None:
    place = DockerPlace(DockerProfile(image=IMAGE, host=f"unix://{tmp_path}/none.sock"))
    launch = launch_on(place)
    with pytest.raises(SubmitError, match=r"docker_unreachable: no Docker engine answers at unix://.*No such file"):
        submit(place, probing(), launch)
    assert not (nemorun_home / "experiments").exists()
    job = SchedulerJob(run_id=launch.id, id="x", run_dir=str(launch.run_dir), folder="")
    with pytest.raises(UnreachableError, match="docker_unreachable"):
        place.states([job])
    with pytest.raises(UnreachableError, match="docker_unreachable"):
        place.cancel(job)
    (probe,) = place.probes()
    assert (probe.name, probe.passed) == ("engine", False)


def test_an_engine_that_dies_in_the_middle() -> None:
    with docker_engine() as engine:
        place = place_on(engine)
        short = submit(place, probing(seconds=1.0), launch_on(place))
        long = submit(place, probing(seconds=100.0), launch_on(place))
        until(lambda: (long.run_dir / "progress.json").exists())
        engine.kill()
        with pytest.raises(UnreachableError):
            place.states([long.job])
        ended = until(lambda: state_without_engine(short))
        assert ended == JobState(state="succeeded"), "it left its exit status where no engine is needed"
        engine.start()  # ends what it finds
        state = long.state
        assert state is None or (state.state, state.name) == ("failed", "killed")
        assert long.record["state"] == "running", "it had no time to say otherwise"


def state_without_engine(tried: Tried) -> JobState | None:
    with suppress(UnreachableError):
        return tried.state
    return None


def test_probes_try_a_real_container(engine: Engine, nemorun_home: Path) -> None:
    place = place_on(engine, user="12345:12345")
    found = {probe.name: probe for probe in place.probes()}
    assert list(found) == ["engine", "local", "mounts", "image", "container", "packages", "output_root"]
    assert all(probe.passed for probe in found.values()), found
    assert "as user 12345:12345" in found["container"].detail
    assert not list((nemorun_home / "runs").iterdir()), "it cleans up"
    until(lambda: "check" not in str(containers(engine)))  # the engine removes it as it ends, in its own time


@pytest.mark.parametrize(
    ("values", "failing", "said"),
    [
        ({"env": {"PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin"}}, "packages", "nemo_run (ModuleNotFoundError"),
        ({"env": {"PATH": "/usr/bin:/bin"}}, "container", "python: command not found"),
        ({"env": {"PATH": "/nowhere"}}, "container", "bash"),
        ({"gpus": 1}, "container", "could not select device driver"),
        ({"mounts": ["/does/not/exist:/data"]}, "mounts", "/does/not/exist"),
        ({"image": "nowhere.invalid/none:1", "pull": "never"}, "image", "has no image"),
        ({"image": "nowhere.invalid/none:1"}, "image", "its registry does not give it"),
    ],
)
def test_a_probe_that_fails_says_why(engine: Engine, values: dict[str, Any], failing: str, said: str) -> None:
    found = {probe.name: probe for probe in place_on(engine, **values).probes()}
    assert not found[failing].passed
    assert said in found[failing].detail
    assert found[failing].remedy


def test_submissions_from_threads_do_not_mix(engine: Engine) -> None:
    place = place_on(engine)
    launches = [launch_on(place) for _ in range(2)]
    done: dict[str, Tried] = {}
    threads = [
        threading.Thread(target=lambda launch=launch: done.update({launch.id: submit(place, probing(), launch)}))
        for launch in launches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert {tried.ended().state for tried in done.values()} == {"succeeded"}
    assert len(done) == 2
