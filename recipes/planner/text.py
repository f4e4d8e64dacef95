"""A plan for a person: a table, with its memory as bars."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.planner.layout import Layout
    from recipes.planner.need import Need
    from recipes.planner.plan import Model, Output, Plan

_KEY = 10
_BAR = 30
_GIB, _MIB = 1 << 30, 1 << 20


def as_text(plan: "Plan") -> str:
    """The plan, a line for each thing worth knowing; Problems come last, where the eye ends."""
    return "\n".join(_lines(plan))


def _lines(plan: "Plan") -> Iterator[str]:
    yield from _row(
        "recipe", [f"{plan.recipe} on {plan.executor}" + (f", engine {plan.engine}" if plan.engine else "")]
    )
    yield from _row("model", [line for model in plan.models for line in _model(model)] or ["nothing is known of it"])
    yield from _row("machines", [_machines(plan)])
    if plan.memory is not None:
        yield from _row("memory", _memory(plan.memory))
    yield from _row("fits", [_verdict(plan)])
    if plan.proposal is not None:
        yield from _row("smallest", _proposal(plan))
    if plan.command is not None:
        import shlex

        yield from _row("each rank", [shlex.join(plan.command)])
    for ranks in plan.ranks:
        yield from _row("", [str(ranks)])
    yield from _row("time", [str(plan.time)] if plan.time else [])
    yield from _row("run dir", [plan.run_dir])
    yield from _row("leaves", [_output(output) for output in plan.outputs])
    yield from (f"note: {note}" for note in plan.notes)
    yield from map(str, plan.skipped)
    yield from map(str, plan.problems)
    errors = sum(problem.severity == "error" for problem in plan.problems)
    yield f"{errors} problem{'s' if errors != 1 else ''}; run would refuse it." if errors else "run would submit it."


def _row(key: str, values: Iterable[str]) -> Iterator[str]:
    for value in values:
        yield f"{key:{_KEY}} {value}"
        key = ""


def _model(model: "Model") -> Iterator[str]:
    layers = f", {model.layers} layers" if model.layers else ""
    size = "parameters not known" if model.total is None else f"{_billions(model.total)} parameters"
    active = f", {_billions(model.active)} active" if model.active and model.active != model.total else ""
    yield f"{model.name}: {size}{active}{layers} ({model.source})"
    if model.parameters is not None:
        yield ", ".join(f"{part} {_billions(number)}" for part, number in model.parameters.items())


def _machines(plan: "Plan") -> str:
    layout = plan.layout
    gpu = ", GPU not known"
    if plan.gpu is not None:
        gpu = f" with {plan.gpu.name}, {plan.gpu.memory / _GIB:.0f} GiB ({plan.gpu.known_by})"
    elif plan.memory is not None and plan.memory.device == "host":
        gpu = " on the host's processors"
    copies = f", {layout.dp} copies" if layout.divides and layout.world > 1 else ""
    return f"{_layout(layout)}{copies}{gpu}"


def _layout(layout: "Layout") -> str:
    """`2 x 8 processes, tp=2 ep=8`: machines and processes, and the sizes that are not 1."""
    machines = f"{layout.nodes} x {layout.processes} process" + ("es" if layout.world != 1 else "")
    return ", ".join(filter(None, (machines, str(layout))))


def _memory(need: "Need") -> Iterator[str]:
    yield f"{need.where}: {_gib(need.total)}" + (f" of {_gib(need.room)}" if need.room else "")
    most = max(need.room or 0, need.total)
    width = max(map(len, need.parts))
    for part, size in need.parts.items():
        yield f"  {part:{width}} {_gib(size):>10}  {'█' * round(_BAR * size / most)}".rstrip()


def _verdict(plan: "Plan") -> str:
    if plan.fits is None:
        return "not known: " + (
            "its memory cannot be told" if plan.memory is None else "which GPU it gets is not known"
        )
    return "yes" if plan.fits else "no"


def _proposal(plan: "Plan") -> Iterator[str]:
    assert plan.proposal is not None
    yield f"{_layout(plan.proposal.layout)}: {_gib(plan.proposal.memory.total)} on the fullest rank"
    for rejected in plan.proposal.smaller:
        yield f"  not {_layout(rejected.layout)}: {rejected.reason}"


def _output(output: "Output") -> str:
    return f"{output.type}  {output.path}  ({'size not known' if output.bytes is None else _bytes(output.bytes)})"


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _billions(number: int) -> str:
    if number >= 5e7:
        return f"{number / 1e9:.2f} B"
    return f"{number / 1e6:.2f} M" if number >= 5e4 else f"{number / 1e3:.2f} k"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / _MIB:.1f} MiB"
