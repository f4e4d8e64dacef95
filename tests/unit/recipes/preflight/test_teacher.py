"""A teacher in NeMo's fields: what Megatron-LM would fail at, or leave out unsaid, is told first."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.catalogue import RECIPES
from recipes.experiment.examine import examine
from recipes.experiment.stage import Options, Stage

NEEDED: dict[str, Any] = {"num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32}
#: Fields that the builder translates: seq_length, untied embeddings (inverted), swiglu, biases (inverted) and others.
TRANSLATED: dict[str, Any] = {
    **{"encoder_seq_length": 4096, "share_embeddings_and_output_weights": False, "activation": "swiglu"},
    **{"bias": False, "position_embedding_type": None, "masked_softmax_fusion": True, "normalization": "layernorm1p"},
    **{"precision": "bf16", "mcore_gpt": True, "tokenizer": {"type": "GPT2BPETokenizer", "model": None}},
}


def causes(teacher: Path, **values: Any) -> list[str]:
    partial = RECIPES["mlm_distill"].build()
    for name, value in {"export_kd_teacher_load": str(teacher), **values}.items():
        setattr(partial.args, name, value)
    found = examine([Stage(name="d", partial=partial)], "local", Options(online=False)).errors
    return [one.cause for one in found if one.name == "teacher_config_unreadable"]


def written(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model_config.yaml").write_text(text, encoding="utf-8")
    return folder


def test_all_that_is_translated_is_taken(tmp_path: Path) -> None:
    assert causes(written(tmp_path / "teacher", yaml.safe_dump(NEEDED | TRANSLATED))) == []
    apart = tmp_path / "apart.yaml"
    apart.write_text(yaml.safe_dump(NEEDED), encoding="utf-8")
    (tmp_path / "bare").mkdir()
    assert causes(tmp_path / "bare", export_kd_teacher_model_config=str(apart)) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"hidden_size": "${oc.env:WIDTH}"}, "no number above 0"),
        ({"num_layers": None}, "no number"),
        ({"encoder_seq_length": 0}, "no number above 0"),
        ({"activation": "fast-swiglu"}, "activation 'fast-swiglu' is not translated"),
        ({"normalization": "rmsnorm"}, "normalization 'rmsnorm' is not translated"),
        ({"precision": "bf16-mixed"}, "precision 'bf16-mixed' is not translated"),
        ({"tokenizer": {"library": "megatron"}}, "tokenizer has no type and model"),
        ({"tokenizer": "llama"}, "tokenizer has no type and model"),
    ],
)
def test_a_value_that_would_be_lost_is_told(changed: dict[str, Any], told: str, tmp_path: Path) -> None:
    (cause,) = causes(written(tmp_path / "teacher", yaml.safe_dump(NEEDED | TRANSLATED | changed)))
    assert told in cause


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("num_layers: 32\nhidden_size: 4096\n", "it does not say ffn_hidden_size, num_attention_heads"),
        ("- 1\n", "no mapping"),
        ("a: [1\n", "cannot be read"),
        ("", "no mapping"),
    ],
)
def test_a_file_that_says_too_little_is_told(text: str, told: str, tmp_path: Path) -> None:
    (cause,) = causes(written(tmp_path / "teacher", text))
    assert told in cause


def test_a_teacher_without_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (cause,) = causes(tmp_path / "bare")
    assert "no model_config.yaml" in cause


def test_a_teacher_on_another_machine_is_left_alone() -> None:
    assert causes(Path("/lustre/nobody/teacher")) == []
