"""The pages of quantize, evaluate, serve and compare in a browser: a phone and a desk, light and dark; nothing is cut.

`SCREENSHOTS=DIR` keeps pictures of them, to be looked at.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from recipes.artifacts import comparison
from recipes.artifacts.artifact import artifacts_of
from recipes.artifacts.lineage import lineage
from recipes.artifacts.lineage_svg import as_svg
from recipes.experiment.settled import known_runs
from scripts.engines.hf import report as quantize_report
from scripts.evaluation.report import write_report
from scripts.evaluation.scores import Compared, Score
from scripts.run import page
from scripts.run.files import write_text
from scripts.run.record import Record
from scripts.serving.run import _as_html
from tests.runs import FIGURES
from tests.runs import quantized as recorded_with_a_report

pytestmark = pytest.mark.integration

#: In a page around it, since a file may not look into another: how wide it is, and how large what is drawn.
MEASURE = """<!doctype html><iframe id="f" style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>
<pre id="found"></pre><script>
document.getElementById("f").onload = function () {{
  const inner = this.contentDocument, view = this.contentWindow;
  const boxes = [...inner.querySelectorAll("svg")].map(one => one.getBoundingClientRect());
  const color = view.getComputedStyle(inner.body);
  document.getElementById("found").textContent = JSON.stringify({{
    overflow: inner.documentElement.scrollWidth - inner.documentElement.clientWidth,
    drawings: boxes.map(box => [Math.round(box.width), Math.round(box.height)]),
    beyond: [...inner.querySelectorAll("body *:not(.scroll *):not(svg *)")]
      .filter(one => one.getBoundingClientRect().right > inner.documentElement.clientWidth + 1)
      .map(one => one.outerHTML.slice(0, 80)),
    marks: inner.querySelectorAll("svg path, svg rect, svg use").length,
    ink: color.color, paper: color.backgroundColor,
  }});
}};
</script>"""


def browser() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        assert not os.environ.get("REQUIRE_TESTBED"), "chromium is missing"
        pytest.skip("no browser is installed")
    return found


def layers(blocks: int) -> list[dict[str, Any]]:
    parts = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    names = [f"model.layers.{block}.{part}" for block in range(blocks) for part in parts]
    return [
        {"name": name, "weight_db": 31.0, "input_db": None if at % 5 == 0 else 30.0, "output_db": 20.0 + at % 13}
        for at, name in enumerate(names)
    ]


def quantized(blocks: int, about: dict[str, str]) -> str:
    report = {
        "model": "nvidia/" + "a-very-long-name-of-a-model" * 4,
        "format": "nvfp4, weight-only",
        "warnings": ["tiny_calibration_used_as_quality_signal: 16 samples are a smoke test, not a measurement."],
        "evaluation": {"samples": 64, "tokens": 9000, "source": "/lustre/" + "x" * 120, "perplexity_base": 8.0}
        | {"perplexity_quantized": 8.1, "kl_divergence": 0.01, "top1_agreement": 0.96},
        "calibration": {"samples": 512, "tokens": 10**6, "source": "cnn_dailymail"},
        "size": {"base_bytes": 10**9, "export_bytes": 4 * 10**8},
        "layers": layers(blocks),
        "generations": [{"prompt": "Hello!", "before": "one two " * 40, "after": "one three " * 40}],
        "verified": [["every shard", "read back"], ["logits", "bit for bit"]],
    }
    return quantize_report.as_html(report, about)


def evaluated(folder: Path, about: dict[str, str]) -> str:
    facts: dict[str, Any] = {"samples": 100, "fewshot": 0, "version": "1", "headline": True, "higher_is_better": True}
    scores = [
        Score(task=f"task_{at}", metric="acc", filter="none", value=0.5 + at / 40, stderr=0.01, **facts)
        for at in range(8)
    ]
    rows = [Compared(score=score, before=score.value + 0.01, sigmas=-1.0) for score in scores]
    write_report(folder, {"checkpoint": "/lustre/m", "backend": "hf", "warnings": []}, rows, about)
    return (folder / "index.html").read_text(encoding="utf-8")


def served(about: dict[str, str]) -> str:
    report = {"checkpoint": "/lustre/m", "server": "vllm", "start_seconds": 61.0, "first_answer_seconds": None}
    answers = [{"prompt": "Hello!", "text": "word " * 60, "flaw": None, "seconds": 1.5}]
    return _as_html(report | {"tokens_per_second": 41.5, "answers": answers, "warnings": []}, about)


def compared(home: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nemo_run.config._NEMORUN_HOME", str(home))  # read once, at import
        for fmt in FIGURES:
            recorded_with_a_report(home, fmt)
        return comparison.as_html(comparison.compare(["sizes"], 0.01))


NAME = "蒸留された-模型/" + "WMWM<b>&" * 12


def lineage_of(home: Path) -> str:
    """A picture: quantized of a pruned model, with names that are long and of many kinds."""

    def run(run_id: str, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        folder = home / "runs" / run_id
        record = Record.submit(folder, id=run_id, recipe=run_id.partition("_")[0], values={"args": {}})
        (folder / "hf").mkdir()
        (folder / "hf" / "weights").write_text(run_id)
        record.update(inputs=inputs)
        record.artifact("checkpoint_hf", folder / "hf")
        record.finish("succeeded")
        return {"type": "checkpoint_hf", "name": str(folder / "hf"), "run": run_id}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nemo_run.config._NEMORUN_HOME", str(home))
        hub = {"type": "checkpoint_hf", "name": NAME, "revision": "0123456789abcdef" * 2}
        data = run("prepare_0101-0000-000001", [{"type": "calibration_text", "name": "cnn_dailymail"}])
        pruned = run("prune_0101-0000-000002", [hub])
        tuned = run("distill_0101-0000-000003", [pruned, hub, data])
        run("quantize_fp8-with-a-name-of-forty-letters_0101-0000-000004", [tuned, pruned])
        known = artifacts_of(known_runs())
        return as_svg([lineage(known[-1], known)])


#: What of the text of each box runs over it, in pixels, and how many boxes and lines there are.
HELD = """<!doctype html><body>{svg}<pre id="found"></pre><script>
const over = [...document.querySelectorAll("svg g")].flatMap(group => {{
  const box = group.querySelector("rect").getBBox();
  return [...group.querySelectorAll("text")].map(one => one.getBBox()).map(text =>
    Math.max(text.x + text.width - box.x - box.width, text.y + text.height - box.y - box.height, box.x - text.x));
}});
const view = getComputedStyle(document.querySelector("svg text")), paper = document.querySelector(".paper");
document.getElementById("found").textContent = JSON.stringify({{
  over: Math.max(...over), boxes: document.querySelectorAll("svg g").length,
  lines: document.querySelectorAll("svg > path").length, ink: view.fill, paper: getComputedStyle(paper).fill,
}});
</script>"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_picture_of_lineage_holds_its_text(tmp_path: Path, scheme: str) -> None:
    svg = lineage_of(tmp_path / "home")
    write_text(tmp_path / "around.html", HELD.format(svg=svg))
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    words += [f"--blink-settings=preferredColorScheme={'01'[scheme == 'light']}", "--virtual-time-budget=5000"]
    around = (tmp_path / "around.html").as_uri()
    done = subprocess.run([browser(), *words, "--dump-dom", around], capture_output=True, text=True, timeout=120)
    found = json.loads(html.unescape(re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[0]))
    assert found["over"] <= 0 and (found["boxes"], found["lines"]) == (6, 7), found
    dark = [sum(map(int, re.findall(r"\d+", found[one])[:3])) < 384 for one in ("ink", "paper")]
    assert dark == ([True, False] if scheme == "light" else [False, True]), found
    if kept := os.environ.get("SCREENSHOTS"):
        write_text(tmp_path / "lineage.svg", svg)  # by itself, as a file
        picture = f"--screenshot={Path(kept) / f'lineage-{scheme}.png'}"
        alone = (tmp_path / "lineage.svg").as_uri()
        subprocess.run([browser(), *words, "--window-size=1400,600", picture, alone], check=True, timeout=120)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("run")
    Record.submit(folder, id="quantize_fp8_1126-0805-47f9a1", recipe="quantize_fp8", executor={"name": "slurm"})
    about = page.about(folder)
    found = {"few layers": quantized(4, about), "many layers": quantized(36, about)}
    found |= {"comparison": compared(tmp_path_factory.mktemp("home"))}
    return found | {"scores": evaluated(folder / "report", about), "server": served(about)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["few layers", "many layers", "scores", "server", "comparison"])
def test_a_page_fits(pages: dict[str, str], name: str, width: int, scheme: str, tmp_path: Path) -> None:
    around = tmp_path / "around.html"
    write_text(around, MEASURE.format(width=width, page=html.escape(pages[name])))
    # The numbers are Blink's: 0 is dark, 1 light.
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    words += [f"--blink-settings=preferredColorScheme={'01'[scheme == 'light']}", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [browser(), *words, "--dump-dom", around.as_uri()], capture_output=True, text=True, timeout=120
    )
    found = json.loads(html.unescape(re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[0]))
    assert (found["overflow"], found["beyond"]) == (0, []), found
    assert (
        len(found["drawings"]) == {"few layers": 2, "many layers": 1, "scores": 1, "server": 0, "comparison": 1}[name]
    )
    assert all(w > 300 and h > 100 for w, h in found["drawings"]) and (found["marks"] > 10 or name == "server")
    dark = [sum(map(int, re.findall(r"\d+", found[one])[:3])) < 384 for one in ("ink", "paper")]
    assert dark == ([True, False] if scheme == "light" else [False, True]), found
    if kept := os.environ.get("SCREENSHOTS"):
        alone = tmp_path / "page.html"
        write_text(alone, pages[name])
        picture = Path(kept) / f"{name.replace(' ', '-')}-{width}-{scheme}.png"
        size = f"--window-size={width},{2200 if width < 800 else 1500}"
        subprocess.run([browser(), *words, size, f"--screenshot={picture}", alone.as_uri()], check=True, timeout=120)
