"""What the READMEs show works."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts import entrypoints

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_s_example_passes(nemo: Callable[..., Any], home: Path) -> None:
    (example,) = (ROOT / "tests" / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    names: dict[str, Any] = {}
    exec(example.partition("```")[0], names)
    names["test_a_dry_run_names_the_algorithm"](nemo, home)


def test_the_algorithm_that_the_readme_of_scripts_adds_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = (ROOT / "scripts" / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    added = ModuleType("counting")
    monkeypatch.setitem(sys.modules, "counting", added)
    exec(example.partition("```")[0], added.__dict__)
    monkeypatch.setitem(entrypoints.ALGORITHMS, "count", added.ROW)
    monkeypatch.setenv("NEMO_RUN_DIR", str(tmp_path / "run"))
    (tmp_path / "text").write_text("one two three")
    entrypoints.entrypoint("count")(args=added.CountArgs(text=str(tmp_path / "text")))
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["state"], run["algorithm"], run["outputs"][0]["type"]) == ("succeeded", "count", "word_count")
    assert json.loads((tmp_path / "run" / "report" / "report.json").read_text())["words"] == 3
