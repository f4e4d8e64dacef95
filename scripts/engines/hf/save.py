"""Write the two checkpoints. The order matters: evaluate, save_restorable, then export_hf, which spends the model.

ModelOpt's exporter merges scales of layers that share an input, folds scales into norms and puts packed weights in
the place of the model's own; nothing may be computed with the model afterwards.
"""

import re
import shutil
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from scripts.checkpoints.documents import read_json
from scripts.checkpoints.safetensors import read_header
from scripts.engines.hf.load import COMPANIONS, first_line
from scripts.engines.hf.nvfp4 import cpu_kernels
from scripts.engines.hf.packing import replaced
from scripts.engines.hf.reference import Reference
from scripts.run.files import write_json, write_text
from scripts.run.problems import JobError

#: Keys of a config.json that are not the copy's.
_OF_THE_SOURCE = ("quantization_config", "transformers_version", "_name_or_path")
#: As JSON has it.
_MARKER = re.compile(r"\.\\u0000[\w.]*?_name_sentinel")
STATE = "modelopt_state.pth"
_GUARD, _IGNORED = "_assert_experts_pre_expanded", ("quantization_config", "ignore")


def enable_checkpointing() -> None:
    """Let save_pretrained and from_pretrained carry ModelOpt's state from here on.

    ModelOpt patches PreTrainedModel for the life of the process and asks to be called once. The patched methods behave
    as before for models and folders without ModelOpt state, so they are left in place; calling again changes nothing.
    """
    import modelopt.torch.opt as mto

    mto.enable_huggingface_checkpointing()


def save_restorable(model: Any, tokenizer: Any, folder: Path) -> None:
    """The model with its quantizers, to be reopened with ModelOpt; the weights as safetensors, the state as a pickle.

    ModelOpt writes modelopt_state.pth with torch.save and reads it with weights_only=True, which runs no code. The
    names of experts stay as they are in memory: Transformers' renaming to the hub's names knows no quantizers.
    """
    experts_share = any("weight_quantizers" in name for name, _ in model.named_modules())
    enable_checkpointing()
    _settle_generation(model)
    try:
        model.save_pretrained(folder, save_original_format=not experts_share)
    except OSError as error:
        raise JobError("not_written", f"{folder} cannot be written: {error}.", "Check the disk.") from error
    if not (folder / STATE).is_file():
        raise JobError("not_written", f"ModelOpt wrote no {STATE} into {folder}.", "The model has no quantizers.")
    _rewrite_in_order(folder / STATE)
    tokenizer.save_pretrained(folder)


def _rewrite_in_order(state: Path) -> None:
    """ModelOpt fills mappings of its state from sets: the same run would leave other bytes, and another digest.

    So it would where one text is two objects: a pickle refers to what it has written before.
    """
    import torch

    torch.save(_in_order(torch.load(state, weights_only=True)), state)


def _in_order(value: Any) -> Any:
    if type(value) is str:
        return sys.intern(value)
    if type(value) is dict:
        return {_in_order(key): _in_order(value[key]) for key in sorted(value, key=str)}
    return type(value)(map(_in_order, value)) if type(value) in (list, tuple) else value


def export_hf(model: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
    """The deployable checkpoint: packed weights, scales, hf_quant_config.json, tokenizer, generation config.

    Spends the model (see above). `dtype` is that of the weights left unquantized.
    """
    import torch
    from modelopt.torch.export import export_hf_checkpoint, quant_aware_conversion

    _settle_generation(model)
    enable_checkpointing()  # the exporter passes save_pretrained an argument that only the patched version takes
    try:
        with cpu_kernels(), replaced([quant_aware_conversion], _GUARD, _of_weights(quant_aware_conversion)):
            export_hf_checkpoint(model, dtype=getattr(torch, dtype), export_dir=folder)
    except (OSError, JobError):
        raise
    except Exception as error:  # each architecture has errors of its own
        cause = f"ModelOpt's exporter cannot write this model in this format: {first_line(error)}"
        remedy = "Take another format, or args.export_dir=null and the ModelOpt checkpoint."
        raise JobError("export_failed", cause, remedy) from error
    _mend_names(folder)
    generation = getattr(model, "generation_config", None)
    if generation is not None and not (folder / "generation_config.json").is_file():
        generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def names_as_stored(model: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors of an export by the names that the source's files have, as `export_hf` writes them."""
    from modelopt.torch.export import quant_aware_conversion as exporter

    with replaced([exporter], _GUARD, _of_weights(exporter)):
        return dict(exporter.revert_weight_conversion_quant_aware(model, tensors))


def _of_weights(exporter: Any) -> Any:
    """ModelOpt's look for stacked experts, which takes scales [rows, 1, columns, 1] for some, and renames nothing."""
    look = getattr(exporter, _GUARD)

    def without_scales(tensors: dict[str, Any], names: list[str]) -> None:
        look({name: value for name, value in tensors.items() if not name.endswith("_scale")}, names)

    return without_scales


def _mend_names(folder: Path) -> None:
    r"""Take out of the module lists what ModelOpt 0.47 leaves in them: its marker "\0modelopt_name_sentinel", which it
    no longer finds where the model's own renaming (model. to backbone.) has changed it too."""
    for name in ("hf_quant_config.json", "config.json"):
        if (file := folder / name).is_file():
            text = file.read_text(encoding="utf-8")
            if (mended := _MARKER.sub("", text)) != text:
                write_text(file, mended)


def exclude_left(folder: Path, reference: Reference) -> None:
    """Exclude what ModelOpt lists under names that no file has: it renames by rules for tensors (Phi-3.5-MoE)."""
    names = {name for file in folder.glob("*.safetensors") for name in read_header(file)}
    plain = [module for module in sorted(reference.as_in(names).plain) if f"{module}.weight" in names]
    for file, section, key in (("hf_quant_config", "quantization", "exclude_modules"), ("config", *_IGNORED)):
        said = read_json(folder / f"{file}.json")
        listed = said.get(section, {}).get(key) or []
        missing = [name for name in plain if not any(fnmatchcase(name, pattern) for pattern in listed)]
        if section in said and missing and not said[section].get("quantized_layers"):
            write_json(folder / f"{file}.json", said | {section: said[section] | {key: [*listed, *missing]}})


def _settle_generation(model: Any) -> None:
    """Let Transformers write the generation config: it refuses a temperature without do_sample, as many models have it.

    What the source says takes its place afterwards.
    """
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    try:
        generation.validate(strict=True)
    except ValueError:
        kept = {name: getattr(generation, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = type(generation)(**kept)


def keep_source_files(source: Path, folder: Path) -> None:
    """Tokenizer, processor, generation config and licence of `source` as they are, and what config.json says more.

    Transformers 5 writes them in ways that servers on transformers 4 do not read, or leaves them out.
    """
    for file in (file for pattern in COMPANIONS for file in source.glob(pattern) if file.is_file()):
        shutil.copyfile(file, folder / file.name)
    config, said = read_json(folder / "config.json"), read_json(source / "config.json")
    if config.get("model_type") == said.get("model_type"):
        write_json(folder / "config.json", _with_keys_of(said, config))
    for file in folder.glob("*.safetensors"):  # which safetensors writes for its owner alone, whatever the umask
        file.chmod((folder / "config.json").stat().st_mode & 0o777)


def _with_keys_of(said: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """`config` with the keys that `said` has besides, such as rope_theta beside rope_parameters."""
    merged = dict(config)
    for key, value in said.items():
        if key == "torch_dtype":
            merged[key] = config.get("dtype", value)
        elif key not in config and key not in _OF_THE_SOURCE:
            merged[key] = value
        elif isinstance(value, dict) and isinstance(config.get(key), dict) and key.endswith("_config"):
            merged[key] = config[key] if key in _OF_THE_SOURCE else _with_keys_of(value, config[key])
    return merged
