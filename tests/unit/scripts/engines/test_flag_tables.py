"""The tables of upstream's flags: whole, consistent, and what a container's name says."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.engines.script.flags.interface import Flag
from scripts.engines.script.flags.tables import (
    container_path,
    interface_of,
    match_release,
    newest_container,
    releases_in,
    releases_of,
    repository_of,
    scripts,
)

ROOT = Path(__file__).resolve().parents[4]
QUANTIZE = "Megatron-Bridge/examples/quantization/quantize.py"
GENERATE = "Megatron-Bridge/examples/quantization/ptq_generate.py"
CONVERT = "Megatron-Bridge/scripts/conversion/run_conversion.py"
DISTILL = "Model-Optimizer/examples/megatron_bridge/distill.py"
LM_QUANTIZE = "Megatron-LM/examples/post_training/modelopt/quantize.py"
EVERY = [(script, release) for script in scripts() for release in releases_of(script)]


def test_every_script_has_a_place_and_releases() -> None:
    assert len(scripts()) == 27
    for script in scripts():
        assert repository_of(script) in ("Megatron-Bridge", "Model-Optimizer", "Megatron-LM")
        assert container_path(script).lower() == f"/opt/{script}".lower()
        assert releases_of(script)


@pytest.mark.parametrize(("script", "release"), EVERY)
def test_every_release_can_be_read_and_names_no_flag_twice(script: str, release: str) -> None:
    interface = interface_of(script, release)
    assert interface.flags
    spelled = [name for flag in interface.flags for name in flag.names]
    assert len(spelled) == len(set(spelled))
    for flag in interface.flags:
        assert flag.name.startswith("--")
        assert flag.choices is None or flag.choices
        assert flag.default is None or flag.kind not in ("on", "off")
        if flag.choices is not None and flag.default is not None and not flag.default.startswith("<"):
            assert flag.default in flag.choices


def test_a_release_says_only_what_changed() -> None:
    before, after = interface_of(QUANTIZE, "v0.6.0"), interface_of(QUANTIZE, "main-2026-08-22")
    assert before.find("hf_model_id") == Flag(names=("--hf-model-id",), default="meta-llama/Llama-3.2-1B")
    assert after.find("hf_model_id") == Flag(names=("--hf-model-id",), required=True)
    new = {flag.name for flag in after.flags} - {flag.name for flag in before.flags}
    assert new == {"--calib-seq-length", "--calib-batch-size", "--calib-dataset"}
    assert interface_of(QUANTIZE, "v0.2.2").find("force_all_expert_routing") is not None
    assert interface_of(QUANTIZE, "v0.3.1").find("force_all_expert_routing") is None


def test_flags_of_modules_that_a_script_only_imports_are_not_its_own() -> None:
    for release in releases_of(GENERATE):
        assert interface_of(GENERATE, release).find("export_quant_cfg") is None
    for release in ("0.46.0", "main-2026-08-21"):
        distill = interface_of(DISTILL, release)
        assert [flag.name for flag in distill.flags if flag.required] == [
            *("--student_hf_path", "--teacher_hf_path", "--output_dir", "--train_iters")
        ]
        assert distill.find("export_iterations") is None


def test_commands_and_open_parsers() -> None:
    conversion = interface_of(CONVERT, "v0.6.0")
    assert conversion.commands == ("import", "export", "roundtrip")
    assert conversion.find("device") == Flag(names=("--device",), choices=("cpu", "gpu"), required=True)
    assert conversion.find("account") is None
    assert conversion.closed
    opened = {script for script in scripts() if not interface_of(script, releases_of(script)[-1]).closed}
    assert {script for script in scripts() if repository_of(script) == "Megatron-LM"} < opened
    assert {Path(script).name for script in opened if repository_of(script) != "Megatron-LM"} == {
        "pretrain_quantized_llama3_8b.py",
        "distill_llama32_3b-1b.py",
    }


def test_megatron_lm_scripts_take_the_shared_flags_of_their_release() -> None:
    assert interface_of(LM_QUANTIZE, "core_v0.16.0").find("export_kv_cache_quant") == Flag(
        names=("--export-kv-cache-quant",),
        choices=("none", "fp8", "fp8_affine", "nvfp4", "nvfp4_affine", "nvfp4_rotate"),
        default="none",
    )
    assert interface_of(LM_QUANTIZE, "core_v0.13.0").find("export_kv_cache_quant") == Flag(
        names=("--export-kv-cache-quant",), kind="on"
    )


@pytest.mark.parametrize(
    ("script", "asked", "release"),
    [
        (QUANTIZE, "0.4", "v0.4.2"),
        (QUANTIZE, "v0.4", "v0.4.2"),
        (QUANTIZE, "v0.4.0", "v0.4.0"),
        (QUANTIZE, "0.4.1", "v0.4.0"),
        (QUANTIZE, "0.2.0", "v0.2.2"),
        (QUANTIZE, "0.5.0rc4", "v0.5.0"),
        (QUANTIZE, "main", "main-2026-08-22"),
        (QUANTIZE, "main-2026-08-22", "main-2026-08-22"),
        (QUANTIZE, "main-2026-01-01", None),
        (QUANTIZE, "0.9", None),
        (QUANTIZE, "0", None),
        (QUANTIZE, "latest", None),
        (LM_QUANTIZE, "core_v0.16", "core_v0.16.0"),
        (LM_QUANTIZE, "0.16.1", "core_v0.16.0"),
        (DISTILL, "0.44", "0.44.0"),
        (DISTILL, "0.41", None),
        (CONVERT, "0.5", None),
    ],
)
def test_a_release_is_found_by_what_people_call_it(script: str, asked: str, release: str | None) -> None:
    assert match_release(script, asked) == release


@pytest.mark.parametrize(
    "image",
    [
        "nvcr.io/nvidia/nemo:26.04",
        "nvcr.io#nvidia/nemo:26.04.01",
        "/images/nemo_26.04.sqsh",
        "/images/nvidia+nemo+26.04.sqsh",
        "nemo-26.04",
    ],
)
def test_a_nemo_container_is_known_by_its_name(image: str) -> None:
    assert releases_in(image) == {"Megatron-Bridge": "0.4", "Model-Optimizer": "0.43", "Megatron-LM": "core_v0.17"}


@pytest.mark.parametrize(
    "image",
    ["nvcr.io/nvidia/pytorch:26.04-py3", "nvcr.io/nvidia/nemo-rl:26.04", "physicsnemo:26.04", "nemo:dev", "nemo:24.12"],
)
def test_another_image_is_not_taken_for_one(image: str) -> None:
    assert releases_in(image) is None


def test_the_newest_container_is_one_of_which_everything_is_known() -> None:
    found = releases_in(newest_container())
    assert found is not None and {*found} == {repository_of(script) for script in scripts()}
    assert releases_in("nvcr.io/nvidia/nemo:26.08") != found, "of which ModelOpt is not known"


def test_a_container_older_than_a_script_has_none() -> None:
    found = releases_in("nvcr.io/nvidia/nemo:26.02")
    assert found is not None
    assert match_release(DISTILL, found["Model-Optimizer"]) is None
    assert match_release(QUANTIZE, found["Megatron-Bridge"]) == "v0.3.1"


def test_nothing_is_read_when_the_module_is_imported() -> None:
    code = "import sys, scripts.engines.script.flags.reader, scripts.engines.script.flags.tables as t"
    code += "; print(t._table.cache_info().misses, 'yaml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["0", "False"]
