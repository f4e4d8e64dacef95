"""`nemo experiment status`, `logs` and `cancel` of an experiment that NeMo-Run made, which is none of ours."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Done

pytestmark = pytest.mark.integration
#: Two jobs, as a user of NeMo-Run writes them.
MADE = """
import nemo_run as run

if __name__ == "__main__":
    with run.Experiment("theirs", clean_mode=True) as experiment:
        experiment.add(run.Script(inline="echo said by the first"), executor=run.LocalExecutor(), name="first")
        experiment.add(run.Script(inline="echo said by the second"), executor=run.LocalExecutor(), name="second")
        experiment.run()
    print(experiment._id)
"""


@pytest.fixture
def experiment(home: Path, tmp_path: Path) -> str:
    file = tmp_path / "theirs.py"
    file.write_text(MADE)
    env = os.environ | {"NEMORUN_HOME": str(home)}
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_their_commands_take_all_their_words(nemo: Callable[..., Done], experiment: str) -> None:
    assert nemo("status", experiment).code == 0  # which says nothing where there is no terminal
    logs = nemo("logs", experiment, "1")
    assert logs.code == 0 and "said by the second" in logs.out + logs.err
    for words in (["1"], ["--all"], ["0", "--dependencies"]):
        cancelled = nemo("cancel", experiment, *words)
        assert cancelled.code == 0, cancelled.err
    assert nemo("ps", "--all", "--json").json == []
