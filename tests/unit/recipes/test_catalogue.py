import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from configs import CONFIGS
from recipes import RECIPES, catalogue, find
from recipes.catalogue import describe, layers, merge_files, written_out
from recipes.experiment.stage import values_of_recipe
from recipes.preflight import history
from recipes.values import SECTIONS, field_types, load_yaml, set_value
from scripts.args.meaning import ScriptSpec, Torchrun
from scripts.args.quantize import QuantizeArgs
from scripts.run.problems import ProblemsError

FORMATS = {
    "quantize": "fp8",
    "quantize_fp8": "fp8",
    "quantize_nvfp4": "nvfp4",
    "quantize_int8_sq": "int8_sq",
    "quantize_fp8_blockwise": "fp8_blockwise",
    "quantize_int4_awq": "int4_awq",
    "quantize_w4a8_awq": "w4a8_awq",
    "quantize_tiny": "fp8",
}


def test_the_catalogue_has_what_the_issue_names() -> None:
    families = {recipe.family.name for recipe in RECIPES.values()}
    issue = "quantize quantize_vlm generate generate_vlm export export_distilled prune distill qad qat hf_to_megatron"
    issue += " megatron_to_hf merge_lora mlm_convert mlm_quantize mlm_export mlm_generate mlm_mmlu mlm_prune"
    issue += " mlm_finetune mlm_validate mlm_distill probe"
    assert families >= set(issue.split())
    assert set(RECIPES) >= {*FORMATS, "distill_tiny", "distill_mock", "prune_tiny"}


@pytest.mark.parametrize("name", FORMATS)
def test_every_recipe_builds_and_round_trips(name: str) -> None:
    from fiddle import build
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    partial = RECIPES[name].build()
    assert partial.recipe == name
    assert partial.args.export_quant_cfg == FORMATS[name]
    again = ZlibJSONSerializer().deserialize(ZlibJSONSerializer().serialize(partial))
    assert again == partial
    job = build(again)
    assert job.keywords["args"].export_quant_cfg == FORMATS[name]
    assert job.keywords["args"].trust_remote_code is False


def test_every_yaml_has_a_recipe_and_the_sections() -> None:
    files = list((CONFIGS / "quantize").glob("*.yaml"))
    assert len(files) == len([recipe for recipe in RECIPES.values() if recipe.family.name == "quantize"])
    for file in files:
        facts = ("summary", "strategies", "errors", "engine", "hardware")
        if file.stem == "default":
            assert tuple(load_yaml(file)) == (*facts, *SECTIONS[1:]), file
        else:
            assert tuple(load_yaml(file))[:2] == ("summary", "extends"), file
        assert ("quantize" if file.stem == "default" else f"quantize_{file.stem}") in RECIPES


def test_the_owner_s_values() -> None:
    recipe = find("quantize_fp8").build()
    assert recipe.args.hf_model_id == "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16"
    assert recipe.args.calib_size == 512
    assert recipe.torchrun.nproc_per_node == 8
    assert recipe.script.flag_style == "hyphen"
    assert recipe.script.path is None
    nvfp4 = find("quantize_nvfp4").build()
    assert nvfp4.args.calib_size == 2000
    assert nvfp4.args.calib_seq_length > recipe.args.calib_seq_length


def test_a_miss_names_the_nearest() -> None:
    with pytest.raises(ProblemsError, match=r"Did you mean quantize_nvfp4\?"):
        find("quantise_nvfp4")


@pytest.mark.parametrize("name", FORMATS)
def test_every_value_is_explained(name: str) -> None:
    described = describe(RECIPES[name])
    assert described["summary"]
    assert described["consumes"] == ["checkpoint_hf", "training_jsonl"]
    assert described["strategies"]
    assert "unsupported_quant_recipe" in described["errors"]
    assert described["releases"][0]["release"] == "v0.2.2"
    explained = {row["key"]: row["meaning"] for row in described["values"]}
    for cls in (ScriptSpec, QuantizeArgs, Torchrun):
        for field in dataclasses.fields(cls):
            assert field.metadata["doc"]
    assert all(meaning for key, meaning in explained.items() if "." in key)


def test_importing_recipes_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = ("torch", "transformers", "modelopt", "nemo_run", "datasets")
    code = f"import sys, recipes; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_importing_the_node_side_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, pkgutil, importlib, scripts\n"
        "names = {m.name for m in pkgutil.walk_packages(scripts.__path__, 'scripts.')}\n"
        # Their classes are torch's: they are imported late themselves.
        "names -= {f'scripts.engines.cpu_runtime.{one}' for one in ('attention', 'mamba_layers', 'te_layers')}\n"
        "assert len(names) > 15, names\n"
        "[importlib.import_module(n) for n in names]\n"
        "print([m for m in ('torch','transformers','modelopt','nemo_run','datasets','matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_the_folders_of_recipes_are_looked_at_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    as_it_is = catalogue._catalogue
    monkeypatch.setattr(catalogue, "_catalogue", lambda: looked.append(1) or as_it_is())
    assert len(list(RECIPES.values())) > 40 and len(looked) == 1
    assert history._kind_of("quantize", {"calib_size": 1, "dtype": "x"}) is QuantizeArgs
    assert len(looked) == 1, "what class a recorded run had, no folder tells"


HOSTILE = [
    "a b",
    "'q' \"q\"",
    "line\nbreak",
    "$(touch pwned) `id`",
    "ünï 漢字",
    "${x",
    "???",
    "a;b|c&d",
    "-x",
    "",
    "\\",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_travels_to_the_job_unchanged(text: str) -> None:
    """Through overrides and the file in which NeMo-Run hands a recipe to the job, in every string value at once."""
    from fiddle import build
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    partial = find("quantize_fp8").build()
    keys = [key for key, kind in field_types(partial).items() if kind is str or kind == str | None]
    assert len(keys) > 8
    assert [problem for key in keys for problem in set_value(partial, key, text)] == []
    partial.extra_args = [text]
    job = build(ZlibJSONSerializer().deserialize(ZlibJSONSerializer().serialize(partial)))
    for key in keys:
        section, _, name = key.partition(".")
        assert getattr(job.keywords[section], name) == text
    assert job.keywords["extra_args"] == [text]


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_written_out_is_that_recipe(name: str, tmp_path: Path) -> None:
    recipe = find(name)
    (tmp_path / "mine.yaml").write_text(written_out(recipe))
    base = recipe.family
    other = next((one for one in RECIPES.values() if one.family == base and one.name != name), recipe).outline()
    assert merge_files(other, layers(base, tmp_path / "mine.yaml")) == []
    other.recipe = name
    assert values_of_recipe(other) == values_of_recipe(recipe.outline())


def test_texts_that_look_like_numbers_are_written_out_as_texts(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "summary: |\n  first\n  args: {calib_size: 3}\nargs: {hf_model_id: '6e9', calib_dataset: '1e-5'}\n"
        "extra_args: ['1e-5', 'yes']\n"
    )
    recipe = dataclasses.replace(find("quantize"), file=file)
    (tmp_path / "copy.yaml").write_text(written_out(recipe))
    copy = find("quantize").outline()
    assert merge_files(copy, layers(recipe.family, tmp_path / "copy.yaml")) == []
    assert values_of_recipe(copy) == values_of_recipe(recipe.outline())
