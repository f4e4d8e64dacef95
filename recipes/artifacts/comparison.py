"""Runs side by side: what each cost in quality and saved in size, which of them nobody should take, and which to take.

Figures are those of the runs' reports, which runs measured in the same way: only what was scored on the same text
against the same model is held against each other.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.artifacts.artifact import artifacts_of, find_runs
from recipes.artifacts.lineage import lineage
from recipes.artifacts.lineage_svg import as_svg
from recipes.catalogue import find, values_described
from recipes.experiment.runs import Run
from recipes.experiment.settled import known_runs
from scripts.args.typed import dump_yaml
from scripts.run import page
from scripts.run.drawing import size_text, svg_of, took_text
from scripts.run.problems import Problem, ProblemsError
from scripts.run.schema import listed, mapping, number

#: Of each task of a harness, how many are shown beside each other.
_MOST_TASKS = 6
#: Of the values in which runs differ; those of other recipes differ in most.
_MOST_KEYS = 4
_EVALUATION = "evaluate"
#: They leave the checkpoint that they were given, in another form.
_CONVERSIONS = ("convert", "export")
#: It says the format of runs that make one; what others make their reports name.
_FORMAT = "args.export_quant_cfg"
#: What is larger was not measured; nor was NaN.
_MOST = 1e15


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run with what was measured of it; None is what was not."""

    run: Run
    values: Mapping[str, Any]  # those in which the runs differ, by dotted key
    format: str | None  # what its report calls what was made
    basis: str | None  # the model, the text and what the model itself scores there; None: not scored
    size: int | None  # bytes of the weights it exported
    size_before: int | None
    perplexity: float | None
    perplexity_before: float | None
    kl: float | None  # nats a token
    agreement: float | None  # share of tokens whose likeliest next one is the same
    tasks: Mapping[str, float]
    seconds: float | None  # of its job, as `ps` has it

    @property
    def increase(self) -> float | None:
        """Of the perplexity, as a share of the model's own."""
        if self.perplexity is None or not self.perplexity_before:
            return None
        return self.perplexity / self.perplexity_before - 1

    @property
    def cost(self) -> float | None:
        """What it lost, the less the better: the divergence, which sees more than the perplexity."""
        return self.kl if self.kl is not None else self.increase

    def as_data(self) -> dict[str, Any]:
        names = ("size", "size_before", "perplexity", "perplexity_before", "increase", "kl", "agreement", "seconds")
        figures = {name: getattr(self, name) for name in names}
        state = {"id": self.run.id, "recipe": self.run.record.get("recipe"), "state": self.run.state}
        return state | {"values": dict(self.values), "format": self.format, **figures, "tasks": dict(self.tasks)}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows as they were asked for. `front`: no other is both smaller and better; `winner`: see `compare`."""

    rows: tuple[Row, ...]
    front: tuple[str, ...]
    winner: str | None
    within: float
    notes: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        """As `compare --json` has it."""
        facts = {"front": list(self.front), "winner": self.winner, "within": self.within, "notes": list(self.notes)}
        return {"runs": [row.as_data() for row in self.rows], **facts}

    @property
    def keys(self) -> list[str]:
        """Of the values in which the runs differ."""
        found = dict.fromkeys(key for row in self.rows for key in row.values)
        return [key for key in found if key != _FORMAT or not self.names_formats][:_MOST_KEYS]

    @property
    def names_formats(self) -> bool:
        """Whether there are runs among them whose format no value says: those of a search, of other recipes."""
        named = {row.format for row in self.rows}
        return len(named) > 1 and any(row.values.get(_FORMAT) is None for row in self.rows if row.format)

    @property
    def legend(self) -> str:
        """What the marks of `cells` mean."""
        allowed = f"perplexity is at most {self.within:.2%} above the model's"
        return f"no other is both smaller and better; the winner is the smallest whose {allowed}"

    @property
    def tasks(self) -> list[str]:
        """Those of a harness that are shown."""
        return list(dict.fromkeys(name for row in self.rows for name in row.tasks))[:_MOST_TASKS]

    @property
    def columns(self) -> tuple[str, ...]:
        """The heads of `cells`."""
        scores = ("size", "smaller", "perplexity", "change", "KL", "agreement")
        keys = (key.removeprefix("args.") for key in self.keys)
        named = ("format",) if self.names_formats else ()
        return ("#", "run", *named, *keys, *scores, *self.tasks, "took", "")

    def cells(self, row: Row) -> tuple[str, ...]:
        """One row as text; its number is what a plot calls it."""
        smaller = row.size_before / row.size if row.size and row.size_before else None
        mark = "winner" if row.run.id == self.winner else "front" if row.run.id in self.front else ""
        return (
            str(self.rows.index(row) + 1),
            row.run.id,
            *([row.format or ""] if self.names_formats else []),
            *("" if row.values.get(key) is None else str(row.values[key]) for key in self.keys),
            "" if row.size is None else size_text(row.size),
            _text(smaller, "{:.2f}x"),
            _text(row.perplexity, "{:.3f}"),
            _text(row.increase, "{:+.2%}"),
            _text(row.kl, "{:.5f}"),
            _text(row.agreement, "{:.2%}"),
            *(_text(row.tasks.get(name), "{:.4f}") for name in self.tasks),
            "" if row.seconds is None else took_text(row.seconds),
            mark if row.run.state == "succeeded" else row.run.state,
        )


def compare(words: Sequence[str], within: float) -> Comparison:
    """Runs by their words; each may name several, by how their ids begin, or all of a pipeline. Raises ProblemsError.

    An evaluation of what another of them left is no row of its own: its scores are the other's.

    The winner is the smallest of those whose perplexity is above the model's by at most `within`; of equal ones the
    one that lost least.
    """
    runs = list({run.id: run for word in words for run in find_runs(word)}.values())
    if len(runs) < 2:
        cause = f"{runs[0].id} is the only run that is named"
        raise ProblemsError([Problem(name="nothing_to_compare", key="ID", value=" ".join(words), cause=cause)])
    scored_by = _evaluations(runs)
    told = {evaluation.id for evaluations in scored_by.values() for evaluation in evaluations}
    shown = [run for run in runs if run.id not in told and not _is_between(run, told)]
    differing = _differing([run for run in shown if _is_measured(run)] or shown)
    rows = [_row(run, differing, scored_by.get(run.id, [])) for run in shown or runs]
    whole = [row for row in rows if row.run.state == "succeeded"]
    scored = [row for row in whole if row.basis is not None and row.size is not None and row.cost is not None]
    bases = list(dict.fromkeys(row.basis for row in scored))
    notes = [f"{row.run.id} is {row.run.state}" for row in rows if row.run.state != "succeeded"]
    if len(bases) > 1:
        notes.append("they were scored on other text or against other models: no front and no winner among them")
    alike = scored if len(bases) == 1 else []
    front = [row for row in alike if not any(_beats(other, row) for other in alike)]
    good = [row for row in alike if row.increase is not None and row.increase <= within]
    best = min(good, key=lambda row: (row.size, row.cost), default=None)
    if alike and best is None:
        notes.append(f"none keeps its perplexity within {within:.2%} of the model's")
    return Comparison(
        rows=tuple(rows),
        front=tuple(row.run.id for row in front),
        winner=best.run.id if best else None,
        within=within,
        notes=tuple(notes),
    )


def recipe_file(run: Run) -> str:
    """A file that gives the values of a run, over its recipe. Raises ProblemsError where there is no such recipe."""
    recipe = find(str(run.record.get("recipe")))
    given = dict(_flat("", run.record.get("values") or {}))
    changed: dict[str, Any] = {}
    for row in values_described(recipe):
        key, value = row["key"], given.get(row["key"], row["value"])
        if value != row["value"]:
            section, _, name = key.rpartition(".")
            (changed.setdefault(section, {}) if section else changed)[name] = value
    head = [f"# What {run.id} ran with.", f"# nemo experiment run {recipe.name} --config THIS_FILE"]
    return "\n".join([*head, "", dump_yaml(changed).rstrip() if changed else "{}"]) + "\n"


def as_html(found: Comparison) -> str:
    """One page: the table, and size against loss."""
    named = [row for row in found.rows if row.run.id in found.front] or list(found.rows)
    about = {"runs": str(len(found.rows)), "front": ", ".join(found.front), "winner": found.winner or ""}
    about |= {"model": str((named[0].run.report or {}).get("model") or ""), "allowed": f"{found.within:.2%} perplexity"}
    table = page.table(found.columns, [found.cells(row) for row in found.rows], left=2)
    drawn = _plot(found)
    said = "Size against what was lost, the less the better; numbers are the table's. On the line: "
    said += f"{found.legend}."
    parts = [table, page.drawing(drawn, said) if drawn else ""]
    if made := artifacts_of(row.run for row in found.rows if row.run.id == found.winner):
        known = artifacts_of(known_runs())
        said = "What the winner left, and what that was made of; the arrows go to what was made."
        parts.append(page.section("Lineage", page.drawing(as_svg([lineage(one, known) for one in made]), said)))
    return page.page(f"{len(found.rows)} runs side by side", about=about, notes=found.notes, parts=parts)


def _plot(found: Comparison) -> str:
    from matplotlib.figure import Figure

    measured = [row for row in found.rows if row.size is not None and row.cost is not None]
    points = {row.run.id: ((row.size or 0) / 1e6, row.cost or 0.0) for row in measured}
    if not found.front:
        return ""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*sorted(points[name] for name in found.front), strict=True), linewidth=1, marker="o")
    for row in measured:
        if row.run.id not in found.front:
            axes.plot(*points[row.run.id], "x", color="gray")
        number, at = str(found.rows.index(row) + 1), points[row.run.id]
        axes.annotate(number, at, (0, 5), textcoords="offset points", fontsize=9, ha="center")
    loss = "KL divergence (nats/token)" if all(row.kl is not None for row in measured) else "increase of perplexity"
    right, top = (1.1 * max(at[axis] for at in points.values()) for axis in (0, 1))
    lowest = min(0.0, *(at[1] for at in points.values()))  # a perplexity may fall
    axes.set(xlabel="weights on disk (MB)", ylabel=loss, xlim=(0, right), ylim=(lowest, max(top, 1e-6)))
    return svg_of(figure)


def _beats(one: Row, other: Row) -> bool:
    """Whether it is at least as good in both, and better in one."""
    assert one.size is not None and other.size is not None and one.cost is not None and other.cost is not None
    better = one.size < other.size or one.cost < other.cost
    return better and one.size <= other.size and one.cost <= other.cost


def _evaluations(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Those of the runs that scored what another one left, by that one's id."""
    known, found = {run.id: run for run in runs}, dict[str, list[Run]]()
    for run in runs:
        if run.record.get("algorithm") == _EVALUATION and (source := _source(run, known, [run.id])) is not None:
            found.setdefault(source.id, []).append(run)
    return found


def _source(run: Run, known: Mapping[str, Run], seen: Sequence[str]) -> Run | None:
    """Which of the runs made the checkpoint that one takes; those that converted it are passed over."""
    taken = (row.get("run") for row in run.record.get("inputs") or [] if row["type"].startswith("checkpoint_"))
    parent = next((known[run_id] for run_id in taken if run_id in known and run_id not in seen), None)
    if parent is None or parent.record.get("algorithm") not in _CONVERSIONS:
        return parent
    return _source(parent, known, [*seen, parent.id])


def _is_between(run: Run, evaluations: Collection[str]) -> bool:
    """Whether there is nothing to compare of it: a conversion of what was evaluated, or a stage that says nothing."""
    silent = run.state == "succeeded" and not (_is_measured(run) or (run.report or {}).get("scores"))
    staged = run.job is not None and run.job.pipeline is not None
    return (staged and silent) or (bool(evaluations) and run.record.get("algorithm") in _CONVERSIONS)


def _is_measured(run: Run) -> bool:
    """Whether it is one that a comparison is about: it says what it cost."""
    return bool(mapping((run.report or {}).get("evaluation")) or mapping((run.report or {}).get("size")))


def _row(run: Run, differing: Sequence[str], evaluations: Sequence[Run]) -> Row:
    report = run.report or {}
    scores, sizes = mapping(report.get("evaluation")), mapping(report.get("size"))
    given = dict(_flat("", run.record.get("values") or {}))
    before = _figure(scores.get("perplexity_base"))
    basis = None
    if before is not None:
        basis = repr((report.get("model"), scores.get("source"), scores.get("tokens"), round(before, 4)))
    named = report.get("format")
    return Row(
        run=run,
        values={key: given.get(key) for key in differing},
        format=named if isinstance(named, str) else None,
        basis=basis,
        size=_whole(sizes.get("export_bytes")),
        size_before=_whole(sizes.get("base_bytes")),
        perplexity=_figure(scores.get("perplexity_quantized")),
        perplexity_before=before,
        kl=_figure(scores.get("kl_divergence")),
        agreement=_figure(scores.get("top1_agreement")),
        tasks=dict(score for one in [run, *evaluations] for score in _tasks((one.report or {}).get("scores"))),
        seconds=run.seconds,
    )


def _tasks(scores: Any) -> list[tuple[str, float]]:
    """The headline score of each task of a harness."""
    rows = [mapping(mapping(row).get("score")) for row in listed(scores)]
    named = [(str(row.get("task")), _figure(row.get("value"))) for row in rows if row.get("headline")]
    return [(name, value) for name, value in named if value is not None]


def _differing(runs: Sequence[Run]) -> list[str]:
    """The keys of values that are not the same in all runs; what names a run's own folders is in every one another."""
    given = [dict(_flat("", run.record.get("values") or {})) for run in runs]
    keys = list(dict.fromkeys(key for one in given for key in one))
    shown = [key for key in keys if len({str(one.get(key)) for one in given}) > 1]
    recipes = len({run.record.get("recipe") for run in runs}) > 1
    return [key for key in shown if not (recipes and any("${" in str(one.get(key)) for one in given))]


def _flat(path: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(path, value)]
    return [pair for key, inner in value.items() for pair in _flat(f"{path}.{key}" if path else str(key), inner)]


def _figure(value: Any) -> float | None:
    return number(value, _MOST)


def _whole(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < _MOST else None


def _text(value: float | None, how: str) -> str:
    return "" if value is None else how.format(value)
