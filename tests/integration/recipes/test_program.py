"""`mor` beside `nemo experiment`: the same words, the same answers, and NeMo-Run imported to submit alone."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.answers import data_of
from tests.conftest import Done
from tests.runs import recorded

pytestmark = pytest.mark.integration

MOR = str(Path(sys.executable).with_name("mor"))
#: Of a run that is planned: each command makes one of its own.
_ID = re.compile(r"_\d{4}-\d{4}-[0-9a-f]{6}\b")
#: Says at the end what was imported, where nothing else is printed.
WATCHED = """
import atexit, sys
names = ("nemo_run", "torch", "transformers", "leptonai")
atexit.register(lambda: print("imported", [name for name in names if name in sys.modules], file=sys.stderr))
from recipes.cli.program import main
main()
"""
ASKED = [
    ["ps", "--all"],
    ["ps", "--json"],
    ["status", "latest"],
    ["status", "nothing"],
    ["logs", "000001"],
    ["recipes"],
    ["recipes", "quantize_fp8"],
    ["recipes", "quantise", "--json"],
    ["executors"],
    ["executors", "--json"],
    ["inspect", "."],
    ["explain", "unknown_key"],
    ["du"],
    ["rm", "latest", "--dryrun"],
    ["plan", "quantize_fp8", "args.hf_model_id=Qwen/Qwen3-8B", "--json"],
    ["plan", "quantize_fp8", "args.hf_model_id=Qwen/Qwen3-8B", "args.calib_sze=3"],
]


@pytest.fixture
def watched(home: Path, work: Path) -> Callable[..., Done]:
    def run(*words: str) -> Done:
        env = {**os.environ, "NEMORUN_HOME": str(home), "HF_HUB_OFFLINE": "1"}
        argv = [sys.executable, "-c", WATCHED, *words]
        done = subprocess.run(argv, cwd=work, env=env, capture_output=True, text=True, timeout=120)
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.mark.parametrize("words", ASKED, ids=" ".join)
def test_it_answers_as_nemo_does_and_without_nemo_run(
    words: list[str], nemo: Callable[..., Done], watched: Callable[..., Done], home: Path
) -> None:
    recorded(home, "probe_1126-0805-000001")
    theirs, ours = nemo(*words), watched(*words)
    said, _, imported = ours.err.rpartition("imported ")
    assert imported.strip() == "[]"
    assert (ours.code, _ID.sub("", ours.out), said) == (theirs.code, _ID.sub("", theirs.out), theirs.err)


def test_it_submits(home: Path, work: Path) -> None:
    env = {**os.environ, "NEMORUN_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    words = [MOR, "run", "probe", "--name", "mine", "--json", "--yes"]
    done = subprocess.run(words, cwd=work, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    record = data_of(done.stdout)
    assert record["state"] == "succeeded" and record["id"].startswith("mine_")


def test_each_command_has_help_with_an_example() -> None:
    listed = subprocess.run([MOR, "--help"], capture_output=True, text=True, check=True).stdout
    for name in ("run", "plan", "recipes", "ps", "status", "logs", "cancel", "resume", "open", "du", "rm", "prune"):
        assert f" {name} " in listed
        said = subprocess.run([MOR, name, "--help"], capture_output=True, text=True, check=True).stdout
        assert f"Example: nemo experiment {name}" in " ".join(said.split()), said


def test_it_says_which_versions_are_here() -> None:
    said = subprocess.run([MOR, "--version"], capture_output=True, text=True, check=True).stdout
    found = dict(line.split(maxsplit=1) for line in said.splitlines())
    assert found["modelopt-recipes"] == version("modelopt-recipes") and found["nemo-run"] == version("nemo-run")
    assert found["megatron-bridge"] == "not installed" or found["megatron-bridge"] == version("megatron-bridge")
