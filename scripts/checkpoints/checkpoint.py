"""What a path holds, and the errors of looking."""

from dataclasses import dataclass, field
from pathlib import Path

from scripts.run.problems import JobError


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint or a data set, as its files say it is.

    kind            the artifact's type: checkpoint_hf, checkpoint_modelopt (Hugging Face layout with ModelOpt's
                    state), checkpoint_lora, checkpoint_megatron, checkpoint_torch, binidx or training_jsonl
    layout          how the folder is arranged: huggingface, peft, megatron, nemo, torch, binidx or jsonl
    format          how the tensors are stored: safetensors, torch, torch_dist, torch_dcp or zarr
    parameters      weights as the model has them, packed ones unpacked; None where the files do not tell
    dtypes          elements as stored, by dtype in PyTorch's spelling; of a data set, its tokens
    iteration       the one looked at; None where there is none or it is a `release`
    iterations      all that are there, in order
    quantization    a name of configs/formats.yaml, or the stored word where none fits
    kv_cache        how the key/value cache is quantized
    modelopt_state  whether ModelOpt can restore what it did to the model; knowledge distillation alone does not count
    base_model      of an adapter: the model that it says it was trained on
    training_state  whether optimizer, scheduler or random state is there as well
    bytes, files    of everything under the path
    problems        what is wrong with it, a sentence each
    """

    path: Path
    kind: str
    layout: str
    format: str | None = None
    architecture: str | None = None
    parameters: int | None = None
    dtypes: dict[str, int] = field(default_factory=dict)
    iteration: int | None = None
    iterations: tuple[int, ...] = ()
    quantization: str | None = None
    kv_cache: str | None = None
    modelopt_state: bool = False
    base_model: str | None = None
    training_state: bool = False
    bytes: int = 0
    files: int = 0
    problems: tuple[str, ...] = ()


def unreadable(path: Path, reason: object) -> JobError:
    """The error for a file that is there and cannot be understood: it is never taken for an absent one."""
    return JobError("unreadable_checkpoint", f"{path}: {reason}.", "Copy it again, or name another checkpoint.")
