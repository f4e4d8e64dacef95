"""What config.json says of a model, against itself and against the headers of its weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.models import hub
from scripts.checkpoints.figures import impossible
from scripts.checkpoints.model import local_model_problems, tokenizer_problem
from tests.conftest import write_safetensors

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 96,
}


def shapes(prefix: str = "model.", layers: int = 2, vocabulary: int = 96, queries: int = 64) -> dict[str, list[int]]:
    """Of the tensors that tell."""
    heads = {"self_attn.q_proj": [queries, 64], "self_attn.k_proj": [32, 64]}
    found = {f"{prefix}layers.{n}.{name}.weight": side for n in range(layers) for name, side in heads.items()}
    return found | {f"{prefix}embed_tokens.weight": [vocabulary, 64], "lm_head.weight": [vocabulary, 64]}


def told(
    folder: Path, tensors: dict[str, list[int]] | None = None, packed: tuple[str, ...] = (), **changed: Any
) -> list[tuple[str, str]]:
    """Name and cause of each problem of a Llama whose config.json says otherwise; null takes a key out."""
    config = {key: value for key, value in {**CONFIG, **changed}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    if not (folder / "tokenizer.json").exists():
        (folder / "tokenizer.json").write_text("{}")
    write_safetensors(folder / "model.safetensors", tensors or shapes(), dict.fromkeys(packed, "U8"))
    return [(name, cause) for name, cause, _ in local_model_problems(str(folder))]


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads is 4, no multiple of its num_key_value_heads, 3"),
        ({"num_attention_heads": 6, "num_key_value_heads": 3}, "hidden_size is 64, no multiple of its num_attention"),
        ({"text_config": {"num_attention_heads": 5, "num_key_value_heads": 2}}, "num_attention_heads is 5"),
    ],
)
def test_heads_divide(changed: dict[str, Any], cause: str, tmp_path: Path) -> None:
    ((name, said),) = told(tmp_path, **changed)
    assert name == "impossible_config" and cause in said


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"num_hidden_layers": "four"}, 'num_hidden_layers is "four", no whole number above 0'),
        ({"num_hidden_layers": "2"}, 'num_hidden_layers is "2", no whole number above 0'),
        ({"num_hidden_layers": True}, "num_hidden_layers is true, no whole number above 0"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0, no whole number above 0"),
        ({"hidden_size": -64}, "hidden_size is -64, no whole number above 0"),
        ({"vocab_size": 0}, "vocab_size is 0, no whole number above 0"),
        ({"intermediate_size": "128"}, 'intermediate_size is "128", no whole number'),
        ({"rms_norm_eps": "abc"}, 'rms_norm_eps is "abc", no number'),
        ({"text_config": {"head_dim": {}}}, "text_config.head_dim is {}, no whole number"),
    ],
)
def test_values_of_another_type_are_told(changed: dict[str, Any], cause: str, tmp_path: Path) -> None:
    ((name, said),) = told(tmp_path, **changed)
    assert name == "impossible_config" and cause in said


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, and the files hold 2 layers"),
        ({"num_hidden_layers": 1}, "num_hidden_layers is 1, and the files hold 2 layers"),
        ({"vocab_size": 100}, "vocab_size is 100, and the embedding has 96"),
        ({"hidden_size": 128, "head_dim": 16}, "hidden_size is 128, and the embedding has 64"),
        ({"num_attention_heads": 8}, "num_key_value_heads is 2 of width 8, and k_proj has 32 rows"),
        ({"head_dim": 32}, "num_attention_heads is 4 of width 32, and q_proj has 64 rows"),
        ({"model_type": "gemma3_text", "num_attention_heads": 2, "head_dim": 16}, "q_proj has 64 rows"),
    ],
)
def test_weights_are_those_of_config_json(changed: dict[str, Any], cause: str, tmp_path: Path) -> None:
    ((name, said),) = told(tmp_path, **changed)
    assert name == "weights_do_not_match" and cause in said


def test_all_that_differs_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("<html>")
    weights, tokenizer = told(tmp_path, num_hidden_layers=3, vocab_size=100)
    assert "num_hidden_layers is 3" in weights[1] and "vocab_size is 100" in weights[1]
    assert tokenizer[0] == "missing_tokenizer" and "tokenizer.json cannot be read: no JSON" in tokenizer[1]


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "tokenizer.model"])
def test_an_empty_tokenizer_is_told(file: str, tmp_path: Path) -> None:
    (tmp_path / file).touch()
    ((name, cause),) = told(tmp_path)
    assert name == "missing_tokenizer" and file in cause


@pytest.mark.parametrize(
    ("said", "beside", "right"),
    [
        ({"tokenizer_class": "LlamaTokenizer"}, (), False),
        ({"tokenizer_class": "LlamaTokenizer"}, ("special_tokens_map.json", "added_tokens.json"), False),
        ({"tokenizer_class": "LlamaTokenizer"}, ("tokenizer.model",), True),
        ({"tokenizer_class": "GPT2Tokenizer"}, ("vocab.json", "merges.txt"), True),
        ({"tokenizer_class": "BertTokenizer"}, ("vocab.txt",), True),
        ({"tokenizer_class": "XLMRobertaTokenizer"}, ("sentencepiece.bpe.model",), True),
        ({"tokenizer_class": "QWenTokenizer"}, ("qwen.tiktoken",), True),
        ({"tokenizer_class": "ByT5Tokenizer"}, (), True),
        ({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["a.Own", None]}}, (), True),
    ],
)
def test_a_tokenizer_has_a_vocabulary(
    said: dict[str, Any], beside: tuple[str, ...], right: bool, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    for name in beside:
        (tmp_path / name).write_text("{}")
    found = tokenizer_problem(tmp_path)
    assert found is None if right else (found is not None and "no vocabulary" in found[1])


@pytest.mark.parametrize(
    ("tensors", "changed"),
    [
        (shapes(layers=3), {"model_type": "deepseek_v3", "num_nextn_predict_layers": 1}),
        (shapes(layers=3), {"model_type": "glm4_moe"}),
        (shapes(layers=3), {"num_nextn_predict_layers": 1}),
        ({**shapes(), "mtp.layers.2.mlp.weight": [4, 4], "vision_tower.encoder.layers.9.w.weight": [4, 4]}, {}),
        ({**shapes(), "model.visual.layers.9.w.weight": [4, 4], "model.encoder.embed_tokens.weight": [7, 7]}, {}),
        (shapes("model.language_model."), {"vocab_size": 7, "hidden_size": 8, "text_config": CONFIG}),
        (shapes("language_model.model."), {"vision_config": {"hidden_size": 9}, "text_config": CONFIG}),
        (shapes(vocabulary=103), {"model_type": "mllama_text_model"}),
        (shapes(queries=128), {"model_type": "qwen3_next"}),
        (shapes(layers=5), {"auto_map": {"AutoModelForCausalLM": "m.M"}, "num_key_value_heads": 3}),
        (shapes(), dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"))),
        (shapes(), {"num_hidden_layers": [2], "model_type": ["llama"]}),
        (shapes(), {"max_position_embeddings": None, "intermediate_size": [8, 16], "rms_norm_eps": 1, "head_dim": 0}),
        (shapes(), {"auto_map": {"AutoModelForCausalLM": "m.M"}, "vocab_size": "96"}),
        ({"w": [4, 4]}, {}),
    ],
)
def test_what_need_not_agree_is_let_through(
    tensors: dict[str, list[int]], changed: dict[str, Any], tmp_path: Path
) -> None:
    assert told(tmp_path, tensors, **changed) == []


def test_a_packed_embedding_tells_nothing(tmp_path: Path) -> None:
    half = {**shapes(), "model.embed_tokens.weight": [96, 32]}
    assert told(tmp_path, half, packed=("model.embed_tokens.weight",)) == []


@pytest.mark.parametrize("name", hub.published().configs)
def test_no_model_of_the_hub_is_called_impossible(name: str) -> None:
    assert impossible(hub.published().configs[name]) is None
