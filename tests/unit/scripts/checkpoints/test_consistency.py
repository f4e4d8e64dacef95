"""An export that contradicts itself is told so by `inspect` and before it is served."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.args.serve import ServeArgs
from scripts.checkpoints import look
from scripts.run.problems import JobError
from scripts.serving.checks import check_checkpoint
from tests.conftest import write_safetensors

HEAD = {"lm_head.weight": [16, 64], "model.embed_tokens.weight": [16, 64]}
LAYER = "model.layers.0.mlp.up_proj"
Said = dict[str, Any]


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Path]:
    def make(
        tensors: dict[str, list[int]] | None = None,
        packed: tuple[str, ...] = (f"{LAYER}.weight",),
        sidecar: Said | None = None,
        **inline: Any,
    ) -> Path:
        shapes = {f"{LAYER}.weight": [128, 64], f"{LAYER}.weight_scale": [1], **HEAD} if tensors is None else tensors
        said = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"], **inline}
        beside = {"quant_algo": "FP8", "exclude_modules": ["lm_head"], **(sidecar or {})}
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "quantization_config": said}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": beside}))
        write_safetensors(tmp_path / "model.safetensors", shapes, dict.fromkeys(packed, "F8_E4M3"))
        return tmp_path

    return make


CACHE = {"num_bits": 8, "type": "float", "dynamic": False}
KEYS = {f"model.layers.{layer}.self_attn.k_proj.k_scale": [1] for layer in (0, 1)}
VALUES = {f"model.layers.{layer}.self_attn.v_proj.v_scale": [1] for layer in (0, 1)}
WHOLE = {f"{LAYER}.weight": [128, 64], f"{LAYER}.weight_scale": [1], **HEAD}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"tensors": {f"{LAYER}.weight": [128, 64], **HEAD}}, f"{LAYER}.weight_scale is missing"),
        (
            {
                "tensors": {**WHOLE, "lm_head.weight_scale": [1]},
                "packed": ("lm_head.weight", f"{LAYER}.weight"),
            },
            "lm_head is packed, and excluded",
        ),
        ({"sidecar": {"quant_algo": "NVFP4"}}, "quant_algo is FP8 by config.json and NVFP4 by hf_quant_config.json"),
        ({"sidecar": {"exclude_modules": []}}, "exclude_modules is lm_head by config.json and none by"),
        (
            {"sidecar": {"kv_cache_quant_algo": "NVFP4"}, "kv_cache_scheme": CACHE},
            "kv_cache_quant_algo is FP8 by config.json and NVFP4 by",
        ),
        (
            {
                "tensors": {**WHOLE, **KEYS, **dict(list(VALUES.items())[:1])},
                "sidecar": {"kv_cache_quant_algo": "FP8"},
                "kv_cache_scheme": CACHE,
            },
            "model.layers.1 has a scale for keys or for values, but not for both",
        ),
    ],
)
def test_contradictions_are_named(changed: Said, problem: str, export: Callable[..., Path]) -> None:
    folder = export(**changed)
    assert any(told.startswith(problem) for told in look(folder).problems), look(folder).problems
    with pytest.raises(JobError, match="unservable_checkpoint"):
        check_checkpoint(ServeArgs(checkpoint=str(folder)), str(folder))


def test_a_whole_export_has_none(export: Callable[..., Path]) -> None:
    folder = export({**WHOLE, **KEYS, **VALUES}, sidecar={"kv_cache_quant_algo": "FP8"}, kv_cache_scheme=CACHE)
    found = look(folder)
    assert (found.problems, found.doubts, found.kv_cache) == ((), (), "fp8")


def test_the_cache_is_read_from_config_json_alone(export: Callable[..., Path]) -> None:
    folder = export({**WHOLE, **KEYS, **VALUES}, kv_cache_scheme=CACHE)
    (folder / "hf_quant_config.json").unlink()
    assert (look(folder).kv_cache, look(folder).problems) == ("fp8", ())


def test_what_one_file_does_not_say_is_doubted(export: Callable[..., Path]) -> None:
    folder = export({**WHOLE, **KEYS, **VALUES}, sidecar={"kv_cache_quant_algo": "FP8"})
    assert look(folder).problems == ()
    assert look(folder).doubts[0].startswith("kv_cache_quant_algo is none by config.json and FP8 by")


def test_a_cache_without_scales_is_doubted_and_served(export: Callable[..., Path]) -> None:
    folder = export(sidecar={"kv_cache_quant_algo": "FP8"}, kv_cache_scheme=CACHE)
    served = check_checkpoint(ServeArgs(checkpoint=str(folder)), str(folder))
    assert look(folder).problems == () and "no layer has a scale" in served.doubts[0]
