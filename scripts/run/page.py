"""An HTML page about a run, made of a few parts: one file, for a phone, a dark room and paper. Every value is escaped.

A page says first what it is of; then come sections of tables, drawings, heat maps, and texts held side by side.
"""

import difflib
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from scripts.run.record import read_json
from scripts.run.schema import mapping

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f23; --paper: #fff; --line: #d8dee4; --soft: #f6f8fa; --note: #fff3c4;
  --worse: 196 62 28; --old: #ffd7d5; --new: #ccf2d4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --paper: #14171a; --line: #3a4046; --soft: #1f2428;
  --note: #4a3d10; --worse: 255 120 80; --old: #6b2a28; --new: #1f5130; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 1.8rem 0 .4rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem .9rem; margin: .5rem 0; }
dt { opacity: .7; } dd { margin: 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0; }
td, th { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
td.left, th.left { text-align: left; } .heat td { padding: .2rem .4rem; border: 1px solid var(--paper); }
.heat th { white-space: normal; font-weight: 500; font-size: .85rem; padding: .2rem .4rem; min-width: 3.5rem; }
figure { margin: .8rem 0; } figure svg { width: 100%; max-width: 46rem; height: auto; } figcaption { opacity: .8; }
pre { background: var(--soft); padding: .6rem; white-space: pre-wrap; margin: .2rem 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .6rem; }
.pair h3, .prompt { font-size: .95rem; margin: .5rem 0 0; } del { background: var(--old); text-decoration: none; }
ins { background: var(--new); text-decoration: none; } .note { background: var(--note); padding: .5rem .8rem; }
@media print { body { max-width: none; } .scroll { overflow: visible; } figure, .pair, tr { break-inside: avoid; } }
"""
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


def page(title: str, *, about: Mapping[str, str], notes: Iterable[str], parts: Iterable[str]) -> str:
    """The whole of it; `parts` are what the functions below return, in their order."""
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in about.items() if value)
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    body = f"<h1>{escape(title)}</h1><dl>{facts}</dl>{said}{''.join(parts)}"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def about(run_dir: Path) -> dict[str, str]:
    """What a page is of, by the record of its run: who can find it again, and make it again."""
    record = read_json(run_dir / "run.json") or {}
    executor, process, versions, values = (
        mapping(record.get(key)) for key in ("executor", "process", "versions", "values")
    )
    models = [one for one in record.get("inputs") or [] if isinstance(one, dict)]
    models = [one for one in models if str(one.get("type")).startswith("checkpoint")]
    named = [" ".join(str(one[key]) for key in ("name", "revision", "digest") if one.get(key)) for one in models]
    where = (executor.get("name"), record.get("device"), process.get("host"))
    return {
        "recipe": str(record.get("recipe") or ""),
        "model": "; ".join(named),
        "run": str(record.get("id") or run_dir.name),
        "began": str(record.get("started_at") or ""),
        "where": ", ".join(str(one) for one in where if one),
        "engine": str(record.get("engine") or ""),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "command": _command(str(record["recipe"]), executor.get("name"), values) if record.get("recipe") else "",
    }


def _command(recipe: str, executor: object, values: Mapping[str, Any]) -> str:
    """Words that ask for the same; without those that are folders of a run of its own."""
    words = ["nemo", "experiment", "run", recipe, f"executor={executor}"]
    words += [f"engine={values['engine']}"] if values.get("engine") not in (None, "auto") else []
    for section in ("args", "script", "torchrun"):
        for key, value in mapping(values.get(section)).items():
            text = json.dumps(value) if isinstance(value, (list, dict)) else str(value)
            if value not in (None, "", [], {}) and "${" not in text:
                words.append(f"{section}.{key}={text}")
    more = values.get("extra_args")
    return shlex.join([*words, *(["--", *map(str, more)] if isinstance(more, list) and more else [])])


def section(title: str, *parts: str) -> str:
    """A heading, and what stands below it; nothing where there is nothing."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>" if any(parts) else ""


def text(words: str) -> str:
    """A paragraph."""
    return f"<p>{escape(words)}</p>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Numbers to the right, but for the first columns; it scrolls by itself where it is too wide."""

    def cells(kind: str, values: Sequence[str]) -> str:
        sides = (' class="left"' if at < left else "" for at in range(len(values)))
        return "".join(f"<{kind}{side}>{escape(one)}</{kind}>" for side, one in zip(sides, values, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<tr>{cells('th', columns)}</tr>" if any(columns) else ""
    return f'<div class="scroll"><table>{head}{body}</table></div>' if body else ""


def drawing(svg: str, caption: str) -> str:
    """An SVG of `scripts.run.drawing.svg_of`, with what it says in a line."""
    return f'<figure role="img" aria-label="{escape(caption)}">{svg}<figcaption>{escape(caption)}</figcaption></figure>'


def heat(values: Mapping[tuple[str, str], float], caption: str) -> str:
    """Numbers by row and column, the lower the stronger their colour; a place without one stays empty."""
    values = {key: value for key, value in values.items() if math.isfinite(value)}
    if not values:
        return ""
    rows, columns = (list(dict.fromkeys(key[at] for key in values)) for at in (0, 1))
    low, high = min(values.values()), max(values.values())
    lines = []
    for row in rows:
        cells = []
        for column in columns:
            value = values.get((row, column))
            share = 0.0 if value is None or high == low else (high - value) / (high - low)
            style = f' style="background: rgb(var(--worse) / {share * 0.8:.2f})"' if share else ""
            cells.append(f"<td{style}>{'' if value is None else f'{value:.1f}'}</td>")
        lines.append(f'<tr><th class="left">{escape(row)}</th>{"".join(cells)}</tr>')
    head = "".join(f"<th>{escape(column)}</th>" for column in ("", *columns))
    body = f'<div class="scroll"><table class="heat"><tr>{head}</tr>{"".join(lines)}</table></div>'
    return f"<figure>{body}<figcaption>{escape(caption)}</figcaption></figure>"


def block_and_part(name: str) -> tuple[str, str]:
    """A layer's place in a map: the number of its block, and what it is there."""
    found = re.fullmatch(r"(.*?\d+)\.(.*)", name)
    return (found[1].removeprefix("model.layers."), found[2]) if found else ("", name)


def grid(words: Mapping[tuple[str, str], str], caption: str) -> str:
    """A word by row and column, each word of one colour; a place without one stays empty."""
    if not words:
        return ""
    rows, columns = (list(dict.fromkeys(key[at] for key in words)) for at in (0, 1))
    every = sorted({*words.values()})
    shades = {word: f"rgb(var(--worse) / {0.7 * at / max(1, len(every) - 1):.2f})" for at, word in enumerate(every)}
    lines = []
    for row in rows:
        told = (words.get((row, column), "") for column in columns)
        styled = ((word, f' style="background: {shades[word]}"' if word else "") for word in told)
        cells = "".join(f"<td{style}>{escape(word)}</td>" for word, style in styled)
        lines.append(f'<tr><th class="left">{escape(row)}</th>{cells}</tr>')
    head = "".join(f"<th>{escape(column)}</th>" for column in ("", *columns))
    body = f'<div class="scroll"><table class="heat"><tr>{head}</tr>{"".join(lines)}</table></div>'
    return f"<figure>{body}<figcaption>{escape(caption)}</figcaption></figure>"


def side_by_side(prompt: str, before: str, after: str) -> str:
    """What a model said before and after, with the words that differ marked."""
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    left, right = [], []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, come = escape("".join(old[a:b])), escape("".join(new[c:d]))
        left.append(gone if kind == "equal" or not gone else f"<del>{gone}</del>")
        right.append(come if kind == "equal" or not come else f"<ins>{come}</ins>")
    same = " (the same)" if before == after else ""
    texts = ((f"before{same}", left), (f"after{same}", right))
    pair = "".join(f"<div><h3>{name}</h3><pre>{''.join(words)}</pre></div>" for name, words in texts)
    return f'<p class="prompt"><b>prompt</b> {escape(prompt)}</p><div class="pair">{pair}</div>'
