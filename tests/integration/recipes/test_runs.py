"""Whole runs of the built-in model through the CLI and the Python API, and what is left when they are interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from recipes import find, prepare
from recipes.planner.disk import outputs_bytes
from scripts.run.content import content_of
from scripts.run.diagnosis import diagnose
from scripts.run.record import observe, read_record
from tests.conftest import Done
from tests.testbed.waiting import until
from tests.testbed.warm import Warm

pytestmark = pytest.mark.integration

Nemo = Callable[..., Done]
SMALL = ["args.hf_model_id=tiny:qwen3", "args.calib_size=16", "args.calib_seq_length=128", "args.eval_size=8"]


def only_run(home: Path) -> Path:
    (run_dir,) = (path.parent for path in home.glob("runs/*/run.json"))
    return run_dir


def assert_written_as_predicted(record: dict[str, Any]) -> None:
    partial = find(record["recipe"]).build()
    for name, value in record["values"]["args"].items():
        setattr(partial.args, name, value)
    sizes = outputs_bytes(prepare(partial, online=False))
    written = {output["type"]: output["bytes"] for output in record["outputs"]}
    assert sizes["args.export_dir"] == pytest.approx(written["checkpoint_hf"], rel=0.02)
    assert sizes["args.modelopt_save_path"] == pytest.approx(written["checkpoint_modelopt"], rel=0.02)


@pytest.mark.parametrize(
    ("format_", "within"),
    [
        ("fp8", 1.02),
        ("nvfp4", 1.25),
        ("int8_sq", 1.02),
        ("fp8_blockwise", 1.02),
        ("int4_awq", 1.25),
        ("w4a8_awq", 1.25),
    ],
)
@pytest.mark.usefixtures("unmeasured")
def test_every_format_for_real(nemo: Nemo, home: Path, format_: str, within: float) -> None:
    done = nemo("run", f"quantize_{format_}", "executor=local", *SMALL, "--json", "--yes")
    assert done.code == 0, done.err
    record = done.json
    assert record["state"] == "succeeded"
    scores = record["report"]["evaluation"]
    assert scores["perplexity_quantized"] / scores["perplexity_base"] < within
    assert scores["perplexity_quantized"] != scores["perplexity_base"], "nothing was quantized"
    assert 0 < scores["kl_divergence"] < 0.5
    assert 0.6 < scores["top1_agreement"] < 1
    assert_written_as_predicted(record)
    assert "diagnosis" not in record
    assert diagnose(only_run(home) / "logs", since=0, error={"name": "script_failed", "message": ""}) is None, (
        "nothing looks bad"
    )
    by_type = {output["type"]: output for output in record["outputs"]}
    assert set(by_type) == {"checkpoint_modelopt", "checkpoint_hf", "eval_results"}
    for output in record["outputs"]:
        content = content_of(Path(output["path"]))
        assert (content.digest, content.bytes) == (output["digest"], output["bytes"])
    export = Path(by_type["checkpoint_hf"]["path"])
    assert json.loads((export / "hf_quant_config.json").read_text())["quantization"]["quant_algo"]
    assert record["report"]["size"]["export_bytes"] < record["report"]["size"]["base_bytes"]
    assert record["report"]["layers"], "no layer was measured"
    page = (only_run(home) / "report" / "index.html").read_text()
    assert "<svg" in page and 'class="heat"' in page and only_run(home).name in page
    names = {json.loads(line)["name"] for line in (only_run(home) / "metrics.jsonl").read_text().splitlines()}
    assert {"perplexity_base", "perplexity_quantized", "kl_divergence", "top1_agreement"} <= names
    assert not list(export.parent.glob(".*")), "nothing half-written is left"


def test_the_result_for_a_person(nemo: Nemo, home: Path) -> None:
    done = nemo("run", "quantize_tiny", "executor=local", "--yes")
    assert done.code == 0, done.err
    for text in ("held-out perplexity", "KL divergence", "top-1 agreement", "layers that suffer most", "succeeded"):
        assert text in done.out
    assert "Traceback" not in done.out + done.err
    status = nemo("status", only_run(home).name)
    assert status.out.startswith("succeeded  quantize_tiny_")


def test_a_compressed_export_of_weights_alone(nemo: Nemo) -> None:
    words = ["args.compress=true", "args.weight_only=true", "args.export_kv_cache_quant=fp8", "args.eval_size=0"]
    done = nemo("run", "quantize_fp8", *SMALL, *words, "--json", "--yes")
    assert done.code == 0, done.err
    assert done.json["state"] == "succeeded"
    assert_written_as_predicted(done.json)


@pytest.mark.usefixtures("unmeasured")
def test_a_user_s_model_and_prompts(nemo: Nemo, tmp_path: Path) -> None:
    from scripts.tiny.model import default_cache_root, ensure_tiny_model

    model = tmp_path / "my model 'ü'"
    model.symlink_to(ensure_tiny_model("tiny:llama", default_cache_root()))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"The {n}th statement raises an error"}) for n in range(40)))
    before = content_of(model)
    out = tmp_path / '$(touch pwned) `id` "out"\nline'
    done = nemo(
        "run",
        "quantize_nvfp4",
        f"args.hf_model_id={model}",
        f"args.calib_dataset={prompts}",
        f"args.export_dir={out}",
        "args.export_kv_cache_quant=nvfp4_rotate",
        *SMALL[1:],
        "args.prompts=$(touch pwned)|`id`; rm -rf x|'\"\\ ünï\ncode",
        "--json",
        "--yes",
    )
    assert done.code == 0, done.err
    assert (out / "config.json").is_file()
    prompts_seen = [generation["prompt"] for generation in done.json["report"]["generations"]]
    assert prompts_seen == ["$(touch pwned)", "`id`; rm -rf x", "'\"\\ ünï\ncode"]
    assert not list(tmp_path.rglob("pwned"))
    assert content_of(model) == before, "an input is never changed"


def test_a_failure_on_the_node_is_told_and_recorded(nemo: Nemo, home: Path, tmp_path: Path) -> None:
    from scripts.tiny.model import default_cache_root, ensure_tiny_model

    model = tmp_path / "model"
    shutil.copytree(ensure_tiny_model("tiny:qwen3", default_cache_root()), model)
    config = json.loads((model / "config.json").read_text())
    more = [*config["layer_types"], "full_attention"]  # than there are layers: Transformers says so, when it loads
    (model / "config.json").write_text(json.dumps(config | {"layer_types": more}))
    words = ["run", "quantize_tiny", f"args.hf_model_id={model}", "args.calib_dataset=p.txt", "--yes"]
    (tmp_path / "work" / "p.txt").write_text("one\ntwo\nthree\nfour\n")
    done = nemo(*words)
    assert done.code == 1
    assert "layer_types" in done.err
    assert "Traceback" not in done.out + done.err
    record = observe(only_run(home))
    assert record["state"] == "failed"
    assert record["error"]["message"]
    assert "outputs" not in record
    verbose = nemo(*words, "--verbose")
    assert verbose.code == 1
    assert "Traceback" in verbose.err


class Attached:
    """An attached run in the background, to be interrupted."""

    def __init__(self, warm: Warm, home: Path, work: Path, *words: str) -> None:
        env = {**os.environ, "NEMORUN_HOME": str(home), "HF_HUB_OFFLINE": "1"}
        self.home = home
        self._before = set(home.glob("runs/*"))
        self.process = warm.begin(["experiment", "run", "quantize_fp8", *SMALL, *words, "--yes"], env, work)

    def record(self) -> dict[str, Any]:
        paths = [path for path in self.home.glob("runs/*/run.json") if path.parent not in self._before]
        return observe(paths[0].parent) if paths else {"state": "none"}

    def reaches(self, phase: str) -> dict[str, Any]:
        """Its record in that phase, or the last one of a run that ended before anybody saw it there."""
        while True:
            record = self.record()
            if phase in (record["state"], record.get("phase")) or self.process.poll() is not None:
                return record
            time.sleep(0.01)  # a phase of so small a model is over in a fraction of a second

    def end(self) -> tuple[int, str]:
        printed = self.process.communicate(timeout=240)
        return self.process.wait(), "".join(printed)


@pytest.fixture
def attached(warm: Warm, home: Path, tmp_path: Path) -> Iterator[Callable[..., Attached]]:
    started: list[Attached] = []
    work = tmp_path / "attached"
    work.mkdir()

    def start(*words: str) -> Attached:
        started.append(Attached(warm, home, work, *words))
        return started[-1]

    yield start
    for one in started:
        for child in psutil.Process(one.process.pid).children(recursive=True) if one.process.poll() is None else []:
            child.kill()
        one.process.kill()


def killed_in(phase: str, start: Callable[[], Attached]) -> tuple[Attached, str]:
    """A run whose job was killed in that phase, and what was printed. One that was faster than we is begun again."""
    for _ in range(5):
        run = start()
        record = run.reaches(phase)
        if record["state"] != "succeeded":
            with suppress(ProcessLookupError):
                os.kill(record["process"]["pid"], signal.SIGKILL)
        code, text = run.end()
        if code:
            assert code == 1, text
            return run, text
        shutil.rmtree(next(Path(out["path"]) for out in run.record()["outputs"] if out["type"] == "checkpoint_hf"))
    pytest.fail(f"five runs had done with {phase} before they could be killed in it")


@pytest.mark.usefixtures("unmeasured")
def test_a_killed_job_is_told_and_can_be_run_again(
    attached: Callable[..., Attached], nemo: Nemo, tmp_path: Path
) -> None:
    """Killed in each phase, one run after the other into the same folder; then one that is left alone."""
    out = tmp_path / "out" / "hf"
    for phase in ("running", "load", "calibrate", "save", "export"):
        run, text = killed_in(phase, lambda: attached(f"args.export_dir={out}", "args.eval_size=0"))
        assert "failed: job_died: its process ended without recording how" in text
        assert (run.record()["state"], run.record()["error"]["name"]) == ("failed", "job_died"), phase
        assert not out.exists(), f"nothing half-written is published: {phase}"
    again = nemo("run", "quantize_fp8", *SMALL, f"args.export_dir={out}", "args.eval_size=0", "--yes")
    assert again.code == 0, again.err
    assert [path.name for path in out.parent.iterdir()] == ["hf"], "leftovers of the killed runs are gone"


def test_a_job_killed_in_its_export_goes_on_from_what_it_calibrated(
    attached: Callable[..., Attached], nemo: Nemo
) -> None:
    run, _ = killed_in("export", lambda: attached("args.modelopt_save_path=null"))
    run_id = run.record()["id"]
    assert nemo("resume", run_id).code == 0
    until(lambda: nemo("status", run_id, "--json").json["state"] == "succeeded")
    printed = nemo("logs", run_id).out
    assert "calibrated by an earlier attempt" in printed
    assert "calibrate: " not in printed.partition("calibrated by an earlier attempt")[2]


def test_a_killed_submitter_before_the_job_began(attached: Callable[..., Attached], nemo: Nemo) -> None:
    run = attached()
    run.reaches("submitted")
    for child in psutil.Process(run.process.pid).children(recursive=True):
        child.kill()
    run.process.kill()
    run.process.wait()
    assert run.record()["state"] == "lost"
    listed = nemo("ps", "--json")
    assert [row["state"] for row in listed.json] == ["lost"]


@pytest.mark.parametrize("phase", ["submitted", "calibrate"])
def test_ctrl_c_cancels(attached: Callable[..., Attached], phase: str) -> None:
    run = attached("args.calib_size=256")
    run.reaches(phase)
    run.process.send_signal(signal.SIGINT)
    code, text = run.end()
    assert code == 130, text
    # Stopped while the run was still being recorded, nothing was submitted and nothing is left.
    assert run.record()["state"] in ({"cancelled", "none"} if phase == "submitted" else {"cancelled"})
    assert "Traceback" not in text


def test_detached_returns_at_once_and_outlives_the_terminal(nemo: Nemo, home: Path) -> None:
    done = nemo("run", "probe", "--detach", "--json")
    assert done.code == 0, done.err
    run_dir = Path(done.json["run_dir"])
    (row,) = nemo("ps", "--json").json
    assert (row["id"], row["state"] in ("submitted", "running")) == (done.json["id"], True)
    until(lambda: read_record(run_dir)["state"] not in ("submitted", "running"))
    assert observe(run_dir)["state"] == "succeeded"
    assert nemo("ps", "--json").json == []
    assert nemo("ps", "--all", "--json").json[0]["state"] == "succeeded"


def test_a_detached_run_whose_supervisor_dies_before_it_begins(nemo: Nemo) -> None:
    run_dir = Path(nemo("run", "probe", "--detach", "--json").json["run_dir"])
    handle = json.loads((run_dir / "job.json").read_text())
    os.kill(handle["supervisor"]["pid"], signal.SIGKILL)
    (row,) = nemo("ps", "--json").json
    assert row["state"] == "lost"
    assert f"nemo experiment resume {run_dir.name}" in row["error"]["remedy"]
    assert nemo("resume", run_dir.name).code == 0
    until(lambda: nemo("status", run_dir.name, "--json").json["state"] == "succeeded")
    assert observe(run_dir)["attempts"][0]["state"] == "lost"


_STOCK = """
import nemo_run as run
from recipes import quantize_tiny

if __name__ == "__main__":
    recipe = quantize_tiny()
    recipe.args.calib_size = 8
    recipe.args.export_quant_cfg = "general/ptq/fp8_default-kv_fp8"
    with run.Experiment("mine") as experiment:
        experiment.add(recipe, executor=run.LocalExecutor(), name="quantize")
        experiment.run()
"""


def test_a_recipe_in_a_stock_experiment_records_itself(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_STOCK)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "NEMORUN_HOME": str(home), "PATH": path}
    env.pop("NEMO_RUN_DIR", None)
    done = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (record_file,) = tmp_path.rglob("run.json")
    record = observe(record_file.parent)
    assert record["state"] == "succeeded", record
    assert record["recipe"] == "quantize_tiny"
    assert record["values"]["args"]["calib_size"] == 8
    assert {output["type"] for output in record["outputs"]} == {"checkpoint_modelopt", "checkpoint_hf", "eval_results"}


_API = """
import sys
from recipes import ProblemsError, quantize_tiny, submit

if __name__ == "__main__":
    recipe = quantize_tiny()
    recipe.args.export_quant_cfg = "fp9"
    try:
        submit(recipe)
    except ProblemsError as error:
        assert [problem.name for problem in error.problems] == ["unsupported_quant_recipe"], error
    recipe.args.export_quant_cfg = "INT8_DEFAULT_CFG"
    job = submit(recipe, "local")
    print(job.state, job.report["evaluation"]["top1_agreement"], job.record["outputs"][0]["path"])
"""


def test_the_python_api(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_API)
    env = {**os.environ, "NEMORUN_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    state, agreement, path = done.stdout.split(maxsplit=2)
    assert state == "succeeded"
    assert float(agreement) > 0.8
    assert Path(path.strip()).exists()
