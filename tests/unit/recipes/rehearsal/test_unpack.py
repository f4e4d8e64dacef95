"""An export read back: the weights that its files mean, as a model that Transformers loads."""

import json
from pathlib import Path

import pytest

from recipes.rehearsal.unpack import unpack
from scripts.checkpoints import look
from scripts.run.problems import JobError


def _export(folder: Path, algorithm: str) -> Path:
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    said = {"quant_algo": algorithm, "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "quantization_config": said}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": said}))
    (folder / "tokenizer.json").write_text("{}")
    tensors = {
        "model.up.weight": torch.tensor([[1.0, -2.0], [0.5, 4.0]]).to(torch.float8_e4m3fn),
        "model.up.weight_scale": torch.tensor(0.25),
        "model.up.input_scale": torch.tensor(3.0),
        "model.norm.weight": torch.ones(2, dtype=torch.bfloat16),
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_weights_are_those_that_the_files_mean(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    unpack(_export(tmp_path / "fp8", "FP8"), tmp_path / "plain")
    found = load_file(tmp_path / "plain/model.safetensors")
    assert found.keys() == {"model.up.weight", "model.norm.weight"}
    assert found["model.up.weight"].tolist() == [[0.25, -0.5], [0.125, 1.0]]
    assert look(tmp_path / "plain").quantization is None
    assert sorted(one.name for one in tmp_path.iterdir()) == ["fp8", "plain"]
    assert (tmp_path / "plain/tokenizer.json").is_file()


def test_an_export_of_several_formats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="unscorable_checkpoint"):
        unpack(_export(tmp_path / "mixed", "MIXED_PRECISION"), tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
