"""Checkpoints from one kind into another: exported, converted, and asked what they say."""

from typing import Any

from scripts.args.meaning import value_of
from scripts.engines.bridge.loaded import continued, is_first_rank, load
from scripts.engines.bridge.worker import Work


def export(work: Work) -> None:
    """A quantized Megatron checkpoint as the Hugging Face one that servers read, by ModelOpt's exporter."""
    import modelopt.torch.export

    args = work.args
    loaded = load(args, checkpoint=value_of(args, "checkpoint"))
    modelopt.torch.export.export_mcore_gpt_to_hf(
        loaded.model,
        loaded.source,
        export_extra_modules=args.export_extra_modules,
        dtype=loaded.dtype,
        export_dir=value_of(args, "output"),
        trust_remote_code=args.trust_remote_code,
    )


def generate(work: Work) -> None:
    """What a quantized Megatron checkpoint says to the prompts; report/generations.json holds it."""
    args = work.args
    said = continued(load(args, checkpoint=args.megatron_load_path), args.prompts, args.osl)
    if not is_first_rank():
        return
    work.leave("generations.json", generations=[{"prompt": prompt, "continuation": text} for prompt, text in said])
    for prompt, text in said:
        print(f"{prompt!r} -> {text!r}", flush=True)


def hf_to_megatron(work: Work) -> None:
    """A Hugging Face checkpoint as a Megatron one, unquantized."""
    loaded = load(work.args)
    loaded.bridge.save_megatron_model(
        loaded.parts,
        work.args.megatron_path,
        hf_tokenizer_path=loaded.source,
        low_memory_save=work.args.low_memory_save,
    )


def megatron_to_hf(work: Work) -> None:
    """A Megatron checkpoint that is not quantized as a Hugging Face one."""
    args = work.args
    loaded = load(args, checkpoint=args.megatron_path, quantizers=False)
    dtype = value_of(args, "file_precision")
    loaded.bridge.save_hf_pretrained(
        loaded.parts,
        args.hf_path,
        show_progress=not args.no_progress,
        strict=not args.not_strict,
        weight_dtype=_dtype(dtype) if dtype else None,
        distributed_save=bool(args.distributed_save),
        save_every_n_ranks=args.save_every_n_ranks or 1,
    )


def export_distilled(work: Work) -> None:
    """The newest iteration of a distillation's checkpoints as Hugging Face model."""
    args = work.args
    to_hugging_face(args, args.student_hf_model or args.student_hf_path, args.megatron_path, args.hf_export_path)


def to_hugging_face(args: Any, source: str, checkpoint: str, folder: str) -> None:
    """What a training left at `checkpoint`, as the Hugging Face checkpoint that `source` describes."""
    loaded = load(args, source=source, checkpoint=checkpoint, quantizers=False)
    loaded.bridge.save_hf_pretrained(loaded.parts, folder, show_progress=False)


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)
