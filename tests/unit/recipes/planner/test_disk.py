"""Sizes of checkpoints from facts and headers; test_predictions.py compares them with written ones."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest

from recipes.models import ModelFacts, facts_of
from recipes.models.architecture import Weight
from recipes.models.weights import Matrices, folder_of, matrices_of, of_facts
from recipes.planner.disk import checkpoint_bytes, hidden_states_bytes, outputs_bytes
from scripts.formats import FORMATS
from tests.jobs import job_of

BF16 = 2
NAMES = ["Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "meta-llama/Llama-3.2-1B"]


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def known(name: str) -> ModelFacts:
    facts = facts_of(name)
    assert facts is not None
    return facts


def model(name: str) -> Matrices:
    found = of_facts(known(name))
    assert found is not None
    return found


def sizes_of(recipe: str, engine: str = "script", **values: Any) -> dict[str, int]:
    return outputs_bytes(job_of(recipe, engine=engine, **{f"args__{name}": value for name, value in values.items()}))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_has_all_its_parameters(name: str) -> None:
    facts, found = known(name), model(name)
    counted = facts.architecture.parameters
    assert counted is not None
    assert found.total == counted.total
    head_norms = (facts.layers or 0) * 2 * (facts.head_dim or 0) if facts.qk_norm == "head" else 0
    assert found.others == sum(map(counted.of, ("embeddings", "output", "norms", "router"))) + head_norms


@pytest.mark.parametrize(
    "name",
    [
        "deepseek-ai/DeepSeek-V2-Lite",
        "deepseek-ai/DeepSeek-V3",
        "nvidia/Nemotron-H-8B-Base-8K",
        "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16",
    ],
)
def test_latent_attention_and_mixers_are_matrices_too(name: str) -> None:
    """Norms, routers and convolutions are all that is left beside the tables."""
    counted = known(name).architecture.parameters
    assert counted is not None
    found = model(name)
    rest = found.others - counted.of("embeddings") - counted.of("output")
    assert 0 < rest < 0.001 * found.total


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("Qwen/Qwen3-8B", 16.38), ("Qwen/Qwen3-30B-A3B", 61.07), ("meta-llama/Llama-3.2-1B", 2.47)],
)
def test_published_sizes(name: str, gigabytes: float) -> None:
    size = checkpoint_bytes(model(name), None, kind="hf")
    assert size is not None
    assert size / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_scales_are_counted_by_block() -> None:
    one = Matrices(packable=(Weight(outputs=256, inputs=512, copies=3),), others=0, tensors=3, tokenizer=0)
    elements = 256 * 512
    bare = {
        "fp8": elements + 4,
        "nvfp4": elements // 2 + elements // 16 + 4,
        "int8_sq": elements + 256 * 4 + 512 * BF16,
        "fp8_blockwise": elements + 2 * 4 * 4,
        "int4_awq": elements // 2 + elements // 128 * 4 + 512 * BF16,
    }
    for name, expected in bare.items():
        weight_only = checkpoint_bytes(one, name, kind="hf", weight_only=True)
        empty = replace(one, packable=(Weight(outputs=0, inputs=0, copies=3),))
        beside = checkpoint_bytes(empty, name, kind="hf", weight_only=True)
        assert weight_only is not None
        assert beside is not None
        assert weight_only - beside == pytest.approx(3 * expected, abs=3 * 8)
    both = checkpoint_bytes(one, "fp8", kind="hf"), checkpoint_bytes(one, "fp8", kind="hf", weight_only=True)
    assert None not in both
    assert both[0] > both[1]  # type: ignore[operator]


def test_only_compress_packs_what_can_be_reopened() -> None:
    whole = model("Qwen/Qwen3-8B")
    for kind in ("modelopt", "megatron"):
        fake = checkpoint_bytes(whole, "nvfp4", kind=kind)
        real = checkpoint_bytes(whole, "nvfp4", kind=kind, compress=True)
        assert fake is not None
        assert real is not None
        assert fake == pytest.approx(whole.total * BF16, rel=0.01)
        assert real == pytest.approx(whole.others * BF16 + whole.packed * 9 / 16, rel=0.01)


def test_an_optimizer_is_three_float32_for_each_parameter() -> None:
    whole = model("Qwen/Qwen3-8B")
    plain = checkpoint_bytes(whole, None, kind="megatron")
    training = checkpoint_bytes(whole, None, kind="megatron", training=True)
    assert training - plain == whole.total * 12  # type: ignore[operator]


def test_a_format_of_unknown_layout_has_no_size() -> None:
    assert checkpoint_bytes(model("Qwen/Qwen3-8B"), "MXFP8_DEFAULT_CFG", kind="hf") is None


HEADER = {
    "model.embed_tokens.weight": [1000, 256],
    "model.layers.0.self_attn.q_proj.weight": [256, 256],
    "model.layers.0.self_attn.q_proj.bias": [256],
    "model.layers.0.mlp.gate.weight": [8, 256],
    "model.layers.0.mlp.gate_proj.weight": [512, 256],
    "model.layers.0.mlp.experts.gate_up_proj": [8, 1024, 256],
    "model.layers.0.input_layernorm.weight": [256],
    "model.visual.blocks.0.attn.qkv.weight": [128, 128],
    "lm_head.weight": [1000, 256],
}


def folder(tmp_path: Path, dtype: str = "BF16") -> Path:
    made = tmp_path / "m"
    made.mkdir()
    header, end = {}, 0
    for name, shape in HEADER.items():
        begin, end = end, end + prod(shape) * (1 if dtype.startswith("F8") else BF16)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    (made / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    (made / "tokenizer.json").write_bytes(bytes(4000))
    (made / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    return made


def test_a_folder_is_read_from_its_headers(tmp_path: Path) -> None:
    found = matrices_of(str(folder(tmp_path)), None)
    assert found is not None
    expected = {(256, 256, 1), (512, 256, 1)}
    shapes = {(matrix.outputs, matrix.inputs, matrix.copies) for matrix in found.packable}
    assert shapes == expected | {(1024, 256, 8)}
    assert found.others == 2 * 1000 * 256 + 256 + 8 * 256 + 256 + 128 * 128
    assert (found.tensors, found.tokenizer, found.modules) == (len(HEADER), 4000, 10)


def test_a_packed_or_damaged_folder_tells_nothing(tmp_path: Path) -> None:
    packed = folder(tmp_path, "F8_E4M3")
    assert matrices_of(str(packed), None) is None
    (packed / "model.safetensors").write_bytes(b"\xff" * 20)
    assert matrices_of(str(packed), None) is None
    assert matrices_of(str(tmp_path), None) is None, "no weights"
    assert folder_of("~nobody-of-that-name/model") is None


def test_what_is_quantized_already_has_no_size() -> None:
    assert matrices_of("no/where", replace(known("Qwen/Qwen3-8B"), quantized="fp8")) is None
    assert matrices_of("no/where", replace(known("Qwen/Qwen3-8B"), hidden_size=None)) is None


def test_a_tiny_model_is_found_where_it_is_kept(tmp_path: Path) -> None:
    assert folder_of("tiny:qwen3") is None
    assert matrices_of("tiny:qwen3", facts_of("tiny:qwen3")) == model("tiny:qwen3")


def test_quantize_tells_the_size_of_each_output() -> None:
    whole = model("tiny:qwen3")
    sizes = sizes_of("quantize_nvfp4", "hf", hf_model_id="tiny:qwen3")
    assert sizes == {
        "args.modelopt_save_path": checkpoint_bytes(whole, "nvfp4", kind="modelopt"),
        "args.export_dir": checkpoint_bytes(whole, "nvfp4", kind="hf"),
    }
    compressed = checkpoint_bytes(model("Qwen/Qwen3-8B"), "nvfp4", kind="megatron", compress=True)
    sizes = sizes_of("quantize_nvfp4", hf_model_id="Qwen/Qwen3-8B", compress=True)
    assert sizes == {"args.megatron_save_path": compressed}


def test_a_recipe_of_modelopt_has_no_known_size() -> None:
    values = {"recipe": "general/ptq/fp8_default-kv_fp8", "quant_cfg": None}
    spec = job_of("quantize_modelopt", engine="script", **{f"args__{key}": value for key, value in values.items()})
    assert outputs_bytes(spec) == {}
    assert sizes_of("prepare_data") == {}


def test_every_checkpoint_that_a_training_keeps_counts() -> None:
    one = checkpoint_bytes(model("Qwen/Qwen3-4B"), None, kind="megatron", training=True)
    assert one is not None
    values = {"student_hf_path": "Qwen/Qwen3-4B", "train_iters": 1000, "save_interval": 300, "hf_export_path": "/x/hf"}
    sizes = sizes_of("distill", **values)
    assert sizes["args.output_dir"] == 4 * one
    assert sizes["args.hf_export_path"] == checkpoint_bytes(model("Qwen/Qwen3-4B"), None, kind="hf")
    assert sizes_of("distill", **values, checkpoint_keep_last=2)["args.output_dir"] == 2 * one
    often = values | {"save_interval": 10}
    assert sizes_of("distill", **often)["args.output_dir"] == 5 * one, "the script's own default"
    assert sizes_of("distill", **often, checkpoint_keep_last=-1)["args.output_dir"] == 100 * one
    assert "args.output_dir" not in sizes_of("distill", **values | {"train_iters": None})
    assert sizes_of("distill", **values | {"student_hf_path": "no/such"}) == {}
    card = {"model_card": "Qwen/Qwen3-8B", "save": "/x/out", "save_interval": 10, "global_batch_size": 8}
    card["train_iters"] = None
    found = sizes_of("mlm_finetune", **card, train_samples=200)["args.save"]
    assert found == pytest.approx(3 * 8.19e9 * 14, rel=0.01)


def test_pruning_leaves_what_was_asked_for() -> None:
    source = {"hf_model_name_or_path": "Qwen/Qwen3-8B", "output_hf_path": "/x/hf"}
    searched = sizes_of("prune", **source, prune_target_params=6e9)
    assert searched["args.output_hf_path"] == pytest.approx(12e9, rel=0.01)
    sizes = {"hidden_size": 3584, "ffn_hidden_size": 9216, "num_layers": 32}
    fixed = sizes_of("prune", **source, prune_target_params=None, prune_export_config=sizes)
    facts = known("Qwen/Qwen3-8B")
    assert facts.blocks is not None
    counted = replace(facts, hidden_size=3584, ffn_hidden_size=9216, blocks=facts.blocks[:32]).architecture.parameters
    assert counted is not None
    assert fixed["args.output_hf_path"] == pytest.approx(counted.total * BF16, rel=0.01)
    assert sizes_of("prune", **source, prune_target_params=None, prune_target_active_params=1e9) == {}
    damaged = {"num_layers": "32"}
    assert sizes_of("prune", **source, prune_target_params=None, prune_export_config=damaged) == {}
    hybrid = source | {"hf_model_name_or_path": "nvidia/Nemotron-H-8B-Base-8K"}
    assert sizes_of("prune", **hybrid, prune_target_params=None, prune_export_config={"num_layers": 32}) == {}


def test_conversions_keep_the_parameters() -> None:
    double = {"hf_model": "Qwen/Qwen3-8B", "torch_dtype": "float32"}
    there = sizes_of("hf_to_megatron", **double, megatron_path="/x/m")["args.megatron_path"]
    assert there == pytest.approx(8.19e9 * 4, rel=0.01)
    back = sizes_of("megatron_to_hf", **double, hf_path="/x/hf", export_weight_dtype="bfloat16")["args.hf_path"]
    assert back == pytest.approx(8.19e9 * 2, rel=0.01)
    merged = sizes_of("merge_lora", hf_model_path="Qwen/Qwen3-8B", output="/x/merged")["args.output"]
    assert merged == pytest.approx(8.19e9 * 2, rel=0.01)


def test_draft_heads_have_an_unknown_size() -> None:
    values = {"model_card": "Qwen/Qwen3-8B", "save": "/x/out"}
    assert sizes_of("mlm_convert", **values)["args.save"] == pytest.approx(8.19e9 * 2, rel=0.01)
    assert sizes_of("mlm_convert", **values, algorithm="eagle3") == {}


def test_all_formats_have_sizes() -> None:
    sizes = {name: checkpoint_bytes(model("Qwen/Qwen3-8B"), name, kind="hf") for name in FORMATS}
    assert None not in sizes.values()
    assert sizes["int4_awq"] < sizes["nvfp4"] < sizes["fp8"] < sizes["int8_sq"]  # type: ignore[operator]


def test_a_mixture_has_the_size_of_the_bits_that_are_asked_for() -> None:
    wanted: dict[str, Any] = {"args__hf_model_id": NAMES[0], "args__formats": ["nvfp4", "fp8"], "engine": "hf"}
    sizes = [
        outputs_bytes(job_of("auto_quantize", args__effective_bits=bits, **wanted))["args.export_dir"]
        for bits in (8.0, 6.0)
    ]
    packed = sum(matrix.parameters for matrix in model(NAMES[0]).packable)
    assert sizes[0] - sizes[1] == packed * 2 // 8


def test_hidden_states_lie_in_the_run_folder_until_the_end() -> None:
    values: dict[str, Any] = {"args__calib_size": 8, "args__calib_seq_length": 100, "args__eval_size": 3}
    job = job_of("quantize_fp8", engine="hf", args__hf_model_id=NAMES[0], args__memory="auto", **values)
    assert hidden_states_bytes(job) == 2 * (8 + 2 * 3) * 100 * 4096 * BF16
    assert hidden_states_bytes(job_of("quantize_fp8", engine="hf", args__hf_model_id=NAMES[0], **values)) == 0
    twice = job_of("quantize_int4_awq", engine="hf", args__hf_model_id=NAMES[0], args__memory="auto", **values)
    assert hidden_states_bytes(twice) == 2 * (2 * 8 + 2 * 3) * 100 * 4096 * BF16, "AWQ goes through the text twice"
