"""Which release of which script a job will meet, and what that one accepts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scripts.args.meaning import ScriptArgs, ScriptSpec, values_of
from scripts.engines.script.command import compose
from scripts.engines.script.flags.interface import UNKNOWN, Interface
from scripts.engines.script.flags.reader import read_interface
from scripts.engines.script.flags.tables import (
    completed,
    containers_with,
    interface_of,
    match_release,
    releases_in,
    releases_like,
    releases_of,
    repository_of,
)
from scripts.engines.script.locate import file_of, is_module, locate
from scripts.run.problems import JobError, Problem

if TYPE_CHECKING:
    import nemo_run as run

    from executors.base import Place


@dataclass(frozen=True, kw_only=True)
class Addressed:
    """The script that a job is written for."""

    script: str  # as the flag tables call it
    path: str  # where it will be, as far as that is known here
    release: str | None  # None: nobody knows; `interface` is then the newest one's, to show a command with
    interface: Interface
    known_by: str  # where the release is known from: script.release, the image, the file; empty where it is not

    @property
    def certain(self) -> bool:
        """Whether the script will accept what `interface` says and nothing else."""
        return bool(self.known_by)


def address(args: ScriptArgs, script: ScriptSpec, place: "Place") -> tuple[Addressed, list[Problem]]:
    """The script that `args` will be given to, of the release that the job's container has."""
    if place.runs_here and (found := _here(args, script)):
        return found, []
    if script.release is not None:
        return _asked(args, script, script.release)
    image = place.image
    releases = releases_in(image) if image and script.path is None else None
    if releases is None or is_module(args.SCRIPTS[0]):
        return _newest(args, script), []
    for name in args.SCRIPTS:
        release = match_release(name, releases[repository_of(name)]) if repository_of(name) in releases else None
        if release is not None:
            return _of_release(name, release, script, known_by=f"image {image}"), []
    repository = repository_of(args.SCRIPTS[0])
    if repository not in releases:  # nobody knows which; every release of late has the script
        return _newest(args, script), []
    cause = f"{image} holds {repository} {releases[repository]}, which has no such script"
    remedy = (
        f"It came with {releases_of(args.SCRIPTS[-1])[0]}: use a newer image, or mount a checkout and set script.path."
    )
    return _newest(args, script), [
        Problem(name="no_such_script", key="executor.image", value=image, cause=cause, remedy=remedy)
    ]


def _here(args: ScriptArgs, script: ScriptSpec) -> Addressed | None:
    """On this machine the script itself says what it takes."""
    try:
        located = locate(args.SCRIPTS, script.path)
        found = read_interface(located.file, located.roots)
    except JobError:
        return None  # `script_checks` says so
    interface = completed(found, located.script, releases_like(located.script, found))
    file = str(located.file)
    return Addressed(script=located.script, path=file, release=None, interface=interface, known_by=file)


def _of_release(name: str, release: str, script: ScriptSpec, *, known_by: str) -> Addressed:
    interface = interface_of(name, release)
    return Addressed(script=name, path=_path(name, script), release=release, interface=interface, known_by=known_by)


def _path(name: str, script: ScriptSpec) -> str:
    """The container's copy, the file that was named, or the script in the checkout that was named."""
    if script.path is None:
        return file_of(name)
    return script.path if script.path.endswith(".py") else f"{script.path.rstrip('/')}/{name.partition('/')[2]}"


def _asked(args: ScriptArgs, script: ScriptSpec, asked: str) -> tuple[Addressed, list[Problem]]:
    for name in args.SCRIPTS:
        release = None if is_module(name) else match_release(name, asked)
        if release is not None:
            return _of_release(name, release, script, known_by="script.release"), []
    known = [release for name in args.SCRIPTS if not is_module(name) for release in releases_of(name)]
    cause = "no release of that name has this script" if known else "this script is a module of an installed package"
    remedy = f"Choices: {', '.join(dict.fromkeys(known))}." if known else "Leave script.release out."
    problem = Problem(name="unknown_release", key="script.release", value=asked, cause=cause, remedy=remedy)
    return _newest(args, script), [problem]


def _newest(args: ScriptArgs, script: ScriptSpec) -> Addressed:
    name = args.SCRIPTS[0]
    interface = UNKNOWN if is_module(name) else interface_of(name, releases_of(name)[-1])
    return Addressed(script=name, path=_path(name, script), release=None, interface=interface, known_by="")


def releases(partial: "run.Partial[Any]") -> list[dict[str, Any]]:
    """Every release that has a script for the recipe: what would be said to it, and what it has no flag for."""
    from fiddle import build

    args = build(partial.args)
    rows = []
    for name, release in _each_release(getattr(args, "SCRIPTS", ())):
        filled = replace(args, **_placeholders(args))
        command = args.COMMANDS.get(name, ())
        words = compose(filled, interface_of(name, release), style=build(partial.script).flag_style, command=command)
        rows.append(
            {
                "script": name,
                "release": release,
                "containers": list(containers_with(name, release)),
                "flags": [word.partition("=")[0] for word in words.words if word.startswith("--")],
                "left_out": list(words.left_out),
                "problems": [str(problem) for problem in words.problems],
            }
        )
    return rows


def _placeholders(args: ScriptArgs) -> dict[str, str]:
    """Something for each path that the user must give."""
    return {name: f"<{name}>" for name, value, meaning in values_of(args) if meaning.required and value is None}


def _each_release(scripts: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each release once, with the script that would be taken: the first that it has."""
    seen: set[str] = set()
    for name in scripts:
        for release in () if is_module(name) else releases_of(name):
            if release not in seen:
                seen.add(release)
                yield name, release
