"""Bundles: all that it takes to run something again elsewhere, made of what its runs keep, and stages made of that.

A bundle says for each stage its recipe, the values that were asked for and what it comes after, with the digests of
inputs, versions and the commit; the user's own files (recipes, configs, what a program reads) go along, and the inputs
themselves where that is asked for. In its values `${bundle:N}` is what lies in its tree N. Secrets are in none: a run
keeps their names alone.
"""

import re
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from configs import CONFIGS
from executors.base import OWN_CODE, nemorun_home
from recipes.catalogue import RECIPES, layers
from recipes.experiment.bundle_file import FORMAT, SCHEMA, Advance, Source
from recipes.experiment.examine import REFERENCE
from recipes.experiment.job import Job
from recipes.experiment.run_ids import MOST_OF_STAGE, find_runs_of
from recipes.experiment.runs import Run
from recipes.experiment.store import RunFolder
from recipes.models import commit_of, is_hub_name
from scripts.args.meaning import Meaning, ScriptArgs, values_of
from scripts.engines.choice import is_built_in
from scripts.run.content import content_of
from scripts.run.files import expanded, is_there
from scripts.run.problems import Problem, ProblemsError
from scripts.run.provenance import versions
from scripts.run.schema import listed, mapping

#: The Python that ran a program: each machine has its own.
PYTHON = "${bundle:python}"
_HELD = re.compile(r"\$\{bundle:(\d+)\}")
#: The user's own files below this size always go along: what a program reads, a config, tasks.
_OWN_BYTES = 64 << 20
_OURS = Path(OWN_CODE).name


@dataclass(kw_only=True)
class Bundle:
    """What bundle.json is to hold, and where the content of each member lies."""

    data: dict[str, Any]
    sources: dict[str, Source] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def member(self, name: str, content: Source, facts: tuple[int, str] | None = None) -> str:
        """Have a file go along; `facts`: its size and SHA-256, where those are known."""
        if facts is None:
            assert isinstance(content, bytes)
            facts = len(content), sha256(content).hexdigest()
        name = name or f"files/{facts[1]}"
        self.data["files"][name] = {"bytes": facts[0], "sha256": facts[1]}
        self.sources[name] = content
        return name

    def tree(self, name: str, files: Mapping[str, str], executable: Sequence[str]) -> int:
        """Have files stand together; return the number of that."""
        self.data["trees"].append({"name": name, "files": dict(files), "executable": list(executable)})
        return len(self.data["trees"]) - 1

    @property
    def bytes(self) -> int:
        """Of everything that goes along."""
        return sum(facts["bytes"] for facts in self.data["files"].values())


def runs_to_repeat(word: str) -> tuple[dict[str, Run], str | None]:
    """By stage what a word names, a run or all of a pipeline, and the pipeline's id.

    Stages of a pipeline that stood already are the runs that stood for them. Raises ProblemsError, DamagedRecordError.
    """
    runs = [Run.read(folder) for folder in find_runs_of(word)]
    if strange := next((run for run in runs if run.job is None or run.job.args is None), None):
        cause = "it was not submitted from here, or its recipe is in the catalogue no more"
        remedy = "Bundle it where it was submitted, with the recipe."
        raise ProblemsError([Problem(name="cannot_repeat", key="ID", value=strange.id, cause=cause, remedy=remedy)])
    pipeline = _job(runs[0]).pipeline
    if pipeline is None or (len(runs) == 1 and word != pipeline):
        return {_job(run).recipe: run for run in runs[:1]}, None
    found = {_job(run).name: run for run in runs}
    ahead = list(runs)
    while ahead:
        for name, run_id in _requested(_job(ahead.pop(0)), "after").items():
            folder = RunFolder.of(run_id)
            if run_id not in (run.id for run in found.values()) and folder.job.is_file():
                run = Run.read(folder)
                if run.job is None or run.job.args is None:
                    continue  # what it left is an input like others
                while name in found:
                    name = f"{name[: MOST_OF_STAGE - 2]}_2"
                found[name] = run
                ahead.append(run)
    return found, pipeline


def _job(run: Run) -> Job:
    assert run.job is not None
    return run.job


def _requested(job: Job, key: str) -> dict[str, Any]:
    return mapping(mapping(job.request).get(key))


def bundle_of(word: str) -> Bundle:
    """What it takes to ask for the same again on this machine. Raises as `runs_to_repeat` does."""
    runs, pipeline = runs_to_repeat(word)
    names = {run.id: name for name, run in runs.items()}
    first = next(iter(runs.values()))
    return Bundle(
        data={
            "format": FORMAT,
            "schema": SCHEMA,
            "id": pipeline or first.id,
            "pipeline": pipeline and pipeline.rpartition("_")[0],
            "versions": mapping(first.record.get("versions")),
            "git": first.record.get("git"),
            "stages": {name: _stage(run, names) for name, run in runs.items()},
            **{"inputs": [], "trees": [], "code": None, "files": {}},
        }
    )


def _stage(run: Run, names: Mapping[str, str]) -> dict[str, Any]:
    """A stage as it was asked for; what runs that are no stages left is named by its path."""
    job = _job(run)
    values = deepcopy(job.values)
    parents = {name: names[run_id] for name, run_id in _requested(job, "after").items() if run_id in names}

    def known(text: str) -> bool:
        return all(match[1] in parents for match in REFERENCE.finditer(text))

    def renamed(match: re.Match[str]) -> str:
        return f"${{artifact:{parents[match[1]]}{f'.{match[2]}' if match[2] else ''}}}"

    for key, value in _requested(job, "values").items():
        section, _, name = key.partition(".")
        if all(known(text) for text in _texts(value)):
            value = _replaced(value, lambda text: REFERENCE.sub(renamed, text))
            (values[section] if name else values)[name or section] = value
    outputs = [{key: row.get(key) for key in ("type", "bytes", "digest")} for row in _rows(run, "outputs")]
    return {
        **{"recipe": job.recipe, "family": RECIPES[job.recipe].family.name, "values": values, "outputs": outputs},
        **{"executor": job.executor, "profile": _requested(job, "executor"), "run": run.id},
        "after": list(parents.values()),
    }


def _rows(run: Run, key: str) -> list[dict[str, Any]]:
    return [mapping(row) for row in listed(run.record.get(key))]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _replaced(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_replaced(item, change) for item in value]
    return {key: _replaced(item, change) for key, item in value.items()} if isinstance(value, dict) else value


# --- what goes along -------------------------------------------------------------------------------------------------


def inputs_here(word: str) -> list[Path]:
    """What is going to be read, to know the size of it. Raises as `runs_to_repeat` does."""
    runs, _ = runs_to_repeat(word)
    stages = bundle_of(word).data["stages"]
    found = [one.place for name, run in runs.items() for one in _inputs(run, stages[name]["values"])]
    return list(dict.fromkeys(place for place in found if place is not None))


@dataclass(frozen=True, kw_only=True)
class _Input:
    """Something that a stage reads: its argument, what that says, and where it lies here; None: it is not here."""

    field: str
    name: str
    place: Path | None
    own: bool  # it is no model, data or checkpoint, but a file of the user's own


def _inputs(run: Run, values: Mapping[str, Any]) -> Iterator[_Input]:
    job = _job(run)
    for name, resolved, meaning in values_of(job.resolved):
        named = meaning.reads or _is_own_recipe(resolved, meaning)
        if not named or not meaning.used_by(job.engine) or resolved is None:
            continue
        said = values["args"][name]
        pairs = zip(said, resolved, strict=False) if isinstance(said, list) else [(said, resolved)]
        for text, item in pairs:
            if not (isinstance(item, str) and isinstance(text, str)) or is_built_in(item) or "${artifact:" in text:
                continue
            # A relative one is seen from where the job was submitted.
            whole = Path(item) if Path(item).is_absolute() else Path(run.record.get("cwd", "/"), item)
            place = job.place.path_here(whole, job.run_dir) if Path(item).is_absolute() or job.here else None
            place = place if place is not None and is_there(place) else None
            own = (meaning.path == "read" and not meaning.consumes) or not meaning.reads
            yield _Input(field=name, name=text, place=place, own=own)


def _is_own_recipe(value: Any, meaning: Meaning) -> bool:
    of_format = meaning.role in ("format", "format_recipe") and isinstance(value, str)
    return of_format and value.endswith((".yaml", ".yml")) and is_there(value)


def pack(word: str, advance: Advance, *, with_inputs: bool) -> Bundle:
    """What goes into a bundle of that. `advance`: as inputs are read for their digests.

    Raises ProblemsError, also where an input is another than the run read; OSError.
    """
    runs, _ = runs_to_repeat(word)
    bundle = bundle_of(word)
    wrong: list[Problem] = []
    seen: dict[Path, tuple[str, int | None]] = {}
    for name, run in runs.items():
        values = bundle.data["stages"][name]["values"]
        held: dict[str, int] = {}
        for one in _inputs(run, values):
            digest, number = _known_digest(run, one), None
            if one.place is not None:
                if one.place not in seen:
                    seen[one.place] = _measured(bundle, one, with_inputs, advance)
                found, number = seen[one.place]
                if digest not in (None, found):
                    wrong.append(_changed(name, one, str(digest), found))
                digest = found
            elif is_hub_name(one.name):
                digest = (commit := commit_of(one.name)) and f"commit:{commit}"
            elif with_inputs or digest is None:
                severity: Any = "error" if with_inputs else "warning"
                cause = "it is not here, and what it holds cannot be told"
                said = Problem(name="missing_input", key=f"{name}.args.{one.field}", value=one.name, cause=cause)
                wrong.append(replace(said, severity=severity))
            row = {"stage": name, "field": one.field, "name": one.name, "digest": digest, "tree": number}
            bundle.data["inputs"].append(row)
            if number is not None:
                held |= {str(one.place): number, one.name: number}
        bundle.data["stages"][name]["values"] = _placeless(values, held)
        _own_recipes(bundle, _job(run).recipe)
        if run.folder.archive.is_file() and bundle.data["code"] is None:
            bundle.data["code"] = _code(bundle, run.folder.archive)
    for row in bundle.data["inputs"]:
        if row["tree"] is not None:
            row["name"] = Path(row["name"]).name  # where it was is nobody's concern
    if any(one.severity == "error" for one in wrong):
        raise ProblemsError(wrong)
    bundle.problems = wrong
    bundle.member("requirements.txt", _requirements(bundle.data).encode())
    return bundle


def _known_digest(run: Run, one: _Input) -> str | None:
    """What the run itself noted of an input."""
    noted = mapping(mapping(mapping(_job(run).fingerprint).get("of")).get("inputs")).get(f"args.{one.field}")
    raw = _job(run).values["args"][one.field]
    at = raw.index(one.name) if isinstance(raw, list) and one.name in raw else 0
    digests = [listed(noted)[at]] if at < len(listed(noted)) else []
    digests += [row.get("digest") for row in _rows(run, "inputs") if row.get("name") in (one.name, str(one.place))]
    return next((str(digest) for digest in digests if str(digest).startswith("sha256:") and digest[7:].isalnum()), None)


def _changed(stage: str, one: _Input, before: str, now: str) -> Problem:
    cause = f"it holds {now} by now, and the run read {before}"
    remedy = "Put back what it was, or run it again and bundle that."
    key = f"{stage}.args.{one.field}"
    return Problem(name="input_differs", key=key, value=one.name, cause=cause, remedy=remedy)


def _measured(bundle: Bundle, one: _Input, with_inputs: bool, advance: Advance) -> tuple[str, int | None]:
    """The digest of an input that is here, and the number of its tree where it goes along."""
    assert one.place is not None
    content = content_of(one.place, advance)
    if not with_inputs and (not one.own or content.bytes > _OWN_BYTES):
        return content.digest, None
    files, executable = {}, []
    for name, digest in content.listing.items():
        whole = one.place if one.place.is_file() else one.place / name
        inner = "" if one.place.is_file() else name
        status = whole.stat()
        files[inner] = bundle.member("", whole, (status.st_size, digest))
        executable += [inner] if status.st_mode & 0o100 else []
    return content.digest, bundle.tree(one.place.resolve().name, files, executable)


def _placeless(values: Any, held: Mapping[str, int]) -> Any:
    """Values without the places of what goes along, and of this Python, the longest first."""

    def change(text: str) -> str:
        if text.startswith("/") and Path(text).parent == Path(sys.executable).parent and "/python" in text:
            return PYTHON
        for name in sorted(held, key=len, reverse=True):
            if text == name or (name.startswith("/") and text.startswith(f"{name}/")):
                return f"${{bundle:{held[name]}}}{text.removeprefix(name)}"
            if name.startswith("/") and text.endswith(f"={name}"):  # --config=/home/me/mine.yaml
                return f"{text.removesuffix(name)}${{bundle:{held[name]}}}"
        return text

    return _replaced(values, change)


def _own_recipes(bundle: Bundle, name: str) -> None:
    """A recipe that does not ship goes along as its files, to look at: its values are all in the bundle."""
    recipe = RECIPES[name]
    if not recipe.file.is_relative_to(CONFIGS):
        for file, _ in layers(recipe.family, recipe.file):
            if not file.is_relative_to(CONFIGS):
                plain = re.sub(r"[^\w.-]", "_", file.name, flags=re.ASCII)[:60]
                bundle.member(f"recipes/{recipe.family.name}/{plain}", file.read_bytes())


def _code(bundle: Bundle, archive: Path) -> int | None:
    """The user's part of the code that travelled with a job; ours is another wherever it is installed."""
    files, executable = {}, []
    with tarfile.open(archive) as tar:
        for info in tar:
            own = info.name.partition("/")[0] == _OURS
            content = None if own or not (info.isfile() or info.issym()) else _content(tar, info)
            if content is not None:
                files[info.name] = bundle.member("", content)
                executable += [info.name] if info.mode & 0o100 and info.isfile() else []
    return bundle.tree("code", files, executable) if files else None


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes | None:
    """Of a link, what it leads to among the files; None where that is none of them."""
    try:
        reader = tar.extractfile(info)
    except KeyError:
        return None
    return None if reader is None else reader.read()


def _requirements(data: Mapping[str, Any]) -> str:
    """The versions that it ran on, as pip pins them."""
    own = ("python", "modelopt-recipes")
    said = [f"# {name} {data['versions'][name]}\n" for name in own if name in data["versions"]]
    commit = mapping(data["git"]).get("commit")
    said += [f"# submitted from commit {commit}\n"] if commit else []
    pins = [f"{name}=={version}\n" for name, version in sorted(data["versions"].items()) if name not in own]
    return "".join(said + pins)


# --- asked for again -------------------------------------------------------------------------------------------------


def folder_of(data: Mapping[str, Any]) -> Path:
    """Where what goes along is unpacked: a folder that is named after all of its content."""
    digest = sha256(repr(sorted(data["files"].items())).encode() + repr(data["trees"]).encode()).hexdigest()
    return Path(nemorun_home()) / "bundles" / digest[:16]


def contents(data: Mapping[str, Any], python_of: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """By stage its content, as a pipeline's file has it, with what goes along where it is here.

    `python_of`: by stage the Python of its place. A recipe that there is not is the one of its family, with all values.
    """
    folder, trees = folder_of(data), data["trees"]
    found = {}
    for name, stage in data["stages"].items():

        def here(text: str, python: str = python_of.get(name, "python")) -> str:
            text = text.replace(PYTHON, python)
            return _HELD.sub(
                lambda match: (
                    str(folder / match[1] / trees[int(match[1])]["name"]) if int(match[1]) < len(trees) else match[0]
                ),
                text,
            )

        known = RECIPES.get(stage["recipe"])
        recipe = stage["recipe"] if known and known.family.name == stage["family"] else stage["family"]
        found[name] = {**_replaced(stage["values"], here), "recipe": recipe, "after": list(stage["after"])}
    return found


def code_of(data: Mapping[str, Any]) -> Path | None:
    """The folder of the user's code, where some travelled."""
    return None if data["code"] is None else folder_of(data) / str(data["code"]) / "code"


def other_versions(data: Mapping[str, Any]) -> list[Problem]:
    """What is installed here in another version than the runs had."""
    here = versions()
    differ = [
        f"{name} {theirs} -> {here.get(name, 'not installed')}"
        for name, theirs in sorted(data["versions"].items())
        if here.get(name) != theirs
    ]
    if not differ:
        return []
    remedy = "requirements.txt in it pins the versions that it ran on."
    wrong = Problem(name="other_versions", key="versions", value=None, cause="; ".join(differ), remedy=remedy)
    return [replace(wrong, severity="warning")]


def verified(
    row: Mapping[str, Any], key: str, args: ScriptArgs, *, here: bool, digest_of: Callable[[Path], str | None]
) -> Problem | None:
    """What is wrong with an input: it is another, or gone, or nobody here can tell.

    `here`: the job sees this machine's files; `digest_of`: measures a path.
    """
    value = next((value for name, value, meaning in values_of(args) if name == row["field"]), None)
    items = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
    expected = row["digest"]
    unsure = Problem(
        name="input_not_verified",
        key=key,
        value=row["name"],
        cause=f"nobody here can tell whether it is {expected or 'what the run read'}",
        severity="warning",
    )
    found = {item: _digest_here(item, digest_of) for item in items}
    if expected is not None and expected in found.values():
        return None
    same = next((item for item in items if item == row["name"]), items[0] if len(items) == 1 else None)
    shown = row["name"] if same is None else same
    remedy = f"Name what holds that: {key}=PATH."
    wrong = replace(unsure, name="input_differs", value=shown, severity="error", can_force=True, remedy=remedy)
    now = found.get(shown)
    if expected is None or (now is None and (not here or (is_hub_name(shown) and expected.startswith("commit:")))):
        return unsure
    if now is None and not is_hub_name(shown):
        return replace(wrong, name="missing_input", can_force=False, cause=f"it is not here; {expected} is expected")
    return replace(wrong, cause=f"it holds {now or 'something of the hub'}, and {expected} is expected")


def _digest_here(item: str, digest_of: Callable[[Path], str | None]) -> str | None:
    place = expanded(item)
    if is_there(place):
        return digest_of(place)
    return f"commit:{commit}" if is_hub_name(item) and (commit := commit_of(item)) else None
