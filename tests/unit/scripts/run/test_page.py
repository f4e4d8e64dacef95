"""Pages are one file, and say what others wrote without obeying it."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

from scripts.run import page
from scripts.run.drawing import svg_of
from scripts.run.record import Record

HOSTILE = "<script>alert(1)</script> & \"'>"


class Tags(HTMLParser):
    """The tags of a page, each of which must be closed; and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs), (tag, attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_value_is_shown_as_it_is() -> None:
    made = page.page(
        HOSTILE,
        about={HOSTILE: HOSTILE, "nothing": ""},
        notes=[HOSTILE],
        parts=[
            page.text(HOSTILE),
            page.table((HOSTILE, "n"), [(HOSTILE, "1")]),
            page.heat({(HOSTILE, HOSTILE): 1.0}, HOSTILE),
            page.side_by_side(HOSTILE, HOSTILE, f"{HOSTILE} more"),
            page.section(HOSTILE, page.drawing("<svg></svg>", HOSTILE)),
            page.section("empty"),
        ],
    )
    tags = Tags(made)
    assert "script" not in tags.seen
    assert tags.text.count(HOSTILE) >= 12
    assert "empty" not in tags.text and "nothing" not in tags.text


def test_what_differs_is_marked() -> None:
    made = page.side_by_side("Hello", "the red house", "the blue house")
    assert re.findall(r"<del>(.*?)</del>", made) == ["red"] and re.findall(r"<ins>(.*?)</ins>", made) == ["blue"]
    same = page.side_by_side("Hello", "the house", "the house")
    assert "<del>" not in same and "before (the same)" in same


def test_the_lower_a_number_the_stronger_its_colour() -> None:
    made = page.heat({("0", "q"): 10.0, ("0", "k"): 30.0, ("1", "q"): 20.0}, "dB")
    found = re.findall(r"<td(?: style=\"background: rgb\(var\(--worse\) / ([\d.]+)\)\")?>([\d.]*)</td>", made)
    assert found == [("0.80", "10.0"), ("", "30.0"), ("0.40", "20.0"), ("", "")]
    assert page.heat({}, "dB") == page.heat({("0", "q"): math.nan}, "dB") == ""
    assert "inf" not in page.heat({("0", "q"): -math.inf, ("0", "k"): 1.0, ("1", "k"): 2.0}, "dB")


def test_a_page_says_what_it_is_of(tmp_path: Path) -> None:
    assert page.about(tmp_path)["run"] == tmp_path.name
    odd = {"inputs": ["x", 3], "executor": 1, "versions": [], "process": "p", "values": {"args": [1]}, "recipe": 7}
    (tmp_path / "run.json").write_text(json.dumps(odd))
    assert page.about(tmp_path)["command"] == "nemo experiment run 7 executor=None"
    record = Record.submit(
        tmp_path / "run",
        id="quantize_fp8_1126-0805-47f9a1",
        recipe="quantize_fp8",
        executor={"name": "slurm"},
        values={
            "engine": "hf",
            "args": {"hf_model_id": "Qwen/Qwen3 8B", "sizes": [1, 2], "export_dir": None, "out": "${x}", "prompts": ""},
            "torchrun": {"nproc_per_node": 8},
            "extra_args": ["--flag"],
        },
    )
    model = {"type": "checkpoint_hf", "name": "Qwen/Qwen3-8B"}
    record.update(versions={"torch": "2.13.0"}, device="cpu", inputs=[model])
    said = page.about(tmp_path / "run")
    assert said["command"] == (
        "nemo experiment run quantize_fp8 executor=slurm engine=hf 'args.hf_model_id=Qwen/Qwen3 8B' "
        "'args.sizes=[1, 2]' torchrun.nproc_per_node=8 -- --flag"
    )
    assert (said["model"], said["versions"]) == ("Qwen/Qwen3-8B", "torch 2.13.0")
    assert said["where"].startswith("slurm, cpu")


def test_a_drawing_takes_the_colour_of_the_text_around_it() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3))
    figure.subplots().barh([0, 1], [2.0, 3.0])
    drawn = svg_of(figure)
    assert drawn.startswith("<svg ") and "#000000" not in drawn and "currentColor" in drawn
    assert not re.search(r"<svg [^>]*\b(?:width|height)=", drawn) and "viewBox" in drawn
    assert drawn == svg_of(figure), "the same each time"
