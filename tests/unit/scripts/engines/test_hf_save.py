"""What goes along with a checkpoint, and what stays of one whose verification fails; nothing here needs torch."""

import json
from pathlib import Path
from typing import Any

from scripts.engines.hf.save import keep_source_files


def kept_config(tmp_path: Path, source: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    for name, config in (("source", source), ("export", written)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    keep_source_files(tmp_path / "source", tmp_path / "export")
    found: dict[str, Any] = json.loads((tmp_path / "export" / "config.json").read_text())
    return found


def test_both_spellings_of_rope_are_kept(tmp_path: Path) -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0}
    source = {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": llama3, "torch_dtype": "float32"}
    written = {"model_type": "llama", "rope_parameters": {**llama3, "rope_theta": 5e5}, "dtype": "bfloat16"}
    quantized = {"quantization_config": {"quant_algo": "FP8"}}
    found = kept_config(tmp_path, {**source, "quantization_config": {"quant_method": "fp8"}}, {**written, **quantized})
    assert found == {**source, **written, **quantized, "torch_dtype": "bfloat16"}


def test_keys_of_inner_configs_are_kept(tmp_path: Path) -> None:
    source = {"model_type": "gemma3", "text_config": {"rope_theta": 1e6, "hidden_size": 8}}
    found = kept_config(tmp_path, source, {"model_type": "gemma3", "text_config": {"hidden_size": 8}})
    assert found == source


def test_the_config_of_another_model_type_is_left_alone(tmp_path: Path) -> None:
    assert kept_config(tmp_path, {"model_type": "a", "x": 1}, {"model_type": "b"}) == {"model_type": "b"}


def test_files_of_the_source_go_along_as_they_are(tmp_path: Path) -> None:
    names = ["tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json", "tekken.json", "LICENSE"]
    names += ["generation_config.json", "chat_template.jinja", "merges.txt", "tokenizer.model"]
    (tmp_path / "source").mkdir()
    for name in [*names, "model.safetensors", "README.md"]:
        (tmp_path / "source" / name).write_text(f"the source's {name}")
    (tmp_path / "source" / "config.json").write_text("{}")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    (tmp_path / "export" / "tokenizer_config.json").write_text("TokenizersBackend")
    keep_source_files(tmp_path / "source", tmp_path / "export")
    assert {file.name for file in (tmp_path / "export").iterdir()} == {*names, "config.json"}
    assert (tmp_path / "export" / "tokenizer_config.json").read_text() == "the source's tokenizer_config.json"


def test_who_may_read_the_config_may_read_the_weights(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    (tmp_path / "export" / "config.json").chmod(0o640)
    (tmp_path / "export" / "model.safetensors").touch(0o600)
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    keep_source_files(tmp_path, tmp_path / "export")
    assert (tmp_path / "export" / "model.safetensors").stat().st_mode & 0o777 == 0o640
