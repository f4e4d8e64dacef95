"""A model whose weights stay in their files: in memory are what is outside of its layers, and one layer at a time.

The model's own forward makes what each layer is given besides hidden states (masks, positions): in a pass the layers
before the one in turn hand on what they get, that one takes the states that the layer before it left, and there the
pass ends. ModelOpt's layerwise calibration goes the same way; here no states are held in memory.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.checkpoints.causal import WHOLE_MODEL, not_layerwise
from scripts.engines.hf import load, packing
from scripts.engines.hf.kept import bit_sum
from scripts.engines.hf.packing import Tokens, replaced
from scripts.engines.hf.reference import join, names_in_memory
from scripts.engines.hf.weights import Selection, Source
from scripts.run.problems import JobError

if TYPE_CHECKING:
    import torch
    from torch import nn


_EXPERTS_BY = "_experts_implementation"


class _ReachedError(Exception):
    """A pass has come to where it was to end."""


def _hand_on(hidden: Any, *_: Any, **__: Any) -> Any:
    """The forward of a layer that is passed by."""
    return hidden


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """`model` in evaluation mode, its layers without weights. `names`: what its tensors are called in `source`; where
    transformers makes one of several, as of experts, `joined` has all of them."""

    model: Any
    layers: "nn.ModuleList"
    prefix: str
    source: Source
    names: Mapping[str, str]
    selection: Selection
    dtype: "torch.dtype"
    device: "torch.device"
    joined: Mapping[str, Sequence[str]] = field(default_factory=dict)
    experts_by: str | None = None  # how transformers computes them, which ModelOpt changes with its quantizers
    _looked_at: set[str] = field(default_factory=set)

    def size(self, name: str) -> int:
        """Bytes of a tensor of the model."""
        stored = self.joined.get(name, [self.names[name]])
        return sum(prod(self.source.shapes[one]) for one in stored) * self.dtype.itemsize

    @cached_property
    def backbone(self) -> Any:
        """The model without its head."""
        return self.model.base_model

    @contextmanager
    def loaded(self, index: int) -> "Iterator[nn.Module]":
        """A layer with its weights, of which nothing is left in memory when the block ends."""
        import torch

        layer, own = self.layers[index], f"{self.prefix}.{index}."
        self.fill(name for name in self.names if name.startswith(own))
        try:
            yield layer
        finally:
            for name, weight in layer.named_parameters():
                owner, key = _owner(layer, name)
                empty = torch.empty_like(weight, device="meta")
                owner._parameters[key] = torch.nn.Parameter(empty, requires_grad=False)

    def fill(self, names: "Iterator[str]") -> None:
        """Map tensors from their files, in the type and at the place that they are computed in.

        Raises JobError('weights_not_finite').
        """
        import torch

        for name in names:
            owner, key = _owner(self.model, name)
            of, read = self.joined.get(name), self.source.tensor
            tensor = join(self.model, name, of, read) if of else read(self.names[name])
            if tensor.is_floating_point():
                tensor = tensor.to(self.device).to(torch.float32 if self.selection.stays_wide(name) else self.dtype)
                if name not in self._looked_at:
                    broken = [] if load.is_finite(tensor) else [name]
                    load.refuse_not_finite(str(self.source.folder), broken, self.dtype)
                    self._looked_at.add(name)
            if key in owner._parameters:
                owner._parameters[key] = torch.nn.Parameter(tensor, requires_grad=False)
            else:
                owner._buffers[key] = tensor.to(self.device)

    def through(self, index: int, samples: Sequence[Tokens], states: "torch.Tensor | None") -> "torch.Tensor":
        """What layer `index`, which is loaded, makes of one pass over `samples`.

        `states` [tokens, hidden size] are what the layer before it made; None: what the first layer is given. Raises
        JobError('out_of_memory').
        """
        import torch

        made: list[torch.Tensor] = []

        def step(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            layer = self.layers[index]
            given = hidden if states is None else states.to(hidden.device).view(hidden.shape)
            found = type(layer).forward(layer, given, *args, **kwargs)
            if not isinstance(found, torch.Tensor) or (found.shape, found.dtype) != (hidden.shape, self.dtype):
                cause = f"A layer of {type(self.model).__name__} makes other than one tensor of states in {self.dtype}."
                raise JobError("layerwise_unsupported", cause, WHOLE_MODEL)
            made.append(found)
            raise _ReachedError

        with _forwards(self.layers, [*[_hand_on] * index, step]), self._without_cache():
            try:
                packing.run(self.model, self.backbone, samples, self.device)
            except _ReachedError:
                pass
            except torch.cuda.OutOfMemoryError as error:
                cause = f"{sum(map(len, samples))} tokens of one layer do not fit into the GPU's memory."
                remedy = "Lower args.calib_batch_size or args.calib_seq_length."
                raise JobError("out_of_memory", cause, remedy) from error
        return made[0].reshape(-1, made[0].shape[-1])

    @contextmanager
    def ending_with(self, states: "torch.Tensor | None") -> Iterator[None]:
        """The model computes what follows on its last layer, which made `states`; None: on its embeddings."""

        def last(hidden: Any, *_: Any, **__: Any) -> Any:
            return hidden if states is None else states.to(hidden.device).view(hidden.shape)

        with _forwards(self.layers, [*[_hand_on] * (len(self.layers) - 1), last]), self._without_cache():
            yield

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The model computes as it is, a layer loaded where a pass comes to it: slow where weights are copied."""

        def one(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                with self.loaded(index) as layer:
                    return type(layer).forward(layer, *args, **kwargs)

            return forward

        with _forwards(self.layers, [one(index) for index in range(len(self.layers))]), self._without_cache():
            yield

    @contextmanager
    def alone(self, index: int) -> Iterator[None]:
        """The model has this layer only, as its first."""
        from torch import nn

        owner, key = _owner(self.model, self.prefix)
        setattr(owner, key, nn.ModuleList([self.layers[index]]))
        try:
            yield
        finally:
            setattr(owner, key, self.layers)

    @contextmanager
    def unquantized(self, part: "nn.Module", *, calibrating: bool = False) -> Iterator[None]:
        """The model, or a layer, computes as it was while the block runs; `calibrating`: with experts as ModelOpt has
        them computed."""
        from modelopt.torch.quantization import set_quantizer_by_cfg_context

        changed = self.experts_by is not None and not calibrating
        experts = replaced([self.model.config] if changed else [], _EXPERTS_BY, self.experts_by)
        with experts, set_quantizer_by_cfg_context(part, [{"quantizer_name": "*", "enable": False}]):
            yield

    def _without_cache(self) -> Any:
        """Some models' forward overrides the argument with the configuration."""
        return replaced([self.model.config], "use_cache", False)


@contextmanager
def _forwards(layers: "nn.ModuleList", forwards: "Sequence[Callable[..., Any]]") -> Iterator[None]:
    """Let the first layers compute something else while the block runs."""
    changed = list(zip(layers, forwards, strict=False))
    for layer, forward in changed:
        vars(layer)["forward"] = forward
    try:
        yield
    finally:
        for layer, _ in changed:
            vars(layer).pop("forward", None)


def _owner(root: "nn.Module", name: str) -> "tuple[nn.Module, str]":
    path, _, key = name.rpartition(".")
    return root.get_submodule(path), key


def open_streamed(
    source: Source, selection: Selection, *, dtype: "torch.dtype", device: "torch.device", trust_remote_code: bool
) -> Streamed:
    """Raises JobError: layerwise_unsupported, weights_do_not_match, weights_not_finite, and as load.load_model."""
    from modelopt.torch.quantization.plugins import huggingface  # noqa: F401  it says where layers are
    from modelopt.torch.quantization.utils.layerwise_calib import LayerActivationCollector

    model = load.without_weights(str(source.folder), trust_remote_code, buffers=True).eval()
    if (trouble := not_layerwise(model.config.model_type)) is not None:
        raise JobError(trouble[0], f"{source.folder}: {trouble[1]}.", trouble[2])
    layers = LayerActivationCollector.get_decoder_layers(model)
    prefix = next((name for name, module in model.named_modules() if module is layers), "")
    if layers is None or not len(layers):
        raise JobError("layerwise_unsupported", f"{type(model).__name__} has no list of decoder layers.", WHOLE_MODEL)
    names, joined = dict[str, str](), dict[str, list[str]]()
    for stored, now, several in names_in_memory(model, source.shapes):
        if _has(model, now):
            names[now] = stored
            if several:
                joined.setdefault(now, []).append(stored)
    streamed = Streamed(
        model=model,
        layers=layers,
        prefix=prefix,
        source=source,
        names=names,
        joined=joined,
        experts_by=getattr(model.config, _EXPERTS_BY, None),
        selection=selection,
        dtype=dtype,
        device=device,
    )
    streamed.fill(name for name in names if not name.startswith(f"{prefix}."))
    if not model.get_output_embeddings().weight.is_meta:
        load.check_head(str(source.folder), model)
    model.tie_weights()
    for name, buffer in model.named_buffers():
        owner, key = _owner(model, name)
        owner._buffers[key] = buffer.to(device)
    return streamed


def _has(model: "nn.Module", name: str) -> bool:
    """Whether a tensor of the files is one of the model: some are left over, and known to be."""
    try:
        owner, key = _owner(model, name)
    except AttributeError:
        return False
    return key in owner._parameters or key in owner._buffers


@dataclass(frozen=True, kw_only=True)
class States:
    """Hidden states of some samples between two layers, in two files that are mapped: one is read, the other written.

    `groups`: the samples of each pass, whose states lie one after another. Raises JobError('not_written').
    """

    place: Path
    name: str
    groups: Sequence[Sequence[Tokens]]
    width: int
    dtype: "torch.dtype"
    _sums: dict[int, int] = field(default_factory=dict)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(sum(map(len, group)) for group in self.groups))

    @cached_property
    def _files(self) -> "list[torch.Tensor]":
        import torch

        found = []
        for side in range(2):
            file = self.place / f"{self.name}-{side}.states"
            count = self._ends[-1] * self.width
            size = count * self.dtype.itemsize
            try:
                with file.open("ab") as handle:  # on a full disk a mapped page could not be written, which kills
                    os.posix_fallocate(handle.fileno(), 0, size)
            except OSError as error:
                raise JobError("not_written", f"{file} cannot be written: {error}.", "Check the disk.") from error
            mapped = torch.from_file(str(file), shared=True, size=count, dtype=self.dtype)
            found.append(mapped.view(-1, self.width))
        return found

    def _rows(self, group: int) -> slice:
        end = self._ends[group]
        return slice(end - sum(map(len, self.groups[group])), end)

    def read(self, index: int, group: int) -> "torch.Tensor | None":
        """What layer `index` is given, [tokens, width]; of the first layer the model itself knows."""
        return self._files[index % 2][self._rows(group)] if index else None

    def write(self, index: int, group: int, states: "torch.Tensor") -> None:
        """What layer `index` made."""
        self._files[(index + 1) % 2][self._rows(group)].copy_(states)

    def sum(self, index: int) -> int:
        """Over the bits of what layer `index` is given: what was damaged shows."""
        return bit_sum(self._files[index % 2]) if index else 0
