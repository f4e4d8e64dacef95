"""`nemo experiment verdict`: may what a run left be shipped?"""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from recipes.cli.document import FAILED, AsJson, answer, exits, say, share
from recipes.cli.manage import RunId
from scripts.run import schema

if TYPE_CHECKING:
    from recipes.experiment.runs import Run

#: Of the perplexity, where nobody says what is allowed.
_INCREASE = 0.01


def verdict(
    run_id: RunId,
    max_increase: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Of the perplexity, above the model's; 1%.")
    ] = None,
    max_kl: Annotated[float | None, typer.Option(min=0.0, help="KL divergence from the model, nats a token.")] = None,
    min_agreement: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Of tokens whose likeliest next one is the model's.")
    ] = None,
    max_size: Annotated[str | None, typer.Option(metavar="SHARE", help="Of the model's bytes.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Of an evaluation: what each task must reach.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(min=0.0, help="Of an evaluation: how far a task may be below the baseline.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a checkpoint by what its run measured: accept, regression, anomalous or infeasible.

    Example: nemo experiment verdict latest --max-increase 0.5% --min-agreement 95%

    Without an option, the run's own gate is what it is held to; where it has none, 1% more perplexity.

    Figures come with 95% intervals (paired bootstrap over the samples); a limit within one is a doubt, which is said.
    What holds something else by now than was measured is infeasible; it is read again where it has changed since.
    Exit status: 0 for accept, 1 for the others.
    """
    from recipes.experiment.run_ids import find_run
    from recipes.experiment.runs import look
    from scripts.evaluation.gate import GATE_FAILED
    from scripts.evaluation.verdict import Limits, judge
    from scripts.serving.flaws import REPORT

    with exits(as_json=as_json):
        limits = Limits(
            max_increase=share(max_increase, "--max-increase"),
            max_kl=max_kl,
            min_agreement=share(min_agreement, "--min-agreement"),
            max_size=share(max_size, "--max-size"),
            min_score=min_score,
            max_drop=max_drop,
        )
        run = look([find_run(run_id)])[0]
        report = run.report or run.read_report(REPORT) or {}
        given: dict[str, float] = {}
        if not limits.asked:  # what its own gate says, else what is mostly asked for
            own = schema.mapping(schema.mapping(run.record.get("verdict")).get("limits"))
            given = {name: value for name, value in own.items() if schema.number(value) is not None}
            limits = Limits.of(given) if given else limits
        if limits.max_increase is None and isinstance(report.get("evaluation"), dict) and not given:
            limits = replace(limits, max_increase=_INCREASE)
        # One that failed by what it measured has made all that there is to judge.
        done = schema.mapping(run.record.get("error")).get("name") == GATE_FAILED or "answers" in report
        found = judge("succeeded" if done else run.state, report, limits)
        if changed := _changed(run):
            found = replace(found, answer="infeasible", reasons=changed)
    status = 0 if found.answer == "accept" else FAILED
    if as_json:
        answer({"id": run.id, **found.as_data()}, status=status)
        raise typer.Exit(status)
    say(f"{found.answer:10}  {run.id}")
    for reason in found.reasons:
        say(f"{'':10}  {reason}")
    for doubt in found.doubts:
        say(f"{'doubt':10}  {doubt}")
    raise typer.Exit(status)


def _changed(run: "Run") -> tuple[str, ...]:
    """What it left on this machine's disks that is not any more what was measured."""
    from recipes.artifacts.artifact import artifacts_of
    from recipes.experiment.index import refreshed

    left = [one for one in artifacts_of([run]) if one.digest is not None and one.place is not None]
    with refreshed() as index:
        changed = [one for one in left if one.place and index.content(one.place) != one.digest]
    return tuple(
        f"{one.reference} is not what was measured: nemo experiment artifacts verify {one.reference}" for one in changed
    )
