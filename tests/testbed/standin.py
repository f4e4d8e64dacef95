"""Stand-ins for NVIDIA's scripts, which need GPUs: made from the flag tables, run as they would be.

A stand-in declares the flags of one release with argparse, writes down what it received on which rank, and
leaves the outputs that its arguments name: real checkpoints of a few kilobytes, made here by torch. What it
does beyond that is told by variables:

STANDIN=WHAT[:RANK]   die, kill, hang, stay (with a process of its own), flood, late (die with everything written);
                      of the outputs: empty, half, other (another kind). Without :RANK on every rank.
STANDIN_MEGABYTES     of a flood
"""

import argparse
import base64
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scripts.engines.script.flags.interface import Flag, Interface
from scripts.engines.script.flags.tables import interface_of, repository_of

#: Which template an output flag is given; the names are those of all scripts together.
OUTPUTS = {
    "megatron_save_path": "quantized",
    "export_megatron_path": "quantized",
    "export_dir": "hf_quantized",
    "export_unified_hf_path": "hf_quantized",
    "hf_export_path": "hf",
    "output_hf_path": "hf",
    "output_megatron_path": "megatron",
    "output_dir": "training",
    "output": "megatron",
    "checkpoint.save": "megatron",  # of the YAML that --config-file names
}
_ACTIONS = {
    "on": "'store_true'",
    "off": "'store_false'",
    "toggle": "argparse.BooleanOptionalAction",
    "append": "'append'",
}


def write_checkout(folder: Path, release: str, scripts: Iterable[str]) -> Path:
    """A checkout with stand-ins of these scripts of one release."""
    for script in scripts:
        write_standin(folder, script, release)
    return folder


def write_standin(checkout: Path, script: str, release: str) -> Path:
    """The stand-in for one script of one release, where a checkout of its repository has it."""
    path = checkout / script.partition("/")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source_of(script, release), encoding="utf-8")
    return path


def source_of(script: str, release: str) -> str:
    """The stand-in's source."""
    interface = interface_of(script, release)
    parsed = "parser.parse_args(), []" if interface.closed else "parser.parse_known_args()"
    values = {"script": script, "release": release, "outputs": _outputs(script), "templates": templates()}
    given = ", ".join(f"{name}={value!r}" for name, value in values.items())
    body = Path(__file__).with_name("standin_body.py").read_text(encoding="utf-8")
    return "\n".join([body, *_declarations(interface), f"args, rest = {parsed}", f"play(args, rest, {given})", ""])


def parser_of(interface: Interface) -> argparse.ArgumentParser:
    """The parser that a stand-in of this interface has."""
    names: dict[str, Any] = {"argparse": argparse}
    exec("\n".join(_declarations(interface)), names)  # the very lines of the stand-in, made by this file
    parser: argparse.ArgumentParser = names["parser"]
    return parser


def _outputs(script: str) -> dict[str, str]:
    if repository_of(script) == "Megatron-LM":
        return {"save": "quantized" if script.endswith("/quantize.py") else "megatron", "export_dir": "hf_quantized"}
    converted = {"megatron_path": "megatron", "hf_path": "hf"}  # elsewhere, what a script reads
    return OUTPUTS | (converted if "/conversion/" in script else {})


def _declarations(interface: Interface) -> Iterator[str]:
    # Megatron-LM takes no abbreviations, and has options that would be some.
    yield f"parser = argparse.ArgumentParser(allow_abbrev={interface.closed})"
    if not interface.commands:
        yield from (f"parser.add_argument({_declared(flag)})" for flag in interface.flags)
        return
    yield "commands = parser.add_subparsers(dest='command', required=True)"
    for command in interface.commands:
        yield f"command = commands.add_parser({command!r})"
        yield from (f"command.add_argument({_declared(flag)})" for flag in interface.under(command).flags)


def _declared(flag: Flag) -> str:
    words = [repr(name) for name in flag.names]
    if flag.kind in _ACTIONS:
        words.append(f"action={_ACTIONS[flag.kind]}")
    if flag.kind == "list":
        words.append("nargs='*'")
    numeric = flag.type if flag.kind in ("value", "list", "append") and flag.type in ("int", "float") else ""
    if numeric:
        words.append(f"type={numeric}")
    if flag.choices is not None and flag.kind in ("value", "list"):
        choices = ", ".join(choice if numeric else repr(choice) for choice in flag.choices)
        words.append(f"choices=[{choices}]")
    if flag.required:
        words.append("required=True")
    return ", ".join(words)


@cache
def templates() -> dict[str, str]:
    """Small real checkpoints by kind, as base64 of a tar.gz."""
    with TemporaryDirectory() as name:
        root = Path(name)
        write_megatron(root / "megatron")
        write_megatron(root / "training" / "checkpoints")
        write_megatron(root / "quantized", quantized=True)
        write_huggingface(root / "hf")
        write_huggingface(root / "hf_quantized", quantized=True)
        return {folder.name: _packed(folder) for folder in root.iterdir()}


def _packed(folder: Path) -> str:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, arcname=".")
    return base64.b64encode(buffer.getvalue()).decode()


def write_megatron(
    root: Path, *, iterations: Iterable[int] = (1,), quantized: bool = False, weight: str = "decoder.layers.0.weight"
) -> Path:
    """What Megatron-Core's torch_dist saving leaves, as far as this project looks at it; the last one is the latest."""
    import warnings

    import torch
    from torch.distributed import checkpoint

    for iteration in iterations:
        folder = root / f"iter_{iteration:07d}"
        folder.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is one process only
            weights = {weight: torch.zeros(8, 8, dtype=torch.bfloat16)}
            checkpoint.save(weights, checkpoint_id=str(folder))
        torch.save({"iteration": iteration, "checkpoint_version": 3.0}, folder / "common.pt")
        (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "common_backend": "torch"}))
        (root / "latest_checkpointed_iteration.txt").write_text(str(iteration))
        if quantized:
            _write_modelopt_state(folder / "modelopt_state")
    return root


def _write_modelopt_state(folder: Path) -> None:
    import torch

    config = {"quant_cfg": {"*weight_quantizer": {"num_bits": (4, 3)}, "*input_quantizer": {"num_bits": (4, 3)}}}
    modes = [("quantize", {"config": config, "metadata": {}})]
    folder.mkdir()
    torch.save({"modelopt_state_dict": modes, "modelopt_version": "0.43.0"}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))


def write_huggingface(root: Path, *, quantized: bool = False) -> Path:
    """A Hugging Face folder of one small weight."""
    import torch
    from safetensors.torch import save_file

    root.mkdir(parents=True)
    save_file({"model.embed_tokens.weight": torch.zeros(8, 8, dtype=torch.bfloat16)}, root / "model.safetensors")
    (root / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    (root / "tokenizer.json").write_text("{}")
    if quantized:
        said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}}
        (root / "hf_quant_config.json").write_text(json.dumps(said))
    return root
