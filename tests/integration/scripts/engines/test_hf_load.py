"""Loading: shapes before weights, safetensors only, each failure by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from scripts.engines.hf.load import linear_shapes, load_model, pick_device  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402
from tests import hf_models  # noqa: E402

pytestmark = pytest.mark.integration


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hf_models.save(hf_models.build("qwen3"), tmp_path / "a model")


def load(folder: Path, *, trust: bool = False) -> object:
    return load_model(str(folder), dtype="bfloat16", device="cpu", trust_remote_code=trust)


def test_loads(folder: Path) -> None:
    loaded = load_model(str(folder), dtype="float32", device="auto", trust_remote_code=False)
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert loaded.tokenizer.pad_token == "<pad>"
    assert loaded.model.device.type == loaded.device.type


def test_shapes_need_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    shapes = linear_shapes(str(folder), False)
    assert len(shapes) == 14
    assert shapes["model.layers.0.mlp.up_proj"] == (384, 256)
    assert "lm_head" not in shapes


def test_shapes_of_experts(tmp_path: Path) -> None:
    shapes = linear_shapes(str(hf_models.save(hf_models.build("qwen3_moe"), tmp_path)), False)
    assert shapes["model.layers.0.mlp.experts.down_proj"] == (256, 128)


def test_pad_token_leaves_the_vocabulary_alone(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("pad_token")
    path.write_text(json.dumps(config), encoding="utf-8")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    tokenizer = load(folder).tokenizer  # type: ignore[attr-defined]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert len(tokenizer) == 260


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "no_such_model"}), encoding="utf-8")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def no_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("tokenizer*"), *folder.glob("special_tokens*")]:
        path.unlink()


def own_code(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Own"}
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (only_pickles, "unsafe_weights"),
        (no_weights, "missing_model"),
        (no_config, "missing_model"),
        (bad_config, "missing_model"),
        (unknown_type, "unknown_model"),
        (truncated, "damaged_weights"),
        (missing_shard, "missing_model"),
        (no_tokenizer, "missing_tokenizer"),
        (own_code, "remote_code_not_trusted"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_failures_have_names_and_remedies(damage: Callable[[Path], None], name: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(JobError) as caught:
        load(folder)
    assert caught.value.name == name
    assert caught.value.remedy


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="missing_model"):
        load(tmp_path / "nothing" / "here")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu() -> None:
    with pytest.raises(JobError, match="no_cuda"):
        pick_device("cuda")
