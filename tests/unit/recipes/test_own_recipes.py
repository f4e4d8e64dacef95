"""Recipes that a user adds: one file in a folder of the user's own."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import recipes
from recipes import RECIPES, ProblemsError, catalogue, find, plan, prepare
from recipes.catalogue import FAMILIES, describe
from recipes.experiment.job import serialized
from scripts import entrypoints
from scripts.entrypoints import ALGORITHMS, Algorithm
from tests.answers import data_of

MINE = """
summary: Ours, with fewer samples.
extends: fp8
args:
  hf_model_id: tiny:qwen3
  calib_size: 64
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's settings, and in them the folder of recipes."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    found = tmp_path / "modelopt-recipes" / "recipes"
    found.mkdir(parents=True)
    return found


def put(folder: Path, name: str, text: str = MINE) -> Path:
    file = folder / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_is_a_recipe(folder: Path) -> None:
    assert "quantize_mine" not in RECIPES
    put(folder, "quantize/mine")
    assert "quantize_mine" in RECIPES and list(RECIPES).index("quantize_mine") < list(RECIPES).index("quantize_vlm")
    from recipes import quantize_mine

    assert (quantize_mine.__name__, quantize_mine.__doc__) == ("quantize_mine", "Ours, with fewer samples.")
    assert "quantize_mine" in dir(recipes)
    partial = quantize_mine()
    assert (partial.recipe, partial.args.calib_size, partial.args.export_quant_cfg) == ("quantize_mine", 64, "fp8")
    assert describe(find("quantize_mine"))["summary"] == "Ours, with fewer samples."
    assert RECIPES.problems() == []
    assert prepare(partial, online=False).recipe == "quantize_mine"
    assert plan(partial).recipe == "quantize_mine"
    assert str(folder) not in serialized(partial), "it travels as values"


def test_it_is_listed_described_and_run_by_name(folder: Path, tmp_path: Path) -> None:
    """In a process of its own, as somebody types it."""
    put(folder, "quantize/mine")
    put(folder, "quantize/broken", "a: [")

    def nemo(*words: str) -> subprocess.CompletedProcess[str]:
        program = [str(Path(sys.executable).with_name("nemo")), "experiment", *words]
        return subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, env=os.environ, check=False)

    listed = nemo("recipes")
    assert "quantize_mine" in listed.stdout and "Ours, with fewer samples." in listed.stdout
    assert "quantize_broken" not in listed.stdout and str(folder / "quantize" / "broken.yaml") in listed.stderr
    rehearsed = nemo("run", "quantize_mine", "args.calib_size=32", "--dryrun", "--json")
    assert data_of(rehearsed.stdout)["recipe"] == "quantize_mine"


@pytest.mark.parametrize(
    "text", ["extends: fp8\nargs: {calib_size: 2024-13-45}", "extends: ~nobody-here/x", "a: !!int x"]
)
def test_a_file_that_cannot_be_read_troubles_no_other_recipe(folder: Path, text: str) -> None:
    put(folder, "quantize/odd", text)
    (problem,) = RECIPES.problems()
    assert problem.name in ("unreadable_config", "unknown_config")
    assert "odd.yaml" in f"{problem.key} {problem.value}"
    assert catalogue.function_of(find("quantize_odd")).__doc__
    assert find("quantize_fp8").build().recipe == "quantize_fp8"


def test_a_pipe_is_no_recipe_and_is_not_waited_for(folder: Path) -> None:
    put(folder, "quantize/mine")
    os.mkfifo(folder / "quantize" / "pipe.yaml")
    (problem,) = RECIPES.problems()
    assert problem.name == "unreadable_config" and "no regular file" in problem.cause
    assert "quantize_mine" in RECIPES


def test_the_variable_names_folders_like_path(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a", "quantize/first")
    put(tmp_path / "b", "serve/second", "extends: default\nargs: {checkpoint: /models/x}\n")
    assert not {"quantize_first", "serve_second"} & set(RECIPES)
    monkeypatch.setenv("MODELOPT_RECIPES_PATH", f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}{os.pathsep}")
    assert {"quantize_first", "serve_second"} <= set(RECIPES)
    assert find("serve_second").summary == find("serve").summary, "it has none of its own"
    assert find("serve_second").build().args.checkpoint == "/models/x"
    monkeypatch.delenv("MODELOPT_RECIPES_PATH")
    with pytest.raises(ProblemsError, match="there is no such recipe"):
        find("serve_second")
    with pytest.raises(ImportError):
        from recipes import serve_second  # noqa: F401


@pytest.mark.parametrize(
    ("name", "text", "problem", "said"),
    [
        ("quantize/default", MINE, "duplicate_recipe", "is that recipe already"),
        ("quantise/mine", MINE, "unknown_family", "Did you mean quantize?"),
        ("quantize/my-own", MINE, "bad_recipe_name", "so that Python can import it"),
        ("quantize/broken", "a: [", "unreadable_config", ""),
        ("quantize/broken", "- 1", "unreadable_config", "a mapping with the sections"),
        ("quantize/broken", "args: {calib_sze: 1}", "unknown_key", "Did you mean args.calib_size?"),
        ("quantize/broken", "argz: {}", "unknown_key", "Did you mean args?"),
        ("quantize/broken", "args: {calib_size: many}", "wrong_value", "valid integer"),
        ("quantize/broken", "summary: [1]", "wrong_value", "valid string"),
        ("quantize/broken", "extends: fp9", "unknown_config", "Did you mean fp8?"),
        ("quantize/broken", "extends: broken", "wrong_value", "in a circle"),
        ("quantize/broken", "hardware: {gpu: h1000}", "unknown_gpu", "no such GPU"),
    ],
)
def test_what_is_wrong_names_the_file_and_stops_no_other(
    folder: Path, name: str, text: str, problem: str, said: str
) -> None:
    file = put(folder, name, text)
    put(folder, "quantize/mine")
    found = RECIPES.problems()
    assert [one.name for one in found] == [problem]
    where = file.parent if problem == "unknown_family" else file
    assert str(where) in str(found[0]) and said in str(found[0])
    assert find("quantize_mine").build().args.calib_size == 64
    assert find("quantize").build().args.calib_size == 512
    if name == "quantize/broken":
        with pytest.raises(ProblemsError, match=problem):
            find("quantize_broken").build()
        with pytest.raises(ProblemsError, match=problem):
            recipes.quantize_broken()


def test_every_family_takes_one(folder: Path) -> None:
    for family in FAMILIES:
        put(folder, f"{family}/mine", "extends: default\n")
        assert find(f"{family}_mine").build().recipe == f"{family}_mine"
    assert RECIPES.problems() == []


# --- the READMEs' examples --------------------------------------------------------------------------------------------


def blocks(readme: str, language: str) -> list[str]:
    text = (Path(__file__).resolve().parents[3] / readme).read_text(encoding="utf-8")
    return [part.partition("```")[0] for part in text.split(f"```{language}\n")[1:]]


def test_the_readme_s_recipe_is_one_file(folder: Path) -> None:
    (text,) = blocks("configs/README.md", "yaml")
    put(folder, "quantize/mine", text)
    partial = recipes.quantize_mine()
    assert (partial.args.hf_model_id, partial.args.calib_size, partial.torchrun.nproc_per_node) == ("tiny:qwen3", 64, 8)
    assert prepare(partial, online=False).engine == "hf"


def test_the_readme_s_algorithm_is_a_class_a_row_and_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api, made = blocks("recipes/README.md", "python")
    exec(api, {})
    module = types.ModuleType("measured")
    monkeypatch.setitem(sys.modules, "measured", module)
    exec(made, module.__dict__)
    row = Algorithm(doc="Measure a model.", families={"measure": module.MeasureArgs})
    monkeypatch.setitem(ALGORITHMS, "measure", row)
    monkeypatch.setattr(catalogue, "FAMILIES", catalogue.families())
    (text,) = blocks("recipes/README.md", "yaml")
    put(folder, "measure/default", text)
    assert list(RECIPES)[-1] == "measure" and RECIPES.problems() == []
    partial = recipes.measure()
    assert partial.__fn_or_cls__ is entrypoints.measure
    assert partial.args.output.endswith("/measure/${run_tag}")
    described = describe(find("measure"))
    assert (described["consumes"], described["produces"]) == (["checkpoint_hf"], ["eval_results"])
