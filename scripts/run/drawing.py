"""What a report is made of besides its JSON: tables for a terminal or a log, and plots."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under `columns`, of which each says how it is justified."""

    title: str
    columns: Mapping[str, Literal["left", "right"]]
    rows: Iterable[Sequence[str]]


def tables_as_text(tables: Iterable[Table], lines: Iterable[str] = (), *, width: int = 110) -> str:
    """Tables, and lines below them as long as they are, in plain text."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn

    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None, markup=False, emoji=False, highlight=False)
    for table in tables:
        drawn = Drawn(title=table.title, box=box.SIMPLE, title_justify="left")
        for column, justify in table.columns.items():
            drawn.add_column(column, justify=justify)
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
    for line in lines:
        console.print(line, soft_wrap=True)
    return text.getvalue().rstrip()


def size_text(size: float) -> str:
    """Bytes in at most seven characters, by thousands as disks are sold: 5.9 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError(size)


def took_text(seconds: float) -> str:
    """A time in at most six characters: 42s, 3m12s, 2h05m, 1d03h."""
    whole = max(0, round(seconds))
    for unit, part, larger, smaller in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if whole >= unit:
            return f"{whole // unit}{larger}{whole % unit // part:02}{smaller}"
    return f"{whole}s"


def svg_of(figure: Any) -> str:
    """A matplotlib figure as an SVG: text stays text, and black is the colour of the text around it."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "recipes"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = re.sub(r'(<svg [^>]*?)width="[^"]*" ', r"\1", drawn[drawn.index("<svg") :], count=1)
    drawn = re.sub(r'(<svg [^>]*?)height="[^"]*" ', r"\1", drawn, count=1)
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    # Text has no colour of its own, and would be black.
    drawn = drawn.replace('<text style="', '<text style="fill: currentColor; ').replace("#000000", "currentColor")
    return drawn.strip()
