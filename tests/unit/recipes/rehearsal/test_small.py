"""Small configurations: of the same architecture, and with what formats and layouts ask of a figure."""

from typing import Any

import pytest

from recipes.models.config import facts_from_config
from recipes.models.hub import published
from recipes.rehearsal.small import like, smaller

TEXT = {name: config for name, config in published().configs.items() if "vision_config" not in config}


@pytest.mark.parametrize(
    ("value", "width", "made"),
    [(4096, 256, 256), (4104, 256, 264), (151_936, 1024, 1024), (50_257, 1024, 1025), (128, 256, 128), (255, 256, 255)],
)
def test_a_width_divides_by_the_powers_of_two_that_it_did(value: int, width: int, made: int) -> None:
    assert like(value, width) == made


@pytest.mark.parametrize("name", TEXT)
def test_every_published_model_has_a_small_one_of_its_architecture(name: str) -> None:
    config = TEXT[name]
    if config["model_type"] == "llama4":
        with pytest.raises(ValueError, match="images"):
            smaller(config)
        return
    big, small = (facts_from_config(one, source="test") for one in (config, smaller(config)))
    assert small.model_type == big.model_type
    assert set(big.blocks or ()) == set(small.blocks or ())  # every kind of layer
    assert small.architecture.parameters and small.architecture.parameters.total < 120e6
    assert (small.heads or 0) / (small.query_groups or 1) == (big.heads or 0) / (big.query_groups or 1)
    for fact in ("gated_mlp", "attention_bias", "qk_norm", "mlp_bias", "tied_embeddings", "norm_bias", "latent"):
        whole = getattr(big, fact)
        assert (getattr(small, fact) is None) == (whole is None) if fact == "latent" else getattr(small, fact) == whole
    for fact in ("hidden_size", "ffn_hidden_size", "vocab_size"):
        was, now = getattr(big, fact) or 128, getattr(small, fact) or 128
        assert (was % 128 == 0) == (now % 128 == 0), fact


def _config(**values: Any) -> dict[str, Any]:
    return {**TEXT["Qwen/Qwen3-8B"], **values}


def test_what_does_not_fill_blocks_does_not_do_so_here() -> None:
    assert smaller(_config(hidden_size=4104))["hidden_size"] % 128 == 8
    assert smaller(_config(vocab_size=151_937))["vocab_size"] == 1025


def test_a_tokenizer_of_its_own_keeps_its_vocabulary() -> None:
    small = smaller(_config(eos_token_id=151_645), vocabulary=None)
    assert small["vocab_size"] == 151_936 and small["eos_token_id"] == 151_645


def test_code_and_formats_are_left_out() -> None:
    assert (
        not {"auto_map", "quantization_config"} & smaller(_config(auto_map={"A": "b"}, quantization_config={})).keys()
    )


def test_a_pattern_keeps_each_kind_in_its_order() -> None:
    hybrid = {"num_hidden_layers": 6, "hybrid_override_pattern": "MM*-M-"}
    assert smaller(_config(**hybrid))["hybrid_override_pattern"] == "M*-M"
    assert smaller(_config(layer_types=["full_attention"] * 36))["num_hidden_layers"] == 4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_key_value_heads": 5}, "do not make groups"),
        ({"hidden_size": "4096"}, "hidden_size is not known"),
        ({"vocab_size": None}, "vocab_size is not known"),
        ({"vision_config": {}}, "images"),
    ],
)
def test_figures_that_cannot_be(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        smaller(_config(**values))
