import base64
import inspect
import json
import sys
import zlib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from recipes import find
from recipes.experiment.experiment import partial_of
from recipes.experiment.job import serialized
from recipes.experiment.store import RunFolder
from scripts import entrypoints
from scripts.args.megatron_lm import MlmQuantizeArgs
from scripts.args.program import ProgramArgs
from scripts.entrypoints import ALGORITHMS, probe, program, quantize


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_entrypoint_is_what_a_partial_names(name: str) -> None:
    entrypoint = getattr(entrypoints, name)
    assert (entrypoint.__module__, entrypoint.__name__, entrypoint.__qualname__) == ("scripts.entrypoints", name, name)
    assert entrypoint.__doc__
    parameters = inspect.signature(entrypoint).parameters
    assert list(parameters) == ["recipe", "engine", "script", "args", "torchrun", "extra_args"]
    assert parameters["recipe"].default == name
    assert all(one.annotation is not inspect.Parameter.empty for one in parameters.values())
    assert parameters["args"].default == ALGORITHMS[name].args()
    assert getattr(entrypoints, name) is entrypoint


@pytest.mark.parametrize("algorithm", ALGORITHMS.values())
def test_the_work_of_an_algorithm_is_there(algorithm: entrypoints.Algorithm) -> None:
    for work, takes in ((algorithm.hf, 2), (algorithm.tool, 4), (algorithm.ranks, 3)):
        module, _, name = work.partition(":")
        given = inspect.signature(getattr(import_module(module), name)).parameters.values() if work else ()
        assert not work or sum(one.default is one.empty for one in given) == takes, work


def test_words_reach_a_program_and_are_refused_where_nothing_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEMO_RUN_DIR", str(tmp_path / "program"))
    command = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "first"]
    program(args=ProgramArgs(command=command, output_hf=None), extra_args=["--say", "{output_hf}"])
    assert "['first', '--say', '{output_hf}']" in capsys.readouterr().out
    monkeypatch.setenv("NEMO_RUN_DIR", str(tmp_path / "probe"))
    with pytest.raises(SystemExit):
        probe(extra_args=["--say"])
    assert "extra_args_unused" in capsys.readouterr().out


def test_the_hf_engine_refuses_what_it_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEMO_RUN_DIR", str(tmp_path / "run"))
    with pytest.raises(SystemExit):
        quantize(engine="hf", args=MlmQuantizeArgs())
    assert "engine_cannot: quantize is not an algorithm of the hf engine" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["quantize_fp8", "evaluate", "serve", "prepare_data", "probe"])
def test_a_recipe_of_version_0_1_is_read(name: str, tmp_path: Path) -> None:
    """Its run folders name modules that have moved since."""
    partial = find(name).build()
    text = zlib.decompress(base64.urlsafe_b64decode(serialized(partial))).decode()
    algorithm = find(name).algorithm
    old = {("scripts.entrypoints", algorithm): f"scripts.{algorithm}"}
    old |= dict.fromkeys(
        [("scripts.args.meaning", "ScriptSpec"), ("scripts.args.meaning", "Torchrun")], "scripts.types"
    )

    def renamed(document: Any) -> Any:
        if isinstance(document, list):
            return [renamed(item) for item in document]
        if not isinstance(document, dict):
            return document
        values = {key: renamed(value) for key, value in document.items()}
        if values.get("type") == "pyref":
            values["module"] = old.get((values["module"], values["name"]), values["module"])
        return values

    before = json.dumps(renamed(json.loads(text)))
    assert f"scripts.{algorithm}" in before and "scripts.types" in before and "scripts.entrypoints" not in before
    file = tmp_path / "partial.zlib"
    file.write_text(base64.urlsafe_b64encode(zlib.compress(before.encode())).decode())
    assert partial_of(cast(RunFolder, SimpleNamespace(partial=file))) == partial
