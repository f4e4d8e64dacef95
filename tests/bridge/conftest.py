"""Skipped where Megatron-Bridge is not installed, which needs Python 3.12; required where REQUIRE_BRIDGE is set."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from scripts.args.quantize import QuantizeArgs
from scripts.engines import cpu_runtime
from scripts.engines.bridge.worker import Work
from tests.conftest import NEMO
from tests.hf_models import build, save

HERE = util.find_spec("megatron") is not None
SMALL: dict[str, Any] = {"calib_size": 6, "eval_size": 2, "calib_seq_length": 64, "prompts": "1 quick"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not HERE and not os.environ.get("REQUIRE_BRIDGE"):
        for item in items:
            if "bridge" in Path(item.fspath).parts:
                item.add_marker(pytest.mark.skip(reason="Megatron-Bridge is not installed: make bridge"))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 of four layers with a tokenizer of bytes."""
    return saved(tmp_path_factory.mktemp("qwen3"), "qwen3", num_hidden_layers=4)


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3-MoE of two layers and four experts."""
    return saved(tmp_path_factory.mktemp("qwen3_moe"), "qwen3_moe")


def saved(folder: Path, family: str, **values: Any) -> Path:
    return save(build(family, **values), folder)


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def work(args: Any, folder: Path) -> Work:
    return Work(args=args, called="small", report=folder / "report", not_shown=cpu_runtime.LIMITS)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty lines that differ."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    lines = (
        f"{number} quick brown foxes jump over {number * 7 % 11} lazy dogs in town {number}." for number in range(40)
    )
    file.write_text("\n\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def quantized(source: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source in FP8, as a Megatron checkpoint."""
    from scripts.engines.bridge import quantize

    folder = tmp_path_factory.mktemp("quantized")
    made = folder / "megatron"
    args = QuantizeArgs(
        hf_model_id=str(source), calib_dataset=str(text), megatron_save_path=str(made), **SMALL | {"eval_size": 0}
    )
    with one_rank():
        quantize.quantize(work(args, folder))
    return made


@pytest.fixture
def parallel() -> Iterator[None]:
    with one_rank():
        yield


def begin_anew() -> None:
    """What a process of Megatron holds of the job that it did."""
    from megatron.core import parallel_state, rerun_state_machine

    parallel_state.destroy_model_parallel()
    rerun_state_machine.destroy_rerun_state_machine()


@contextmanager
def one_rank() -> Iterator[None]:
    """In this process; what comes next begins anew."""
    before = dict(os.environ)  # a model's attention says in variables what it may be computed with
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ.update(told)
    cpu_runtime.start()
    yield
    begin_anew()
    os.environ.clear()
    os.environ.update(before)


def nemo(home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    env = os.environ | {"NEMORUN_HOME": str(home), "HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run([NEMO, "experiment", *words], env=env, capture_output=True, text=True, timeout=700, cwd=home)


def run_of(home: Path, recipe: str) -> dict[str, Any]:
    (folder,) = (home / "runs").glob(f"{recipe}_*")
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record | {"folder": folder}


def perplexity(folder: Path, samples: list[tuple[int, ...]]) -> float:
    """What transformers makes of a checkpoint, over all tokens but the first of each sample."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    total, tokens = 0.0, 0
    with torch.no_grad():
        for sample in samples:
            ids = torch.tensor([sample])
            total += float(
                torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:], reduction="sum")
            )
            tokens += len(sample) - 1
    return float(torch.tensor(total / tokens).exp())
