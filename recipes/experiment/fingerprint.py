"""What a stage's result depends on, as data with a digest: two stages of one digest would leave the same.

That is what it does, with which values, on the content of which inputs, by which code and which versions, on what
kind of device. Where it runs, and where it leaves its outputs, is no part of it, nor are limits set to the result.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from configs import CONFIGS
from recipes.experiment.index import Index
from recipes.experiment.job import Job
from recipes.models import commit_of, is_hub_name
from scripts.args.meaning import fields_of, value_of, values_of
from scripts.engines.choice import is_built_in
from scripts.run.files import is_file
from scripts.run.problems import JobError
from scripts.run.provenance import versions
from scripts.stores.objects import is_url, manifest_above

_RUN_DIR = "<run dir>"
#: Folders of ours that a job runs, or takes values from.
_CODE = (CONFIGS, CONFIGS.parent / "scripts")
_READ = (".py", ".yaml", ".json")
_PYTHON = re.compile(r"python[\d.]*")


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What a result depends on; `unknown` says of what nobody can tell, and then there is none."""

    of: Mapping[str, Any]
    unknown: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return digest_of(self.of)


def digest_of(parts: Mapping[str, Any]) -> str:
    """One text for all of it."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def fingerprint(job: Job, made: Mapping[str, str], index: Index) -> Fingerprint:
    """Of a job; `made` holds, by the paths that earlier stages are going to leave, what tells that content apart.

    Files that are inputs are read, once: their content is known after that by their sizes and times.
    """
    unknown: list[str] = []
    inputs: dict[str, Any] = {}
    left_out = {*fields_of(job.resolved, "gate"), *fields_of(job.resolved, "wandb")}
    for name, value, meaning in values_of(job.resolved):
        if not (meaning.reads and meaning.used_by(job.engine)) or value is None:
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                known = _content(item, job, made, index, named=meaning.names)
                if known is None:
                    unknown.append(f"args.{name}={item}: what it holds cannot be told from here")
                inputs.setdefault(f"args.{name}", []).append(known)
    if (command := value_of(job.resolved, "command")) is not None:
        for word, place in _files_in([*command, *job.extra_args], job):
            if (known := index.content(place)) is None:
                unknown.append(f"args.command={word}: what it holds cannot be told from here")
            inputs.setdefault("the files of args.command", []).append(known)
    values = {name: value for name, value in asdict(job.resolved).items() if name not in left_out}
    args = {f"args.{name}": _placeless(value, job) for name, value in values.items() if f"args.{name}" not in inputs}
    script = {f"script.{name}": value for name, value in asdict(job.script).items() if name != "silence_minutes"}
    of = {
        "algorithm": job.algorithm,
        "engine": job.engine,
        **args,
        **script,
        "extra_args": [_placeless(word, job) for word in job.extra_args],
        "processes": [job.nodes, job.processes],
        "inputs": inputs,
        "code": _code(),
        "versions": versions() if job.in_this_python else {"container": job.place.image},
        "gpu": job.gpu.name if job.gpu else None,
        "env": dict(sorted(job.profile.env.items())),
    }
    return Fingerprint(of=json.loads(json.dumps(of, default=str)), unknown=tuple(unknown))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is another value than it was, a line each."""
    was, is_now = dict(_flat(before)), dict(_flat(now))
    keys = [key for key in {**was, **is_now} if was.get(key) != is_now.get(key)]
    return [_difference(key, was.get(key), is_now.get(key)) for key in keys]


def _difference(key: str, before: Any, now: Any) -> str:
    if key == "code":
        return "the code of this product"
    if key.startswith("inputs."):
        return f"the content of {key.removeprefix('inputs.')}"
    return f"{key} {_short(before)} -> {_short(now)}"


def _flat(parts: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in parts.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _placeless(value: Any, job: Job) -> Any:
    """Without the folder of the run, which is another one each time."""
    if isinstance(value, str):
        return value.replace(str(job.run_dir), _RUN_DIR)
    if isinstance(value, list):
        return [_placeless(item, job) for item in value]
    if isinstance(value, dict):
        return {key: _placeless(item, job) for key, item in value.items()}
    return value


def _content(item: str, job: Job, made: Mapping[str, str], index: Index, *, named: str) -> str | None:
    """What says which content an input has; None where nobody here can tell."""
    if is_built_in(item):
        return item  # it is made by the code, which counts too
    promised = next((path for path in made if item == path or item.startswith(f"{path}/")), None)
    if promised is not None:
        return f"{made[promised]}{item.removeprefix(promised)}"
    if is_url(item):
        return _in_store(item)
    place = job.place.path_here(item, job.run_dir) if Path(item).is_absolute() else Path(item) if job.here else None
    if place is not None and place.exists():
        return index.content(place)
    if named in ("model", "data") and is_hub_name(item) and job.place.runs_here:
        commit = commit_of(item)
        return None if commit is None else f"{item}@{commit}"
    return None


def _files_in(words: Iterable[str], job: Job) -> Iterator[tuple[str, Path]]:
    """The files that a program's words name, whole or after a `=`; each machine has a Python of its own."""
    for word in words:
        for name in (word, word.partition("=")[2]):
            here = Path("" if job.here else job.code or "", name)  # what is relative travels, where it is not here
            place = job.place.path_here(name, job.run_dir) if here.is_absolute() else here
            if place is not None and is_file(place) and not _PYTHON.fullmatch(place.name):
                yield word, place


def _in_store(url: str) -> str | None:
    with suppress(JobError):
        if (found := manifest_above(url)) is not None:
            return f"{found[1].digest}:{found[2]}"
    return None


@cache
def _code() -> str:
    """A digest of our own files that a job runs, or takes values from."""
    found = hashlib.sha256()
    for folder in _CODE:
        for file in sorted(folder.rglob("*")):
            if file.suffix in _READ and file.is_file():
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                found.update(f"{file.relative_to(folder.parent)}\0{content}\n".encode())
    return found.hexdigest()
