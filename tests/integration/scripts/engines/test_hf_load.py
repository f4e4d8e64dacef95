"""Loading: shapes before weights, safetensors only, each failure by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from scripts.args.quantize import QuantizeArgs  # noqa: E402
from scripts.checkpoints.causal import WITH_TEXT, architectures  # noqa: E402
from scripts.engines.hf.load import linear_shapes, load_model, pick_device, without_weights  # noqa: E402
from scripts.engines.hf.samples import choose_samples  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402
from tests import hf_models  # noqa: E402

pytestmark = pytest.mark.integration


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hf_models.save(hf_models.build("qwen3"), tmp_path / "a model")


def load(folder: Path, *, trust: bool = False) -> object:
    return load_model(str(folder), dtype="bfloat16", device="cpu", trust_remote_code=trust)


def test_loads(folder: Path) -> None:
    loaded = load_model(str(folder), dtype="float32", device="auto", trust_remote_code=False)
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert loaded.tokenizer.pad_token == "<pad>"
    assert loaded.model.device.type == loaded.device.type


def test_shapes_need_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    shapes = linear_shapes(without_weights(str(folder), False))
    assert len(shapes) == 14
    assert shapes["model.layers.0.mlp.up_proj"] == (384, 256)
    assert "lm_head" not in shapes


def test_shapes_of_experts(tmp_path: Path) -> None:
    shapes = linear_shapes(without_weights(str(hf_models.save(hf_models.build("qwen3_moe"), tmp_path)), False))
    assert shapes["model.layers.0.mlp.experts.down_proj"] == (256, 128)


def test_pad_token_leaves_the_vocabulary_alone(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("pad_token")
    path.write_text(json.dumps(config), encoding="utf-8")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    tokenizer = load(folder).tokenizer  # type: ignore[attr-defined]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert len(tokenizer) == 260


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "no_such_model"}), encoding="utf-8")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def no_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("tokenizer*"), *folder.glob("special_tokens*")]:
        path.unlink()


def tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    held = load_file(path)
    change(held)
    save_file(held, path, metadata={"format": "pt"})


def configured(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def lost_tensor(folder: Path) -> None:
    tensors(folder, lambda held: held.pop("model.layers.1.mlp.up_proj.weight"))


def no_head(folder: Path) -> None:
    tensors(folder, lambda held: held.pop("lm_head.weight"))


def tensor_left_over(folder: Path) -> None:
    tensors(folder, lambda held: held.update({"model.layers.9.mlp.up_proj.weight": torch.zeros(4, 4)}))


def other_shape(folder: Path) -> None:
    tensors(folder, lambda held: held.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(4, 4)}))


def not_a_number(folder: Path) -> None:
    tensors(folder, lambda held: held["model.layers.1.mlp.up_proj.weight"][3].fill_(float("nan")))


def infinite(folder: Path) -> None:
    tensors(folder, lambda held: held["model.norm.weight"][:1].fill_(float("inf")))


def gptq(folder: Path) -> None:
    configured(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})


def exported_by_modelopt(folder: Path) -> None:
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}), encoding="utf-8")


def vision_language(folder: Path) -> None:
    configured(folder, model_type="qwen3_vl", vision_config={}, architectures=["Qwen3VLForConditionalGeneration"])


def encoder(folder: Path) -> None:
    configured(folder, model_type="bert", architectures=["BertForMaskedLM"])


def kind_without_causal_model(folder: Path) -> None:
    configured(folder, model_type="clip_text_model", architectures=["CLIPTextModel"])


def heads_left_over(folder: Path) -> None:
    configured(folder, num_key_value_heads=3)


def heads_refused_by_the_class(folder: Path) -> None:
    configured(folder, model_type="llama", num_attention_heads=6, num_key_value_heads=6, head_dim=64)


def layer_types_of_another_number(folder: Path) -> None:
    configured(folder, layer_types=["full_attention"])


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": ', encoding="utf-8")


def own_code(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Own"}
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (only_pickles, "unsafe_weights"),
        (no_weights, "missing_model"),
        (no_config, "missing_model"),
        (bad_config, "missing_model"),
        (unknown_type, "unknown_model"),
        (truncated, "damaged_weights"),
        (missing_shard, "missing_model"),
        (no_tokenizer, "missing_tokenizer"),
        (own_code, "remote_code_not_trusted"),
        (lost_tensor, "weights_do_not_match"),
        (no_head, "weights_do_not_match"),
        (tensor_left_over, "weights_do_not_match"),
        (other_shape, "weights_do_not_match"),
        (not_a_number, "weights_not_finite"),
        (infinite, "weights_not_finite"),
        (gptq, "already_quantized"),
        (exported_by_modelopt, "already_quantized"),
        (vision_language, "unsupported_model"),
        (encoder, "unsupported_model"),
        (kind_without_causal_model, "unsupported_model"),
        (heads_left_over, "impossible_config"),
        (heads_refused_by_the_class, "impossible_config"),
        (layer_types_of_another_number, "impossible_config"),
        (broken_tokenizer, "missing_tokenizer"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_failures_have_names_and_remedies(damage: Callable[[Path], None], name: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(JobError) as caught:
        load(folder)
    assert caught.value.name == name
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("damage", "tensor"),
    [
        (lost_tensor, "model.layers.1.mlp.up_proj.weight is not in the files"),
        (tensor_left_over, "model.layers.9.mlp.up_proj.weight is in the files, but not in the model"),
        (other_shape, "model.layers.1.mlp.up_proj.weight [4, 4] for [384, 256] is of another shape"),
        (not_a_number, "model.layers.1.mlp.up_proj.weight holds NaN"),
    ],
)
def test_the_tensor_is_named(damage: Callable[[Path], None], tensor: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(JobError) as caught:
        load(folder)
    assert tensor in caught.value.cause


def test_tied_heads_and_stored_buffers_are_no_damage(tmp_path: Path) -> None:
    folder = hf_models.save(hf_models.build("llama", tie_word_embeddings=True), tmp_path)
    tensors(folder, lambda held: held.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(32)}))
    load(folder)


def fp8_blocks(held: dict[str, Any]) -> None:
    for name in [name for name in held if name.endswith("proj.weight")]:
        rows, columns = held[name].shape
        blocks = held[name].float().reshape(rows // 128, 128, columns // 128, 128)
        scale = blocks.abs().amax((1, 3)) / 448
        held[name] = (blocks / scale[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
        held[f"{name}_scale_inv"] = scale


def test_a_head_of_its_own_that_is_called_tied_is_refused(folder: Path) -> None:
    """Whoever loads what was exported would drop it, as config.json says."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}), encoding="utf-8")
    with pytest.raises(JobError, match=r"weights_do_not_match.*tie_word_embeddings to false"):
        load(folder)


def test_blocks_of_fp8_become_plain_weights_and_stay_so(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    whole = load_file(folder / "model.safetensors")
    tensors(folder, fp8_blocks)
    method = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    configured(folder, quantization_config=method)
    model = load(folder).model  # type: ignore[attr-defined]
    name = "model.layers.1.mlp.up_proj.weight"
    found = model.get_parameter(name)
    assert found.dtype == torch.bfloat16
    assert (found.float() - whole[name].float()).norm() < 0.05 * whole[name].float().norm()
    model.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == whole.keys()
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))


def mxfp4_experts(held: dict[str, Any]) -> dict[str, Any]:
    """Put random MXFP4 in the place of experts: two codes a byte, a power of two for 32. Returns their values."""
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table, values = torch.cat([table, -table]), {}
    draw = torch.Generator().manual_seed(0)
    for name in [name for name in held if name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj")]:
        experts, columns, rows = held.pop(name).shape
        codes = torch.randint(16, (experts, rows, columns // 32, 16, 2), generator=draw, dtype=torch.uint8)
        scales = torch.randint(120, 125, (experts, rows, columns // 32), generator=draw, dtype=torch.uint8)
        held[f"{name}_blocks"], held[f"{name}_scales"] = codes[..., 0] + 16 * codes[..., 1], scales
        plain = table[codes.long()] * (2.0 ** (scales.float() - 127))[..., None, None]
        values[name] = plain.reshape(experts, rows, columns).transpose(1, 2).to(torch.bfloat16)
    return values


def test_mxfp4_becomes_plain_weights_and_stays_so(tmp_path: Path) -> None:
    import transformers
    from safetensors.torch import load_file

    sizes = {
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 32,
    }
    sizes |= {"num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": hf_models.VOCAB}
    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    model = transformers.GptOssForCausalLM(transformers.GptOssConfig(**sizes, **ends)).to(torch.bfloat16)
    folder, values = hf_models.save(model, tmp_path / "source"), {}
    whole = load_file(folder / "model.safetensors")
    tensors(folder, lambda held: values.update(mxfp4_experts(held)))
    configured(folder, quantization_config={"quant_method": "mxfp4"})
    loaded = load(folder).model  # type: ignore[attr-defined]
    assert len(values) == 2
    for name, expected in values.items():
        assert torch.equal(loaded.get_parameter(name).cpu(), expected), name
    loaded.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == whole.keys()
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))


def test_text_is_refused_that_has_no_embedding() -> None:
    with pytest.raises(JobError, match="tokenizer_larger_than_vocabulary"):
        choose_samples(QuantizeArgs(hf_model_id="tiny:llama", calib_size=4), hf_models.tokenizer(), 100)


def test_the_vision_models_that_transformers_builds_as_text_are_those_that_are_let_through() -> None:
    from transformers.models.auto import modeling_auto

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    tried = architectures()["tried"]
    refused = {kind for kind, of in tried.items() if of.get("fp8", "").startswith("unsupported_model")}
    assert causal.keys() & modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys() <= WITH_TEXT | refused


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="missing_model"):
        load(tmp_path / "nothing" / "here")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu() -> None:
    with pytest.raises(JobError, match="no_cuda"):
        pick_device("cuda")
