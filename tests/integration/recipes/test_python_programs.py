"""Programs that submit: with and without a `__main__` guard, from a file, standard input and `python -c`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from scripts.run.record import observe

pytestmark = pytest.mark.integration

PROGRAM = """
from recipes import probe, submit

job = submit(probe(), "local").raise_for_state()
print("ended", job.wait().state, *job.artifacts)
"""
MISTYPED = """
import enum
import numpy
from recipes import ProblemsError, quantize_fp8, submit

class Color(enum.StrEnum):
    RED = "red"


recipe = quantize_fp8()
recipe.args.calib_size, recipe.args.hf_model_id, recipe.torchrun.nproc_per_node = "many", 7, "x"
recipe.extra_args, recipe.engine = "abc", "hff"
recipe.args.prompts, recipe.args.calib_seq_length = Color.RED, numpy.int64(3)
other = quantize_fp8()
other.args = {"calib_size": 4}
for one in (recipe, other, quantize_fp8, "quantize_fp8"):
    try:
        submit(one)
    except ProblemsError as error:
        print(*sorted(problem.key for problem in error.problems))
"""


def run(home: Path, work: Path, *words: str, program: str = "") -> str:
    env = {**os.environ, "NEMORUN_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    env.pop("NEMO_RUN_DIR", None)
    done = subprocess.run(
        [sys.executable, *words], input=program, cwd=work, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("way", ["file", "guarded file", "standard input", "-c"])
def test_each_submits_one_run(way: str, home: Path, work: Path) -> None:
    program = PROGRAM
    if way == "guarded file":
        before, after = PROGRAM.split("\n\n", 1)
        program = f"{before}\n\nif __name__ == '__main__':\n    " + after.replace("\n", "\n    ")
    (work / "mine.py").write_text(program)
    words = {"standard input": ["-"], "-c": ["-c", program]}.get(way, ["mine.py"])
    printed = run(home, work, *words, program=program)
    assert printed.splitlines()[-1] == "ended succeeded probe_report"
    (record,) = home.glob("runs/*/run.json")
    assert observe(record.parent)["state"] == "succeeded"


def test_cells_of_a_notebook_submit_and_wait(home: Path, work: Path) -> None:
    """A real kernel, whose main program is none that could be imported again."""
    cells = [
        "from recipes import probe, submit",
        "attached = submit(probe(), 'local')\nattached.state",
        "job = submit(probe(), 'local', detach=True)",
        "job = job.wait(240)\nprint(job.state, *job.artifacts)",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(work)}})
    client.execute(env={**os.environ, "NEMORUN_HOME": str(home), "HF_HUB_OFFLINE": "1"})
    shown = [cell.outputs for cell in notebook.cells]
    assert shown[1][-1]["data"]["text/plain"] == "'succeeded'"
    assert shown[3][-1]["text"] == "succeeded probe_report\n"
    assert len(list(home.glob("runs/*/run.json"))) == 2


def test_types_that_python_lets_pass_are_problems(home: Path, work: Path) -> None:
    printed = run(home, work, "-c", MISTYPED)
    assert printed.split() == [
        *("args.calib_seq_length", "args.calib_size", "args.hf_model_id", "args.prompts"),
        "engine",
        "extra_args",
        "torchrun.nproc_per_node",
        *("args", "recipe", "recipe"),
    ]
    assert not list(home.rglob("*"))


DETACHED = """
from recipes import probe, submit
from scripts.run.problems import JobError

recipe = probe()
recipe.args.exit_code = 3
job = submit(recipe, "local", detach=True)
for run in (job, job.wait(240)):
    try:
        run.raise_for_state()
    except JobError as error:
        print(run.state, error.name)
"""


def test_a_run_is_waited_for_and_says_why_it_failed(home: Path, work: Path) -> None:
    before, after = (line.split() for line in run(home, work, "-c", DETACHED).splitlines()[-2:])
    assert before[0] in ("submitted", "running") and before[1] == "still_running"
    assert after == ["failed", "told_to_fail"]


THREADS = """
import sys, threading, time
from recipes.experiment.experiment import without_main

main, order = sys.modules["__main__"], []

def other(begin, end):
    time.sleep(begin)
    with without_main():
        order.append(sys.modules["__main__"] is main)
        time.sleep(end - begin)

threads = [threading.Thread(target=other, args=times) for times in ((0, 0.3), (0.1, 0.5))]
[one.start() for one in threads]
[one.join() for one in threads]
print(order, sys.modules["__main__"] is main)
"""


def test_threads_that_submit_leave_the_main_program_where_it_was(home: Path, work: Path) -> None:
    assert run(home, work, "-c", THREADS).strip() == "[False, False] True"
