"""The model card of an export: what a hub reads of it, and what it does not tell of the machine."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from scripts.engines.hf.card import FILE, card_of, write_card

ARGS: dict[str, Any] = {
    "export_quant_cfg": "fp8",
    "weight_only": False,
    "compress": False,
    "export_kv_cache_quant": "none",
}
REPORT: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "format": "fp8",
    "calibration": {"samples": 512, "tokens": 262144, "source": "cnn_dailymail", "seconds": 9.0},
    "evaluation": {
        **{"source": "/home/me/secret-project/held.jsonl", "samples": 64, "tokens": 9000, "perplexity_base": 8.0},
        **{"perplexity_quantized": 8.02, "kl_divergence": 0.001, "top1_agreement": 0.98},
    },
    "size": {"base_bytes": 16_000_000_000, "export_bytes": 9_000_000_000},
    "warnings": ["Only 4 samples were scored; the figures are rough."],
}


def card(report: dict[str, Any] | None = None, **args: Any) -> tuple[dict[str, Any], str]:
    source = {"digest": "sha256:aa", "run": "prune_0101-0000-00000a"}
    text = card_of(REPORT | (report or {}), SimpleNamespace(**ARGS | args), source, {"torch": "2.13.0", "no": None})
    _, front, rest = text.split("---\n", 2)
    return yaml.safe_load(front), rest


def test_a_hub_reads_what_it_is_of() -> None:
    front, rest = card()
    assert front == {
        "library_name": "transformers",
        "tags": ["modelopt", "fp8"],
        "base_model": "Qwen/Qwen3-8B",
        "base_model_relation": "quantized",
    }
    for said in (
        "# Qwen/Qwen3-8B in fp8",
        "| held-out perplexity | 8.000 | 8.020 | +0.25% |",
        "1.78x smaller",
        "sha256:aa",
    ):
        assert said in rest, rest
    assert "prune\\_0101" in rest and "torch 2.13.0" in rest and "> Only 4 samples" in rest


@pytest.mark.parametrize("model", ["/home/me/secret-project/model", "./secret-project/model", "tiny:qwen3"])
def test_a_model_of_this_machine_is_called_by_its_name_alone(model: str) -> None:
    front, rest = card(
        {"model": model, "format": "/home/me/secret-project/own.yaml"},
        export_quant_cfg="/home/me/secret-project/own.yaml",
    )
    assert "base_model" not in front and front["tags"] == ["modelopt", "own"]
    assert "secret-project" not in rest and "/home" not in rest, rest


def test_nothing_of_a_name_is_mark_up() -> None:
    _, rest = card({"model": "a|b`<script>*_[x](y)", "evaluation": None, "warnings": ["one\n# two"]})
    assert "<script>" not in rest and "\n# two" not in rest and "perplexity" not in rest


def test_it_is_the_same_for_the_same(tmp_path: Path) -> None:
    """An export that is made again has the same digest."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        changed = REPORT | {"calibration": REPORT["calibration"] | {"seconds": len(folder) * 7.0}}
        write_card(tmp_path / folder, changed, SimpleNamespace(**ARGS), {"digest": "sha256:aa"}, {"torch": "2.13.0"})
    assert (tmp_path / "one" / FILE).read_text() == (tmp_path / "two" / FILE).read_text()
