"""--json: one envelope for every command, whatever becomes of it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs import CONFIGS
from tests.answers import answer_of
from tests.conftest import Done
from tests.runs import Shell, recorded

GOOD = "probe_1126-0805-47f9a1"
ASKED: dict[str, tuple[list[str], str]] = {
    "ps": (["--all"], "done"),
    "status": (["latest"], "done"),
    "logs": (["47f9a1"], "done"),
    "cancel": (["47f9a1"], "done"),
    "resume": (["nothing"], "refused"),
    "du": ([], "done"),
    "open": (["47f9a1"], "refused"),
    "rm": (["47f9a1", "--dryrun"], "done"),
    "prune": (["--older-than", "1h", "--dryrun"], "done"),
    "recipes": ([], "done"),
    "inspect": (["."], "refused"),
    "artifacts": ([], "done"),
    "compare": (["47f9a1"], "refused"),
    "verdict": (["47f9a1"], "failed"),
    "track": (["nothing", "--to", "mlflow"], "refused"),
    "artifacts show": (["47f9a1"], "refused"),
    "artifacts export": (["47f9a1", "-o", "copy"], "refused"),
    "explain": (["told_to_fail"], "done"),
    "executors": ([], "done"),
    "plan": (["quantize_fp8", "args.hf_model_id=./none"], "refused"),
    "run": (["probe", "--dryrun"], "done"),
    "rehearse": (["mlm_quantize"], "refused"),
    "bundle": (["nothing", "-o", "run.tar.gz"], "refused"),
    "rerun": (["nothing"], "refused"),
    "executors check": (["nowhere"], "refused"),
    "executors init": (["slrum"], "refused"),
}


@pytest.mark.parametrize("command", ASKED)
def test_a_command_answers_in_the_envelope(command: str, nemo: Callable[..., Done], home: Path) -> None:
    recorded(home, GOOD)
    words, outcome = ASKED[command]
    done = nemo(*command.split(), *words, "--json")
    answer = answer_of(done.out)
    assert (answer["command"], answer["outcome"], answer["exit_status"]) == (command, outcome, done.code), done
    assert bool(answer["problems"]) == (outcome == "refused") and answer["error"] is None


def test_a_run_that_failed_is_no_failure_to_answer(nemo: Callable[..., Done]) -> None:
    done = nemo("run", "probe", "args.exit_code=3", "--json")
    (run,) = done.answer["data"]["runs"]
    assert (done.code, done.answer["outcome"], done.answer["error"]) == (1, "failed", None)
    assert run["error"]["name"] == "told_to_fail"


def test_every_command_that_answers_is_asked_here(nemo: Callable[..., Done]) -> None:
    """Those with --json, as --help tells; `run` and `mcp` have commands of NeMo-Run's beside them."""
    listed = re.findall(r"^[│ ]+([a-z]+) ", nemo("--help", env={"COLUMNS": "100"}).out, re.MULTILINE)
    helped = [name for name in listed if "--json" in nemo(name, "--help").out]
    assert set(helped) <= {name.split()[0] for name in ASKED} and len(helped) >= 15


def test_the_schema_says_what_the_outcomes_are() -> None:
    schema = json.loads((CONFIGS / "schemas" / "answer.json").read_text())
    assert set(schema["properties"]["outcome"]["enum"]) == {"done", "refused", "failed", "stopped"}


def test_quiet_prints_the_ids_alone(nemo: Callable[..., Done], home: Path) -> None:
    done = nemo("run", "probe", "--quiet")
    (folder,) = (home / "runs").iterdir()
    assert (done.code, done.out, done.err) == (0, f"{folder.name}\n", "")
    failed = nemo("run", "probe", "args.exit_code=3", "-q")
    assert failed.code == 1 and failed.out.startswith("probe_") and "told_to_fail" in failed.err
    refused = nemo("run", "probe", "args.exit_cod=3", "-q")
    assert (refused.code, refused.out) == (2, "") and "Did you mean args.exit_code?" in refused.err
    assert nemo("ps", "--all", "--quiet").out.split() == [folder.name, failed.out.strip()]


@pytest.mark.parametrize("command", ["ps --all --json", "artifacts", "explain"])
def test_a_full_disk_behind_standard_output_is_said(command: str, home: Path, work: Path) -> None:
    recorded(home, GOOD)
    env = {**os.environ, "NEMORUN_HOME": str(home)}
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "recipes.cli.program", *command.split()]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, cwd=work, env=env)
    assert done.returncode == 1 and "failed: disk_full" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_home_that_cannot_be_read_is_not_called_empty(nemo: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = nemo("ps", "--json", env={"NEMORUN_HOME": str(tmp_path / "file")})
    assert (done.code, done.answer["error"]["name"]) == (1, "system_error")


def test_who_is_interrupted_answers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recipes.artifacts.artifact.artifacts_of", stop)
    done = Shell()("artifacts", "--json")
    assert (done.exit_code, answer_of(done.stdout)["outcome"]) == (130, "stopped")
