"""`nemo experiment explain`: what a failure's name means, what to do, and where it is found."""

from typing import Annotated

import typer

from recipes.cli.completion import failures
from recipes.cli.document import REFUSED, AsJson, print_json
from scripts.run.names import names
from scripts.run.problems import Problem, nearest

_WHERE = {"submit": "before a job is submitted", "node": "where it runs", "log": "in its logs, by their words"}


def explain(
    name: Annotated[
        str | None, typer.Argument(help="A Problem's, an error's or a diagnosis's name.", autocompletion=failures)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a name of a failure means and what to do about it; without a name, list all of them.

    Example: nemo experiment explain world_size_not_divisible

    Exit status: 2 when there is no such name.
    """
    if name is None:
        if as_json:
            print_json([vars(one) for one in names().values()])
        else:
            for one in names().values():
                print(f"{one.name:36} {one.meaning}")
        return
    found = names().get(name)
    if found is None:
        remedy = nearest(name, names(), listed=0)
        problem = Problem(name="unknown_name", key="NAME", value=name, cause="no failure is called so", remedy=remedy)
        if as_json:
            print_json({"state": "refused", "problems": [problem.as_data()]})
        typer.echo(str(problem), err=True)
        raise typer.Exit(REFUSED)
    if as_json:
        print_json(vars(found))
        return
    print(found.name)
    for label, text in (("meaning", found.meaning), ("remedy", found.remedy)):
        print(f"{label:8} {text}")
    print(f"{'found':8} {', '.join(_WHERE[place] for place in found.found)}")
