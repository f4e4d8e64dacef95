"""`nemo experiment executors`: the profiles there are, a new one to edit, and whether one really works."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.cli.document import FAILED, REFUSED, AsJson, Command, Group, answer, exits, print_problems, say
from scripts.run.problems import JobError, Problem, ProblemsError

_FILES_HELP = "Read the profiles of this file in place of your own."


def register(app: typer.Typer) -> None:
    """Add the group `executors` to NeMo-Run's `experiment` group."""
    group = typer.Typer(cls=Group, invoke_without_command=True)
    group.callback()(executors)
    group.command("init", cls=Command)(init)
    group.command("check", cls=Command)(check)
    app.add_typer(group, name="executors")


def executors(
    ctx: typer.Context,
    profiles: Annotated[Path | None, typer.Option(help=_FILES_HELP)] = None,
    as_json: AsJson = False,
) -> None:
    """List the executor profiles, the files they come from, and what each can do.

    Example: nemo experiment executors

    Profiles ship with this package; your own lie over them: the nearest executors.yaml upward from
    here, then modelopt-recipes/executors.yaml in your configuration folder. Exit status: 2 when a
    file or a profile is broken.
    """
    if ctx.invoked_subcommand is not None:
        if profiles is not None or as_json:
            raise typer.BadParameter(f"options of {ctx.invoked_subcommand} stand behind it")
        return
    from executors.profiles.load import list_profiles

    sources, broken = list_profiles(profiles)
    rows = [_row(source) for source in sources]
    status = REFUSED if broken or any(source.problems for source in sources) else 0
    if as_json:
        answer({"profiles": rows}, status=status, problems=broken)
    else:
        _print_table(sources, rows)
        print_problems(broken)
    raise typer.Exit(status)


def init(
    kind: Annotated[str, typer.Argument(help="local, slurm, docker or lepton.")],
    name: Annotated[str | None, typer.Option(help="The profile's name; without it, the kind's.")] = None,
    file: Annotated[Path | None, typer.Option(help="The file to write to.")] = None,
    here: Annotated[bool, typer.Option("--here", help="Write to executors.yaml in this folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented profile to edit, into your configuration folder. What is there already is left as it is.

    Example: nemo experiment executors init slurm --name dgx-h100
    """
    from executors.constraints import to_set_first
    from executors.kinds import kind_of
    from executors.profiles.init import add_profile

    if file is not None and here:
        raise typer.BadParameter("give --file or --here, not both")
    with exits(as_json=as_json):
        target = add_profile(kind, name or kind, Path("executors.yaml") if here else file)
    first = to_set_first(kind_of(kind).profile)
    if as_json:
        answer({"name": name or kind, "file": str(target), "to_set": first})
        return
    for number, (key, what) in enumerate(first.items()):
        say(f"{'' if number else 'set first':10} {key:14} {what}")
    flag = f" --profiles {target}" if file is not None else ""
    say(f"wrote      {target}\nedit it, then: nemo experiment executors check {name or kind}{flag}")


def check(
    name: Annotated[str, typer.Argument(help="A name from `nemo experiment executors`.")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values over the profile's.")
    ] = None,
    profiles: Annotated[Path | None, typer.Option(help=_FILES_HELP)] = None,
    as_json: AsJson = False,
) -> None:
    """Try whether a job could really run there, one thing after another.

    Example: nemo experiment executors check slurm partition=h100

    Exit status: 0 when everything passed, 1 when something failed, 2 when the profile is broken.
    """
    from executors.base import Probe
    from executors.kinds import place_of
    from executors.profiles.load import load_profile

    overrides, problems = _overrides(words or [])
    profile, wrong = load_profile(name, overrides, files=profiles)
    problems += wrong
    place = place_of(profile)
    if not problems:
        problems += place.problems()
    if problems:
        with exits(as_json=as_json):
            raise ProblemsError(problems)

    def tried() -> Iterator[Probe]:
        try:
            yield from place.probes()
        except JobError as error:  # no answer at all: the probes behind this one were not tried
            yield Probe(name=error.name, passed=False, detail=error.cause, remedy=error.remedy)

    probes = []
    for probe in tried():
        probes.append(probe)
        if not as_json:
            say(f"{'pass' if probe.passed else 'FAIL'}  {probe.name:16} {probe.detail}")
            if not probe.passed and probe.remedy:
                say(f"      {'':16} {probe.remedy}")
    failed = sum(not probe.passed for probe in probes)
    if as_json:
        rows = [dataclasses.asdict(probe) for probe in probes]
        found = {"name": name, "kind": place.title, "passed": not failed, "probes": rows}
        answer(found, status=FAILED if failed else 0)
    else:
        say(f"{len(probes) - failed} passed, {failed} failed")
    if failed:
        raise typer.Exit(FAILED)


def _overrides(words: Sequence[str]) -> tuple[dict[str, str], list[Problem]]:
    """`KEY=VALUE` words; `executor.KEY=VALUE`, as `run` takes them, is the same."""
    values, problems = {}, []
    for word in words:
        key, equals, value = word.partition("=")
        if key and equals:
            values[key.removeprefix("run.").removeprefix("executor.")] = value
        else:
            cause = "a word of the form KEY=VALUE is expected"
            problems.append(Problem(name="not_an_override", key=word, value=None, cause=cause))
    return values, problems


def _row(source: Any) -> dict[str, Any]:
    """A profile as plain data; `unfinished` is what it needs before a job can run there."""
    from executors.kinds import place_of

    place = place_of(source.profile) if source.profile is not None else None
    return {
        "name": source.name,
        "kind": source.kind,
        "files": [str(file) for file in source.files],
        "capabilities": dataclasses.asdict(place.capabilities) if place else None,
        "summary": _in_words(place.capabilities) if place else "",
        "unfinished": [problem.as_data() for problem in place.problems()] if place and not source.problems else [],
        "problems": [problem.as_data() for problem in source.problems],
    }


def _in_words(can: Any) -> str:
    by = {"native": "by itself", "supervisor": "by a supervisor"}
    parts = [f"detaches {by[can.detach]}"]
    if can.dependencies != can.detach:
        parts.append(f"dependencies {by[can.dependencies]}")
    parts.append("several nodes" if can.multi_node else "one node")
    parts.append("containers" if can.containers else "no containers")
    if can.arrays:
        parts.append("sweeps as one job")
    return ", ".join(parts)


def _print_table(sources: Sequence[Any], rows: Sequence[dict[str, Any]]) -> None:
    from executors.kinds import SHIPPED

    width = max((len(row["name"]) for row in rows), default=0)
    for source, row in zip(sources, rows, strict=True):
        say(f"{source.name:{width}}  {source.kind or '?':7} {row['summary']}".rstrip())
        files = [f"{file} (shipped)" if Path(file).parent == SHIPPED else file for file in row["files"]]
        say(f"{'':{width}}  from    {', '.join(files)}")
        if row["unfinished"]:
            keys = ", ".join(problem["key"].removeprefix("executor.") for problem in row["unfinished"])
            say(f"{'':{width}}  to do   {keys}  (nemo experiment executors check {row['name']})")
        for problem in row["problems"]:
            say(f"{'':{width}}  {problem['text']}")
