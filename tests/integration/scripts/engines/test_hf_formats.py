"""Every format for real: quantize, compare, save, reopen, export, verify; then damage what was written."""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

torch = pytest.importorskip("torch")

from scripts.args.quantize import KvCacheQuant, QuantizeArgs  # noqa: E402
from scripts.checkpoints import look  # noqa: E402
from scripts.engines.hf import calibrate, quantizers, reference, save, verify  # noqa: E402
from scripts.engines.hf.nvfp4 import cpu_kernels  # noqa: E402
from scripts.formats import FORMATS  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402
from tests import hf_models  # noqa: E402

pytestmark = pytest.mark.integration

SAMPLES = hf_models.token_samples(6, 20, 40)
PROBE = torch.tensor([SAMPLES[0]])
KV_KINDS = [kind for kind in get_args(KvCacheQuant) if kind != "none"]


def quantized(family: str = "qwen3", change: Callable[[Any], object] | None = None, **values: Any) -> Any:
    config = quantizers.build_config(QuantizeArgs(**values))
    algorithm = quantizers.algorithm_name(config)
    loop = calibrate.calibration_loop(
        SAMPLES, batch_size=4, max_tokens=512, advance=lambda done: None, algorithm=algorithm
    )
    model = hf_models.build(family)
    if change is not None:
        with torch.no_grad():
            change(model)
    return quantizers.quantize(model, config, loop)


def logits(model: Any) -> Any:
    with torch.no_grad(), cpu_kernels():
        return model(input_ids=PROBE, use_cache=False).logits


def reopen(folder: Path) -> Any:
    return verify.open_restorable(folder, dtype="bfloat16", device=torch.device("cpu"))


def round_trip(folder: Path, family: str = "qwen3", *, compress: bool = False, **values: Any) -> list[tuple[str, str]]:
    model = quantized(family, **values)
    facts = FORMATS.get(values["export_quant_cfg"])
    expected = reference.reference(model, settled=bool(facts and facts.settled))
    if compress:
        quantizers.compress(model)
    before = logits(model)
    assert torch.isfinite(before).all()
    save.save_restorable(model, hf_models.tokenizer(), folder / "mto")
    found = verify.verify_restorable(folder / "mto", before, PROBE, reopen)
    save.export_hf(model, hf_models.tokenizer(), folder / "hf", "bfloat16")
    cast = values.get("export_kv_cache_quant", "").endswith("_cast")
    found_by_look = look(folder / "hf")
    assert (found_by_look.problems, len(found_by_look.doubts)) == ((), int(cast)), "of a cast no scale is stored"
    kv = values.get("export_kv_cache_quant", "none" if facts else None)
    return found + verify.verify_export(
        folder / "hf", facts, expected, kv_cache=kv, weight_only=values.get("weight_only", False), compressed=compress
    )


@pytest.mark.parametrize("fmt", [name for name, facts in FORMATS.items() if facts.exported])
def test_round_trip(fmt: str, tmp_path: Path) -> None:
    facts = dict(round_trip(tmp_path, export_quant_cfg=fmt))
    same = (FORMATS[fmt].quant_algo, FORMATS[look(tmp_path / "hf").quantization or ""].quant_algo)
    assert same[0] == same[1], "known again by its layout"
    assert look(tmp_path / "mto").quantization == fmt
    assert facts["reopened"].endswith("bit for bit")
    assert facts["weights dequantized"].startswith("14 layers")
    assert (tmp_path / "hf" / "tokenizer.json").is_file()
    assert (tmp_path / "hf" / "generation_config.json").is_file()


@pytest.mark.parametrize("fmt", [*hf_models.LAYOUTS, "mxfp8", "mxfp4"])
def test_a_layer_of_zeros_has_positive_scales(fmt: str, tmp_path: Path) -> None:
    facts = dict(
        round_trip(
            tmp_path,
            export_quant_cfg=fmt,
            change=lambda model: (
                model.model.layers[1].mlp.up_proj.weight.zero_(),
                model.model.layers[0].self_attn.v_proj.weight.zero_(),
            ),
        )
    )
    assert facts["scales"].endswith("all finite and positive")


@pytest.mark.parametrize("kv", KV_KINDS)
@pytest.mark.parametrize("fmt", ["fp8", "nvfp4"])
def test_every_cache_kind(fmt: str, kv: Any, tmp_path: Path) -> None:
    assert round_trip(tmp_path, export_quant_cfg=fmt, export_kv_cache_quant=kv)


@pytest.mark.parametrize("fmt", [name for name in (*hf_models.LAYOUTS, "mxfp4") if FORMATS[name].weight_only])
def test_weight_only(fmt: str, tmp_path: Path) -> None:
    assert round_trip(tmp_path, export_quant_cfg=fmt, weight_only=True)


@pytest.mark.parametrize("fmt", ["fp8", "nvfp4", "int8_sq", "fp8_blockwise", "mxfp8"])
def test_compress(fmt: str, tmp_path: Path) -> None:
    assert round_trip(tmp_path, export_quant_cfg=fmt, compress=True)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "mixtral"])
def test_other_families(family: str, tmp_path: Path) -> None:
    facts = dict(round_trip(tmp_path, family, export_quant_cfg="fp8"))
    assert facts["quantized layers"].startswith("14" if family == "llama" else "32")


@pytest.mark.parametrize("value", ["INT8_DEFAULT_CFG", "general/ptq/fp8_default-kv_fp8"])
def test_config_names_and_recipes(value: str, tmp_path: Path) -> None:
    assert round_trip(tmp_path, export_quant_cfg=value)


def test_experts_that_a_recipe_leaves_alone_are_not_missed(tmp_path: Path) -> None:
    recipe = "models/moonshotai/Kimi-K3/ptq/nvfp4_experts-fp8_pb_attention"
    assert dict(round_trip(tmp_path, "qwen3_moe", export_quant_cfg=recipe))["quantized layers"].startswith("8,")


def test_refusals() -> None:
    with pytest.raises(JobError, match="int4_awq"):
        quantizers.build_config(QuantizeArgs(export_quant_cfg="w4a8_awq", weight_only=True))
    with pytest.raises(JobError, match="first of the two steps"):
        quantizers.refuse_compress(QuantizeArgs(export_quant_cfg="w4a8_awq", compress=True))
    with pytest.raises(JobError, match="packed INT4"):
        quantizers.refuse_compress(QuantizeArgs(export_quant_cfg="int4_awq", compress=True, export_dir="x"))
    quantizers.refuse_compress(QuantizeArgs(export_quant_cfg="int4_awq", compress=True))
    with pytest.raises(JobError, match="compress_unsupported"):
        quantizers.compress(quantized(export_quant_cfg="w4a8_awq"))
    with pytest.raises(JobError, match="share one tensor"):
        quantizers.compress(quantized("qwen3_moe", export_quant_cfg="fp8"))
    with pytest.raises(JobError, match="unsupported_quant_recipe"):
        quantizers.build_config(QuantizeArgs(export_quant_cfg="fp9"))


@pytest.mark.parametrize(
    ("family", "values", "name"),
    [
        ("qwen3", {"export_quant_cfg": "mxint8"}, "format_not_exportable"),
        ("qwen3", {"export_quant_cfg": "MXFP6_DEFAULT_CFG"}, "format_not_exportable"),
        ("qwen3_moe", {"export_quant_cfg": "nvfp4_svdquant"}, "format_not_exportable"),
        ("qwen3_moe", {"export_quant_cfg": "general/ptq/int4_blockwise_weight_only"}, "format_not_exportable"),
        ("qwen3_moe", {"export_quant_cfg": "nvfp4_gptq"}, "unsupported_model"),
        ("qwen3", {"export_quant_cfg": "NVFP4_EXPERTS_ONLY_CFG"}, "nothing_quantized"),
        ("llama", {"export_quant_cfg": "huggingface/vit/ptq/fp8"}, "format_needs_cuda"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_loaded(family: str, values: Any, name: str) -> None:
    with torch.device("meta"):
        bare = hf_models.build(family)
    with pytest.raises(JobError) as caught:
        quantizers.rehearse(bare, quantizers.build_config(QuantizeArgs(**values)), exported=True, on_cpu=True)
    assert caught.value.name == name


@pytest.mark.parametrize("fmt", ["mxint8", "mxfp6"])
def test_without_a_layout_for_exports_a_model_is_saved_and_reopened(fmt: str, tmp_path: Path) -> None:
    model = quantized(export_quant_cfg=fmt)
    save.save_restorable(model, hf_models.tokenizer(), tmp_path / "mto")
    assert verify.verify_restorable(tmp_path / "mto", logits(model), PROBE, reopen)
    assert look(tmp_path / "mto").quantization == fmt


def test_no_calibration_goes_on_from_a_folder_that_all_jobs_share() -> None:
    config = quantizers.build_config(QuantizeArgs(export_quant_cfg="general/ptq/nvfp4_default-kv_none-gptq"))
    assert config["algorithm"]["layerwise"] | {"checkpoint_dir": None} == config["algorithm"]["layerwise"]


def test_summary() -> None:
    model = quantized(export_quant_cfg="nvfp4", export_kv_cache_quant="fp8")
    found = quantizers.summary(kind for _, kind in quantizers.placed(model))
    kinds = {"weight E2M1 block 16": 14, "input E2M1 block 16": 14, "k_bmm E4M3": 2, "v_bmm E4M3": 2}
    assert (found["kinds"], found["enabled"]) == (kinds, 32)
    assert found["disabled"] > 0


@functools.cache
def exported(fmt: str) -> tuple[Path, reference.Reference]:
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="hf_formats_")) / "hf"
    model = quantized(export_quant_cfg=fmt)
    expected = reference.reference(model)
    save.export_hf(model, hf_models.tokenizer(), folder, "bfloat16")
    return folder, expected


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the tensors of the export and split them into two shards with an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: tensors[name].contiguous() for name in part}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def keep(tensors: dict[str, Any]) -> None:
    assert tensors


def delete_shard(folder: Path) -> None:
    rewrite(folder, keep)
    (folder / "model-00002-of-00002.safetensors").unlink()


def truncate_shard(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])


def extra_shard(folder: Path) -> None:
    rewrite(folder, keep)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "stray.safetensors")


def edit_index(folder: Path) -> None:
    rewrite(folder, keep)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"].pop(LAYER + "weight")
    path.write_text(json.dumps(index), encoding="utf-8")


LAYER = "model.layers.1.mlp.down_proj."


def drop_scale(tensors: dict[str, Any]) -> None:
    del tensors[LAYER + "weight_scale"]


def swap_dtype(tensors: dict[str, Any]) -> None:
    tensors[LAYER + "weight"] = tensors[LAYER + "weight"].to(torch.int16)


def nan_scale(tensors: dict[str, Any]) -> None:
    scale = tensors[LAYER + "weight_scale"].float()
    scale.view(-1)[0] = float("nan")
    tensors[LAYER + "weight_scale"] = scale.to(tensors[LAYER + "weight_scale"].dtype)


def negative_scale(tensors: dict[str, Any]) -> None:
    tensors[LAYER + "weight_scale"] = -tensors[LAYER + "weight_scale"].float()


def double_scale(tensors: dict[str, Any]) -> None:
    name = LAYER + ("weight_scale_2" if LAYER + "weight_scale_2" in tensors else "weight_scale")
    if name.endswith("_2") and LAYER + "pre_quant_scale" in tensors:
        name = LAYER + "weight_scale"
    tensors[name] = tensors[name] * 2


def double_one_block(tensors: dict[str, Any]) -> None:
    scale = tensors[LAYER + "weight_scale"].float().clone()
    scale.view(-1)[-1] *= 2
    tensors[LAYER + "weight_scale"] = scale.to(tensors[LAYER + "weight_scale"].dtype)


def quantized_head(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)


def wrong_shape(tensors: dict[str, Any]) -> None:
    tensors[LAYER + "weight"] = tensors[LAYER + "weight"][:-2]


def other_algorithm(folder: Path) -> None:
    path = folder / "hf_quant_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"quant_algo": "', '"quant_algo": "X'), encoding="utf-8")


def other_cache(folder: Path) -> None:
    path = folder / "hf_quant_config.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    said["quantization"]["kv_cache_quant_algo"] = "FP8"
    path.write_text(json.dumps(said), encoding="utf-8")


def no_config(folder: Path) -> None:
    (folder / "hf_quant_config.json").unlink()


def change_exclusions(folder: Path, names: list[str]) -> None:
    path = folder / "hf_quant_config.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    said["quantization"]["exclude_modules"] = names
    path.write_text(json.dumps(said), encoding="utf-8")


def head_not_excluded(folder: Path) -> None:
    change_exclusions(folder, [])


def layer_excluded(folder: Path) -> None:
    change_exclusions(folder, ["lm_head", "*.mlp.down_proj"])


FILES: dict[Callable[[Path], None], str] = {
    head_not_excluded: "export_wrong_config",
    layer_excluded: "export_wrong_config",
    delete_shard: "export_incomplete",
    truncate_shard: "export_incomplete",
    extra_shard: "export_incomplete",
    edit_index: "export_incomplete",
    other_algorithm: "export_wrong_config",
    other_cache: "export_wrong_config",
    no_config: "export_incomplete",
}
TENSORS: dict[Callable[[dict[str, Any]], None], set[str]] = {
    drop_scale: {"export_incomplete"},
    swap_dtype: {"export_wrong_type"},
    nan_scale: {"export_bad_scale"},
    negative_scale: {"export_bad_scale", "export_wrong_type"},
    double_scale: {"export_wrong_values"},
    quantized_head: {"export_wrong_type"},
    wrong_shape: {"export_wrong_type"},
}


def check(fmt: str, folder: Path) -> list[tuple[str, str]]:
    return verify.verify_export(folder, FORMATS[fmt], exported(fmt)[1], kv_cache="none")


@pytest.mark.parametrize("damage", FILES, ids=lambda each: each.__name__)
def test_damaged_files_are_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported("fp8")[0], tmp_path / "hf"))
    assert check("fp8", folder)
    damage(folder)
    with pytest.raises(JobError) as caught:
        check("fp8", folder)
    assert caught.value.name == FILES[damage]
    assert caught.value.remedy


@pytest.mark.parametrize("damage", TENSORS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("fmt", hf_models.LAYOUTS)
def test_damaged_tensors_are_refused(fmt: str, damage: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported(fmt)[0], tmp_path / "hf"))
    rewrite(folder, damage)
    with pytest.raises(JobError) as caught:
        check(fmt, folder)
    assert caught.value.name in TENSORS[damage]


@pytest.mark.parametrize("fmt", ["nvfp4", "int4_awq", "w4a8_awq", "fp8_blockwise", "int8_sq", "mxfp8", "nvfp4_awq"])
def test_one_wrong_block_is_found(fmt: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported(fmt)[0], tmp_path / "hf"))
    rewrite(folder, double_one_block)
    with pytest.raises(JobError, match="off by"):
        check(fmt, folder)


def test_undamaged_shards_pass(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported("nvfp4")[0], tmp_path / "hf"))
    rewrite(folder, keep)
    assert dict(check("nvfp4", folder))["shards"].startswith("2, ")


def test_equal_runs_leave_equal_states(tmp_path: Path) -> None:
    """ModelOpt fills mappings from sets, whose order differs from process to process, and with it the bytes."""
    save.save_restorable(quantized(export_quant_cfg="int8_sq"), hf_models.tokenizer(), tmp_path)

    def mappings(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            yield value
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
            yield from mappings(each)

    found = list(mappings(torch.load(tmp_path / "modelopt_state.pth", weights_only=True)))
    assert len(found) > 50
    assert all(list(each) == sorted(each, key=str) for each in found)


def test_a_restorable_checkpoint_that_changed_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = quantized(export_quant_cfg="fp8")
    before = logits(model)
    save.save_restorable(model, hf_models.tokenizer(), tmp_path)
    assert verify.verify_restorable(tmp_path, before, PROBE, reopen)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("weight_quantizer._amax"))
    tensors[name] = tensors[name] * 1.5  # twice would round to the same FP8 values
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobError, match="other logits"):
        verify.verify_restorable(tmp_path, before, PROBE, reopen)
    (tmp_path / "modelopt_state.pth").unlink()
    with pytest.raises(JobError, match=r"no modelopt_state\.pth"):
        verify.verify_restorable(tmp_path, before, PROBE, reopen)


def test_modelopt_state_runs_no_code(tmp_path: Path) -> None:
    """ModelOpt reads its state with weights_only: a pickle that would run something is refused and runs nothing."""
    import os
    import pickle

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "exploded"),)

    save.save_restorable(quantized(export_quant_cfg="fp8"), hf_models.tokenizer(), tmp_path / "mto")
    torch.save({"modelopt_state_dict": Bomb()}, tmp_path / "mto" / "modelopt_state.pth")
    with pytest.raises((JobError, pickle.UnpicklingError)):
        verify.verify_restorable(tmp_path / "mto", torch.zeros(1), PROBE, reopen)
    assert not (tmp_path / "exploded").exists()
