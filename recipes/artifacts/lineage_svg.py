"""Lineage as a picture: an SVG of its own, from left to right, readable on light paper and on dark.

Columns are how far from what was asked for a thing stands; a line that passes a column has a place of its own there.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from recipes.artifacts.artifact import Artifact
from recipes.artifacts.lineage import Node, graph_of
from scripts.run.drawing import size_text
from scripts.run.problems import shown

_FONT, _LINE, _PAD, _GAP_X, _GAP_Y = 12, 17, 10, 56, 22
#: Of a line of text, in columns of a terminal; the widest of the usual fonts takes so much of its size for one.
_CELLS, _ADVANCE = 34, 0.63
_DIGITS = 12
#: What XML cannot hold; half a character, as Python has a name that is no UTF-8, cannot be written either.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_STYLE = """
.lineage { --ink: #1b1f23; --paper: #fff; --line: #8b949e; --made: #eef4ff; --root: #f6f8fa; --end: #dbe9ff; }
@media (prefers-color-scheme: dark) { .lineage { --ink: #e6e8ea; --paper: #14171a; --line: #7d868f; --made: #1b2737;
  --root: #1f2428; --end: #22406b; } }
.lineage text { font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: var(--ink); }
.lineage .type { font-weight: 700; } .lineage rect { stroke: var(--line); } .lineage .paper { fill: var(--paper);
  stroke: none; } .lineage .made { fill: var(--made); } .lineage .root { fill: var(--root); stroke-dasharray: 4 3; }
.lineage .end { fill: var(--end); } .lineage path { stroke: var(--line); fill: none; }
.lineage marker path { fill: var(--line); }
"""


@dataclass(kw_only=True)
class _Spot:
    """A box, or the place at which a line passes a column."""

    lines: list[str] = field(default_factory=list)
    kind: str = ""  # root: no run here made it; end: it was asked for; empty: a line passes
    title: str = ""
    column: int = 0
    at: float = 0.0  # its middle, from above

    @property
    def height(self) -> float:
        return len(self.lines) * _LINE + 2 * _PAD if self.lines else 0


def as_svg(trees: Sequence[Node]) -> str:
    """What artifacts were made of; what several are made of is drawn once."""
    nodes, edges = graph_of(trees)
    asked = {key for tree in trees for key in graph_of([tree])[0] if nodes[key].of is tree.of}
    columns = _columns(nodes, edges)
    spots = {
        key: _Spot(lines=list(_lines(node)), kind=_kind(node, key in asked), title=_title(node), column=columns[key])
        for key, node in nodes.items()
    }
    lines = [_passing(spots, parent, child) for parent, child in edges]
    order = _ordered(spots, lines)
    height = max(_stacked(column) for column in order)
    for column in order:
        _place(column, height)
    width = max(_cells(line) for spot in spots.values() for line in spot.lines or [""]) * _FONT * _ADVANCE + 2 * _PAD
    last = max(columns.values())
    whole = (last + 1) * width + last * _GAP_X + 2 * _PAD, height + 2 * _PAD

    def left(spot: _Spot) -> float:
        return _PAD + (last - spot.column) * (width + _GAP_X)

    drawn = [_curve(line, spots, left, width) for line in lines]
    drawn += [_box(spot, left(spot), width) for spot in spots.values() if spot.kind]
    size = f'width="{whole[0]:.0f}" height="{whole[1]:.0f}" viewBox="0 0 {whole[0]:.0f} {whole[1]:.0f}"'
    named = escape(_clean(", ".join(nodes[key].name for key in nodes if key in asked)))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="lineage" role="img" {size} '
            f'style="max-width: {whole[0]:.0f}px" aria-label="What {named} was made of">',
            f"<style>{_STYLE}</style>",
            '<defs><marker id="lineage-arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
            '<rect class="paper" width="100%" height="100%"/>',
            *drawn,
            "</svg>",
        ]
    )


def _lines(node: Node) -> Iterator[str]:
    """What a box says: a type, a name, what is known of it."""
    of = node.of
    digest = (of.digest or "").removeprefix("sha256:")[:_DIGITS]
    yield from _wrapped(of.type)
    if isinstance(of, Artifact):
        yield from _wrapped(of.run.id)
        yield from _wrapped(f"by {of.run.record.get('recipe') or 'no recipe'}")
        yield "  ".join(filter(None, [size_text(of.bytes), digest]))
        return
    yield from _wrapped(of.name)
    if of.made_by:
        yield from _wrapped(f"by {of.made_by}, not here")
    elif of.revision:
        yield f"hub commit {of.revision[:_DIGITS]}"
    if digest:
        yield digest


def _kind(node: Node, is_asked: bool) -> str:
    return "end" if is_asked else "made" if isinstance(node.of, Artifact) else "root"


def _title(node: Node) -> str:
    return "\n".join(filter(None, [node.name, node.of.digest]))


def _columns(nodes: Mapping[str, Node], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """How far each stands from what was asked for, by the longest way."""
    found = dict.fromkeys(nodes, 0)
    for _ in nodes:  # there is no circle, and no way is longer
        before = dict(found)
        for parent, child in edges:
            found[parent] = max(found[parent], found[child] + 1)
        if found == before:
            break
    return found


def _passing(spots: dict[str, _Spot], parent: str, child: str) -> list[str]:
    """The spots of a line, from left to right, with one in each column that it passes."""
    between = []
    for column in range(spots[parent].column - 1, spots[child].column, -1):
        key = f"{parent}\n{child}\n{column}"
        spots[key] = _Spot(column=column)
        between.append(key)
    return [parent, *between, child]


def _ordered(spots: Mapping[str, _Spot], lines: Sequence[Sequence[str]]) -> list[list[_Spot]]:
    """The spots of each column from above: each near the middle of what it leads to, so that lines seldom cross."""
    order: list[list[str]] = [[] for _ in range(max(spot.column for spot in spots.values()) + 1)]
    for key, spot in spots.items():
        order[spot.column].append(key)
    steps = [pair for line in lines for pair in pairwise(line)]
    for number in range(1, len(order)):
        ranks = {key: rank for rank, key in enumerate(order[number - 1])}
        middle = {}
        for key in order[number]:
            near = [ranks[right] for left, right in steps if left == key and right in ranks]
            middle[key] = sum(near) / len(near) if near else 0.0
        order[number].sort(key=middle.__getitem__)
    return [[spots[key] for key in column] for column in order]


def _stacked(column: Sequence[_Spot]) -> float:
    return sum(spot.height for spot in column) + _GAP_Y * (len(column) - 1)


def _place(column: Sequence[_Spot], height: float) -> None:
    top = _PAD + (height - _stacked(column)) / 2
    for spot in column:
        spot.at = top + spot.height / 2
        top += spot.height + _GAP_Y


def _curve(line: Sequence[str], spots: Mapping[str, _Spot], left: Callable[[_Spot], float], width: float) -> str:
    """From the right side of a box, straight through each column that it passes, to the left side of another."""
    first = spots[line[0]]
    path = f"M{left(first) + width:.1f} {first.at:.1f}"
    x, y = left(first) + width, first.at
    for key in line[1:]:
        to, target = left(spots[key]), spots[key].at
        middle = (x + to) / 2
        path += f"C{middle:.1f} {y:.1f} {middle:.1f} {target:.1f} {to:.1f} {target:.1f}"
        x, y = to + width, target
        path += f"H{x:.1f}" if key != line[-1] else ""
    return f'<path d="{path}" marker-end="url(#lineage-arrow)"/>'


def _box(spot: _Spot, left: float, width: float) -> str:
    top = spot.at - spot.height / 2
    box = f'<rect class="{spot.kind}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{spot.height}" rx="6"/>'
    texts = []
    for number, line in enumerate(spot.lines):
        y = top + _PAD + _LINE * number + _FONT
        kind = ' class="type"' if number == 0 else ""
        texts.append(f'<text x="{left + _PAD:.1f}" y="{y:.1f}"{kind}>{escape(line)}</text>')
    return f"<g><title>{escape(_clean(spot.title))}</title>{box}{''.join(texts)}</g>"


def _wrapped(text: str) -> Iterator[str]:
    """A text in lines of at most so many columns; names have no spaces at which they could be parted."""
    line = ""
    for character in _clean(shown(text).replace("\n", "\\n")):
        if _cells(line + character) > _CELLS:
            yield line
            line = ""
        line += character
    yield line


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _cells(text: str) -> int:
    """Columns of a terminal that a text takes: two for a character of China, Japan or Korea, or a picture."""
    from rich.cells import cell_len

    return len(text) if text.isascii() else max(cell_len(text), len(text))
