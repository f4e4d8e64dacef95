"""The flags of NVIDIA's own scripts, release by release, from configs/upstream.

What a container's script accepts is thereby known where the container is not: on the machine that submits.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from configs import CONFIGS
from scripts.engines.script.flags.interface import Flag, Interface, plain

Repository = Literal["Megatron-Bridge", "Model-Optimizer", "Megatron-LM"]
_UPSTREAM = CONFIGS / "upstream"
#: "v0.4.2", "core_v0.16.0", "0.44", "0.5.0rc4": what is numeric in front.
_NUMBER = re.compile(r"(?:core_)?[rv]?(\d+(?:\.\d+)*)")
#: nvcr.io/nvidia/nemo:26.04, nvidia+nemo+26.04.sqsh, nemo_26.04.01-x.sqsh; not nemo-rl or another 26.04.
_NEMO = re.compile(r"(?:^|[/#+_-])nemo[:+_-](\d{2}\.\d{2})(?!\d)", re.IGNORECASE)


def scripts() -> tuple[str, ...]:
    """Every script in the table: "<repository>/<path inside it>"."""
    return tuple(_table()["scripts"])


def container_path(script: str) -> str:
    """Where a NeMo container keeps that script."""
    return str(_table()["scripts"][script]["path"])


def repository_of(script: str) -> Repository:
    """The repository a script belongs to."""
    return cast(Repository, script.partition("/")[0])


def releases_of(script: str) -> tuple[str, ...]:
    """The releases that have the script, oldest first."""
    return tuple(_table()["scripts"][script]["releases"])


@functools.cache
def interface_of(script: str, release: str) -> Interface:
    """What that release's script accepts. Raises KeyError for a script or release that is not in the table."""
    entry = _table()["scripts"][script]
    flags, closed = _flags(script, release), not entry.get("open")
    every = (flag for each in releases_of(script) for flag in _flags(script, each))
    ever = frozenset(plain(name) for flag in every for name in flag.names)
    return Interface(
        flags=flags,
        closed=closed,
        commands=tuple(entry.get("commands", ())),
        foreign=frozenset() if closed else ever - {plain(name) for flag in flags for name in flag.names},
    )


def releases_like(script: str, interface: Interface) -> tuple[str, ...]:
    """The releases whose flags these are, as far as the table knows; none for a script that it does not have."""
    found = {flag.name for flag in interface.flags}
    every = releases_of(script) if script in _table()["scripts"] else ()
    return tuple(release for release in every if {flag.name for flag in interface_of(script, release).flags} == found)


def completed(interface: Interface, script: str, releases: Sequence[str]) -> Interface:
    """`interface`, read from a file that is one of `releases`, with what the file alone does not say."""
    return replace(interface, foreign=interface_of(script, releases[0]).foreign) if releases else interface


def match_release(script: str, asked: str) -> str | None:
    """The script's release that answers to `asked`; None where the table has no such release of it.

    A number alone means its newest patch ("0.4" -> "v0.4.2"), and a patch that is not listed means the one
    before it, for only patches that changed something need to be. "main" is the newest state of the branch.
    None also says that a release has no such script: it came later, or was removed.
    """
    releases = releases_of(script)
    if asked in releases:
        return asked
    if asked == "main":
        return next((name for name in reversed(releases) if name.startswith("main-")), None)
    wanted = _number(asked)
    if len(wanted) < 2:
        return None
    same_minor = [name for name in releases if _number(name)[:2] == wanted[:2]]
    not_newer = [name for name in same_minor if len(wanted) == 2 or _number(name) <= wanted]
    return not_newer[-1] if not_newer else next(iter(same_minor), None)


def releases_in(image: str) -> Mapping[str, str] | None:
    """Repository -> release of it, in the NeMo container of that name; None for any other image.

    `image` is a name in a registry, or of the squashed file that was imported from one.
    """
    found = _NEMO.search(image)
    return _containers().get(found[1]) if found else None


def container_tags() -> tuple[str, ...]:
    """The tags of NeMo containers of which something is known, oldest first."""
    return tuple(_containers())


def newest_container() -> str:
    """NVIDIA's NeMo container of the newest release of which every repository's is known."""
    known = [tag for tag, releases in _containers().items() if {*releases} == {*get_args(Repository)}]
    return f"nvcr.io/nvidia/nemo:{known[-1]}"


def containers_with(script: str, release: str) -> tuple[str, ...]:
    """The tags of NeMo containers that hold that release of the script."""
    repository = repository_of(script)
    return tuple(
        tag
        for tag, releases in _containers().items()
        if repository in releases and match_release(script, releases[repository]) == release
    )


def _number(release: str) -> tuple[int, ...]:
    found = _NUMBER.match(release)
    return tuple(map(int, found[1].split("."))) if found else ()


def _flags_of(releases: Mapping[str, Any], release: str) -> dict[str, Mapping[str, Any]]:
    """Flag -> facts; a release may be written as what it changed of an earlier one."""
    entry = releases[release]
    flags = _flags_of(releases, entry["same_as"]) if "same_as" in entry else {}
    for name in entry.get("without", ()):
        del flags[name]
    return {**flags, **entry.get("flags", {})}


@functools.cache
def _flags(script: str, release: str) -> tuple[Flag, ...]:
    """Its own, after what a function of the repository adds to the parser of each of its scripts."""
    entry = _table()["scripts"][script]
    shared = _table()["shared"][entry["shared"]]["releases"] if "shared" in entry else {}
    found = (_flags_of(shared, release) if shared else {}) | _flags_of(entry["releases"], release)
    flags = []
    for name, facts in found.items():
        lists = {key: tuple(facts[key]) for key in ("choices", "commands") if key in facts}
        rest = {key: value for key, value in facts.items() if key != "also"}
        flags.append(Flag(names=(name, *facts.get("also", ())), **{**rest, **lists}))
    return tuple(flags)


@functools.cache
def _table() -> Mapping[str, Any]:
    return MappingProxyType(json.loads((_UPSTREAM / "flags.json").read_text(encoding="utf-8")))


@functools.cache
def _containers() -> Mapping[str, Mapping[str, str]]:
    import yaml

    content = yaml.safe_load((_UPSTREAM / "releases.yaml").read_text(encoding="utf-8"))
    return MappingProxyType({tag: MappingProxyType(releases) for tag, releases in content.items()})
