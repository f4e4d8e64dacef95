"""What a search tells: its table, and size against what is lost; for the page of the winner, or of none."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scripts.run import page
from scripts.run.drawing import size_text, svg_of

#: Formats of a trial that its title names.
_NAMED = 4


def title_of(formats: Sequence[str]) -> str:
    """A mixture in words: the formats by how many groups of layers have them."""
    counts = sorted(((formats.count(name), name) for name in dict.fromkeys(formats)), key=lambda pair: -pair[0])
    if len(counts) == 1:
        return counts[0][1]
    return ", ".join(f"{count} {name}" for count, name in counts[:_NAMED])


def tried_parts(search: Mapping[str, Any] | None) -> list[str]:
    """The section of a report's `search`; nothing where there was none."""
    if not search:
        return []
    rows = [_cells(row, search) for row in search["trials"]]
    heads = ("#", "", "groups of layers", "size", "of the model", "KL", "perplexity", "agreement", "stage", "scored on")
    caption = (
        "Size against what was lost; numbers are the table's, what no other beats is connected. Grey: few samples."
    )
    drawn = page.drawing(_plot(search), caption)
    said = f"{len(rows)} configurations were measured. Asked: {_asked(search['limits'])}. {search['unscored']}".rstrip()
    tried = page.section("What was tried", page.text(said), drawn, page.table(heads, rows, left=3))
    told = "What each group adds to the divergence of the model in a format: what is gained where it alone is left."
    formats = list(search["noise"])
    table = page.table(("layers that servers fuse", "winner", *formats), _groups(search, formats), left=2)
    return [tried, page.section("Groups of layers", page.text(told), table) if formats else ""]


def _asked(limits: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in limits.items())


def _cells(row: Mapping[str, Any], search: Mapping[str, Any]) -> tuple[str, ...]:
    mark = "winner" if row["number"] == search["winner"] else "front" if row["number"] in search["front"] else ""
    return (
        *(str(row["number"]), mark or ("passes" if row["passes"] else "")),
        *(title_of(row["formats"]), size_text(row["size"])),
        *(f"{row['size'] / search['base_bytes']:.1%}", f"{row['kl']:.5f}", f"{row['increase']:+.2%}"),
        *(f"{row['agreement']:.2%}", row["stage"], f"{row['scored']} samples"),
    )


def _groups(search: Mapping[str, Any], formats: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Of each group its layers, what the winner makes of it, and its noise in each format."""
    won = next((row["formats"] for row in search["trials"] if row["number"] == search["winner"]), None)
    for at, layers in enumerate(search["units"]):
        noise = (f"{search['noise'][name][at]:.5f}" for name in formats)
        first, *others = layers
        named = ", ".join([first, *(other.rpartition(".")[2] for other in others[:2])])
        yield named, won[at] if won else "", *noise


def _plot(search: Mapping[str, Any]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    whole = {row["number"] for row in search["trials"] if row["stage"] != "formats"}
    at = {row["number"]: (row["size"] / 1e6, row["kl"]) for row in search["trials"]}
    named = {row["number"] for row in search["trials"] if row["stage"] == "halved"}
    line = sorted(at[number] for number in search["front"])
    if line:
        axes.plot(*zip(*line, strict=True), linewidth=1, marker="o", markersize=4)
    for number, point in at.items():
        if number not in search["front"]:
            axes.plot(*point, "x", color="tab:red" if number in whole else "gray", markersize=5)
        if number in search["front"] or number in named:
            axes.annotate(str(number), point, (0, 5), textcoords="offset points", fontsize=8, ha="center")
    if "max_kl" in search["limits"]:
        axes.axhline(search["limits"]["max_kl"], linewidth=0.8, linestyle="--", color="gray")
    if "max_size" in search["limits"]:
        axes.axvline(
            search["limits"]["max_size"] * search["base_bytes"] / 1e6, linewidth=0.8, linestyle="--", color="gray"
        )
    axes.set(xlabel="weights on disk (MB)", ylabel="KL divergence (nats/token)", ylim=(0, None))
    return svg_of(figure)


def page_of_none(model: str, search: Mapping[str, Any], about: Mapping[str, str], why: str) -> str:
    """The page of a search that found none that passes."""
    return page.page(f"{model}: no recipe passes", about=about, notes=[why], parts=tried_parts(search))
