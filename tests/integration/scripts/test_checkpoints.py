"""Checkpoints that the real libraries write: PyTorch, Transformers, ModelOpt; then the same, damaged."""

import functools
import io
import json
import os
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from scripts.args.quantize import KvCacheQuant, QuantizeArgs  # noqa: E402
from scripts.checkpoints import Checkpoint, concrete_iteration, look  # noqa: E402
from scripts.engines.hf import calibrate, quantizers, save  # noqa: E402
from scripts.formats import FORMATS  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402
from tests import hf_models  # noqa: E402
from tests.conftest import Done  # noqa: E402

pytestmark = pytest.mark.integration

SAMPLES = hf_models.token_samples(4, 20, 40)
KV_KINDS: tuple[KvCacheQuant, ...] = ("fp8", "fp8_affine", "nvfp4", "nvfp4_affine", "nvfp4_rotate")


def weights_of(model: Any) -> int:
    return sum(one.numel() for one in model.parameters())


def quantized(family: str = "qwen3", **values: Any) -> Any:
    config = quantizers.build_config(QuantizeArgs(**values))
    loop = calibrate.calibration_loop(
        SAMPLES,
        batch_size=4,
        max_tokens=512,
        advance=lambda done: None,
        algorithm=quantizers.algorithm_name(config),
    )
    return quantizers.quantize(hf_models.build(family), config, loop)


# --- Hugging Face layout


@pytest.mark.parametrize("family", hf_models.FAMILIES)
def test_a_model_of_transformers(family: str, tmp_path: Path) -> None:
    model = hf_models.build(family)
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    found = look(tmp_path)
    assert (found.kind, found.format, found.problems) == ("checkpoint_hf", "safetensors", ())
    assert found.parameters == weights_of(model)
    assert found.architecture == type(model).__name__
    assert (found.quantization, found.modelopt_state, found.training_state) == (None, False, False)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1


@pytest.mark.parametrize("fmt", hf_models.LAYOUTS)
def test_every_format_saved_and_exported(fmt: str, tmp_path: Path) -> None:
    weights = weights_of(hf_models.build())
    model = quantized(export_quant_cfg=fmt)
    save.save_restorable(model, hf_models.tokenizer(), tmp_path / "mto")
    save.export_hf(model, hf_models.tokenizer(), tmp_path / "hf", "bfloat16")
    kept, exported = look(tmp_path / "mto"), look(tmp_path / "hf")
    assert (kept.kind, kept.modelopt_state) == ("checkpoint_modelopt", True)
    assert (exported.kind, exported.modelopt_state) == ("checkpoint_hf", False)
    assert (kept.quantization, exported.quantization) == (fmt, fmt)
    assert (kept.parameters, exported.parameters) == (weights, weights)
    assert kept.problems == exported.problems == ()


@pytest.mark.parametrize("fmt", [name for name in hf_models.LAYOUTS if FORMATS[name].weight_only])
def test_weight_only(fmt: str, tmp_path: Path) -> None:
    model = quantized(export_quant_cfg=fmt, weight_only=True)
    save.save_restorable(model, hf_models.tokenizer(), tmp_path / "mto")
    save.export_hf(model, hf_models.tokenizer(), tmp_path / "hf", "bfloat16")
    # Plain INT8 weights are not what SmoothQuant leaves; the export names the kernel, which is the same.
    expected = {"nvfp4": "w4a16_nvfp4"}.get(fmt, fmt)
    assert look(tmp_path / "mto").quantization == expected
    assert look(tmp_path / "hf").quantization == expected


@pytest.mark.parametrize("kv", KV_KINDS)
def test_caches(kv: KvCacheQuant, tmp_path: Path) -> None:
    model = quantized(export_quant_cfg="fp8", export_kv_cache_quant=kv)
    save.save_restorable(model, hf_models.tokenizer(), tmp_path / "mto")
    save.export_hf(model, hf_models.tokenizer(), tmp_path / "hf", "bfloat16")
    assert look(tmp_path / "mto").kv_cache == kv
    assert (look(tmp_path / "hf").kv_cache or "").split("_")[0] == kv.split("_")[0]
    assert look(tmp_path / "hf").parameters == weights_of(hf_models.build())


@pytest.mark.parametrize("fmt", ["fp8", "nvfp4", "int8_sq", "int4_awq"])
def test_compressed_weights(fmt: str, tmp_path: Path) -> None:
    model = quantized(export_quant_cfg=fmt)
    quantizers.compress(model)
    save.save_restorable(model, hf_models.tokenizer(), tmp_path)
    found = look(tmp_path)
    assert (found.quantization, found.parameters) == (fmt, weights_of(hf_models.build()))


@pytest.mark.parametrize("config", ["INT8_DEFAULT_CFG", "FP8_PER_CHANNEL_PER_TOKEN_CFG"])
def test_other_configs_are_quantized_but_not_named(config: str, tmp_path: Path) -> None:
    save.save_restorable(quantized(export_quant_cfg=config), hf_models.tokenizer(), tmp_path)
    assert look(tmp_path).quantization == "quantized (format unknown)"


def test_weights_as_pickles(tmp_path: Path) -> None:
    model = hf_models.build(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    found = look(tmp_path)
    assert (found.format, found.parameters) == ("torch", weights_of(model))


# --- torch.save


def state() -> dict[str, Any]:
    kinds = (torch.bfloat16, torch.float32, torch.float16, torch.float8_e4m3fn, torch.int8)
    return {f"layers.{at}.weight": torch.zeros(4, 8).to(kind) for at, kind in enumerate(kinds)}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before zip"])
def test_files_of_torch_save(new: bool, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=new)
    found = look(path)
    assert (found.kind, found.layout, found.parameters) == ("checkpoint_torch", "torch", 4 * 32)
    assert found.dtypes == dict.fromkeys(["bfloat16", "float16", "float32", "float8_e4m3fn", "int8"], 32)
    assert look(tmp_path) == Checkpoint(**{**vars(found), "path": tmp_path})


def test_parameters_shared_and_wrapped(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 5))
    buffer = torch.zeros(100)
    tensors = {"embed.weight": weight, "head.weight": weight, "part": buffer[10:20], "whole": {"a": torch.zeros(2)}}
    torch.save(tensors, tmp_path / "a.pt")
    assert look(tmp_path / "a.pt").parameters == 15 + 10 + 2


def test_a_module_is_no_state(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(JobError, match="unknown_checkpoint"):
        look(tmp_path / "a.pt")


def test_what_modelopt_saves(tmp_path: Path) -> None:
    import modelopt.torch.opt as mto

    model = quantized(export_quant_cfg="fp8")
    mto.save(model, tmp_path / "a.pth")
    found = look(tmp_path / "a.pth")
    assert (found.quantization, found.modelopt_state) == ("fp8", True)
    assert found.parameters == weights_of(hf_models.build())


def test_ranks_of_megatron(tmp_path: Path) -> None:
    """As Megatron lays out `--ckpt-format torch`; Megatron itself is not installed here."""
    model = {name: value.float() for name, value in state().items()}
    optimizer = {"optimizer": {"exp_avg": torch.zeros(9)}, "rng_state": [{"torch": torch.zeros(3)}]}
    content = {"args": Namespace(num_layers=5), "checkpoint_version": 3.0, "iteration": 40, "model": model}
    folder = tmp_path / "iter_0000040" / "mp_rank_00"
    folder.mkdir(parents=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("40")
    torch.save(content | optimizer, folder / "model_optim_rng.pt")
    found = look(tmp_path)
    assert (found.kind, found.layout, found.iteration) == ("checkpoint_torch", "torch", 40)
    assert (found.parameters, found.training_state) == (160, True)
    torch.save(content, folder / "model_optim_rng.pt")
    assert not look(tmp_path).training_state
    shutil.copytree(folder, folder.with_name("mp_rank_01"))
    split = look(tmp_path / "iter_0000040")
    assert (split.parameters, split.dtypes, split.iteration) == (None, {"float32": 320}, 40)


# --- torch.distributed.checkpoint, in Megatron Core's arrangement


def megatron_weights() -> dict[str, Any]:
    """Megatron Core stacks the layers of a homogeneous model; its names have no prefix."""
    prefix = "decoder.layers.self_attention.linear_proj"
    return {
        "embedding.word_embeddings.weight": torch.zeros(64, 8, dtype=torch.bfloat16),
        f"{prefix}.weight": torch.zeros(2, 8, 8, dtype=torch.bfloat16),
        f"{prefix}._extra_state/shard_0_2": io.BytesIO(),
        f"{prefix}.weight_quantizer._amax": torch.zeros(2, 1),
        "decoder.final_layernorm.weight": torch.zeros(8),
    }


WEIGHTS, QUANTIZER_VALUES = 64 * 8 + 2 * 8 * 8 + 8, 2


def write_shards(folder: Path, content: dict[str, Any]) -> None:
    from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
    from torch.distributed.checkpoint import save as save_shards

    # The planner that keeps lists and dictionaries whole, as Megatron Core's does.
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    save_shards(content, storage_writer=FileSystemWriter(folder), planner=planner, no_dist=True)


def write_core(folder: Path, content: dict[str, Any], common: dict[str, Any], *, legacy: bool) -> None:
    """What megatron.core.dist_checkpointing.save leaves: common.pt before 0.19, an object in a shard since."""
    if legacy:
        write_shards(folder, content)
        torch.save(common, folder / "common.pt")
    else:
        write_shards(folder, content | {"common_state/shard_0_1": [common]})
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))


@functools.cache
def modelopt_state(fmt: str) -> dict[str, Any]:
    """A real state without what is kept per module, which Megatron leaves out of it too."""
    import modelopt.torch.opt as mto

    kept: dict[str, Any] = mto.modelopt_state(quantized(export_quant_cfg=fmt))
    for _, mode in kept["modelopt_state_dict"]:
        mode["metadata"] = {}
    return kept


def megatron(folder: Path, fmt: str | None = None, *, legacy: bool = False, iteration: int = 100) -> Path:
    weights = folder / f"iter_{iteration:07}"
    write_core(weights, megatron_weights(), {"checkpoint_version": 3.0, "iteration": iteration}, legacy=legacy)
    if fmt:
        write_core(weights / "modelopt_state", {}, modelopt_state(fmt), legacy=legacy)
    (weights / "run_config.yaml").write_text(
        "model:\n  _target_: megatron.bridge.models.gpt_provider.GPTModelProvider\n"
        "  kept: !!set {a: null}\n  made: !!python/object/apply:os.system ['false']\npeft: null\n"
    )
    (folder / "latest_checkpointed_iteration.txt").write_text(str(iteration))
    return folder


@pytest.mark.parametrize("legacy", [True, False], ids=["common.pt", "common object"])
@pytest.mark.parametrize("fmt", hf_models.LAYOUTS)
def test_a_quantized_megatron_checkpoint(fmt: str, legacy: bool, tmp_path: Path) -> None:
    folder = megatron(tmp_path / "c", fmt, legacy=legacy)
    found = look(folder)
    assert (found.kind, found.layout, found.format) == ("checkpoint_megatron", "megatron", "torch_dist")
    assert (found.quantization, found.modelopt_state, found.architecture) == (fmt, True, "GPTModelProvider")
    assert found.parameters == WEIGHTS
    assert sum(found.dtypes.values()) == WEIGHTS + QUANTIZER_VALUES
    assert (found.iteration, found.iterations, found.training_state, found.problems) == (100, (100,), False, ())
    inner = look(folder / "iter_0000100")
    assert (inner.iteration, inner.quantization, inner.parameters) == (100, fmt, WEIGHTS)


def test_quantizers_without_their_state(tmp_path: Path) -> None:
    found = look(megatron(tmp_path / "c"))
    assert (found.quantization, found.modelopt_state) == ("quantized (format unknown)", False)
    assert "cannot be restored" in found.problems[0]


def test_an_unreadable_state_is_not_an_absent_one(tmp_path: Path) -> None:
    folder = megatron(tmp_path / "c", "fp8", legacy=True)
    inner = folder / "iter_0000100" / "modelopt_state"
    (inner / "common.pt").write_bytes((inner / "common.pt").read_bytes()[:-100])
    with pytest.raises(JobError, match="unreadable_checkpoint"):
        look(folder)
    (inner / "common.pt").unlink()
    with pytest.raises(JobError, match=r"unreadable_checkpoint.*neither"):
        look(folder)
    shutil.rmtree(inner)
    inner.mkdir()
    with pytest.raises(JobError, match=r"unreadable_checkpoint.*neither"):
        look(folder)


def test_distillation_alone_leaves_nothing_to_restore(tmp_path: Path) -> None:
    folder = megatron(tmp_path / "c", "fp8", legacy=True)
    kept = {"modelopt_state_dict": [("kd_loss", {"config": {}, "metadata": {}})], "modelopt_version": "0.40"}
    torch.save(kept, folder / "iter_0000100" / "modelopt_state" / "common.pt")
    assert not look(folder).modelopt_state


@pytest.mark.parametrize("legacy", [True, False])
def test_a_training_state(legacy: bool, tmp_path: Path) -> None:
    weights = megatron_weights()
    moments = {f"optimizer.state.{kind}.embedding.weight": torch.zeros(64, 8) for kind in ("exp_avg", "exp_avg_sq")}
    folder = tmp_path / "iter_0000007"
    write_core(
        folder, weights | moments | {"rng_state/shard_0.0_1.1": io.BytesIO(b"x")}, {"iteration": 7}, legacy=legacy
    )
    found = look(folder)
    assert (found.training_state, found.parameters) == (True, WEIGHTS)


def test_an_adapter_of_megatron_bridge(tmp_path: Path) -> None:
    prefix = "decoder.layers.self_attention.linear_qkv.adapter"
    content = {f"{prefix}.linear_in.weight": torch.zeros(2, 4, 8), f"{prefix}.linear_out.weight": torch.zeros(2, 8, 4)}
    folder = tmp_path / "iter_0000004"
    write_core(folder, content, {"iteration": 4}, legacy=False)
    (folder / "run_config.yaml").write_text(
        "checkpoint: {pretrained_checkpoint: /models/base}\npeft: {_target_: megatron.bridge.peft.lora.LoRA, dim: 4}\n"
    )
    found = look(tmp_path)
    assert (found.kind, found.layout, found.parameters) == ("checkpoint_lora", "megatron", 128)
    assert found.base_model == "/models/base"


def test_nemo(tmp_path: Path) -> None:
    content = {f"module.{name}": value for name, value in megatron_weights().items() if "quantizer" not in name}
    write_core(tmp_path / "weights", content, {"iteration": 3}, legacy=True)
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "model.yaml").write_text("_target_: nemo.collections.llm.gpt.model.llama.LlamaModel\n")
    for path in (tmp_path, tmp_path / "weights"):
        found = look(path)
        assert (found.kind, found.layout, found.architecture) == ("checkpoint_megatron", "nemo", "LlamaModel")
        assert (found.parameters, found.quantization, found.iteration) == (WEIGHTS, None, 3)


def test_zarr_is_named_and_left(tmp_path: Path) -> None:
    folder = tmp_path / "iter_0000001"
    folder.mkdir()
    (folder / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    torch.save({"iteration": 1}, folder / "common.pt")
    found = look(tmp_path)
    assert (found.format, found.parameters, found.quantization) == ("zarr", None, None)


def test_several_iterations(tmp_path: Path) -> None:
    folder = megatron(tmp_path / "c", iteration=20)
    megatron(folder, iteration=10)
    found = look(folder)
    assert (found.iteration, found.iterations) == (10, (10, 20))
    assert concrete_iteration(folder).name == "iter_0000010"
    (folder / "latest_checkpointed_iteration.txt").write_text("30")
    found = look(folder)
    assert found.iteration == 20
    assert "names 30, which is not there" in found.problems[0]
    (folder / "iter_0000020").rename(tmp_path / "elsewhere")
    (folder / "iter_0000020").symlink_to(tmp_path / "elsewhere")
    assert look(folder).bytes == found.bytes


def test_shards_missing_empty_and_cut_short(tmp_path: Path) -> None:
    folder = megatron(tmp_path / "c", "fp8")
    shard = next((folder / "iter_0000100").glob("*.distcp"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(JobError, match=r"unreadable_checkpoint.*cut short"):
        look(folder)
    megatron(folder, "fp8", legacy=True)
    shard = next((folder / "iter_0000100").glob("*.distcp"))
    shard.write_bytes(b"")
    assert f"{shard.name} is empty" in look(folder).problems
    shard.unlink()
    assert f"{shard.name} is missing, which .metadata names" in look(folder).problems


def test_a_run_config_that_is_no_yaml(tmp_path: Path) -> None:
    folder = megatron(tmp_path / "c", "fp8")
    (folder / "iter_0000100" / "run_config.yaml").write_text("model: [")
    with pytest.raises(JobError, match=r"unreadable_checkpoint.*run_config.yaml"):
        look(folder)


def test_shards_of_another_framework(tmp_path: Path) -> None:
    write_shards(tmp_path / "step_7", {"model.weight": torch.zeros(2)})
    with pytest.raises(JobError, match=r"unknown_checkpoint.*torch.distributed.checkpoint"):
        look(tmp_path / "step_7")


def test_a_save_that_did_not_end(tmp_path: Path) -> None:
    folder = megatron(tmp_path / "c", "fp8")
    (folder / "iter_0000100" / "metadata.json").unlink()
    assert "its save did not end" in look(folder).problems[0]
    (folder / "iter_0000100" / ".metadata").unlink()
    with pytest.raises(JobError, match=r"unreadable_checkpoint.*its save did not end"):
        look(folder)


def test_inspect(tmp_path: Path, nemo: Callable[..., Done]) -> None:
    folder = megatron(tmp_path / "c", "fp8", iteration=20)
    megatron(folder, "nvfp4", iteration=30)
    done = nemo("inspect", str(folder))
    assert (done.code, done.err) == (0, "")
    lines = [line.split(maxsplit=1) for line in done.out.splitlines()]
    assert ["kind", "checkpoint_megatron (megatron, torch_dist)"] in lines
    assert ["iteration", "30 (also there: 20)"] in lines
    assert ["quantization", "nvfp4"] in lines
    assert ["ModelOpt", "state to restore"] in lines
    assert nemo("inspect", str(folder / "iter_0000020"), "--json").json["quantization"] == "fp8"


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("place", ["common.pt", "modelopt_state/common.pt", ".metadata"])
def test_harmful_checkpoints_do_no_harm(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    monkeypatch.chdir(tmp_path)
    folder = megatron(tmp_path / "c", "fp8", legacy=True)
    file = folder / "iter_0000100" / place
    if place == ".metadata":
        from torch.distributed.checkpoint.metadata import Metadata

        file.write_bytes(pickle.dumps(Metadata({"a": Harmful()}, storage_data={})))
    else:
        torch.save({"modelopt_state_dict": [("quantize", Harmful())], "iteration": 1}, file)
    look(folder)
    assert not (tmp_path / "harmed").exists()
    pickle.loads(pickle.dumps(Harmful()))
    assert (tmp_path / "harmed").exists(), "the harm of this test does nothing"


# --- damage


@pytest.fixture(scope="module", params=["megatron", "megatron, common.pt", "torch", "torch, before zip", "modelopt"])
def intact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each kind to damage copies of."""
    kind, folder = str(request.param), tmp_path_factory.mktemp("intact")
    if kind.startswith("megatron"):
        megatron(folder, "nvfp4", legacy=kind == "megatron, common.pt")
    elif kind.startswith("torch"):
        content = {"model": state(), "modelopt_state": modelopt_state("fp8")}
        torch.save(content, folder / "a.pt", _use_new_zipfile_serialization=kind == "torch")
    else:
        save.save_restorable(quantized(export_quant_cfg="fp8"), hf_models.tokenizer(), folder)
    return folder


def test_damage_is_an_error_or_an_answer(intact: Path, tmp_path: Path) -> None:
    assert look(intact).quantization in ("fp8", "nvfp4")
    names = sorted(
        str(file.relative_to(intact)) for file in intact.rglob("*") if file.is_file() and file.stat().st_size
    )

    @given(data=st.data())
    @settings(max_examples=150, deadline=20_000, suppress_health_check=list(HealthCheck))
    def damage(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(names))
        content = bytearray((intact / name).read_bytes())
        reach = data.draw(st.sampled_from([64, 4096, len(content)]))
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, min(reach, len(content)) - 1))
            content[-at - 1 if data.draw(st.booleans()) else at] ^= 1 << data.draw(st.integers(0, 7))
        kept = data.draw(st.integers(0, len(content)) | st.just(len(content)))
        damaged = linked_copy(intact, tmp_path / "damaged", name, bytes(content[:kept]))
        try:
            assert isinstance(look(damaged), Checkpoint)
        except JobError as error:
            assert error.name in ("unreadable_checkpoint", "unknown_checkpoint")
        finally:
            shutil.rmtree(damaged)

    damage()


def linked_copy(intact: Path, target: Path, name: str, content: bytes) -> Path:
    """The folder again, with one file replaced; the others are hard links."""
    linked: Callable[..., Any] = os.link
    shutil.copytree(intact, target, copy_function=linked)
    (target / name).unlink()
    (target / name).write_bytes(content)
    return target
