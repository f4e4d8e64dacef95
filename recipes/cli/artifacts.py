"""`nemo experiment artifacts`: what runs left, whether it is whole, and what it was made of."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipes.cli.completion import artifact_types, references, tag_names
from recipes.cli.document import FAILED, AsJson, Command, Group, answer, exits, say, write_new
from scripts.run.files import is_there
from scripts.run.schema import mapping

if TYPE_CHECKING:
    from recipes.artifacts.artifact import Artifact
    from recipes.artifacts.verification import Verification

_LIST = "list"
#: Of a digest, where people read it.
_DIGITS = 12
Reference = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="A name that was given, a run, RUN.TYPE, a path, or 8 digits or more of a digest.",
        autocompletion=references,
    ),
]


class _Artifacts(Group):
    """`artifacts` and `artifacts TYPE` are `artifacts list` and `artifacts list TYPE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first not in self.commands and first not in ("-h", "--help"):
            args = [_LIST, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


_HELP = """List what runs left; artifacts TYPE: those of one type. --json: as one document.

Example: nemo experiment artifacts checkpoint_hf
"""


def register(app: typer.Typer) -> None:
    """Add the group `artifacts`."""
    group = typer.Typer(cls=_Artifacts, help=_HELP)
    for function in (show, verify, lineage, export, tag, untag):
        group.command(function.__name__, cls=Command)(function)
    group.command(_LIST, cls=Command, hidden=True)(listed)
    app.add_typer(group, name="artifacts")


def listed(
    kind: Annotated[
        str | None, typer.Argument(metavar="TYPE", help="Of one type.", autocompletion=artifact_types)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what runs left, the oldest first.

    Example: nemo experiment artifacts checkpoint_hf
    """
    from recipes.artifacts.artifact import artifacts_of
    from recipes.experiment.settled import known_runs
    from recipes.experiment.tags import tags
    from scripts.run.drawing import size_text
    from scripts.run.problems import Problem, ProblemsError, nearest

    with exits(as_json=as_json):
        runs = known_runs()
        found = artifacts_of(runs, kind)
        named = {f"{one.run}.{one.type}": name for name, one in tags().items()}
        if kind is not None and not found:
            cause, remedy = "no run left one", nearest(kind, sorted({one.type for one in artifacts_of(runs)}))
            raise ProblemsError([Problem(name="unknown_artifact", key="TYPE", value=kind, cause=cause, remedy=remedy)])
    if as_json:
        answer({"artifacts": [one.as_data() | {"tag": named.get(one.reference)} for one in found]})
        return
    width = max((len(one.reference) for one in found), default=0)
    for one in found:
        place = one.place
        where = "" if place is None or is_there(place) else "  gone"
        digest = (one.digest or "").removeprefix("sha256:")[:_DIGITS]
        called = named.get(one.reference, "")
        line = f"{one.reference:{width}}  {size_text(one.bytes):>7}  {digest:{_DIGITS}}{where}  {called}"
        say(line.rstrip(), as_line=True)
    if not found:
        say("No run left anything here.")


def show(reference: Reference, as_json: AsJson = False) -> None:
    """Say what is known of an artifact: where it lies, its digest, what made it, and of what.

    Example: nemo experiment artifacts show latest:quantize_fp8.checkpoint_hf
    """
    with exits(as_json=as_json):
        found = _found(reference)
    made = ("recipe", "versions", "command", "code", "git", "inputs")
    if as_json:
        rows = [one.as_data() | {"made_by": {key: one.run.record.get(key) for key in made}} for one in found]
        answer({"artifacts": rows})
        return
    for number, one in enumerate(found):
        if number:
            say("")
        for key, value in _facts(one):
            say(f"{key:10} {value}", as_line=True)


def verify(reference: Reference, as_json: AsJson = False) -> None:
    """Read artifacts again, every byte, and say whether each is what its run left.

    Example: nemo experiment artifacts verify latest

    Exit status: 1 where one is damaged or gone.
    """
    from recipes.artifacts.verification import verify as verified
    from scripts.run.problems import JobError

    with exits(as_json=as_json):
        found = _found(reference)
        try:
            with reading(sum(one.bytes for one in found)) as advance:
                seen = [verified(one, advance) for one in found]
        except OSError as error:
            raise JobError.of_os_error(error) from error
    status = 0 if all(one.sound for one in seen) else FAILED
    if as_json:
        answer({"artifacts": [one.as_data() for one in seen]}, status=status)
    for one in () if as_json else seen:
        say(f"{one.state:10} {one.artifact.reference}  {one.artifact.place or one.artifact.path}", as_line=True)
        for line in _damage(one):
            say(f"{'':10} {line}", as_line=True)
    raise typer.Exit(status)


def lineage(
    reference: Reference,
    dot: Annotated[bool, typer.Option("--dot", help="As a graph for Graphviz.")] = False,
    svg: Annotated[bool, typer.Option("--svg", help="As a picture that a browser shows.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where the graph or picture goes.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what an artifact was made of, and that of what, as a tree.

    Example: nemo experiment artifacts lineage latest:export --svg -o lineage.svg
    """
    from recipes.artifacts.artifact import Artifact, artifacts_of
    from recipes.artifacts.lineage import as_dot, lines_of
    from recipes.artifacts.lineage import lineage as traced
    from recipes.artifacts.lineage_svg import as_svg
    from recipes.experiment.settled import known_runs
    from scripts.run.problems import Problem, ProblemsError

    with exits(as_json=as_json):
        forms = [name for name, asked in (("--dot", dot), ("--svg", svg), ("--json", as_json)) if asked]
        if len(forms) > 1 or (output is not None and forms in ([], ["--json"])):
            cause, remedy = (
                "it is one of them",
                "Name one of --dot and --svg, and where it goes with --output; or --json.",
            )
            said = forms[1] if len(forms) > 1 else output
            key = forms[0] if len(forms) > 1 else "--output"
            raise ProblemsError([Problem(name="contradiction", key=key, value=said, cause=cause, remedy=remedy)])
        found = _found(reference)
        known = artifacts_of(known_runs())
        trees = [traced(one, known) for one in found]
        graph = as_svg(trees) if svg else "\n".join(map(as_dot, trees)) if dot else ""
        if output is not None:
            write_new(output, graph + "\n", "--output")
            return
    if graph:
        say(graph)
        return
    if as_json:
        answer({"artifacts": [tree.as_data() for tree in trees]})
        return
    for tree in trees:
        for branch, node, again in lines_of(tree):
            of = node.of
            digest = (of.digest or "").removeprefix("sha256:")[:_DIGITS]
            elsewhere = "" if isinstance(of, Artifact) or of.made_by is None else f", by {of.made_by}"
            name = of.reference if isinstance(of, Artifact) else f"{of.name}  ({of.type}{elsewhere})"
            say(f"{branch}{name}  {digest}{'  (see above)' if again else ''}".rstrip(), as_line=True)


def export(
    reference: Reference,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A folder that is made.")],
    as_json: AsJson = False,
) -> None:
    """Copy an artifact out, whole or not at all, with what it was made of and a model card: ready for a hub.

    Example: nemo experiment artifacts export latest.checkpoint_hf -o qwen3-8b-fp8

    What is copied is held against the digest that its run wrote. Exit status: 1 where it is damaged, gone, or on a disk
    that is not seen from here.
    """
    from recipes.artifacts.artifact import artifacts_of
    from recipes.artifacts.export import export as copied
    from recipes.experiment.settled import known_runs
    from scripts.run.problems import JobError

    with exits(as_json=as_json):
        one = _only(reference)
        try:
            with reading(one.bytes) as advance:
                done = copied(one, output, artifacts_of(known_runs()), advance)
        except OSError as error:
            raise JobError.of_os_error(error) from error
    upload = f"hf upload ORG/NAME {shlex.quote(str(output))}"
    if as_json:
        answer(
            one.as_data()
            | {"exported": str(output), "verified": one.digest is not None, "added": done, "upload": upload}
        )
        return
    said = "intact" if one.digest else "copied; its run wrote no digest that it could be held against"
    say(f"{said:10} {one.reference}  {output}", as_line=True)
    for name in done:
        say(f"{'added':10} {name}")
    say(f"{'upload it':10} {upload}")


def tag(
    reference: Reference,
    name: Annotated[str, typer.Argument(metavar="NAME", help="qwen3-fp8, or qwen3-fp8:v2.")],
    as_json: AsJson = False,
) -> None:
    """Give an artifact a name, which stands for it wherever a reference does: ${artifact:NAME} in a value.

    Example: nemo experiment artifacts tag latest:quantize_fp8.checkpoint_hf qwen3-fp8

    A name that stands for another is moved. What has a name, `rm` and `prune` leave.
    """
    from recipes.experiment.tags import Tag, give

    with exits(as_json=as_json):
        found = _only(reference)
        before = give(name, Tag(run=found.run.id, type=found.type, digest=found.digest))
    if as_json:
        answer({"name": name, "reference": found.reference, "before": before and f"{before.run}.{before.type}"})
        return
    moved = f", and no more for {before.run}.{before.type}" if before else ""
    say(f"{name} stands for {found.reference}{moved}")


def untag(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that was given.", autocompletion=tag_names)],
    as_json: AsJson = False,
) -> None:
    """Forget a name; what it stood for stays.

    Example: nemo experiment artifacts untag qwen3-fp8
    """
    from recipes.experiment.tags import take

    with exits(as_json=as_json):
        stood = take(name)
    if as_json:
        answer({"name": name, "reference": f"{stood.run}.{stood.type}"})
    else:
        say(f"{name} stood for {stood.run}.{stood.type}")


def _found(reference: str) -> "list[Artifact]":
    from recipes.artifacts.artifact import find_artifacts

    return find_artifacts(reference)


def _only(reference: str) -> "Artifact":
    """The one artifact that a word names. Raises ProblemsError."""
    from scripts.run.problems import Problem, ProblemsError

    found = _found(reference)
    if len(found) > 1:
        cause = f"it stands for {', '.join(one.type for one in found)}"
        remedy = f"Say which: {found[0].run.id}.TYPE."
        wrong = Problem(name="several_artifacts", key="REF", value=reference, cause=cause, remedy=remedy)
        raise ProblemsError([wrong])
    return found[0]


@contextmanager
def reading(total: int) -> Iterator[Callable[[int], None]]:
    """A bar of so many bytes, with rate and time left, on a terminal; nothing elsewhere, where the result counts."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda read: None
        return
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda read: progress.advance(task, read)


def _facts(one: "Artifact") -> Iterator[tuple[str, object]]:
    from scripts.run.drawing import size_text

    record = one.run.record
    yield "artifact", one.reference
    yield "path", one.path
    place = one.place
    if one.in_store:
        yield "here", "it is in a store; artifacts verify reads it there"
    elif place is None:
        yield "here", "its disk is not seen from here"
    elif not is_there(place):
        yield "here", "it is gone, or cannot be looked at"
    files = "" if one.files is None else f" in {one.files} file{'' if one.files == 1 else 's'}"
    yield "size", f"{size_text(one.bytes)}{files}"
    yield "digest", one.digest or "its run wrote none"
    yield "made", f"{one.made_at} by {record.get('recipe')} on {one.run.where}"
    versions, code, git = (mapping(record.get(key)) for key in ("versions", "code", "git"))
    if versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if code.get("digest") or git.get("commit"):
        yield "code", " ".join(filter(None, [str(git.get("commit") or ""), str(code.get("digest") or "")]))
    for row in record.get("inputs") or []:
        made = f", by {row['run']}" if row.get("run") else ""
        yield "made of", f"{row['name']}  ({row['type']}{made})  {row.get('digest') or ''}".rstrip()


def _damage(one: "Verification") -> Iterator[str]:
    for what in ("changed", "missing", "extra"):
        for name in getattr(one, what):
            yield f"{what}: {name}"
    if one.unnamed:
        yield "which files: not known; the list of them that its run wrote is not here, or damaged"
