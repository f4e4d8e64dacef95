"""One file of an export, of the source's file of that name: what is quantized of it, and what stays as it is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.args.quantize import QuantizeArgs
from scripts.checkpoints.safetensors import Writer, writing
from scripts.engines.hf import load, quantizers, verify
from scripts.engines.hf.kept import depends_on
from scripts.engines.hf.weights import WEIGHT, Selection, Source, packed
from scripts.run import schema
from scripts.run.files import write_json

if TYPE_CHECKING:
    import torch

_FACTS = {"of": dict, "source": str, "made": str}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is made of each file of `source`, into the folder `place`. It can be sent to another process.

    `inputs`: see `weights.packed`.
    """

    args: QuantizeArgs
    source: Source
    selection: Selection
    place: Path
    inputs: "Mapping[str, torch.Tensor]" = field(default_factory=dict)

    @cached_property
    def config(self) -> dict[str, Any]:
        return quantizers.build_config(self.args)

    @cached_property
    def device(self) -> "torch.device":
        return load.pick_device(self.args.device)

    @cached_property
    def _dtype(self) -> "torch.dtype":
        import torch

        dtype: torch.dtype = getattr(torch, self.args.dtype)
        return dtype

    @cached_property
    def _of(self) -> dict[str, str]:
        """What a file follows from, besides the source's."""
        scales = repr(sorted((name, float(value)) for name, value in self.inputs.items()))
        return depends_on(self.config, [], dtype=self.args.dtype, device=self.device.type, inputs=scales)

    def stands(self, name: str) -> bool:
        """Whether a file was finished, and follows from what it would follow from now."""
        made = self.place / name
        try:
            facts = schema.read(self._note(name), _FACTS)
            return bool(
                facts == {"of": self._of, "source": file_stamp(self.source.folder / name), "made": file_stamp(made)}
            )
        except (OSError, ValueError):
            return False

    def make(self, name: str) -> None:
        """Write it, and beside it what it was made of, without which it does not count. Raises JobError."""
        made, header, stamp = self.place / name, self.source.shards[name], file_stamp(self.source.folder / name)
        made.unlink(missing_ok=True)
        with writing(made, (end for one in header for end in self._names(one))) as file:
            for key, tensor in self._tensors(header):
                add(file, key, tensor)
        write_json(self._note(name), {"of": self._of, "source": stamp, "made": file_stamp(made)})

    def _note(self, name: str) -> Path:
        return self.place / f"{name}.json"

    def _names(self, name: str) -> Iterator[str]:
        """What a tensor may become."""
        yield name
        module = name.removesuffix(WEIGHT)
        if module in self.selection.quantized:
            yield from (f"{module}.{suffix}" for suffix in verify.SCALES)

    def _tensors(self, header: Mapping[str, Any]) -> "Iterator[tuple[str, torch.Tensor]]":
        """Of one file, in the order of layers that share a scale; such of other files are read again with theirs."""
        done: set[str] = set()
        for name in (one for one in header if one not in self.selection.left_over):
            module = name.removesuffix(WEIGHT)
            if module in self.selection.quantized and name.endswith(WEIGHT):
                if module in done:
                    continue
                sharing = self.selection.sharing(module)
                own = {one for one in sharing if one + WEIGHT in header}
                done |= own
                made = packed(sharing, self.source, self.config, self._dtype, self.device, self.inputs)
                yield from ((key, tensor) for key, tensor in made.items() if key.rpartition(".")[0] in own)
            else:
                yield name, plain(name, self.source, self.selection, self._dtype)


def plain(name: str, source: Source, selection: Selection, dtype: "torch.dtype") -> "torch.Tensor":
    """A tensor that stays, in the precision that transformers would load it in.

    Raises JobError('weights_not_finite').
    """
    import torch

    tensor = source.tensor(name)
    if not tensor.is_floating_point():
        return tensor
    load.refuse_not_finite(str(source.folder), [] if load.is_finite(tensor) else [name], tensor.dtype)
    return tensor.to(torch.float32 if selection.stays_wide(name) else dtype)


def file_stamp(file: Path) -> str:
    state = file.stat()
    return f"{state.st_size} {state.st_mtime_ns}"


def add(file: Writer, name: str, tensor: "torch.Tensor") -> None:
    """Write a tensor, wherever it is."""
    import torch

    data = tensor.detach().cpu().contiguous().reshape(-1)
    held = memoryview(data.view(torch.uint8).numpy()) if data.numel() else memoryview(b"")
    file.add(name, str(data.dtype).removeprefix("torch."), tensor.shape, held)
