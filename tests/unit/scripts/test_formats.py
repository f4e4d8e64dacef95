"""Formats: names, facts, block sizes, errors; all without torch."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.formats import (
    FORMATS,
    builtin_recipes,
    config_names,
    format_error,
    format_problems,
    get_format,
    resolve_format,
)
from scripts.run.problems import JobError

ROOT = Path(__file__).resolve().parents[3]


def test_the_formats() -> None:
    assert list(FORMATS)[:6] == ["fp8", "nvfp4", "int8_sq", "fp8_blockwise", "int4_awq", "w4a8_awq"]
    for name, facts in FORMATS.items():
        assert facts.name == name
        assert facts.config in (*config_names(), *builtin_recipes())
        assert facts.base is None or FORMATS[facts.base].base in (None, "nvfp4", "mxfp8")
        assert facts.config_weight_only is None or facts.config_weight_only in config_names()
        assert facts.scales
        assert 0 < facts.group_error < 1


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("fp8", (1, 1)),
        ("nvfp4", (1, 16)),
        ("fp8_blockwise", (128, 128)),
        ("int4_awq", (1, 128)),
        ("w4a8_awq", (1, 128)),
    ],
)
def test_blocks(name: str, block: tuple[int, int]) -> None:
    assert get_format(name).block == block


def test_unknown_format_names_the_nearest() -> None:
    with pytest.raises(JobError, match="nvfp4") as caught:
        get_format("nvpf4")
    assert caught.value.name == "unsupported_quant_recipe"
    assert "nvfp4" in caught.value.remedy


def test_shapes_that_fit_have_no_problem() -> None:
    shapes = {"a": (256, 128), "b": (128, 384)}
    assert all(format_problems(name, shapes) == [] for name in FORMATS)


def test_misfits_are_named_once_per_shape() -> None:
    shapes = {"one": (128, 100), "two": (130, 128), "three": (130, 128)}
    problems = format_problems("fp8_blockwise", shapes)
    assert len(problems) == 2
    assert "one: 100 inputs" in problems[0]
    assert "two and 1 more: 130 outputs" in problems[1]
    assert len(format_problems("int4_awq", shapes)) == 1
    assert len(format_problems("nvfp4", shapes)) == 1
    assert format_problems("fp8", shapes) == []


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("fp8", "format"),
        ("FP8_DEFAULT_CFG", "config"),
        ("NVFP4_AWQ_LITE_CFG", "config"),
        ("general/ptq/fp8_default-kv_fp8", "builtin_recipe"),
        ("general/ptq/fp8_default-kv_fp8.yaml", "builtin_recipe"),
    ],
)
def test_resolved_kinds(value: str, kind: str) -> None:
    assert resolve_format(value).kind == kind
    assert format_error(value) is None


@pytest.mark.parametrize(
    ("value", "nearest"),
    [
        ("fp9", "fp8"),
        ("NVFP4", "nvfp4"),
        ("FP8_DEFALT_CFG", "FP8_DEFAULT_CFG"),
        ("general/ptq/fp8_defaut-kv_fp8", "general/ptq/fp8_default-kv_fp8"),
    ],
)
def test_error_suggests(value: str, nearest: str) -> None:
    error = format_error(value)
    assert error is not None
    assert "Did you mean" in error
    assert nearest in error


@pytest.mark.parametrize("value", ["", " ", "$(touch x)", "a\nb", "'\"", "ü", "../..", "/", "FP8_KV_CFG", "nope.yaml"])
def test_hostile_and_partial_values_are_errors(value: str) -> None:
    assert format_error(value) is not None


def test_own_recipe_file(tmp_path: Path) -> None:
    good = tmp_path / "mine.yaml"
    good.write_text("metadata:\n  recipe_type: ptq\nquantize:\n  algorithm: max\n  quant_cfg: []\n", encoding="utf-8")
    assert resolve_format(str(good)).kind == "recipe_file"
    bad = tmp_path / "bad.yaml"
    bad.write_text("metadata: {}\n", encoding="utf-8")
    assert "quantize" in (format_error(str(bad)) or "")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [", encoding="utf-8")
    assert "cannot be read" in (format_error(str(broken)) or "")


def test_config_names_are_those_of_modelopt() -> None:
    assert {"FP8_DEFAULT_CFG", "INT8_WEIGHT_ONLY_CFG", "W4A8_AWQ_BETA_CFG"} <= set(config_names())
    assert not [name for name in config_names() if "_KV_" in name]
    assert len(builtin_recipes()) > 10


def test_parts_that_recipes_share_are_no_recipes() -> None:
    parts = ("disabled_quantizers", ".quant_cfg")
    assert not [name for name in builtin_recipes() if name.endswith(parts)]
    assert format_error("huggingface/nemotron_vl/ptq/disabled_quantizers") is not None


def test_what_follows_from_weights_alone() -> None:
    alone = {name for name, facts in FORMATS.items() if facts.of_weights(False)}
    assert alone == {"fp8_blockwise", "w4a16_nvfp4", "mxfp8", "mxfp4"}
    without_inputs = {name for name, facts in FORMATS.items() if facts.of_weights(True)}
    assert without_inputs - alone == {"fp8", "nvfp4", "int8_sq"}


def test_no_torch_and_fast() -> None:
    code = (
        "import sys, time\nfrom scripts import formats\nstart = time.process_time()\n"
        "formats.format_error('general/ptq/nothing_like_it')\nformats.format_error('FP8_X_CFG')\n"
        "print(time.process_time() - start, 'torch' in sys.modules, 'modelopt' in sys.modules)"
    )
    best = 1.0
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        seconds, torch_loaded, modelopt_loaded = done.stdout.split()
        assert (torch_loaded, modelopt_loaded) == ("False", "False")
        best = min(best, float(seconds))
        time.sleep(0.1)
    assert best < 0.05


_NEW = """
fp8_rows:
  config: FP8_PER_CHANNEL_PER_TOKEN_CFG
  block: [1, 1]
  numbers: [[4, 3]]
  weight: {dtype: F8_E4M3}
  scales: {weight_scale: [F32, per_output]}
  quant_algo: FP8_ROWS
  min_sm: 89
  native_sm: 89
  group_error: 0.25
  servers:
    sglang: {FP8_ROWS: modelopt_fp8}
"""
_ASK = """
import json
from recipes import prepare, quantize_fp8
from recipes.planner.disk import outputs_bytes
from scripts.args.meaning import meanings
from scripts.args.quantize import QuantizeArgs
from scripts.checkpoints.quantization import of_export
from scripts.serving.servers import able

def job(format):
    partial = quantize_fp8()
    partial.args.export_quant_cfg, partial.args.hf_model_id, partial.engine = format, "tiny:qwen3", "hf"
    return prepare(partial, online=False)

exported = of_export({}, {"quantization": {"quant_algo": "FP8_ROWS"}}).format
sizes = [outputs_bytes(job(format))["args.export_dir"] for format in ("fp8", "fp8_rows")]
help = next(meaning.doc for field, meaning in meanings(QuantizeArgs) if field.name == "export_quant_cfg")
print(json.dumps({"exported": exported, "sizes": sizes, "help": help, "servers": able("FP8_ROWS")}))
"""


def test_a_format_is_one_entry(tmp_path: Path) -> None:
    """Named in the help, accepted by every check, sized by the planner, known again, served: of formats.yaml alone."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    with (tmp_path / "configs" / "formats.yaml").open("a", encoding="utf-8") as file:
        file.write(_NEW)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _ASK], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["exported"] == "fp8_rows"
    assert said["servers"] == ["sglang"]
    assert "fp8_rows" in said["help"]
    assert said["sizes"][1] > said["sizes"][0] > 0  # a scale for each output, in place of one
