"""A model that does not fit whole is quantized layer by layer, though nobody asked for that, and the run says so."""

import json
from pathlib import Path

import psutil
import pytest

torch = pytest.importorskip("torch")

from recipes import quantize_fp8, submit  # noqa: E402
from tests import hf_models  # noqa: E402

pytestmark = pytest.mark.integration


def test_a_model_larger_than_memory(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMORUN_HOME", str(home))
    memory = psutil.virtual_memory()._replace(total=600 << 20)  # less than torch takes with a model
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = hf_models.save(hf_models.build("llama", head_dim=32, **sizes), tmp_path / "model")
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"Number {number} is odd."}) + "\n" for number in range(20)))
    recipe = quantize_fp8()
    for name, value in {"hf_model_id": folder, "calib_dataset": text}.items():
        setattr(recipe.args, name, str(value))
    recipe.args.calib_size, recipe.args.eval_size = 8, 4
    run = submit(recipe, "local").raise_for_state()
    (told,) = (one for one in run.record["warnings"] if one["name"] == "goes_layer_by_layer")
    assert run.report is not None and run.report["layerwise"] and told["cause"] in run.report["warnings"]
    assert {one["type"] for one in run.record["outputs"]} == {"checkpoint_hf", "eval_results"}
    assert run.record["values"]["args"]["memory"] == "auto" and run.job is not None
    assert run.job.request is not None and run.job.request["values"]["args.memory"] is None
