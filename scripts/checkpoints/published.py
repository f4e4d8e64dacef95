"""Models in folders, their tensors under the names that an architecture's publisher uses.

Transformers 5 writes what it renamed while it loaded back under the first name that it knows, which is not always the
one that checkpoints on the hub have; Megatron-Bridge knows theirs alone.
"""

from pathlib import Path
from typing import Any

from scripts.checkpoints.documents import read_json
from scripts.run.files import write_json

#: By the type of a model: what transformers 5.12 writes, and what the publisher's own files have.
_RENAMED = {"nemotron_h": {"backbone.embedding.weight": "backbone.embeddings.weight"}}
_INDEX = "model.safetensors.index.json"


def save_model(model: Any, folder: Path) -> None:
    """What save_pretrained of a Transformers model writes, under the publisher's names."""
    from safetensors.torch import load_file, save_file

    model.save_pretrained(folder)
    renamed = _RENAMED.get(model.config.model_type, {})
    for file in sorted(folder.glob("*.safetensors")) if renamed else ():
        tensors = load_file(file)
        if renamed.keys() & tensors.keys():
            named = {renamed.get(name, name): tensor for name, tensor in tensors.items()}
            save_file(named, file, metadata={"format": "pt"})
    if renamed and (folder / _INDEX).is_file():
        index = read_json(folder / _INDEX)
        index["weight_map"] = {renamed.get(name, name): file for name, file in index["weight_map"].items()}
        write_json(folder / _INDEX, index)
