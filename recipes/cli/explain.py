"""`nemo experiment explain`: what a failure's name means, what to do, and where it is found."""

from typing import Annotated

import typer

from recipes.cli.completion import failures
from recipes.cli.document import AsJson, answer, exits
from scripts.run.names import names
from scripts.run.problems import Problem, ProblemsError, nearest

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
            answer({"names": [vars(one) for one in names().values()]})
        else:
            for one in names().values():
                print(f"{one.name:36} {one.meaning}")
        return
    found = names().get(name)
    if found is None:
        remedy = nearest(name, names(), listed=0)
        problem = Problem(name="unknown_name", key="NAME", value=name, cause="no failure is called so", remedy=remedy)
        with exits(as_json=as_json):
            raise ProblemsError([problem])
    if as_json:
        answer(vars(found))
        return
    print(found.name)
    for label, text in (("meaning", found.meaning), ("remedy", found.remedy)):
        print(f"{label:8} {text}")
    print(f"{'found':8} {', '.join(_WHERE[place] for place in found.found)}")
