"""Recipes in NeMo-Run's own registry, YAML and command line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes import RECIPES, find
from scripts import entrypoints

LATE = "${oc.env:NEMO_RUN_DIR,${oc.env:PWD}/output}/x/${run_tag}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_nemo_run_s_yaml(name: str, tmp_path: Path) -> None:
    from nemo_run.cli.config import ConfigSerializer
    from nemo_run.cli.lazy import LazyEntrypoint
    from nemo_run.core.serialization.yaml import YamlSerializer
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    partial = RECIPES[name].build()
    text = YamlSerializer().serialize(partial)
    assert YamlSerializer().deserialize(text) == partial
    assert ZlibJSONSerializer().deserialize(ZlibJSONSerializer().serialize(partial)) == partial
    file = tmp_path / "recipe.yaml"  # what --to-yaml writes, and --yaml reads
    ConfigSerializer().dump(partial, file)
    assert LazyEntrypoint(RECIPES[name].family.entrypoint, yaml=str(file)).resolve() == partial
    assert YamlSerializer().deserialize(text) == partial, "nothing of the first reading is left"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_factory(name: str) -> None:
    from nemo_run import cli
    from nemo_run.cli.lazy import LazyEntrypoint

    recipe = RECIPES[name]
    partial = recipe.build()
    factory = cli.resolve_factory(f"scripts.entrypoints.{recipe.algorithm}", name)
    assert factory() == partial == cli.resolve_factory("recipes", name)()
    assert (factory.__name__, factory.__doc__) == (name, recipe.summary)
    assert name in [one.__name__ for one in cli.list_factories("recipes")]
    assert LazyEntrypoint(recipe.family.entrypoint, factory=name).resolve() == partial


def test_values_of_every_kind_survive() -> None:
    from nemo_run.core.serialization.yaml import YamlSerializer

    partial = find("distill").build()
    partial.args.data_paths = [1.0, "/data/my text", 2, LATE]
    partial.args.output_dir = LATE
    partial.args.hf_export_path = "None"
    partial.args.wandb_project = "8"
    partial.extra_args = ["--a", "b c", LATE]
    text = YamlSerializer().serialize(partial)
    assert YamlSerializer().deserialize(text) == partial
    config = find("qat").build()
    config.args.config = {"train": {"lr": 1e-5, "name": "0.4", "none": None, "late": LATE}, "flags": [True, "x"]}
    assert YamlSerializer().deserialize(YamlSerializer().serialize(config)) == config


def test_a_file_that_somebody_wrote_and_words_over_it(tmp_path: Path) -> None:
    from nemo_run.cli.lazy import LazyEntrypoint

    document = {
        "_target_": "scripts.entrypoints.quantize",
        "recipe": "quantize",
        "args": {"_target_": "scripts.args.quantize.QuantizeArgs", "ep": 8, "export_dir": LATE},
    }
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    words = ["args.ep=4", "args.hf_model_id=8", "args.calib_seq_length=128", "engine=hf"]
    partial: Any = LazyEntrypoint(entrypoints.quantize, yaml=str(file), overwrites=words).resolve()
    assert (partial.args.ep, partial.args.export_dir, partial.engine) == (4, LATE, "hf")
    assert (partial.args.hf_model_id, partial.args.calib_seq_length) == ("8", 128)


def test_the_command_line_of_somebody_s_script(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "import nemo_run as run\nfrom recipes import RECIPES\nfrom scripts.entrypoints import quantize\n"
        "RECIPES.register()\nif __name__ == '__main__':\n    run.cli.main(quantize)\n",
        encoding="utf-8",
    )
    for words in (
        ["--factory", "quantize_fp8", "args.calib_size=64", "--to-yaml", "a.yaml"],
        ["--yaml", "a.yaml", "args.tp=2", "--to-yaml", "b.yaml"],
    ):
        done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    a, b = (yaml.safe_load((tmp_path / name).read_text(encoding="utf-8")) for name in ("a.yaml", "b.yaml"))
    assert a["args"]["calib_size"] == 64 and "${run_tag}" in a["args"]["export_dir"]
    assert b == a | {"args": a["args"] | {"tp": 2}}


def test_other_people_s_configurations_are_read_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_run.cli.lazy import dictconfig_to_dot_list
    from omegaconf import OmegaConf

    find("quantize").build()
    monkeypatch.setenv("THEIRS", "a value")
    config = OmegaConf.create({"args": {"_target_": "theirs.Args", "name": "${oc.env:THEIRS}"}, "size": 3})
    assert dictconfig_to_dot_list(config) == [
        ("args", "=", "Config[theirs.Args]"),
        ("args.name", "=", "a value"),
        ("size", "=", 3),
    ]
