"""An exported folder as its files say it is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from scripts.run.problems import JobError

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
AGAIN = "Delete the folder and run again; if it happens again, it is a defect."


def refuse(name: str, cause: str) -> NoReturn:
    """Raise the JobError of a check that found something wrong in what was just written."""
    raise JobError(name, cause, AGAIN)


class Export:
    """The tensors of an exported folder, by name, read from safetensors headers; never a pickle.

    Raises JobError('export_incomplete') where index, shards and headers disagree.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shard_of: dict[str, Path] = {}
        self.header: dict[str, tuple[str, tuple[int, ...]]] = {}
        shards = sorted(folder.glob("*.safetensors"))
        if not shards:
            refuse("export_incomplete", f"{folder} has no safetensors file.")
        for shard in shards:
            self._read_header(shard)
        self._check_index(shards)
        self.shards = len(shards)

    def _read_header(self, shard: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - the handle is no mapping
                    part = file.get_slice(name)
                    if name in self.shard_of:
                        refuse(
                            "export_incomplete", f"{name} is both in {self.shard_of[name].name} and in {shard.name}."
                        )
                    self.shard_of[name] = shard
                    self.header[name] = (part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError) as error:
            refuse("export_incomplete", f"{shard} cannot be read: {error}.")

    def _check_index(self, shards: list[Path]) -> None:
        path = self.folder / INDEX
        if not path.is_file():
            if len(shards) > 1:
                refuse("export_incomplete", f"{self.folder} has {len(shards)} shards and no {INDEX}.")
            return
        try:
            listed: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            refuse("export_incomplete", f"{path} is not a weight index: {error}.")
        present = {name: shard.name for name, shard in self.shard_of.items()}
        wrong = sorted(name for name in {*listed, *present} if listed.get(name) != present.get(name))
        if wrong:
            name = wrong[0]
            where = f"in {listed.get(name) or 'no shard'} by the index, in {present.get(name) or 'none'} by the files"
            refuse("export_incomplete", f"{name} is {where} ({len(wrong)} tensors disagree).")

    def tensor(self, name: str) -> "torch.Tensor":
        """One tensor, read from its shard."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.shard_of[name], framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
                return tensor
        except SafetensorError as error:
            refuse("export_incomplete", f"{name} cannot be read: {error}.")

    def of_module(self, module: str) -> "dict[str, torch.Tensor]":
        """The tensors of one module by their last name, such as weight and weight_scale."""
        prefix = f"{module}."
        names = [name for name in self.header if name.startswith(prefix) and "." not in name[len(prefix) :]]
        return {name[len(prefix) :]: self.tensor(name) for name in names}
