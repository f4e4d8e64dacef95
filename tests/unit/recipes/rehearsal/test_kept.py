"""A checkpoint of an earlier rehearsal is taken again while it is there, whole, and of the same stage."""

from pathlib import Path
from typing import Any

import pytest

from recipes.catalogue import RECIPES
from recipes.experiment.runs import Run
from recipes.experiment.stage import Stage
from recipes.experiment.store import RunFolder
from recipes.rehearsal.kept import keep, kept
from scripts.run.files import write_json
from tests.unit.recipes.preflight.test_input_checks import megatron


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _stage(**values: Any) -> Stage:
    built = RECIPES["quantize_fp8"].build()
    for name, value in values.items():
        setattr(built.args, name, value)
    return Stage(name="quantize", partial=built)


def _run(folder: Path, checkpoint: Path, state: str = "succeeded") -> Run:
    outputs = [{"type": "report", "path": str(folder)}, {"type": "checkpoint_megatron", "path": str(checkpoint)}]
    return Run(folder=RunFolder(dir=folder), record={"state": state, "outputs": outputs})


def test_it_is_taken_again_by_an_equal_stage_only(tmp_path: Path) -> None:
    checkpoint = megatron(tmp_path / "megatron", "embedding.weight")
    assert kept(_stage()) is None
    keep(_stage(), _run(tmp_path, checkpoint))
    assert kept(_stage()) == checkpoint
    assert kept(_stage(calib_size=3)) is None


def test_a_stage_that_failed_leaves_none(tmp_path: Path) -> None:
    keep(_stage(), _run(tmp_path, megatron(tmp_path / "megatron", "embedding.weight"), state="failed"))
    assert kept(_stage()) is None


def test_one_that_is_gone_or_broken_is_not(tmp_path: Path, cache: Path) -> None:
    checkpoint = megatron(tmp_path / "megatron", "embedding.weight")
    keep(_stage(), _run(tmp_path, checkpoint))
    (metadata,) = checkpoint.glob("iter_*/.metadata")
    metadata.rename(tmp_path / "elsewhere")
    assert kept(_stage()) is None
    (tmp_path / "elsewhere").rename(metadata)
    assert kept(_stage()) == checkpoint
    (note,) = cache.rglob("rehearsal/*.json")
    for said in ({}, [], {"path": 3}, {"path": str(tmp_path)}):
        write_json(note, said)
        assert kept(_stage()) is None
    note.write_text("{")
    assert kept(_stage()) is None
