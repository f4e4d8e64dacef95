"""`nemo experiment verdict`: may what a run left be shipped?"""

from typing import Annotated

import typer

from recipes.cli.document import FAILED, AsJson, answer, exits, say, share
from recipes.cli.manage import RunId


def verdict(
    run_id: RunId,
    max_increase: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Of the perplexity, above the model's.")
    ] = "1%",
    max_kl: Annotated[float | None, typer.Option(min=0.0, help="KL divergence from the model, nats a token.")] = None,
    min_agreement: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Of tokens whose likeliest next one is the model's.")
    ] = None,
    max_size: Annotated[str | None, typer.Option(metavar="SHARE", help="Of the model's bytes.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a quantized checkpoint by what its run measured: accept, regression, anomalous or infeasible.

    Example: nemo experiment verdict latest --max-increase 0.5% --min-agreement 95%

    Figures come with 95% intervals (paired bootstrap over the samples); a limit within one is a doubt, which is said.
    Exit status: 0 for accept, 1 for the others.
    """
    from recipes.artifacts.verdict import Limits, judge
    from recipes.experiment.run_ids import find_run
    from recipes.experiment.runs import look

    with exits(as_json=as_json):
        limits = Limits(
            increase=share(max_increase, "--max-increase"),
            kl=max_kl,
            agreement=share(min_agreement, "--min-agreement"),
            size=share(max_size, "--max-size"),
        )
        found = judge(look([find_run(run_id)])[0], limits)
    status = 0 if found.answer == "accept" else FAILED
    if as_json:
        answer(found.as_data(), status=status)
        raise typer.Exit(status)
    say(f"{found.answer:10}  {found.run.id}")
    for reason in found.reasons:
        say(f"{'':10}  {reason}")
    for doubt in found.doubts:
        say(f"{'doubt':10}  {doubt}")
    raise typer.Exit(status)
