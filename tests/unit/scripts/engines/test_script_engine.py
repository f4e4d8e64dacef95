"""Parts of the script engine that need no process: causes, commands, inputs."""

from pathlib import Path

import pytest

from recipes import find
from scripts.args.convert import MegatronToHfArgs
from scripts.args.export import ExportArgs
from scripts.args.interpolation import tag_of
from scripts.args.meaning import ScriptSpec
from scripts.checkpoints import kinds
from scripts.engines.child import Ended
from scripts.engines.ranks import _failure
from scripts.engines.script.command import file_content
from scripts.engines.script.flags.reader import read_interface
from scripts.run.problems import JobError
from scripts.run.registry import refuse
from tests.testbed.standin import write_megatron

HANDLED = "ModuleNotFoundError: No module named 'x'\nWARNING: going on without it\n"


@pytest.mark.parametrize(
    ("printed", "cause"),
    [
        ("Traceback ...\nValueError: too few heads\n", "ValueError: too few heads"),
        (f"{HANDLED}[rank0]: Traceback ...\n[rank0]: torch.OutOfMemoryError: CUDA\n", "torch.OutOfMemoryError: CUDA"),
        (f"{HANDLED}usage: export.py [-h]\nexport.py: error: unrecognized arguments: --x\n", "error: unrecognized"),
        ("something else went wrong\n\n", "something else went wrong"),
        ("", "it said nothing"),
    ],
)
def test_the_cause_is_the_last_error_that_the_script_named(printed: str, cause: str) -> None:
    error = _failure("export.py", Ended(status=1, tail=printed, seconds=1.0))
    assert error.name == "script_failed"
    assert cause in error.cause
    assert "ModuleNotFoundError" not in error.cause
    assert error.cause.endswith(".")


def test_a_killed_script_is_not_a_failed_one() -> None:
    assert _failure("export.py", Ended(status=-9, tail="", seconds=1.0)).name == "script_killed"


def test_outputs_are_named_after_the_model_not_after_a_path() -> None:
    assert tag_of(MegatronToHfArgs(hf_model="Qwen/Qwen3-8B", hf_path="/out/${run_tag}-hf")) == "Qwen3-8B"
    assert tag_of(ExportArgs(hf_model_id="/models/mine")) == "mine"


def test_a_subcommand_has_flags_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "convert.py").write_text(
        "import argparse\n"
        "parser = argparse.ArgumentParser()\n"
        "both = argparse.ArgumentParser(add_help=False)\n"
        "both.add_argument('--model', required=True)\n"
        "commands = parser.add_subparsers(dest='command')\n"
        "one = commands.add_parser('import', parents=[both])\n"
        "one.add_argument('--torch-dtype')\n"
        "two = commands.add_parser('export', parents=[both])\n"
        "two.add_argument('--hf-path', required=True)\n"
        "parser.parse_args()\n"
    )
    interface = read_interface(tmp_path / "convert.py")
    own = {command: {flag.name for flag in interface.under(command).flags} for command in interface.commands}
    assert own == {"import": {"--model", "--torch-dtype"}, "export": {"--model", "--hf-path"}}


@pytest.mark.parametrize("quantized", [True, False])
def test_exporter_and_converter_take_each_its_own(tmp_path: Path, quantized: bool) -> None:
    path = str(write_megatron(tmp_path / "c", quantized=quantized))
    exporter, converter = ExportArgs(megatron_load_path=path), MegatronToHfArgs(megatron_path=path)
    right, wrong = (exporter, converter) if quantized else (converter, exporter)
    refuse(right, ScriptSpec(), kinds)
    with pytest.raises(JobError) as caught:
        refuse(wrong, ScriptSpec(), kinds)
    assert caught.value.name == ("already_quantized" if quantized else "not_quantized")


def test_what_belongs_into_the_file_goes_there() -> None:
    partial = find("qat").build()
    partial.args.pretrained_checkpoint = "/fp8"
    partial.args.output_dir = "/out"
    from fiddle import build

    content = file_content(build(partial.args), "qat.yaml")
    assert content["checkpoint"]["pretrained_checkpoint"] == "/fp8"
    assert (content["checkpoint"]["save"], content["checkpoint"]["load"]) == ("/out", "/out")
    assert content["checkpoint"]["finetune"] is True
    assert content["model"]["gradient_accumulation_fusion"] is False
