"""`nemo experiment bundle`, `run --bundle` and `rerun`: what was run, again, here or elsewhere."""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipes.cli.artifacts import reading
from recipes.cli.asked import Asked, Attached, Batch, Line, Profiles, RecipeCommand, Words, asked_of_pipeline
from recipes.cli.completion import run_ids
from recipes.cli.document import AsJson, Command, Quiet, answer, exits, print_problems, say
from scripts.run.problems import JobError, Problem, ProblemsError

if TYPE_CHECKING:
    from recipes.experiment.stage import Options

OfBundle = Annotated[
    Path | None, typer.Option("--bundle", metavar="FILE", help="Instead of a recipe: what `bundle` wrote down.")
]
Repeated = Annotated[
    str,
    typer.Argument(metavar="ID", help="A run's id, a part of it, latest, or a pipeline's id.", autocompletion=run_ids),
]
#: How a command line is looked at and carried out, once somebody says what it asks for.
CarryOut = Callable[..., None]


def register(app: typer.Typer, carry_out: CarryOut) -> None:
    """Add the commands; `carry_out` does what `run` does with what is asked for."""

    def rerun(
        ctx: typer.Context,
        run_id: Repeated,
        words: Words = None,
        attached: Attached = None,
        batch: Batch = None,
        profiles: Profiles = None,
        name: Annotated[str | None, typer.Option(help="How the new run's id begins.")] = None,
        dryrun: Annotated[bool, typer.Option("--dryrun", "--dry-run", "-d", help="As `run` has it.")] = False,
        detach: Annotated[bool, typer.Option("--detach", help="Return at once.")] = False,
        force: Annotated[list[str] | None, typer.Option(metavar="NAME", help="As `run` has it (repeatable).")] = None,
        yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
        as_json: AsJson = False,
        quiet: Quiet = False,
        verbose: Annotated[bool, typer.Option("--verbose", help="Show tracebacks.")] = False,
    ) -> None:
        """Run again what a run or a pipeline was, with the same values, as a new one; words change some of them.

        Example: nemo experiment rerun latest:quantize_fp8 args.calib_size=64

        Values are those that were asked for, on the executor that it had. Of a pipeline every stage is run:
        nemo experiment rerun mine_1126-0805-47f9a1 quantize.args.calib_size=64 executor=slurm
        """
        from recipes.experiment.bundle import bundle_of

        def asked(options: "Options", stack: ExitStack) -> Asked:
            return asked_again(bundle_of(run_id).data, Path(run_id), Line.of(ctx, words), options, attached or batch)

        said: dict[str, Any] = {"attached": attached, "batch": batch, "profiles": profiles, "name": name}
        said |= {"dryrun": dryrun, "detach": detach, "force": force, "fresh": True, "yes": yes}
        carry_out(asked, **said, as_json=as_json, quiet=quiet, verbose=verbose)

    app.command("bundle", cls=Command)(bundle)
    app.command("rerun", cls=RecipeCommand)(rerun)


def bundle(
    run_id: Repeated,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where to; none is overwritten.")],
    with_inputs: Annotated[
        bool, typer.Option("--with-inputs", help="With the models, data and checkpoints of this machine, whole.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write down all that it takes to run something again elsewhere: values, structure, own files, versions, digests.

    Example: nemo experiment bundle latest:quantize_fp8 -o run.tar.gz

    And there: nemo experiment run --bundle run.tar.gz executor=local. Inputs are named by their digests, and verified
    where it is run. Secrets are named, and never in it.
    """
    from recipes.experiment.bundle import inputs_here, pack
    from recipes.experiment.bundle_file import refuse_place, write
    from recipes.experiment.removal import bytes_of
    from scripts.run.drawing import size_text

    with exits(as_json=as_json):
        refuse_place(output)
        try:
            with reading(bytes_of(inputs_here(run_id))) as advance:
                made = pack(run_id, advance, with_inputs=with_inputs)
        except OSError as error:
            raise JobError.of_os_error(error) from error
        with reading(made.bytes) as advance:
            write(output, made.data, made.sources, advance)
        print_problems(made.problems)
        size = output.stat().st_size
    inputs = [{key: row[key] for key in ("stage", "field", "name", "digest")} for row in made.data["inputs"]]
    if as_json:
        found = {"id": made.data["id"], "file": str(output), "bytes": size, "stages": list(made.data["stages"])}
        answer({**found, "inputs": inputs}, problems=made.problems)
        return
    say(f"written    {output}  ({size_text(size)}: {made.data['id']}, {len(made.data['stages'])} of its stages)")
    for row in made.data["inputs"]:
        where = "in it" if row["tree"] is not None else "not in it, known by its digest"
        say(f"input      {row['stage']}.args.{row['field']}={row['name']}  {where}", as_line=True)
    say(f"run it     nemo experiment run --bundle {output}")


def asked_of_bundle(file: Path, line: Line, said: str | None) -> "Callable[[Options, ExitStack], Asked]":
    """What a bundle asks for, with words over its values; `said`: the profile of -r or -b."""
    from recipes.experiment.bundle import code_of, other_versions
    from recipes.experiment.bundle_file import read

    def asked(options: "Options", stack: ExitStack) -> Asked:
        data = read(file)
        stack.enter_context(_unpacked(file, data))
        options = replace(options, code=code_of(data))
        found = asked_again(data, file, line, options, said)
        return replace(found, problems=[*other_versions(data), *found.problems])

    return asked


@contextmanager
def _unpacked(file: Path, data: Mapping[str, Any]) -> Iterator[None]:
    """With what goes along where stages look for it. Who asks only, or is refused, leaves nothing behind."""
    from recipes.experiment.bundle import folder_of
    from recipes.experiment.bundle_file import unpack
    from recipes.experiment.store import folders_there

    folder, known = folder_of(data), folders_there()
    made = [path for path in (folder, *folder.parents[:2]) if not path.exists()]
    if made:
        try:
            with reading(sum(facts["bytes"] for facts in data["files"].values())) as advance:
                unpack(file, data, folder, advance)
        except JobError:
            if not folder.is_dir():  # else another process was faster
                raise
    try:
        yield
    finally:
        if folder in made and folders_there() == known:
            shutil.rmtree(folder, ignore_errors=True)
            for path in made[1:]:
                with suppress(OSError):
                    path.rmdir()


def asked_again(data: Mapping[str, Any], file: Path, line: Line, options: "Options", said: str | None) -> Asked:
    """What bundle.json asks for, as a command line does, on its executors unless words or `said` name another."""
    from recipes.experiment.bundle import contents
    from recipes.experiment.pipeline import of_content
    from recipes.values import parse_words

    parsed, _ = parse_words(list(line.words))
    stages = data["stages"]
    said = said or parsed.executor
    executors = {
        name: parsed.recipe.get(f"{name}.executor", said or stage["executor"]) for name, stage in stages.items()
    }
    runs_here = {name: _runs_here(executor, options) for name, executor in executors.items()}
    python_of = {name: sys.executable if here else "python" for name, here in runs_here.items()}
    content = contents(data, python_of)
    one = next(iter({stage["executor"] for stage in stages.values()})) if len({*executors.values()}) == 1 else None
    if data["pipeline"] is not None:
        pipeline = of_content({"stages": content}, file, data["pipeline"] or "bundle")
        told: dict[str, dict[str, str]] = {}
        if said is None:
            own = {name: {} if one is not None else {"": stage["executor"]} for name, stage in stages.items()}
            told = {name: {**own[name], **_texts(stage["profile"])} for name, stage in stages.items()}
            told = {name: values for name, values in told.items() if values}
        asked = asked_of_pipeline(pipeline, line, options, told)
    else:
        ((_, values),) = content.items()
        profile = _texts(next(iter(stages.values()))["profile"]) if said is None else {}
        asked = _asked_of_one(values, data["id"], line, options, profile)
    if said is None:
        asked = replace(asked, executor=one)
    found = _inputs_of(data, asked, runs_here) if asked.whole else []
    forced = asked.options.force
    found = [replace(each, severity="forced") if each.can_force and each.name in forced else each for each in found]
    done = {each.name for each in found if each.severity == "forced"}
    return replace(asked, problems=[*asked.problems, *found], options=replace(asked.options, force=forced - done))


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def _runs_here(executor: str, options: "Options") -> bool:
    from recipes.experiment.examine import place_named

    place = place_named(executor, replace(options, overrides={}))[0]
    return place is not None and place.runs_here


def _asked_of_one(
    content: Mapping[str, Any], run_id: str, line: Line, options: "Options", profile: Mapping[str, str]
) -> Asked:
    """A single run. Raises ProblemsError where its recipe is of a family that there is not."""
    from recipes.catalogue import find
    from recipes.experiment.stage import Stage
    from recipes.values import merge, parse_sweep, parse_words, set_value

    parsed, problems = parse_words(list(line.words))
    grid, faults = parse_sweep(list(line.sweep))
    partial = find(content["recipe"]).build()
    wrong = merge(partial, {key: value for key, value in content.items() if key not in ("recipe", "after")})
    for key, value in parsed.recipe.items():
        problems += set_value(partial, key, value)
    partial.extra_args = [*partial.extra_args, *line.passthrough]
    if line.configs:
        cause, remedy = "what is repeated has all of its values", "Write KEY=VALUE for each that is to be another."
        problems.append(
            Problem(name="contradiction", key="--config", value=line.configs[0], cause=cause, remedy=remedy)
        )
    stage = Stage(name=partial.recipe, partial=partial, title=run_id.rpartition("_")[0])
    options = replace(options, overrides={**profile, **parsed.profile})
    return Asked(
        stages=(stage,),
        executor=parsed.executor,
        options=options,
        problems=[*wrong, *problems, *faults],
        whole=not wrong,
        grid=grid,
    )


def _inputs_of(data: Mapping[str, Any], asked: Asked, runs_here: Mapping[str, bool]) -> list[Problem]:
    """What of the inputs is not what the runs read."""
    from fiddle import build

    from recipes.experiment.bundle import verified
    from recipes.experiment.index import refreshed

    stages = {stage.name: stage for stage in asked.stages}
    found = []
    with refreshed() as index:
        for row in data["inputs"]:
            name = row["stage"] if data["pipeline"] is not None else next(iter(stages))
            if name not in stages:
                raise ProblemsError([_strange(row)])
            key = f"{name}.args.{row['field']}" if data["pipeline"] is not None else f"args.{row['field']}"
            args = build(stages[name].partial.args)
            found.append(verified(row, key, args, here=runs_here.get(row["stage"], False), digest_of=index.content))
    return list(dict.fromkeys(one for one in found if one is not None))


def _strange(row: Mapping[str, Any]) -> Problem:
    cause = "an input is of a stage that it does not hold"
    return Problem(name="unreadable_bundle", key="--bundle", value=row["stage"], cause=cause)
