"""Where a job's script is on this node: the container's copy, a file, or in a checkout."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from configs import CONFIGS
from scripts.engines.script.flags.tables import container_path
from scripts.run.files import expanded, is_file, is_folder
from scripts.run.problems import JobError

#: How a script that is a module of an installed package is named: "-m package.module".
MODULE = "-m "


@dataclass(frozen=True, kw_only=True)
class Located:
    """A script that is there."""

    script: str  # as the flag tables call it
    file: Path
    words: tuple[str, ...]  # what Python is given to run it
    roots: tuple[Path, ...]  # where modules that it imports may lie


def is_module(script: str) -> bool:
    """Whether a script is named as a module of a package."""
    return script.startswith(MODULE)


def file_of(script: str) -> str:
    """Where a container keeps `script`: a path, or the module's name."""
    return script if is_module(script) else container_path(script)


def locate(scripts: Sequence[str], path: str | None) -> Located:
    """The first of `scripts` (newest first) that is there; with `path`, that file or the checkout it names.

    Raises JobError `script_not_found`, saying where was looked.
    """
    looked = []
    for script in scripts:
        for candidate in _candidates(script, path):
            if is_file(candidate):
                as_module = is_module(script) and path is None
                words = (MODULE.strip(), script.removeprefix(MODULE)) if as_module else (str(candidate),)
                roots = (Path(entry) for entry in sys.path if entry and Path(entry).resolve() != CONFIGS.parent)
                return Located(script=script, file=candidate, words=words, roots=tuple(roots))
            looked.append(str(candidate))
    cause = f"none of {', '.join(looked) or ', '.join(scripts)} is a file here."
    remedy = "Use the container that has it, or set script.path to the file or its checkout."
    raise JobError("script_not_found", cause, remedy)


def installed(scripts: Sequence[str]) -> bool:
    """Whether the container's own copy of one of `scripts` is here."""
    return any(is_file(candidate) for script in scripts for candidate in _candidates(script, None))


def _candidates(script: str, path: str | None) -> list[Path]:
    if path is None:
        return _module_files(script) if is_module(script) else [Path(container_path(script))]
    given = expanded(path)
    if not is_folder(given) or is_module(script):
        return [given]
    repository, _, inside = script.partition("/")
    return [given / inside, given / repository / inside]


def _module_files(script: str) -> list[Path]:
    """Where an installed module's file is, by its package alone: a submodule's own spec would import its parents."""
    name = script.removeprefix(MODULE)
    package, *rest = name.split(".")
    spec = util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    places = [Path(place).joinpath(*rest) for place in spec.submodule_search_locations]
    return [file for place in places for file in (place.with_suffix(".py"), place / "__main__.py")]


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a script: without what this project needs for itself.

    A script finds the modules beside it (PYTHONSAFEPATH forbids that), and its own `scripts` and
    `configs` packages are not ours.
    """
    env = {key: value for key, value in environment.items() if key not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    entries = environment.get("PYTHONPATH", "").split(os.pathsep)
    kept = [entry for entry in entries if entry and Path(entry).resolve() != CONFIGS.parent]
    return env | ({"PYTHONPATH": os.pathsep.join(kept)} if kept else {}) | {"PYTHONUNBUFFERED": "1"}
