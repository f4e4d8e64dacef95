"""Counted parameters against transformers, part by part, on PyTorch's meta device: real models without weights."""

import copy
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.models import ModelFacts, facts_of
from recipes.models.config import facts_from_config
from recipes.models.hub import published
from recipes.models.model_types import FAMILIES
from recipes.models.weights import exact_total
from recipes.planner.megatron_memory import Share, share

#: Which part a parameter of transformers belongs to: the first pattern that its name has.
_PARTS = (
    ("vision", r"visual\.|vision_tower|vision_model|multi_modal_projector"),
    ("output", r"lm_head"),
    ("embeddings", r"embed_tokens|embeddings\.weight"),
    ("router", r"\.gate\.weight|router|shared_expert_gate|latent_proj"),
    ("mlp", r"shared_expert"),
    ("experts", r"\.experts\."),
    ("mamba", r"in_proj|out_proj|conv1d|dt_bias|A_log|\.D$|mixer\.norm"),
    ("attention", r"self_attn|mixer\.[qkvo]_proj"),
    ("mlp", r"(gate|up|down|gate_up)_proj"),
    ("norms", r"norm"),
)
#: Totals of the model cards and of the safetensors metadata of their repositories.
_PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen1.5-MoE-A2.7B": 14_315_784_192,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen/Qwen3-VL-30B-A3B-Instruct": 31_070_754_032,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": 108_641_793_536,
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": 401_583_781_376,
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": 8_888_227_328,
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31_577_937_344 + 23 * 128,
    "openai/gpt-oss-20b": 20_914_757_184,
    "openai/gpt-oss-120b": 116_829_156_672,
    "deepseek-ai/DeepSeek-V2-Lite": 15_706_484_224,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/phi-4": 14_659_507_200,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-3-4b-it": 4_300_079_472,
}
#: What the names and cards of the others say: billions in all, and for each token where it differs.
_ROUNDED = {
    "nvidia/Nemotron-Mini-4B-Instruct": (4.19, None),
    "nvidia/Nemotron-H-8B-Base-8K": (8.1, None),
    "nvidia/Nemotron-H-47B-Reasoning-128K": (46.8, None),
    "nvidia/Nemotron-H-56B-Base-8K": (56.3, None),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (31.6, 3.6),
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16": (120.6, 12.7),
    "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": (550, 55),
    "Qwen/Qwen3-30B-A3B": (30.5, 3.3),
    "Qwen/Qwen3-235B-A22B": (235, 22),
    "Qwen/Qwen1.5-MoE-A2.7B": (14.3, 2.7),
    "deepseek-ai/DeepSeek-R1": (671, 37),
    "moonshotai/Kimi-K2-Instruct": (1026, 32.6),
    "mistralai/Mixtral-8x7B-v0.1": (46.7, 12.9),
}


def class_of(config: Mapping[str, Any]) -> Any:
    """The configuration of transformers with these values."""
    from transformers import AutoConfig

    values = {key: value for key, value in copy.deepcopy(dict(config)).items() if key not in _NOT_OF_CLASS}
    # The repositories' own class is that of DeepSeek-V3, under another name.
    kind = {"kimi_k2": "deepseek_v3"}.get(values["model_type"], values["model_type"])
    return AutoConfig.for_model(kind, **{key: value for key, value in values.items() if key != "model_type"})


def built(config: Mapping[str, Any]) -> Any:
    """The model that transformers makes of a configuration, without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    loader = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    with torch.device("meta"):
        return loader.from_config(class_of(config))


_NOT_OF_CLASS = ("auto_map", "quantization_config")


def parts_of(config: Mapping[str, Any]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, weight in built(config).named_parameters():
        part = next((part for part, pattern in _PARTS if re.search(pattern, name)), None)
        assert part, f"{name} belongs to no part"
        found[part] += weight.numel()
    return dict(found)


def counted(config: Mapping[str, Any]) -> dict[str, int]:
    facts = facts_from_config(config, source="test")
    parameters = facts.architecture.parameters
    assert parameters is not None, facts.architecture.missing
    return {str(section): number for section, number in parameters.sections.items()}


def sections_of(facts: ModelFacts, layer: int) -> dict[str, Share]:
    """What of each section tensor parallelism splits in one layer."""
    assert facts.blocks is not None
    rows = facts.architecture.layers[facts.blocks[layer]]
    sections = {row.section for row in rows}
    return {name: share(row for row in rows if row.section == name) for name in sections}


def some_of_each_entry() -> list[Any]:
    """Every configuration of the file once, under the first of its names."""
    first = {id(config): name for name, config in reversed(published().configs.items())}
    return sorted(first.values())


@pytest.mark.parametrize("name", some_of_each_entry())
def test_every_part_of_every_published_model_is_what_transformers_builds(name: str) -> None:
    config = published().configs[name]
    assert counted(config) == parts_of(config)


@pytest.mark.parametrize(("name", "total"), _PUBLISHED.items())
def test_totals_are_the_published_ones(name: str, total: int) -> None:
    facts = facts_of(name)
    assert facts is not None
    parameters = facts.architecture.parameters
    assert parameters is not None
    buffers = (facts.count_of("experts") or 0) * (facts.experts or 0) if facts.model_type == "nemotron_h" else 0
    assert parameters.total + buffers == total


@pytest.mark.parametrize(("name", "billions"), _ROUNDED.items())
def test_totals_and_active_parameters_are_those_of_the_model_card(
    name: str, billions: tuple[float, float | None]
) -> None:
    facts = facts_of(name)
    assert facts is not None
    parameters = facts.architecture.parameters
    assert parameters is not None
    total, active = billions
    assert parameters.total / 1e9 == pytest.approx(total, rel=0.005)
    assert parameters.active / 1e9 == pytest.approx(active or total, rel=0.03)


_WIDTH = st.sampled_from([16, 48, 64])
_FLAG = st.booleans()


@st.composite
def configurations(draw: st.DrawFn, model_type: str) -> dict[str, Any]:
    """A small model of a type, with every figure and flag that its configuration has drawn at random."""
    groups = draw(st.sampled_from([1, 2, 3]))
    heads = groups * draw(st.sampled_from([1, 2, 4]))
    layers = draw(st.integers(1, 5))
    config: dict[str, Any] = {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": heads * 2 * draw(st.integers(2, 12)),
        "intermediate_size": draw(_WIDTH),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": draw(st.integers(50, 300)),
        # transformers 5.14 never ties a Nemotron-H, whatever its configuration says; no published one asks for it.
        "tie_word_embeddings": model_type != "nemotron_h" and draw(_FLAG),
        "pad_token_id": 0,
    }
    if model_type in _WITH_HEAD_DIM:
        config["head_dim"] = draw(st.sampled_from([4, 8, 14]))
    config |= {key: draw(_FLAG) for key in _FLAGS.get(model_type, ())}
    config |= draw(_EXTRA.get(model_type, lambda _: st.just({}))(layers))
    return config


_DIVIDED = ("qwen2", "qwen2_moe", "phi3", "olmo2", "kimi_k2", "deepseek_v2", "deepseek_v3")
_WITH_HEAD_DIM = tuple(name for name in FAMILIES if name not in _DIVIDED)
_FLAGS = {
    **dict.fromkeys(("llama", "nemotron", "deepseek_v2"), ("attention_bias", "mlp_bias")),
    **dict.fromkeys(("qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text"), ("attention_bias",)),
    **dict.fromkeys(("gpt_oss", "olmo2", "deepseek_v3", "llama4_text"), ("attention_bias",)),
    "qwen2_moe": ("qkv_bias",),
    "nemotron_h": ("use_bias", "use_conv_bias", "mlp_bias"),
}


def _experts(key: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.integers(2, 9).flatmap(
        lambda number: st.fixed_dictionaries(
            {key: st.just(number), "num_experts_per_tok": st.integers(1, number), "moe_intermediate_size": _WIDTH}
        )
    )


def _stepped(layers: int) -> st.SearchStrategy[dict[str, Any]]:
    where = {"decoder_sparse_step": st.integers(1, 3), "mlp_only_layers": st.lists(st.integers(0, layers))}
    shared = {"shared_expert_intermediate_size": _WIDTH}
    return st.builds(lambda *found: found[0] | found[1], _experts("num_experts"), st.fixed_dictionaries(where | shared))


def _latent(layers: int) -> st.SearchStrategy[dict[str, Any]]:
    sizes = st.fixed_dictionaries(
        {
            "first_k_dense_replace": st.integers(0, layers),
            "n_shared_experts": st.integers(1, 3),
            "kv_lora_rank": _WIDTH,
            "q_lora_rank": st.none() | _WIDTH,
            "qk_nope_head_dim": _WIDTH,
            "qk_rope_head_dim": st.sampled_from([2, 8]),
            "v_head_dim": _WIDTH,
            "n_group": st.just(1),
            "topk_group": st.just(1),
        }
    )
    return st.builds(lambda *found: found[0] | found[1], _experts("n_routed_experts"), sizes)


def _interleaved(layers: int) -> st.SearchStrategy[dict[str, Any]]:
    listed = {"moe_layers": st.lists(st.integers(0, layers - 1), unique=True)}
    where = st.fixed_dictionaries(
        {"interleave_moe_layer_step": st.integers(1, 3), "intermediate_size_mlp": _WIDTH}, optional=listed
    )
    return st.builds(lambda *found: found[0] | found[1], _experts("num_local_experts"), where)


def _hybrid(_: int) -> st.SearchStrategy[dict[str, Any]]:
    sizes = st.fixed_dictionaries(
        {
            "hybrid_override_pattern": st.text("M*-E", min_size=1, max_size=8),
            "mamba_num_heads": st.sampled_from([4, 8]),
            "mamba_head_dim": st.sampled_from([4, 16]),
            "n_groups": st.sampled_from([1, 2, 4]),
            "ssm_state_size": st.sampled_from([8, 24]),
            "conv_kernel": st.integers(2, 5),
            "moe_shared_expert_intermediate_size": _WIDTH,
            "moe_latent_size": st.none() | st.just(12),
        }
    )
    return st.builds(lambda *found: found[0] | found[1], _experts("n_routed_experts"), sizes)


_EXTRA = {
    **dict.fromkeys(("qwen2_moe", "qwen3_moe"), _stepped),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _latent),
    **dict.fromkeys(("mixtral", "gpt_oss"), lambda _: _experts("num_local_experts")),
    "llama4_text": _interleaved,
    "nemotron_h": _hybrid,
}


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if "_vl_" not in name and name != "kimi_k2"])
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_every_part_of_a_random_model_is_what_transformers_builds(model_type: str, data: st.DataObject) -> None:
    config = data.draw(configurations(model_type))
    assert counted(config) == parts_of(config)
    saved = json.loads(class_of(config).to_json_string())
    assert counted(saved) == counted(config), "as save_pretrained writes it"


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name != "kimi_k2"])
def test_what_an_absent_key_means_is_what_the_class_of_transformers_has(model_type: str) -> None:
    made = class_of({"model_type": model_type})
    for key, value in FAMILIES[model_type].absent.items():
        assert getattr(made, key) == (getattr(made, value) if isinstance(value, str) else value), key
    if "_vl_" not in model_type:  # where the whole model says it
        assert made.tie_word_embeddings is FAMILIES[model_type].tied


def _vision_of(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    towers: dict[str, dict[str, Any]] = {
        "qwen3_vl": {
            "depth": st.integers(1, 3),
            "hidden_size": st.sampled_from([16, 32]),
            "intermediate_size": _WIDTH,
            "num_heads": st.just(2),
            "patch_size": st.sampled_from([4, 8]),
            "spatial_merge_size": st.sampled_from([1, 2]),
            "temporal_patch_size": st.sampled_from([1, 2]),
            "out_hidden_size": _WIDTH,
            "num_position_embeddings": st.sampled_from([16, 25]),
            "deepstack_visual_indexes": st.lists(st.integers(0, 2)),
        },
        "llama4": {
            "num_hidden_layers": st.integers(1, 3),
            "hidden_size": st.sampled_from([16, 32]),
            "num_attention_heads": st.just(2),
            "intermediate_size": st.just(64),
            "image_size": st.sampled_from([28, 56]),
            "patch_size": st.just(14),
            "vision_output_dim": _WIDTH,
            "projector_input_dim": _WIDTH,
            "projector_output_dim": _WIDTH,
        },
        "gemma3": {
            "num_hidden_layers": st.integers(1, 3),
            "hidden_size": st.sampled_from([16, 32]),
            "num_attention_heads": st.just(2),
            "intermediate_size": _WIDTH,
            "image_size": st.sampled_from([28, 56]),
            "patch_size": st.just(14),
        },
    }
    optional = {"vision_use_head": _FLAG} if kind == "gemma3" else {}
    return st.fixed_dictionaries(towers[kind], optional=optional)


@pytest.mark.parametrize(
    ("model_type", "text_type", "tower"),
    [
        ("qwen3_vl", "qwen3_vl_text", "qwen3_vl"),
        ("qwen3_vl_moe", "qwen3_vl_moe_text", "qwen3_vl"),
        ("gemma3", "gemma3_text", "gemma3"),
        ("llama4", "llama4_text", "llama4"),
    ],
)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_a_random_vision_tower_is_what_transformers_builds(
    model_type: str, text_type: str, tower: str, data: st.DataObject
) -> None:
    text = data.draw(
        configurations({"qwen3_vl_moe_text": "qwen3_moe", "qwen3_vl_text": "qwen3"}.get(text_type, text_type))
    )
    tied = text.pop("tie_word_embeddings") if model_type != "llama4" else text["tie_word_embeddings"]
    config = {
        "model_type": model_type,
        "tie_word_embeddings": tied,
        "text_config": {**text, "model_type": text_type},
        "vision_config": data.draw(_vision_of(tower)),
    }
    assert counted(config) == parts_of(config)
    saved = json.loads(class_of(config).to_json_string())
    assert counted(saved) == counted(config), "as save_pretrained writes it"


@pytest.mark.parametrize("model_type", ["qwen3_vl", "qwen3_vl_moe", "gemma3", "llama4"])
def test_figures_that_a_vision_tower_leaves_out_are_those_of_transformers(model_type: str) -> None:
    text = published().configs[
        {"qwen3_vl": "Qwen/Qwen3-8B", "gemma3": "google/gemma-3-1b-it"}.get(model_type, "Qwen/Qwen3-30B-A3B")
    ]
    if model_type == "llama4":
        text = published().configs["meta-llama/Llama-4-Scout-17B-16E"]["text_config"]
    config = {"model_type": model_type, "text_config": {k: v for k, v in text.items() if k != "model_type"}}
    config |= {"vision_config": {}, "tie_word_embeddings": False}
    assert counted(config) == parts_of(config)


def test_layers_add_up_and_differ_by_what_they_hold() -> None:
    facts = facts_of("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16")
    assert facts is not None
    parameters, blocks = facts.architecture.parameters, facts.blocks
    assert blocks is not None and parameters is not None
    assert len(blocks) == facts.layers == sum(facts.architecture.counts.values()) == 88
    totals = {block: share(rows).total for block, rows in facts.architecture.layers.items()}
    rest = parameters.total - parameters.of("embeddings") - parameters.of("output")
    assert sum(totals[block] for block in blocks) + 4096 == rest
    assert (blocks[0], blocks[1]) == (("mamba",), ("experts",))
    assert sections_of(facts, 0).keys() == {"mamba", "norms"}
    experts = sections_of(facts, 1)
    assert experts["experts"].total == 512 * 2 * 1024 * 2688
    assert experts["mlp"].split == 2 * 4096 * 5376, "the shared expert"
    assert experts["router"] == Share(split=0, whole=512 * 4096 + 2 * 4096 * 1024)


@pytest.mark.parametrize(
    ("name", "part", "whole"),
    [
        ("Qwen/Qwen3-8B", "attention", 2 * 128),
        ("Qwen/Qwen2.5-7B-Instruct", "attention", 0),
        ("openai/gpt-oss-20b", "attention", 2880),
        ("openai/gpt-oss-20b", "experts", 32 * 2880),
        ("openai/gpt-oss-20b", "router", 32 * 2881),
        ("deepseek-ai/DeepSeek-R1", "attention", 7168 * (1536 + 512 + 64) + 1536 + 512),
        ("nvidia/Nemotron-H-8B-Base-8K", "mamba", 0),
        ("nvidia/Nemotron-Mini-4B-Instruct", "norms", 4 * 3072),
        ("google/gemma-2-9b", "norms", 4 * 3584),
    ],
)
def test_what_tensor_parallelism_leaves_on_every_rank(name: str, part: str, whole: int) -> None:
    facts = facts_of(name)
    assert facts is not None
    assert sections_of(facts, 0)[part].whole == whole


@pytest.mark.parametrize(
    "name",
    [
        *("Qwen/Qwen3-30B-A3B", "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", "deepseek-ai/DeepSeek-R1"),
        *("openai/gpt-oss-20b", "Qwen/Qwen1.5-MoE-A2.7B", "meta-llama/Llama-3.2-1B"),
    ],
)
@pytest.mark.parametrize(
    "field", [field.name for field in fields(ModelFacts) if field.name not in ("source", "latent")]
)
def test_a_fact_that_is_needed_and_not_known_is_named(name: str, field: str) -> None:
    facts = facts_of(name)
    assert facts is not None
    without = replace(facts, **{field: None})
    if without.architecture.missing:
        assert without.architecture.missing == (field,)
        assert without.architecture.parameters is None and not without.architecture.has_layers
    else:
        assert without.architecture.parameters == facts.architecture.parameters


def test_an_unknown_vision_tower_leaves_the_language_model_counted() -> None:
    facts = facts_of("Qwen/Qwen3-VL-8B-Instruct")
    assert facts is not None and facts.vision is not None
    without = replace(facts, vision=replace(facts.vision, parameters=None))
    assert without.architecture.missing == ("vision.parameters",)
    assert without.architecture.parameters is None
    assert without.architecture.has_layers and without.architecture.layers == facts.architecture.layers


def test_headers_of_a_local_folder_give_its_exact_total(tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    values |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    made = AutoConfig.for_model("qwen3", **values, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    facts = facts_of(str(tmp_path / "m"))
    assert facts is not None
    parameters = facts.architecture.parameters
    assert parameters is not None
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    assert exact_total(tmp_path / "m") == parameters.total == sum(weight.numel() for weight in model.parameters())
    assert (facts.dtype, facts.tied_embeddings) == ("bfloat16", True)


def test_no_total_is_told_of_a_folder_that_is_not_whole(tmp_path: Path, fake_model: Any) -> None:
    assert exact_total(tmp_path) is None
    folder = fake_model()
    assert exact_total(folder) == 2 * 100 * 256 + 4 * 256 * 256
    (folder / "config.json").write_text(json.dumps([]))
    assert exact_total(folder) is None
