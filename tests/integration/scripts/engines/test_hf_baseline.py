"""Formats of one model, one after another: it is measured once, and no figure tells."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from scripts.engines.hf import evaluate
from scripts.run.record import Record
from tests.hf_models import arguments, attempt, model_folder

pytestmark = pytest.mark.integration


def test_a_reused_baseline_gives_the_same_figures_and_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, passes, text = model_folder(tmp_path / "model"), list[int](), tmp_path / "other.jsonl"
    text.write_text(
        "".join(json.dumps({"text": f"{number} other ones, {'long ' * number}"}) + "\n" for number in range(9))
    )
    measure = evaluate.last_states

    def counted(*args: Any, **given: Any) -> Any:
        passes.append(1)
        return measure(*args, **given)

    monkeypatch.setattr(evaluate, "last_states", counted)

    def quantized(name: str, fmt: str) -> tuple[Record, dict[str, Any]]:
        record = Record.submit(tmp_path / name, id=name)
        out = tmp_path / f"out-{name}"
        args = arguments(model, out, export_quant_cfg=fmt, eval_dataset=str(text), eval_size=9, prompts="Sentence|One")
        return record, attempt(record, args)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    swept = {fmt: quantized(fmt, fmt) for fmt in ("fp8", "int8_sq", "nvfp4")}
    assert len(passes) == 1
    hows = [record.values["baseline"]["how"] for record, _ in swept.values()]
    assert hows == ["measured", "reused", "reused"]
    for fmt, (record, found) in swept.items():
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"own-{fmt}"))
        alone, expected = quantized(f"{fmt}-alone", fmt)
        for figures in (found, expected):
            figures["calibration"] = {
                key: value for key, value in figures["calibration"].items() if "second" not in key
            }
        assert found == expected, fmt
        assert found["evaluation"]["intervals"], "the losses of each sample were there"
        told = {"run": "fp8", "digest": alone.values["baseline"]["digest"]}
        assert {key: record.values["baseline"][key] for key in told} == told
    assert len(passes) == 4
