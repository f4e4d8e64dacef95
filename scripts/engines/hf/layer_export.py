"""What an export has of one decoder layer, in a file of its own: written when the layer is calibrated, by ModelOpt's
exporter, which is given the model as if it had no other layer.

All that the exporter does to a layer stays within it: layers that are given the same tensor share scales, and what
multiplies it goes into the norm or the layer that made it.
"""

from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.checkpoints.safetensors import writing
from scripts.engines.hf import from_files, shards
from scripts.engines.hf.load import first_line
from scripts.engines.hf.reference import (
    Reference,
    layer_of,
    norms_of,
    original_weight,
    quantized_linears,
    smooth_of,
    some_layers,
)
from scripts.engines.hf.save import names_as_stored
from scripts.engines.hf.streamed import Streamed
from scripts.engines.hf.weights import WEIGHT
from scripts.run.problems import JobError

if TYPE_CHECKING:
    import torch

#: Beside a layer's file: what an export is held against that is not in the source's files.
_EXPECTED = "expected"


def _write(path: Path, names: Iterable[str], tensors: "Iterable[tuple[str, torch.Tensor]]") -> None:
    """A file that is there when it is whole. Raises JobError('not_written')."""
    part = path.with_suffix(".part")
    try:
        part.unlink(missing_ok=True)
        with writing(part, names) as file:
            for name, tensor in tensors:
                shards.add(file, name, tensor)
        part.rename(path)
    except OSError as error:
        raise JobError("not_written", f"{path} cannot be written: {error}.", "Check the disk.") from error


@dataclass(frozen=True, kw_only=True)
class LayerFiles:
    """The files of the layers of `streamed`, in `place`. `settled`: whether calibration settles on other weights."""

    place: Path
    streamed: Streamed
    settled: bool

    @property
    def _names(self) -> list[str]:
        """Of all files of the export: of what is outside of the layers, and of each layer."""
        count = len(self.streamed.layers) + 1
        return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]

    def _files(self, index: int) -> list[Path]:
        return [self.place / self._names[index + 1], self.place / f"{index:05}.{_EXPECTED}"]

    def write(self, index: int) -> dict[str, str]:
        """Export a layer that is loaded and calibrated, of which nothing is left then. Returns the stamps of the files.

        Raises JobError: export_failed, not_written.
        """
        self._note(index)
        _write(self._files(index)[0], made := self._exported(index), made.items())
        return {file.name: shards.file_stamp(file) for file in self._files(index) if file.is_file()}

    def stand(self, stamps: Mapping[str, str]) -> bool:
        """Whether all of them are there as they were written."""
        files = [self.place / name for name in stamps]
        return all(file.is_file() and shards.file_stamp(file) == stamps[file.name] for file in files)

    def finish(self) -> list[Path]:
        """All files of the export: once more one, with what is outside of the layers as transformers would load it.

        Raises JobError('weights_not_finite').
        """
        streamed, source = self.streamed, self.streamed.source
        outside = [stored for now, stored in streamed.names.items() if not now.startswith(f"{streamed.prefix}.")]
        files = [self.place / name for name in self._names]
        plain = ((name, shards.plain(name, source, streamed.selection, streamed.dtype)) for name in outside)
        _write(files[0], outside, plain)
        return files

    def expected(self, dtype: str) -> Reference:
        """What the export must agree with."""
        from safetensors.torch import load_file

        source = from_files.reference_of(self.streamed.source, self.streamed.selection, dtype)
        found = {"weights": source.weights, "norms": source.norms, "smooth": source.smooth}
        for file in sorted(self.place.glob(f"*.{_EXPECTED}")):
            for key, tensor in load_file(file).items():
                kind, _, name = key.partition(" ")
                found[kind][name] = tensor
        return source

    def _note(self, index: int) -> None:
        """Keep what the exporter spends, of the layers that are compared."""
        streamed, layer = self.streamed, self.streamed.layers[index]
        own = f"{streamed.prefix}.{index}."
        stored = {now: name for now, name in streamed.names.items() if now.startswith(own)}
        compared = set(map(layer_of, some_layers(sorted(streamed.selection.quantized))))
        if not compared & set(map(layer_of, stored.values())):
            return
        modules = {name: stored[own + name + WEIGHT].removesuffix(WEIGHT) for name in quantized_linears(layer)[0]}
        tensors = {f"norms {stored[own + name]}": one for name, one in norms_of(layer, ("",)).items()}
        tensors |= {f"smooth {modules[name]}": one for name, one in smooth_of(layer, ("",)).items()}
        for name in modules if self.settled else ():
            tensors[f"weights {modules[name]}"] = original_weight(layer.get_submodule(name)).cpu()
        _write(self._files(index)[1], tensors, tensors.items())

    def _exported(self, index: int) -> "dict[str, torch.Tensor]":
        from modelopt.torch.export.unified_export_hf import _export_transformers_checkpoint
        from torch import nn

        streamed = self.streamed
        first, own = f"{streamed.prefix}.0.", f"{streamed.prefix}.{index}."
        try:
            with streamed.alone(index), redirect_stdout(StringIO()):
                made, _ = _export_transformers_checkpoint(streamed.model, streamed.dtype)
            made = {own + name.removeprefix(first): one for name, one in made.items() if name.startswith(first)}
            made = names_as_stored(streamed.model, made)
        except Exception as error:  # each architecture has errors of its own
            cause = f"ModelOpt's exporter cannot write layer {index} in this format: {first_line(error)}"
            raise JobError("export_failed", cause, "Take another format.") from error
        layer = streamed.layers[index]
        for name, _ in list(layer.named_children()):  # scales are not dropped with the weights
            setattr(layer, name, nn.Identity())
        return made
