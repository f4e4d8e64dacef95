"""Profile files: where they lie, and what each says about each profile, as text with line numbers.

Scalars stay the text that the file holds. What they mean is decided by the field they are for:
`12:00:00` is a time, `yes` in `env` is the word, `nodes: 2` is a number.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from executors.kinds import SHIPPED, brought, home_of, shipped_text
from scripts.run.files import expanded
from scripts.run.problems import Problem

FILE_NAME = "executors.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NULL = "tag:yaml.org,2002:null"
_TYPED = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")
_MAX_BYTES = 1 << 20


class Word(str):
    """A word without quotes that is a number or a truth value where a field takes values of any type."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What one file says about one profile."""

    file: Path
    values: dict[str, Any] = field(default_factory=dict)  # text, None, lists and mappings of those
    lines: dict[str, int] = field(default_factory=dict)  # by key; `env.NAME` too
    problems: tuple[Problem, ...] = ()

    def where(self, key: str) -> str:
        """File and line of `key`."""
        return f"{self.file}, line {self.lines[key]}" if key in self.lines else str(self.file)


@dataclass(frozen=True, kw_only=True)
class ProfileFile:
    """One file: its profiles by name, and what is wrong with the file as a whole."""

    layers: dict[str, Layer] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def read_shipped() -> list[ProfileFile]:
    """The profiles that ship, one to a file named after it."""
    return [_read_shipped(file, file.stat().st_mtime_ns) for file in sorted(SHIPPED.glob("*.yaml"))]


@cache
def _read_shipped(file: Path, _changed: int) -> ProfileFile:
    """Read once: PyYAML takes longer for these four files than all checks of a job together."""
    return parse(file, shipped_text(file).encode(), name=file.stem)


def read_brought() -> list[ProfileFile]:
    """A profile for every kind that another package brings, called like it: its defaults."""
    layers = {name: Layer(file=home_of(name), values={"kind": name}) for name in sorted(brought())}
    return [ProfileFile(layers=layers)]


def read_own(files: Path | None, cwd: Path | None) -> list[ProfileFile]:
    """The user's files, the one that counts least first. `files` names the only one to read."""
    if files is not None:
        return [_read(expanded(files).absolute())]
    found: list[Path] = []
    for file in (user_file(), _nearest_file(cwd)):
        if file is not None and _is_there(file) and file not in found:
            found.append(file)
    return [_read(file) for file in found]


def user_file() -> Path | None:
    """The file of the user's configuration folder, whether it is there or not; None without a home."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if Path(base).is_absolute():  # the convention says to ignore a relative one
        return Path(base) / "modelopt-recipes" / FILE_NAME
    try:
        return Path.home() / ".config" / "modelopt-recipes" / FILE_NAME
    except RuntimeError:
        return None


def _nearest_file(cwd: Path | None) -> Path | None:
    try:
        folder = (cwd or Path.cwd()).absolute()
    except OSError:  # the working directory was removed
        return None
    return next((path / FILE_NAME for path in (folder, *folder.parents) if _is_there(path / FILE_NAME)), None)


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except PermissionError:
        return True  # reading it will say so


def _read(file: Path) -> ProfileFile:
    """Read a mapping of names to profiles."""
    try:
        with file.open("rb") as handle:
            content = handle.read(_MAX_BYTES + 1)
    except OSError as error:
        return _broken(file, f"cannot be read: {error.strerror or error}")
    if len(content) > _MAX_BYTES:
        return _broken(file, f"is larger than {_MAX_BYTES >> 20} MiB, which no profile file is")
    return parse(file, content)


def parse(file: Path, content: bytes, name: str | None = None) -> ProfileFile:
    """The `content` of `file`; with `name` it is one profile of that name, else a mapping of names to profiles."""
    import yaml

    try:
        root = _compose(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return _broken(file, "is not UTF-8 text")
    except yaml.MarkedYAMLError as error:  # its own text quotes lines of the file, which may hold anything
        mark = error.problem_mark or error.context_mark
        line = f" at line {mark.line + 1}" if mark else ""
        return _broken(file, f"is not YAML{line}: {error.problem or error.context}")
    except yaml.YAMLError as error:
        return _broken(file, f"is not YAML: {' '.join(str(getattr(error, 'reason', error)).split())}")
    except (RecursionError, ValueError, IndexError) as error:  # nested by the thousand; escapes PyYAML trips over
        return _broken(file, f"is not YAML that can be read: {type(error).__name__}")
    if name is not None:
        return ProfileFile(layers={name: _layer(file, name, root)})
    return ProfileFile() if root is None else _profiles(file, root)


def _compose(text: str) -> Any:
    import yaml

    class Composer(yaml.SafeLoader):
        """YAML as a tree of nodes. Aliases are refused: they may be endless, and `extends` does their work."""

        def compose_node(self, parent: Any, index: int) -> Any:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                cause = "aliases (*NAME) are not supported; use `extends`"
                raise yaml.MarkedYAMLError(problem=cause, problem_mark=mark)
            return super().compose_node(parent, index)

    loader = Composer(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _profiles(file: Path, root: Any) -> ProfileFile:
    """The profiles of a mapping of names to profiles."""
    import yaml

    if not isinstance(root, yaml.MappingNode):
        return _broken(file, "must map names to profiles", "Write `NAME:` and its keys below it, indented.")
    layers: dict[str, Layer] = {}
    problems: list[Problem] = []
    for key, value in root.value:
        line = f"{file}, line {key.start_mark.line + 1}"
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if not NAME.fullmatch(name):
            cause = f"{line}: a profile's name is letters, digits, `.`, `_` and `-`"
            problems.append(Problem(name="bad_profile_name", key="executor", value=name[:40], cause=cause))
        elif name in layers:
            cause = f"{line}: the name stands there before, at line {layers[name].lines['']}"
            remedy = "Join the two, or rename one."
            problems.append(Problem(name="duplicate_key", key=name, value=None, cause=cause, remedy=remedy))
        else:
            layers[name] = _layer(file, name, value, key.start_mark.line + 1)
    return ProfileFile(layers=layers, problems=tuple(problems))


def _layer(file: Path, name: str, node: Any, line: int = 1) -> Layer:
    """One profile of a file; whatever does not fit is a problem of that profile alone."""
    import yaml

    lines: dict[str, int] = {"": line}
    problems: list[Problem] = []
    if isinstance(node, yaml.ScalarNode) and node.tag == _NULL:
        return Layer(file=file, lines=lines)
    if not isinstance(node, yaml.MappingNode):
        cause = f"{file}, line {line}: a profile is a mapping of keys to values"
        remedy = f"Indent its keys below `{name}:`."
        if name == "kind":
            remedy = "The file maps names to profiles: write `NAME:` above and indent the keys."
        problem = Problem(name="not_a_profile", key=name, value=None, cause=cause, remedy=remedy)
        return Layer(file=file, lines=lines, problems=(problem,))

    def plain(node: Any, path: str) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return None if node.tag == _NULL else Word(node.value) if node.tag in _TYPED else node.value
        if isinstance(node, yaml.SequenceNode):
            return [plain(item, path) for item in node.value]
        values: dict[str, Any] = {}
        for key, value in node.value:
            where = f"{file}, line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode) or not key.value:
                cause, owner = f"{where}: a key is a word", f"{name}.{path}".rstrip(".")
                problems.append(Problem(name="wrong_value", key=owner, value=None, cause=cause))
                continue
            inner = f"{path}.{key.value}" if path else key.value
            if key.value in values:
                cause = f"{where}: the key stands there twice"
                problems.append(Problem(name="duplicate_key", key=f"{name}.{inner}", value=None, cause=cause))
            else:
                lines[inner] = key.start_mark.line + 1
                values[key.value] = plain(value, inner)
        return values

    values = plain(node, "")
    return Layer(file=file, values=values, lines=lines, problems=tuple(problems))


def _broken(file: Path, cause: str, remedy: str = "") -> ProfileFile:
    problem = Problem(name="broken_profile_file", key=str(file), value=None, cause=cause, remedy=remedy)
    return ProfileFile(problems=(problem,))


def names_of(files: list[ProfileFile]) -> Mapping[str, list[Layer]]:
    """Every profile name with its layers, the one that counts least first."""
    found: dict[str, list[Layer]] = {}
    for file in files:
        for name, layer in file.layers.items():
            found.setdefault(name, []).append(layer)
    return found
