"""What of a folder's files is quantized: all that the model needs is there, in shapes that it can have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from scripts.args.quantize import QuantizeArgs  # noqa: E402
from scripts.checkpoints.causal import packed, unscaled  # noqa: E402
from scripts.checkpoints.quantization import THEIRS  # noqa: E402
from scripts.engines.hf import quantizers  # noqa: E402
from scripts.engines.hf.weights import Selection, Source, select  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402
from tests import hf_models  # noqa: E402

UP = "model.layers.1.mlp.up_proj.weight"
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
Held = dict[str, Any]


def changed(folder: Path, change: Callable[[Held], object], family: str = "qwen3", **config: Any) -> Path:
    """A model's folder whose tensors are not those that were saved, nor its config.json."""
    from safetensors.torch import load_file, save_file

    hf_models.save(hf_models.build(family, tie_word_embeddings=family == "llama"), folder)
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(said | config), encoding="utf-8")
    return folder


def selected(folder: Path) -> Selection:
    config = quantizers.build_config(QuantizeArgs(export_quant_cfg="fp8", weight_only=True))
    return select(Source(folder=folder), config, False)


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("qwen3", lambda held: held.pop(UP), f"{UP} is not in the files"),
        ("qwen3", lambda held: held.pop("model.norm.weight"), "model.norm.weight is not in the files"),
        ("qwen3", lambda held: held.pop("lm_head.weight"), "lm_head.weight is not in the files"),
        (
            "llama",
            lambda held: held.pop("model.embed_tokens.weight"),
            "lm_head.weight, model.embed_tokens.weight are not in the files",
        ),
        ("qwen3", lambda held: held.update({UP: torch.zeros(0, 256)}), f"{UP} [0, 256] for [384, 256] is of another"),
        ("qwen3_moe", lambda held: held.pop(EXPERT), "layers.1.mlp.experts.gate_up_proj, of 229376 weights for 262144"),
    ],
)
def test_what_is_missing_or_of_another_shape(
    family: str, change: Callable[[Held], object], said: str, tmp_path: Path
) -> None:
    folder = changed(tmp_path, change, family)
    with pytest.raises(JobError) as caught:
        selected(folder)
    assert caught.value.name == "weights_do_not_match"
    assert said in caught.value.cause


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "mixtral"])
def test_what_is_whole_is_taken(family: str, tmp_path: Path) -> None:
    """A head that is tied need not be there, and what is there besides the model does no harm."""
    folder = changed(tmp_path, lambda held: held.update({"more.weight": torch.zeros(4, 4)}), family)
    stored = Source(folder=folder).shapes
    assert ("lm_head.weight" in stored) == (family != "llama")
    parts = ("_proj.weight", "w1.weight", "w2.weight", "w3.weight")
    assert {f"{name}.weight" for name in selected(folder).quantized} == {one for one in stored if one.endswith(parts)}


def test_names_without_the_part_that_all_share(tmp_path: Path) -> None:
    """As some have them on the hub: transformers adds it when it loads them."""

    def shorten(held: Held) -> None:
        held |= {name.removeprefix("model."): held.pop(name) for name in list(held)}

    folder = changed(tmp_path, shorten, "llama")
    assert "layers.1.mlp.up_proj" in selected(folder).quantized


def test_a_matrix_of_nothing_in_a_model_that_transformers_does_not_know(tmp_path: Path) -> None:
    folder = changed(tmp_path, lambda held: held.update({UP: torch.zeros(0, 256)}), model_type="not_yet_known")
    with pytest.raises(JobError, match=rf"{UP} is in the files, but without a single weight") as caught:
        selected(folder)
    assert caught.value.name == "weights_do_not_match"


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "uint8"])
def test_weights_of_a_byte_of_which_nothing_is_said(dtype: str, tmp_path: Path) -> None:
    folder = changed(tmp_path, lambda held: held.update({UP: held[UP].to(getattr(torch, dtype))}))
    trouble = unscaled(folder)
    assert trouble is not None
    assert trouble[0] == "already_quantized" and f"{UP} holds {dtype}" in trouble[1]


def test_what_transformers_would_unpack_stays_packed_in_files(tmp_path: Path) -> None:
    assert packed(f"fp8{THEIRS}") is None
    assert (packed(f"fp8{THEIRS}", loaded=False) or "")[0] == "already_quantized"
    assert unscaled(changed(tmp_path, lambda held: held.update(steps=torch.zeros(2, dtype=torch.int64)))) is None
