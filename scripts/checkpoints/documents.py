"""Small text files beside a checkpoint: JSON, and single values of YAML without building what it describes."""

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.checkpoints.checkpoint import unreadable

if TYPE_CHECKING:
    import yaml

_MAX_BYTES = 256 << 20


def read_bytes(path: Path, length: int | None = None, *, offset: int = 0) -> bytes:
    """`length` bytes of a regular file, or all of them; a pipe or a device could block for ever.

    Raises JobError `unreadable_checkpoint`, also where that is more than fits what is read whole here.
    """
    size = size_of(path)
    wanted = size - offset if length is None else length
    if wanted > _MAX_BYTES:
        raise unreadable(path, f"{wanted} bytes are too many for what it should hold")
    if wanted < 0 or offset + wanted > size:
        raise unreadable(path, f"it is cut short: {size} bytes, {offset + wanted} expected")
    try:
        with path.open("rb") as handle:
            handle.seek(offset)
            return handle.read(wanted)
    except OSError as error:
        raise unreadable(path, error.strerror or error) from error


def size_of(path: Path) -> int:
    """Bytes of a regular file. Raises JobError `unreadable_checkpoint`."""
    try:
        facts = path.stat()
    except OSError as error:
        raise unreadable(path, error.strerror or error) from error
    if not stat.S_ISREG(facts.st_mode):
        raise unreadable(path, "it is no regular file")
    return facts.st_size


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object that `content` of the file `path` is. Raises JobError `unreadable_checkpoint`."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise unreadable(path, f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise unreadable(path, "no JSON object")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises JobError `unreadable_checkpoint`."""
    return parse_json(read_bytes(path), path)


class Yaml:
    """A YAML file as its nodes: tags, which can name Python objects, are not followed, nor are merges expanded.

    Raises JobError `unreadable_checkpoint`.
    """

    def __init__(self, path: Path) -> None:
        import yaml

        content = read_bytes(path)
        try:
            self._root = yaml.compose(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise unreadable(path, f"no YAML: {' '.join(str(error).split())}") from error

    def text(self, *keys: str) -> str | None:
        """The scalar under `keys`; None where there is none, or null."""
        import yaml

        node = self._find(keys)
        if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null":
            return None
        return str(node.value)

    def _find(self, keys: tuple[str, ...]) -> "yaml.Node | None":
        import yaml

        node = self._root
        for key in keys:
            if not isinstance(node, yaml.MappingNode):
                return None
            node = next((value for name, value in node.value if name.value == key), None)
        return node
