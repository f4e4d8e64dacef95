"""Models that the hub stores under other names, or whose layers an exporter does not write.

The names of the files count, and what cannot come out right is refused before a weight is read.
"""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from scripts.args.quantize import QuantizeArgs  # noqa: E402
from scripts.engines.hf import calibrate, load, quantizers, reference, save, verify  # noqa: E402
from scripts.formats import FORMATS  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402
from tests import hf_models  # noqa: E402
from tests.architectures import tiny_config  # noqa: E402

pytestmark = pytest.mark.integration

TEXT = {
    "vocab_size": hf_models.VOCAB,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
}


def nemotron_h() -> Any:
    import transformers

    mamba = {"mamba_num_heads": 4, "mamba_head_dim": 64, "ssm_state_size": 16, "n_groups": 2, "chunk_size": 32}
    experts = {"n_routed_experts": 2, "moe_intermediate_size": 128, "moe_shared_expert_intermediate_size": 128}
    routing = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    blocks = ["mamba", "attention", "moe"]
    config = transformers.NemotronHConfig(**TEXT, **mamba, **experts, **routing, layers_block_type=blocks)
    return transformers.NemotronHForCausalLM(config)


def gemma3_vl() -> Any:
    import transformers

    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config={**TEXT, "num_hidden_layers": 2},
        vision_config={**vision, "image_size": 56, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def gpt2() -> Any:
    import transformers

    sizes = {"n_embd": 128, "n_layer": 1, "n_head": 2, "n_positions": 64}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=hf_models.VOCAB, **sizes))


def falcon() -> Any:
    import transformers

    sizes = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.FalconForCausalLM(transformers.FalconConfig(vocab_size=hf_models.VOCAB, **sizes))


def opened(model: Any, folder: Path) -> Any:
    hf_models.save(model.to(torch.bfloat16), folder)
    return load.load_model(str(folder), dtype="bfloat16", device="cpu", trust_remote_code=False).model


def quantized(model: Any, fmt: str) -> Any:
    config = quantizers.build_config(QuantizeArgs(export_quant_cfg=fmt))
    samples = hf_models.token_samples(2, 20, 30)
    loop = calibrate.calibration_loop(samples, batch_size=1, max_tokens=64, advance=lambda done: None)
    return quantizers.quantize(model, config, loop)


@pytest.mark.parametrize(("make", "prefix"), [(nemotron_h, "backbone.layers."), (gemma3_vl, "language_model.model.")])
def test_the_files_have_the_names_of_the_source(make: Any, prefix: str, tmp_path: Path) -> None:
    model = quantized(opened(make(), tmp_path / "source"), "fp8")
    expected = reference.reference(model, tmp_path / "source")
    save.export_hf(model, hf_models.tokenizer(), tmp_path / "hf", "bfloat16")
    verify.verify_export(tmp_path / "hf", FORMATS["fp8"], expected, kv_cache="none")
    names = verify.Export(tmp_path / "hf").header
    assert any(name.startswith(prefix) and name.endswith(".weight_scale") for name in names)
    for file, keys in (("hf_quant_config.json", ("quantization", "exclude_modules")), ("config.json", ())):
        text = (tmp_path / "hf" / file).read_text(encoding="utf-8")
        assert "sentinel" not in text and "u0000" not in text
        said = json.loads(text)
        for key in keys:
            said = said[key]
        assert said and (file == "config.json" or "lm_head" in said)


def test_an_export_is_compared_with_the_source_not_with_memory(tmp_path: Path) -> None:
    model = opened(hf_models.build("qwen3"), tmp_path / "source")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)  # as a loader might that makes a mistake
    quantized(model, "fp8")
    expected = reference.reference(model, tmp_path / "source")
    save.export_hf(model, hf_models.tokenizer(), tmp_path / "hf", "bfloat16")
    with pytest.raises(JobError, match="export_wrong_values"):
        verify.verify_export(tmp_path / "hf", FORMATS["fp8"], expected, kv_cache="none")


def test_sampling_values_without_do_sample_are_written_all_the_same(tmp_path: Path) -> None:
    hf_models.save(hf_models.build("qwen3"), tmp_path / "source")
    file = tmp_path / "source" / "generation_config.json"
    file.write_text(json.dumps({"do_sample": False, "temperature": 0.7, "top_p": 0.9, "eos_token_id": [2, 3]}))
    loaded = load.load_model(str(tmp_path / "source"), dtype="bfloat16", device="cpu", trust_remote_code=False)
    model = quantized(loaded.model, "fp8")
    save.save_restorable(model, loaded.tokenizer, tmp_path / "mto")
    save.export_hf(model, loaded.tokenizer, tmp_path / "hf", "bfloat16")
    for folder in (tmp_path / "mto", tmp_path / "hf"):
        save.keep_source_files(tmp_path / "source", folder)
        assert (folder / file.name).read_text() == file.read_text()


@pytest.mark.parametrize(
    ("model", "fmt", "exported", "name"),
    [
        ("gpt2", "fp8", True, "unsupported_model"),
        ("falcon", "fp8", True, "format_not_exportable"),
        ("falcon", "fp8", False, None),
        ("qwen3_moe", "int4_awq", True, "format_not_exportable"),
        ("qwen3_moe", "int4_awq", False, None),
        ("mixtral", "w4a8_awq", True, "format_not_exportable"),
        ("nemotron_h", "int4_awq", True, "format_not_exportable"),
        ("nemotron_h", "fp8", True, None),
        ("qwen3_moe", "fp8", True, None),
        ("qwen3", "int4_awq", True, None),
        ("bloom", "fp8", True, "cannot insert its quantizers into BloomForCausalLM"),
        ("gpt_oss", "fp8", True, None),
        ("gpt_oss", "int4_awq", True, "format_not_exportable"),
        ("granitemoe", "fp8", True, "in one tensor of all experts"),
        ("granitemoe", "fp8", False, None),
        ("zamba", "fp8", True, "model.layers.3.* shares its weight"),
    ],
)
def test_what_cannot_come_out_right_is_refused_before_loading(
    model: str, fmt: str, exported: bool, name: str | None
) -> None:
    from transformers import AutoModelForCausalLM

    own = {"gpt2": gpt2, "falcon": falcon, "nemotron_h": nemotron_h}
    with torch.device("meta"):
        if model in own or model in hf_models.FAMILIES:
            bare = own[model]() if model in own else hf_models.build(model)
        else:
            bare = AutoModelForCausalLM.from_config(tiny_config(model))
    config = quantizers.build_config(QuantizeArgs(export_quant_cfg=fmt))
    if name is None:
        quantizers.rehearse(bare, config, exported=exported)
    else:
        with pytest.raises(JobError, match=name):
            quantizers.rehearse(bare, config, exported=exported)
