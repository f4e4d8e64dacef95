"""The model card of an export: what a hub reads of it, and what it does not tell of the machine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.args.export import ExportArgs
from scripts.args.quantize import QuantizeArgs
from scripts.engines.card import FILE, card_of, write_card
from scripts.engines.inputs import inputs_of, with_commits
from scripts.engines.outputs import finish, outputs_of, prepare
from scripts.run.record import Record

RECORD: dict[str, Any] = {
    "recipe": "quantize_fp8",
    "inputs": [
        {"type": "checkpoint_hf", "name": "Qwen/Qwen3-8B", "digest": "sha256:aa", "run": "prune_0101-0000-00000a"}
    ],
    "versions": {"torch": "2.13.0", "no": None},
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
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def front_of(text: str) -> tuple[dict[str, Any], str]:
    _, front, rest = text.split("---\n", 2)
    return yaml.safe_load(front), rest


def card(report: dict[str, Any] | None = None, **args: Any) -> tuple[dict[str, Any], str]:
    return front_of(card_of(QuantizeArgs(**args), RECORD, REPORT | (report or {})))


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with a model of a license."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--Qwen--Qwen3-8B"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    said = "---\nlicense: apache-2.0\nlicense_link: [not, a, text]\n---\n# Qwen\n"
    (folder / "snapshots" / COMMIT / FILE).write_text(said)
    return folder / "snapshots" / COMMIT


def test_a_hub_reads_what_it_is_of() -> None:
    front, rest = card(calib_size=512)
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
        "calib\\_size=512",
        "vllm serve FOLDER",
    ):
        assert said in rest, rest
    assert "prune\\_0101" not in rest and "torch 2.13.0" in rest and "> Only 4 samples" in rest


@pytest.mark.parametrize("model", ["/home/me/secret-project/model", "./secret-project/model", "tiny:qwen3"])
def test_a_model_of_this_machine_is_called_by_its_name_alone(model: str) -> None:
    own = "/home/me/secret-project/own.yaml"
    front, rest = card({"model": model, "format": own}, hf_model_id=model, export_quant_cfg=own, export_dir=own)
    assert "base_model" not in front and front["tags"] == ["modelopt", "own"]
    assert "secret-project" not in rest and "/home" not in rest, rest


def test_nothing_of_a_name_is_mark_up() -> None:
    _, rest = card({"model": "a|b`<script>*_[x](y)", "evaluation": None, "warnings": ["one\n# two"]})
    assert "<script>" not in rest and "\n# two" not in rest and "perplexity" not in rest


def test_it_is_the_same_for_the_same(tmp_path: Path) -> None:
    """An export that is made again has the same digest; a card that is there already stays."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        changed = REPORT | {"calibration": REPORT["calibration"] | {"seconds": len(folder) * 7.0}}
        write_card(tmp_path / folder, QuantizeArgs(export_dir=str(tmp_path / folder)), RECORD, changed)
    assert (tmp_path / "one" / FILE).read_text() == (tmp_path / "two" / FILE).read_text()
    (tmp_path / "one" / FILE).write_text("its own")
    write_card(tmp_path / "one", QuantizeArgs(), RECORD, REPORT)
    assert (tmp_path / "one" / FILE).read_text() == "its own"


def test_license_and_commit_are_the_models(cached: Path) -> None:
    front, rest = card()
    assert front["license"] == "apache-2.0" and "license_link" not in front
    assert COMMIT in rest
    (row,) = with_commits([{"type": "checkpoint_hf", "name": "Qwen/Qwen3-8B"}])
    assert row["revision"] == COMMIT


@pytest.mark.parametrize("report", [REPORT, {}, {"model": 3}, REPORT | {"evaluation": {"perplexity_base": "x"}}])
def test_an_export_tells_what_was_measured_of_what_it_read(
    report: dict[str, Any], tmp_path: Path, fake_model: Callable[..., Path]
) -> None:
    """As the script and the bridge engine finish it: of a damaged report nothing is told, and nothing fails."""
    quantized = Record.submit(tmp_path / "q_1", id="q_1", recipe="quantize_fp8")
    (quantized.dir / "megatron").mkdir()
    (quantized.dir / "megatron" / "x").write_text("x")
    quantized.artifact("checkpoint_megatron", quantized.dir / "megatron")
    (quantized.dir / "report").mkdir()
    (quantized.dir / "report" / "report.json").write_text(json.dumps(report))
    exporting = Record.submit(tmp_path / "e_1", id="e_1", recipe="megatron_to_hf")
    args = ExportArgs(megatron_load_path=str(quantized.dir / "megatron"), export_dir=str(tmp_path / "out" / "hf"))
    (output,) = outputs_of(args, exporting.dir, "bridge")
    prepare([output], exporting)
    exporting.update(inputs=inputs_of(args, "bridge"))
    output.written.mkdir()
    for file in fake_model().iterdir():
        (output.written / file.name).write_bytes(file.read_bytes())
    (output.written / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    exporting.values["phase"] = "verify"
    finish([output], exporting)
    front, rest = front_of((output.final / FILE).read_text())
    assert front["base_model"] == "Qwen/Qwen3-8B" and front["tags"] == ["modelopt", "fp8"]
    assert ("| held-out perplexity | 8.000 | 8.020 |" in rest) == (report is REPORT)
    assert "q\\_1" not in rest and "| recipe | megatron\\_to\\_hf |" in rest and str(tmp_path) not in rest
    assert json.loads((exporting.dir / "run.json").read_text())["outputs"][0]["files"] == len(
        list(output.final.iterdir())
    )
