"""`nemo experiment plan`: what a job would need and do, and everything that is wrong with it, without submitting."""

from pathlib import Path
from typing import Annotated

import typer

from scripts.run.problems import ProblemsError

_REFUSED = 2


def plan(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A name from `nemo experiment recipes`.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="The words that `nemo experiment run` would be given."),
    ] = None,
    config: Annotated[str | None, typer.Option(help="A YAML file, or the name of a shipped config.")] = None,
    profiles: Annotated[Path | None, typer.Option(help="A file of executor profiles, instead of your own.")] = None,
    force: Annotated[list[str] | None, typer.Option(metavar="NAME", help="As `run` has it (repeatable).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document; configs/schemas/plan.json.")] = False,
) -> None:
    """Say whether a job fits, where its memory goes, what each rank runs, and what is wrong. No GPU, no network.

    Example: nemo experiment plan quantize_fp8 executor=slurm args.hf_model_id=Qwen/Qwen3-30B-A3B executor.nodes=2

    Exit status: 0 when `run` would submit it, 2 when it would refuse.
    """
    from recipes.cli import show
    from recipes.cli.document import print_json
    from recipes.cli.passthrough import passed_through
    from recipes.cli.request import request_of
    from recipes.experiment.examine import Options, Stage, examine
    from recipes.planner.plan import plan_of

    options = Options(profiles=profiles, online=False, force=frozenset(force or ()))
    try:
        request = request_of(recipe, words or [], config, passed_through(ctx), options)
        stage = Stage(name=recipe, partial=request.partial)
        found = plan_of(examine([stage], request.executor, request.options), request.problems)
    except ProblemsError as error:
        show.Output(as_json=as_json).problems(error.problems)
        raise typer.Exit(_REFUSED) from None
    if as_json:
        print_json(found.as_data())
    else:
        print(found)
    raise typer.Exit(_REFUSED if found.refused else 0)
