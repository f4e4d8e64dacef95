"""Runs are told to trackers: a real MLflow server, files of W&B and TensorBoard; and no tracker can hurt a run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from scripts.run.record import read_record
from tests.conftest import Done
from tests.testbed.waiting import until

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[3]
#: A training of five steps, which then waits to be let go where a file says so.
JOB = """
import sys, time
from pathlib import Path
from scripts.run import session
from scripts.run.files import write_json
from scripts.run.problems import JobError

ends, patience = sys.argv[1], float(sys.argv[2])
session._TRACKED_SECONDS |= {"succeeded": patience, "failed": patience}

def job(record):
    with record.phase("train"):
        for step in range(1, 6):
            record.measured(step, {"lm loss": 10 / step, "elapsed time per iteration (ms)": 12.5})
            time.sleep(0.05)
        while (record.dir / "wait").exists():
            time.sleep(0.05)
    if ends == "failed":
        raise JobError("told_to_fail", "it was told to")
    write_json(record.dir / "report" / "report.json", {"evaluation": {"perplexity": 26.5}, "rows": [1, 2]})
    (record.dir / "model").mkdir()
    (record.dir / "model" / "weights").write_bytes(bytes(1000))
    record.artifact("checkpoint_hf", record.dir / "model")

values = {"engine": "hf", "args": {"train_iters": 5, "data": ["a", "b"], "none": None}}
session.run_job(name="distill_tiny", algorithm="distill", values=values, job=job)
"""


class Job:
    """A run of JOB, tracked, in a folder of its own."""

    def __init__(
        self, folder: Path, trackers: str, *, ends: str = "succeeded", patience: float = 60, **env: str
    ) -> None:
        self.dir = folder / f"run-{ends}"
        self.dir.mkdir()
        paths = {"PYTHONPATH": f"{env.pop('first', '')}:{ROOT}", "NEMO_RUN_DIR": str(self.dir)}
        foreign = ("MLFLOW", "WANDB", "PYTHONPATH")
        around = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self._words = [sys.executable, "-c", JOB, ends, str(patience)]
        self._env = {**around, **paths, "MODELOPT_RECIPES_TRACK": trackers, **env}

    def start(self, *, held: bool = False) -> "subprocess.Popen[bytes]":
        if held:
            (self.dir / "wait").touch()
        self.began = time.monotonic()
        return subprocess.Popen(self._words, env=self._env, cwd=self.dir.parent)

    def run(self) -> int:
        """Its exit status."""
        with self.start() as process:
            status = process.wait()
        self.seconds = time.monotonic() - self.began
        return status

    @property
    def record(self) -> dict[str, Any]:
        return read_record(self.dir)

    def said(self, name: str) -> Mapping[str, Any]:
        """How the run's record says that it stands with a tracker."""
        found: Mapping[str, Any] = self.record["tracked"][name]
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server."""
    folder = tmp_path_factory.mktemp("mlflow")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/db.sqlite", "--artifacts-destination", str(folder / "files")]
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", *words]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        until(answers)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_mlflow_is_told_while_a_run_lasts_and_at_its_end(server: str, tmp_path: Path) -> None:
    job, client = Job(tmp_path, "mlflow", MLFLOW_TRACKING_URI=server), MlflowClient(server)
    with job.start(held=True) as process:
        state = job.dir / "tracking" / "mlflow.json"
        theirs = until(lambda: state.is_file() and json.loads(state.read_text()).get("id"))
        early = until(lambda: len(client.get_metric_history(theirs, "lm loss")) == 5 and client.get_run(theirs))
        assert early.info.status == "RUNNING" and job.record["state"] == "running"
        (job.dir / "wait").unlink()
        assert process.wait() == 0
    said, run = job.said("mlflow"), client.get_run(theirs)
    assert (said["state"], said["id"]) == ("sent", theirs) and said["url"].startswith(server) and theirs in said["url"]
    assert (run.info.status, run.info.run_name) == ("FINISHED", job.dir.name)
    assert run.data.params == {"engine": "hf", "args.train_iters": "5", "args.data": '["a", "b"]'}
    tags = {name.removeprefix("modelopt_recipes."): value for name, value in run.data.tags.items()}
    assert (tags["run_id"], tags["recipe"], tags["algorithm"]) == (job.dir.name, "distill_tiny", "distill")
    assert tags["version.torch"] == job.record["versions"]["torch"] and tags["state"] == "succeeded"
    (output,) = job.record["outputs"]
    assert {key: tags[f"output.0.{key}"] for key in ("type", "path", "bytes", "digest")} == {
        key: str(output[key]) for key in ("type", "path", "bytes", "digest")
    }
    history = client.get_metric_history(theirs, "lm loss")
    assert [(one.step, one.value) for one in history] == [(step, 10 / step) for step in range(1, 6)]
    assert [one.timestamp for one in history] == sorted({one.timestamp for one in history})
    assert run.data.metrics["elapsed time per iteration _ms_"] == 12.5
    assert run.data.metrics["report/evaluation.perplexity"] == 26.5
    (tmp_path / "left").mkdir()
    left = client.download_artifacts(theirs, "", str(tmp_path / "left"))
    assert json.loads(Path(left, "report", "report.json").read_text())["evaluation"] == {"perplexity": 26.5}
    assert json.loads(Path(left, "outputs.json").read_text()) == {"outputs": [output]}
    assert not list(Path(left).rglob("weights*"))


def test_mlflow_is_told_how_a_run_ends(server: str, tmp_path: Path) -> None:
    client = MlflowClient(server)
    failed = Job(tmp_path, "mlflow", ends="failed", MLFLOW_TRACKING_URI=server)
    assert failed.run() == 1
    run = client.get_run(failed.said("mlflow")["id"])
    assert run.info.status == "FAILED" and run.data.tags["modelopt_recipes.error"] == "told_to_fail: it was told to"
    assert len(client.get_metric_history(run.info.run_id, "lm loss")) == 5
    for name, number in (("cancelled", signal.SIGTERM), ("killed", signal.SIGKILL)):
        stopped = Job(tmp_path, "mlflow", ends=name, MLFLOW_TRACKING_URI=server)
        with stopped.start(held=True) as process:
            state = stopped.dir / "tracking" / "mlflow.json"
            theirs = until(lambda state=state: state.is_file() and json.loads(state.read_text()).get("id"))
            process.send_signal(number)
            assert process.wait() == (143 if name == "cancelled" else -number)
        ended = until(lambda theirs=theirs: (one := client.get_run(theirs)).info.status != "RUNNING" and one)
        assert ended.info.status == "KILLED"
        assert ended.data.tags["modelopt_recipes.state"] == ("cancelled" if name == "cancelled" else "lost")


def test_wandb_without_a_key_is_kept_to_be_sent_later(tmp_path: Path) -> None:
    job = Job(tmp_path, "wandb")
    assert job.run() == 0
    said = job.said("wandb")
    assert said["state"] == "kept" and said["folder"].startswith(f"{job.dir}/tracking/wandb/offline-run-")
    rows = list(wandb_rows(next(Path(said["folder"]).glob("*.wandb"))))
    (run,) = (one.run for one in rows if one.WhichOneof("record_type") == "run")
    config = {one.key: json.loads(one.value_json) for one in run.config.update}
    assert (run.run_id, run.display_name) == (said["id"], job.dir.name)
    assert (config["args.train_iters"], config["modelopt_recipes"]["run_id"]) == (5, job.dir.name)
    history = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in one.history.item}
        for one in rows
        if one.WhichOneof("record_type") == "history"
    ]
    assert [(row["step"], row["lm loss"]) for row in history] == [(step, 10 / step) for step in range(1, 6)]
    artifacts = [one.request.log_artifact.artifact for one in rows if one.request.HasField("log_artifact")]
    artifacts += [one.artifact for one in rows if one.WhichOneof("record_type") == "artifact"]
    (output,) = job.record["outputs"]
    assert {one.type for one in artifacts} == {"report", "checkpoint_hf"}
    assert output["digest"] in {json.loads(one.metadata or "{}").get("digest") for one in artifacts}
    (ended,) = (one.exit for one in rows if one.WhichOneof("record_type") == "exit")
    assert ended.exit_code == 0


def wandb_rows(file: Path) -> Iterator[Any]:
    """What a file of W&B's holds: a log as LevelDB has it, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = file.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while at < len(content):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_tensorboard_has_event_files(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = Job(tmp_path, "tensorboard", ends="failed")
    assert job.run() == 1
    said = job.said("tensorboard")
    assert (said["state"], said["folder"]) == ("kept", f"{job.dir}/tracking/tensorboard")
    events = EventAccumulator(said["folder"]).Reload()
    assert [(one.step, round(one.value, 3)) for one in events.Scalars("lm loss")] == [
        (step, round(10 / step, 3)) for step in range(1, 6)
    ]
    (values,) = (one.tensor_proto.string_val[0].decode() for one in events.Tensors("values"))
    assert "| args.train_iters | 5 |" in values
    first, last = (one.tensor_proto.string_val[0].decode() for one in events.Tensors("run"))
    assert f"| run_id | {job.dir.name} |" in first and "| state | failed |" in last


def failing(job: Job, *names: str) -> list[str]:
    """Why trackers could not be told, after a run that nothing of that has touched."""
    assert job.run() == 0
    record = job.record
    assert (record["state"], record["error"]) == ("succeeded", None)
    assert [one["type"] for one in record["outputs"]] == ["checkpoint_hf"]
    warnings = {one["value"]: one["cause"] for one in record["warnings"] if one["name"] == "tracking_failed"}
    assert set(warnings) == set(names) == {name for name in names if job.said(name)["state"] == "failed"}
    assert all("warning: " in (job.dir / "logs" / "rank0.log").read_text() for _ in names)
    return [warnings[name] for name in names]


def test_a_server_that_is_not_there_costs_no_run(tmp_path: Path) -> None:
    job = Job(tmp_path, "mlflow", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    (cause,) = failing(job, "mlflow")
    assert "Connection refused" in cause or "Max retries" in cause
    assert job.seconds < 60


def test_a_server_that_does_not_answer_is_waited_for_a_while(silent: str, tmp_path: Path) -> None:
    job = Job(tmp_path, "mlflow", patience=4, MLFLOW_TRACKING_URI=silent)
    (cause,) = failing(job, "mlflow")
    assert cause == "it had not been told all of the run 4 s after its end"
    assert job.seconds < 45
    impatient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    (tmp_path / "more").mkdir()
    (cause,) = failing(Job(tmp_path / "more", "mlflow", MLFLOW_TRACKING_URI=silent, **impatient), "mlflow")
    assert "timed out" in cause.lower() or "Max retries" in cause


def test_libraries_that_crash_hang_or_are_missing_cost_no_run(tmp_path: Path) -> None:
    libraries = {
        "mlflow": "import time; time.sleep(600)",
        "wandb": "raise ImportError('no wandb here')",
        "tensorboard": "import os; os.abort()",
    }
    for name, text in libraries.items():
        (tmp_path / "first" / name).mkdir(parents=True)
        (tmp_path / "first" / name / "__init__.py").write_text(text)
    first = str(tmp_path / "first")
    job = Job(tmp_path, "mlflow,wandb,tensorboard", patience=5, first=first, MLFLOW_TRACKING_URI="http://x")
    hangs, missing, crashes = failing(job, "mlflow", "wandb", "tensorboard")
    assert "it had not been told" in hangs and "no wandb here" in missing and "status -6" in crashes
    assert job.seconds < 45


def test_a_library_that_hangs_does_not_outlive_a_killed_run_for_long(tmp_path: Path) -> None:
    (tmp_path / "first" / "mlflow").mkdir(parents=True)
    (tmp_path / "first" / "mlflow" / "__init__.py").write_text("import time; time.sleep(600)")
    job = Job(tmp_path, "mlflow", first=str(tmp_path / "first"), MLFLOW_TRACKING_URI="http://x")
    with job.start(held=True) as process:
        until(lambda: (job.dir / "logs" / "track-mlflow.log").is_file())
        (follower,) = until(lambda: psutil.Process(process.pid).children())
        process.kill()
        assert process.wait() == -signal.SIGKILL
    follower.wait(90)


def test_who_stops_a_run_does_not_wait_for_its_trackers(silent: str, tmp_path: Path) -> None:
    job = Job(tmp_path, "mlflow", MLFLOW_TRACKING_URI=silent)
    with job.start(held=True) as process:
        until(lambda: (job.dir / "logs" / "track-mlflow.log").is_file())
        began = time.monotonic()
        process.terminate()
        assert process.wait() == 143
    assert time.monotonic() - began < 20
    assert job.record["state"] == "cancelled" and job.said("mlflow")["state"] == "failed"
    (tmp_path / "more").mkdir()
    done = Job(tmp_path / "more", "mlflow", MLFLOW_TRACKING_URI=silent)
    with done.start() as process:
        until(lambda: (done.dir / "run.json").is_file() and done.record["state"] == "succeeded")
        process.terminate()
        assert process.wait() == 0, "it had succeeded"
    assert done.record["state"] == "succeeded"


def test_no_secret_is_in_a_file_of_the_run(server: str, silent: str, tmp_path: Path) -> None:
    secrets = {"MLFLOW_TRACKING_PASSWORD": "first-secret-5309", "WANDB_API_KEY": "0123456789abcdef" * 2 + "deadbeef"}
    inside = server.replace("http://", "http://me:second-secret-5309@")
    job = Job(tmp_path, "mlflow,wandb", MLFLOW_TRACKING_URI=inside, WANDB_BASE_URL=silent, **secrets)
    assert job.run() == 0
    assert job.said("mlflow")["url"].startswith(server)
    kept = job.said("wandb")
    assert kept["state"] == "kept" and kept["error"] and list(Path(kept["folder"]).glob("*.wandb")), kept
    files = [file for file in job.dir.rglob("*") if file.is_file()]
    for secret in (*secrets.values(), "second-secret-5309"):
        assert files and not [file for file in files if secret.encode() in file.read_bytes()]


def test_it_is_asked_for_shown_and_told_again(nemo: Callable[..., Done], home: Path, server: str) -> None:
    env = {"MLFLOW_TRACKING_URI": server, "WANDB_MODE": "offline"}
    done = nemo("run", "probe", "track=[mlflow,wandb]", env=env)
    assert done.code == 0, done.err
    (run_dir,) = (home / "runs").iterdir()
    tracked = read_record(run_dir)["tracked"]
    lines = [f"mlflow       {tracked['mlflow']['url']}", f"wandb        wandb sync {tracked['wandb']['folder']}"]
    assert all(line in done.out for line in lines) and all(line in nemo("status", "latest").out for line in lines)
    again = nemo("track", "latest", "--to", "mlflow", "--to", "tensorboard", "--json", env=env)
    assert again.code == 0, again.err
    other = again.json["tracked"]["mlflow"]["id"]
    assert other != tracked["mlflow"]["id"] and again.json["tracked"]["tensorboard"]["state"] == "kept"
    assert MlflowClient(server).get_run(other).info.status == "FINISHED"
    assert read_record(run_dir)["tracked"] == {**again.json["tracked"], "wandb": tracked["wandb"]}
    unset = nemo("track", "latest", "--to", "mlflow", "--to", "mlflw", "--json", env={"MLFLOW_TRACKING_URI": ""})
    assert (unset.code, [one["name"] for one in unset.answer["problems"]]) == (2, ["tracker_not_set", "wrong_value"])
    refused = nemo("run", "probe", "executor.track=mlflow", "--json", env={"MLFLOW_TRACKING_URI": ""})
    assert (refused.code, [one["name"] for one in refused.answer["problems"]]) == (2, ["tracker_not_set"])
