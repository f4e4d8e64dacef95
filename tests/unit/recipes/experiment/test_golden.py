"""The exact scripts and requests that would be submitted, against files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from executors.kinds import kinds
from tests.conftest import Done
from tests.golden.cases import CASES, COMMAND, FOLDER, differences

EXECUTORS = {"local": "local", "slurm": "cluster", "docker": "box", "lepton": "cloud"}


def test_golden_files_are_what_would_be_submitted(capsys: pytest.CaptureFixture[str]) -> None:
    found = differences()
    assert not found, f"{'; '.join(found)}. When that is what you meant, run: {COMMAND}"
    assert capsys.readouterr().out == "", "standard output belongs to whoever asked"


def test_every_way_to_be_wrong_is_told(tmp_path: Path) -> None:
    """The comparison itself can fail in each of its ways."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    first, second, *rest = ((case.file, (FOLDER / case.file).read_text(encoding="utf-8")) for case in CASES)
    (tmp_path / first[0]).unlink()
    (tmp_path / "other.sh").write_text("")
    files = [first, (second[0], second[1] + "#\n"), *rest]
    expected = [f"{first[0]} is missing", f"{second[0]} is stale", "other.sh is produced by nothing"]
    assert differences(lambda: iter(files), tmp_path) == expected


def test_no_golden_file_names_this_machine() -> None:
    root = FOLDER.parents[1]
    for case in CASES:
        text = (FOLDER / case.file).read_text(encoding="utf-8")
        for word in (str(root), str(Path.home()), "/tmp/", "site-packages"):
            assert word not in text.replace("HOME=/tmp", ""), f"{case.file} holds {word}"


def test_every_kind_has_a_golden_file() -> None:
    assert set(EXECUTORS) == set(kinds())
    assert {case.executor for case in CASES} >= set(EXECUTORS.values())


def test_a_sweep_shows_the_one_array_that_it_becomes(nemo: Callable[..., Done], home: Path) -> None:
    words = ["probe", "executor=slurm", "torchrun.nproc_per_node=2", "--sweep", "args.message=a,b"]
    done = nemo("run", *words, "--dryrun", "--json")
    assert done.code == 0, done.err
    assert "#SBATCH --array=0-1" in done.json["submits"]
    assert [run["values"]["args"]["message"] for run in done.json["runs"]] == ["a", "b"]
    assert not any("submits" in run for run in done.json["runs"])
    shown = nemo("run", *words, "--dryrun").out
    assert shown.count("would submit:") == 1
    assert "Detected" not in shown, "what NeMo-Run says on the way"
    assert not list(home.iterdir())
