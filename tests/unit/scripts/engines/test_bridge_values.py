"""What the process of a rank of the bridge engine is told; the process itself is left out, for it needs Megatron."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.args.meaning import ScriptArgs, ScriptSpec
from scripts.args.prune import PruneArgs
from scripts.args.quantize import QuantizeArgs
from scripts.data.texts import source_of
from scripts.engines.bridge import engine
from scripts.run.record import Record


class ToldError(Exception):
    """Instead of a process: its words."""


def told(args: ScriptArgs, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def child(**values: Any) -> None:
        raise ToldError(values["words"][-1])

    monkeypatch.setattr(engine, "is_installed", lambda _: True)
    monkeypatch.setattr(engine, "local_model", lambda name, _: f"/cache/{name.removeprefix('tiny:')}")
    monkeypatch.setattr(engine, "Child", child)
    with pytest.raises(ToldError) as words:
        engine.run_bridge(args, ScriptSpec(runtime="cpu"), Record.submit(folder / "run", id="quantize_1-ab"))
    found: dict[str, Any] = json.loads(str(words.value))["values"]
    return found


@pytest.mark.parametrize(
    ("args", "key"),
    [
        (QuantizeArgs(hf_model_id="tiny:qwen3", megatron_save_path="m"), "calib_dataset"),
        (
            PruneArgs(hf_model_name_or_path="tiny:qwen3", output_hf_path="m", prune_target_params=1e6),
            "calib_dataset_name",
        ),
    ],
)
def test_a_built_in_model_keeps_its_text(
    args: ScriptArgs, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank gets its folder, which does not tell that text comes with it."""
    monkeypatch.chdir(tmp_path)
    given = told(args, tmp_path, monkeypatch)
    assert "/cache/qwen3" in given.values()
    assert source_of(given[key], "/cache/qwen3").kind == "builtin"
    assert given.get("eval_dataset") is None  # which stands for the part of it that is kept aside


def test_of_another_model_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = QuantizeArgs(hf_model_id="Qwen/Qwen3-8B", megatron_save_path="m")
    assert told(args, tmp_path, monkeypatch)["calib_dataset"] is None
