"""Fixtures for all tests: a home of its own for NeMo-Run, the CLI in processes of its own, small models on disk."""

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.answers import answer_of, data_of
from tests.measuring import sweep
from tests.testbed.warm import Warm, warm_nemo

#: The script itself: what an entry point, a shell or another program starts. Costs seconds; `nemo` does not.
NEMO = str(Path(sys.executable).with_name("nemo"))

# A random case is no slower than others because the machine does something else beside it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell starts background jobs with SIGINT ignored, and so would every command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, trylast=True)  # inside that of pytest-cov, which then combines
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    done = yield
    if not hasattr(session.config, "workerinput"):
        sweep(session.config.rootpath)
    return done


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        """The envelope that it printed."""
        return answer_of(self.out)

    @property
    def json(self) -> Any:
        """What is in it."""
        return data_of(self.out)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """NEMORUN_HOME of this test: what a command writes there is all that it wrote."""
    folder = tmp_path / "nemo-home"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """The server that every command of this process's tests is forked from."""
    with warm_nemo() as started:
        yield started


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The folder that this test's commands are called in, empty."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def nemo(home: Path, work: Path, warm: Warm) -> Callable[..., Done]:
    """Run `nemo experiment WORDS...` with no terminal, in an empty folder, away from any hub."""

    def run(*words: str, env: dict[str, str] | None = None, cwd: Path = work, timeout: float = 300) -> Done:
        variables = {**os.environ, "NEMORUN_HOME": str(home), "HF_HUB_OFFLINE": "1", **(env or {})}
        variables.pop("NEMO_RUN_DIR", None)
        return Done(*warm.run(["experiment", *words], variables, cwd, timeout))

    return run


@pytest.fixture
def cold_nemo(home: Path, work: Path) -> Callable[..., Done]:
    """The same through the script `nemo`, for the few tests that are about the entry point itself."""

    def run(*words: str) -> Done:
        variables = {**os.environ, "NEMORUN_HOME": str(home), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [NEMO, "experiment", *words],
            capture_output=True,
            text=True,
            cwd=work,
            env=variables,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


def write_safetensors(path: Path, shapes: dict[str, list[int]], bytes_of: Mapping[str, str] | None = None) -> None:
    """A safetensors file of zeros in bf16, written by hand: no torch needed to test what reads headers.

    `bytes_of` names tensors that have another dtype, of one byte.
    """
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 1 if name in (bytes_of or {}) else 2
        for side in shape:
            size *= side
        header[name] = {
            "dtype": (bytes_of or {}).get(name, "BF16"),
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * offset)


@pytest.fixture
def fake_model(tmp_path: Path) -> Callable[..., Path]:
    """A folder that looks like a Llama of the given width to whoever reads only headers."""

    def make(name: str = "model", width: int = 256, vocabulary: int = 100) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": width}))
        (folder / "tokenizer.json").write_text("{}")
        shapes = {f"{name}.weight": [vocabulary, width] for name in ("model.embed_tokens", "lm_head")}
        shapes |= {f"model.layers.0.self_attn.{p}_proj.weight": [width, width] for p in "qkvo"}
        write_safetensors(folder / "model.safetensors", shapes)
        return folder

    return make
