"""Facts of models: where they come from, and that nothing which somebody else wrote can break whoever asks."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.models import ModelFacts, facts_of
from recipes.models.config import facts_from_config
from recipes.models.hub import published
from recipes.models.model_types import FAMILIES
from scripts.engines.script.cards import cards
from scripts.tiny.model import TINY_MODELS

_CONFIGS = Path(__file__).resolve().parents[4] / "configs"
_QWEN3: Mapping[str, Any] = {
    "model_type": "qwen3",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 100,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
    "dtype": "bfloat16",
}


def read(**changes: Any) -> ModelFacts:
    return facts_from_config({**_QWEN3, **changes}, source="test")


def known(model: str) -> ModelFacts:
    facts = facts_of(model)
    assert facts is not None, model
    return facts


# --- where they come from


def test_a_local_folder_is_read_again_when_it_changes(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    assert facts_of(str(tmp_path)) is None
    config.write_text(json.dumps(_QWEN3))
    facts = known(str(tmp_path))
    assert facts == replace(read(), source=str(config), gated=False)
    assert (facts.layers, facts.count_of("attention"), facts.count_of("experts")) == (4, 4, 0)
    config.write_text(json.dumps({**_QWEN3, "num_hidden_layers": 12}))
    assert known(str(tmp_path)).layers == 12
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert known(str(tmp_path)).quantized == "fp8"


def test_a_cached_snapshot_comes_before_what_was_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert (known("Qwen/Qwen3-8B").layers, known("Qwen/Qwen3-8B").source) == (36, "configs/models/hub.yaml")
    for name in ("Qwen/Qwen3-8B", "meta-llama/Llama-9-1B", "someone/model"):
        snapshot = tmp_path / f"models--{name.replace('/', '--')}" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps(_QWEN3))
        assert known(name).layers == 4
        assert known(name).source == str(snapshot / "config.json")
    assert [known(name).gated for name in ("Qwen/Qwen3-8B", "meta-llama/Llama-9-1B", "someone/model")] == [
        *(False, True, None),
    ]
    (tmp_path / "models--Qwen--Qwen3-8B/snapshots/abc/config.json").write_text("{")
    assert known("Qwen/Qwen3-8B").source == "configs/models/hub.yaml"


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_built_in_model_is_known_before_it_is_trained(name: str) -> None:
    from scripts.tiny.train import _network

    config = _network(TINY_MODELS[name]).config
    saved = json.loads(config.to_json_string())
    assert known(name) == facts_from_config({**saved, "dtype": "bfloat16"}, source="scripts/tiny/model.py", gated=False)
    assert known(name).architecture.parameters is not None


def _named(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _named(inner)
    elif isinstance(value, str) and value.count("/") == 1 and value.split("/")[0] in _ORGANISATIONS:
        yield value


_ORGANISATIONS = ("Qwen", "nvidia", "meta-llama", "openai", "deepseek-ai", "google", "mistralai", "moonshotai")
#: Repositories of the hub that shipped recipes name and that are no models.
_DATA = ("nvidia/Daring-Anteater", "nvidia/Nemotron-Post-Training-Dataset-v2")


def test_every_model_that_a_shipped_recipe_names_is_known() -> None:
    files = [file for file in _CONFIGS.glob("*/*.yaml") if file.parent.name not in ("executors", "models", "upstream")]
    named = {name for file in files for name in _named(yaml.safe_load(file.read_text())) if name not in _DATA}
    assert len(named) > 5
    assert [name for name in sorted(named) if facts_of(name) is None] == []


@pytest.mark.parametrize(
    "name",
    [
        *("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B", "meta-llama/Meta-Llama-3-8B", "Qwen/Qwen3-4B"),
        *("Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-VL-30B-A3B-Instruct"),
        *("nvidia/Nemotron-H-8B-Base-8K", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16"),
        *("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", *cards()),
    ],
)
def test_every_supported_model_is_known_whole(name: str) -> None:
    facts = known(name)
    assert facts.architecture.parameters is not None
    assert None not in (facts.heads, facts.query_groups, facts.head_dim, facts.remote_code, facts.gated)


@pytest.mark.parametrize("name", cards())
def test_what_is_known_agrees_with_the_model_card_of_megatron(name: str) -> None:
    card, facts = cards()[name], known(name)
    said = {
        "hidden-size": facts.hidden_size,
        "ffn-hidden-size": facts.ffn_hidden_size or facts.expert_ffn_size,
        "num-attention-heads": facts.heads,
        "num-query-groups": facts.query_groups,
        "kv-channels": card.get("kv-channels") if facts.latent else facts.head_dim,
        "num-experts": facts.experts,
        "moe-router-topk": facts.experts_per_token,
        "moe-ffn-hidden-size": facts.expert_ffn_size,
        "moe-shared-expert-intermediate-size": facts.shared_expert_ffn_size,
        "moe-latent-size": facts.expert_latent_size,
        "mamba-num-heads": facts.mamba_heads,
        "mamba-head-dim": facts.mamba_head_dim,
        "mamba-num-groups": facts.mamba_groups,
        "mamba-state-dim": facts.mamba_state,
        "padded-vocab-size": facts.vocab_size,
        "untie-embeddings-and-output-weights": not facts.tied_embeddings,
        "add-qkv-bias": facts.attention_bias,
        "num-layers": facts.layers,
    }
    if facts.count_of("mlp") == 0:
        del said["ffn-hidden-size"]  # Megatron-LM wants one, and the models have none
    assert {flag: value for flag, value in said.items() if flag in card} == {
        flag: card[flag] for flag in said if flag in card
    }
    assert facts.tied_embeddings is not ("untie-embeddings-and-output-weights" in card)
    assert facts.gated_mlp is ("swiglu" in card or "quick-geglu" in card)
    pattern = card.get("hybrid-layer-pattern", card.get("hybrid-override-pattern"))
    if pattern:
        letters = {"M": "mamba", "*": "attention", "-": "mlp", "E": "experts"}
        assert facts.blocks == tuple((letters[letter],) for letter in pattern)
    if "moe-layer-freq" in card:
        where = _frequency(card["moe-layer-freq"])
        assert [int("experts" in block) for block in facts.blocks or ()] == where


def _frequency(text: str) -> list[int]:
    """[0]*3+[1]*58, as Megatron-LM writes it."""
    found: list[int] = []
    for term in text.strip("()").split("+"):
        listed, _, times = term.strip("()").partition("*")
        found += json.loads(listed) * int(times or 1)
    return found


# --- what a configuration says


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"num_key_value_heads": None}, "query_groups", None),
        ({"num_key_value_heads": None, "model_type": "llama"}, "query_groups", 4),
        ({"num_key_value_heads": "2", "model_type": "llama"}, "query_groups", None),
        ({"head_dim": None}, "head_dim", 128),
        ({"head_dim": None, "model_type": "llama"}, "head_dim", 16),
        ({"head_dim": None, "model_type": "llama", "num_attention_heads": 100}, "head_dim", None),
        ({"head_dim": -1}, "head_dim", None),
        ({"tie_word_embeddings": None}, "tied_embeddings", False),
        ({"tie_word_embeddings": None, "model_type": "gemma"}, "tied_embeddings", True),
        ({"tie_word_embeddings": 1}, "tied_embeddings", None),
        ({"attention_bias": True}, "attention_output_bias", True),
        ({"attention_bias": "no"}, "attention_bias", None),
        ({"num_hidden_layers": 4.0}, "blocks", None),
        ({"num_hidden_layers": 10**9}, "blocks", None),
        ({"hidden_size": True}, "hidden_size", None),
        ({"vocab_size": 10**30}, "vocab_size", None),
        ({"max_position_embeddings": 0}, "context", None),
        ({"dtype": None, "torch_dtype": "torch.float16"}, "dtype", "float16"),
        ({"dtype": "float32"}, "dtype", "float32"),
        ({"dtype": "int3"}, "dtype", None),
        ({}, "experts", 0),
        ({"num_local_experts": 8}, "experts", 8),
        ({"model_type": "qwen3_moe", "num_experts": [8]}, "experts", None),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0, "1"]}, "blocks", None),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0, 1, 2, 3], "num_experts": 8}, "experts", 0),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M-X"}, "blocks", None),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": ""}, "blocks", None),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M" * 5000}, "blocks", None),
        ({"model_type": "nemotron_h", "layers_block_type": ["mamba", "moe"]}, "blocks", (("mamba",), ("experts",))),
        ({"model_type": "nemotron_h", "layers_block_type": ["mamba", 1]}, "blocks", None),
        ({"model_type": "nemotron_h", "layers_block_type": 7, "hybrid_override_pattern": "M"}, "blocks", None),
        ({"model_type": "nemotron_h", "mamba_n_groups": 2, "n_groups": 8}, "mamba_groups", 2),
        ({"model_type": "nemotron_h", "mamba_d_conv": 2, "conv_kernel": 4}, "mamba_conv", 2),
        ({"model_type": "nemotron_h", "mamba_conv_bias": False, "use_conv_bias": True}, "mamba_conv_bias", False),
        ({"model_type": "deepseek_v2"}, "head_dim", None),
        ({"model_type": "novel"}, "heads", 4),
        ({"model_type": "novel"}, "blocks", None),
        ({"model_type": "novel"}, "experts", None),
        ({"model_type": "novel", "num_experts": 4}, "experts", 4),
        ({"model_type": "novel", "tie_word_embeddings": None}, "tied_embeddings", None),
        ({"model_type": ["qwen3"]}, "model_type", None),
        ({"auto_map": {"AutoModel": "x.Y"}}, "remote_code", False),
        ({"auto_map": {"AutoModel": "x.Y"}, "model_type": "novel"}, "remote_code", True),
        ({"auto_map": {"AutoModel": "x.Y"}, "model_type": "kimi_k2"}, "remote_code", True),
        ({"auto_map": {"AutoModel": "x.Y"}, "model_type": "nemotron_h"}, "remote_code", True),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, "quantized", "nvfp4"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized", "awq"),
        ({"quantization_config": "fp8"}, "quantized", None),
    ],
)
def test_a_value_is_read_or_not_known(changes: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(read(**changes), field) == value


def test_the_ranks_of_latent_attention_are_known_together_or_not_at_all() -> None:
    whole = dict(published().configs["deepseek-ai/DeepSeek-R1"])
    assert facts_from_config(whole, source="").latent is not None
    without = {key: value for key, value in whole.items() if key != "q_lora_rank"}
    assert facts_from_config(without, source="").latent is None, "absent, where null says that there is none"
    assert facts_from_config({**whole, "kv_lora_rank": "512"}, source="").latent is None
    assert facts_from_config({**whole, "kv_lora_rank": "512"}, source="").architecture.parameters is None, (
        "and never as if it had none"
    )


def test_a_model_with_vision_is_its_language_model_and_a_tower() -> None:
    facts = known("Qwen/Qwen3-VL-8B-Instruct")
    assert (facts.model_type, facts.layers, facts.dtype) == ("qwen3_vl", 36, "bfloat16")
    assert facts.vision is not None and facts.vision.parameters == 576_388_336
    other = facts_from_config({"model_type": "novel_vl", "text_config": _QWEN3, "vision_config": {}}, source="")
    assert other.layers == 4, "the language model says its own type"
    assert other.vision is not None and other.vision.parameters is None
    assert read(vision_config=None).vision == other.vision, "there is one, and nothing is said of it"
    assert read().vision is None


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("Qwen/Qwen3-VL-8B-Instruct", "depth", "27"),
        ("Qwen/Qwen3-VL-8B-Instruct", "patch_size", [16, 16]),
        ("Qwen/Qwen3-VL-8B-Instruct", "deepstack_visual_indexes", 3),
        ("meta-llama/Llama-4-Scout-17B-16E", "image_size", -336),
        ("google/gemma-3-4b-it", "hidden_size", True),
        ("google/gemma-3-4b-it", "vision_use_head", "no"),
    ],
)
def test_a_tower_of_which_a_figure_cannot_be_read_has_an_unknown_size(name: str, key: str, value: Any) -> None:
    config = published().configs[name]
    damaged = {**config, "vision_config": {**config["vision_config"], key: value}}
    facts = facts_from_config(damaged, source="")
    assert facts.vision is not None and facts.vision.parameters is None
    assert facts.layers == known(name).layers


@pytest.mark.parametrize(
    ("name", "gated"),
    [
        ("meta-llama/Llama-3.2-1B", True),
        ("google/gemma-3-4b-it", True),
        ("Qwen/Qwen3-8B", False),
        ("mistralai/Mixtral-8x7B-v0.1", None),
    ],
)
def test_whether_a_licence_has_to_be_accepted(name: str, gated: bool | None) -> None:
    assert known(name).gated is gated


# --- what somebody else wrote


@functools.cache
def _examples() -> tuple[dict[str, Any], ...]:
    of_type = {config["model_type"]: dict(config) for config in published().configs.values()}
    return tuple(of_type.values())


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**20, 10**40)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([*FAMILIES, "qwen3_vl", "gemma3", "llama4", "mamba", "1e400"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_KEYS = sorted({key for config in published().configs.values() for key in config})


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A published configuration in which some values are something else, and some keys are not there."""
    config = dict(draw(st.sampled_from(_examples())))
    for section in [config, *(dict(value) for value in config.values() if isinstance(value, dict))]:
        for key in draw(st.lists(st.sampled_from([*section, *_KEYS]), max_size=5)):
            if draw(st.booleans()):
                section[key] = draw(_JSON)
            else:
                section.pop(key, None)
        if section is not config:
            config[draw(st.sampled_from(["text_config", "vision_config"]))] = section
    return config


@given(config=damaged())
@settings(max_examples=400, deadline=None)
def test_no_configuration_raises_or_gives_a_figure_that_is_none(config: dict[str, Any]) -> None:
    facts = facts_from_config(config, source="test")
    for field in fields(ModelFacts):
        value = getattr(facts, field.name)
        if "int" in str(field.type) and value is not None:
            assert type(value) is int and 0 <= value < 1 << 62, field.name
        elif "bool" in str(field.type):
            assert value is None or isinstance(value, bool), field.name
    parameters = facts.architecture.parameters
    assert parameters is None or parameters.total >= parameters.active >= 0
    assert list(facts.architecture.rows())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b'{"model_type": "\xff"}',
        b'{"hidden_size": ' + b"9" * 5000 + b"}",
        b'{"a":' * 200_000,
        b"[" * 200_000,
    ],
    ids=["empty", "cut", "list", "null", "utf16", "no utf8", "long number", "deep objects", "deep lists"],
)
def test_a_file_that_is_no_configuration_tells_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert facts_of(str(tmp_path)) is None


def test_numbers_beyond_what_json_can_hold_are_not_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 1e400, "vocab_size": NaN}')
    facts = known(str(tmp_path))
    assert (facts.hidden_size, facts.vocab_size) == (None, None)


def test_a_pipe_in_the_place_of_a_configuration_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    assert facts_of(str(tmp_path)) is None


@pytest.mark.parametrize("name", ["", "~nobody-here/model", "a\0b", "x" * 5000, "org/" + "x" * 5000, "tiny:other", "/"])
def test_a_name_that_can_be_no_model_is_not_known(name: str) -> None:
    assert facts_of(name) is None


# --- what it costs


def test_asking_imports_no_framework() -> None:
    code = (
        "import sys; from recipes.models import facts_of; assert facts_of('Qwen/Qwen3-235B-A22B').layers == 94\n"
        "print(*({'torch', 'transformers', 'modelopt', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_folder_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_QWEN3))
    first = known(str(tmp_path))
    monkeypatch.setattr(json, "loads", None)  # whoever parses it again fails
    assert known(str(tmp_path)) == first
