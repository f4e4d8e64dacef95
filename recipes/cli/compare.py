"""`nemo experiment compare`: runs side by side, the front of them, and the one to take."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.cli.document import AsJson, answer, exits, say, share, write_new
from recipes.cli.manage import RunIds


def compare(
    ids: RunIds,
    within: Annotated[
        str, typer.Option(metavar="SHARE", help="By how much the perplexity of the winner may be above the model's.")
    ] = "1%",
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the table and a plot; none is overwritten.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the winner's values, for --config; none is overwritten.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare what runs left: size, quality, and which is the smallest that keeps its quality.

    Example: nemo experiment compare sizes --within 0.5% --html sizes.html --write best.yaml

    An ID may be how several ids begin, as those of a sweep do, or a pipeline's: what it evaluated has those
    scores beside it.
    """
    from recipes.artifacts.comparison import as_html, recipe_file
    from recipes.artifacts.comparison import compare as compared
    from scripts.run.drawing import Table, tables_as_text
    from scripts.run.problems import Problem, ProblemsError

    with exits(as_json=as_json):
        found = compared(ids, share(within, "--within") or 0.0)
        winner = next((row.run for row in found.rows if row.run.id == found.winner), None)
        texts = {}
        if write is not None:
            if winner is None:
                cause = found.notes[-1] if found.notes else "no run was scored and exported"
                raise ProblemsError([Problem(name="no_winner", key="--write", value=write, cause=cause)])
            texts["--write"] = (write, recipe_file(winner))
        if html is not None:
            texts["--html"] = (html, as_html(found))
        _write_all(texts)
    if as_json:
        answer(found.as_data())
        return
    columns: Any = {name: "left" if name in ("#", "run", "format", "") else "right" for name in found.columns}
    rows = [found.cells(row) for row in found.rows]
    text = tables_as_text([Table(title="", columns=columns, rows=rows)], width=4096)
    say("\n".join(line.rstrip() for line in text.splitlines()).strip("\n"))
    if found.front:
        say(f"front      {found.legend}")
    for note in found.notes:
        say(f"note       {note}")
    for key, file in (("page", html), ("recipe", write)):
        if file is not None:
            say(f"{key:10} {file}")
    if write is not None and winner is not None:
        say(f"{'run it':10} nemo experiment run {winner.record.get('recipe')} --config {shlex.quote(str(write))}")


def _write_all(files: Mapping[str, tuple[Path, str]]) -> None:
    """All of the files or none, by the options that ask for them. Raises as `write_new` does."""
    written: list[Path] = []
    try:
        for key, (file, text) in files.items():
            write_new(file, text, key)
            written.append(file)
    except BaseException:
        for file in written:
            file.unlink()
        raise
