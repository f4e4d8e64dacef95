"""Write the two checkpoints. The order matters: evaluate, save_restorable, then export_hf, which spends the model.

ModelOpt's exporter merges scales of layers that share an input, folds scales into norms and puts packed weights in
the place of the model's own; nothing may be computed with the model afterwards.
"""

import re
from pathlib import Path
from typing import Any

from scripts.engines.hf.load import first_line
from scripts.engines.hf.nvfp4 import cpu_kernels
from scripts.run.files import write_text
from scripts.run.problems import JobError

#: As JSON has it.
_MARKER = re.compile(r"\.\\u0000[\w.]*?_name_sentinel")
STATE = "modelopt_state.pth"


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
    try:
        model.save_pretrained(folder, save_original_format=not experts_share)
    except OSError as error:
        raise JobError("not_written", f"{folder} cannot be written: {error}.", "Check the disk.") from error
    if not (folder / STATE).is_file():
        raise JobError("not_written", f"ModelOpt wrote no {STATE} into {folder}.", "The model has no quantizers.")
    tokenizer.save_pretrained(folder)


def export_hf(model: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
    """The deployable checkpoint: packed weights, scales, hf_quant_config.json, tokenizer, generation config.

    Spends the model (see above). `dtype` is that of the weights left unquantized.
    """
    import torch
    from modelopt.torch.export import export_hf_checkpoint

    enable_checkpointing()  # the exporter passes save_pretrained an argument that only the patched version takes
    try:
        with cpu_kernels():
            export_hf_checkpoint(model, dtype=getattr(torch, dtype), export_dir=folder)
    except (NotImplementedError, AssertionError, ValueError, TypeError, RuntimeError) as error:
        cause = f"ModelOpt's exporter cannot write this model in this format: {first_line(error)}"
        remedy = "Take another format, or args.export_dir=null and the ModelOpt checkpoint."
        raise JobError("export_failed", cause, remedy) from error
    _mend_names(folder)
    generation = getattr(model, "generation_config", None)
    if generation is not None and not (folder / "generation_config.json").is_file():
        generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _mend_names(folder: Path) -> None:
    r"""Take out of the module lists what ModelOpt 0.47 leaves in them: its marker "\0modelopt_name_sentinel", which it
    no longer finds where the model's own renaming (model. to backbone.) has changed it too."""
    for name in ("hf_quant_config.json", "config.json"):
        if (file := folder / name).is_file():
            text = file.read_text(encoding="utf-8")
            if (mended := _MARKER.sub("", text)) != text:
                write_text(file, mended)
