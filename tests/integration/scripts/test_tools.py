"""prepare_data, evaluate and serve as jobs: the real ones where they run here, stand-ins for servers that need GPUs."""

import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.args.serve import ServerName
from scripts.run.record import observe
from scripts.tiny.model import default_cache_root, ensure_tiny_model
from tests.conftest import write_safetensors
from tests.testbed import packages, serving

pytestmark = pytest.mark.integration

HOSTILE = 'it\'s a, ="b"; $(c) [d] {e} --x'
RUNS = f"runs {HOSTILE}"
_JOB = """
import json, sys
from scripts.args.{module} import {args}
from scripts.entrypoints import {algorithm}
from scripts.args.meaning import ScriptSpec
values = json.loads(sys.argv[1])
script = ScriptSpec(**values.pop("script", {{}}))
{algorithm}(args={args}(**values.pop("args")), script=script, **values)
"""
_CLASSES = {
    "prepare_data": ("data", "PrepareDataArgs"),
    "evaluate": ("evaluate", "EvaluateArgs"),
    "serve": ("serve", "ServeArgs"),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that has ended."""

    code: int
    out: str
    run_dir: Path
    record: dict[str, Any]

    @property
    def error(self) -> str | None:
        error = self.record["error"]
        return error["name"] if error else None

    def report(self, name: str) -> Any:
        return json.loads((self.run_dir / "report" / name).read_text(encoding="utf-8"))


Start = Callable[..., "subprocess.Popen[str]"]


def starting(folder: Path) -> Start:
    """What starts an entrypoint as a node does: a process with a run directory of its own."""
    number = 0

    def begin(
        algorithm: str, args: Mapping[str, Any], *, env: Mapping[str, str] | None = None, **values: Any
    ) -> "subprocess.Popen[str]":
        nonlocal number
        number += 1
        module, name = _CLASSES[algorithm]
        code = _JOB.format(module=module, args=name, algorithm=algorithm)
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | dict(env or {})
        variables["NEMO_RUN_DIR"] = str(folder / RUNS / f"{algorithm}-{number}")
        words = [sys.executable, "-P", "-c", code, json.dumps({"args": dict(args), **values})]
        return subprocess.Popen(
            words, env=variables, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return begin


def running(folder: Path) -> "Run":
    """What runs an entrypoint to its end."""
    start = starting(folder)

    def finish(algorithm: str, args: Mapping[str, Any], **values: Any) -> Job:
        process = start(algorithm, args, **values)
        out, _ = process.communicate(timeout=300)
        run_dir = max((folder / RUNS).glob(f"{algorithm}-*"), key=lambda one: int(one.name.rpartition("-")[2]))
        return Job(code=process.returncode, out=out, run_dir=run_dir, record=observe(run_dir))

    return finish


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return starting(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> "Run":
    return running(tmp_path)


Run = Callable[..., Job]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What looks like an FP8 export to whoever reads only headers, under a name that breaks careless commands."""
    folder = tmp_path / HOSTILE
    folder.mkdir()
    quantization = {"quant_method": "modelopt", "quant_algo": "FP8"}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(said))
    write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": [16, 64]})
    return folder


@pytest.fixture
def standin(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """The variables under which a job finds stand-ins of all three servers that do `what`."""
    found = serving.install(tmp_path / "servers")
    return lambda what: found | {"SERVER_STANDIN": what, "SERVER_STANDIN_LOG": str(tmp_path / "servers" / "log")}


def started_servers(tmp_path: Path) -> list[dict[str, Any]]:
    """What each stand-in wrote down."""
    log = tmp_path / "servers" / "log"
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie is gone."""
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")


Standin = Callable[[str], dict[str, str]]


@pytest.mark.parametrize("server", ["vllm", "trtllm", "sglang"])
def test_a_server_that_works_is_asked_and_stopped(
    run: Run, checkpoint: Path, standin: Standin, tmp_path: Path, server: ServerName
) -> None:
    args = {"checkpoint": str(checkpoint), "server": server, "max_tokens": 7, "prompts": "One,|Two,"}
    job = run("serve", args, env=standin("works"))
    assert (job.code, job.error) == (0, None), job.out
    report = job.report("serve.json")
    assert [answer["text"] for answer in report["answers"]] == [" and so on after One,", " and so on after Two,"]
    assert (report["algorithm"], report["quantization"], report["warnings"]) == ("FP8", "fp8", [])
    assert report["model"] == str(checkpoint)
    assert serving.READY_SECONDS <= report["start_seconds"] <= report["first_answer_seconds"]
    assert report["tokens_per_second"] > 0
    (server_started,) = started_servers(tmp_path)
    assert str(checkpoint) in server_started["argv"]
    assert not alive(server_started["pids"])
    (artifact,) = job.record["outputs"]
    assert (artifact["type"], artifact["path"]) == ("eval_results", str(job.run_dir / "report"))
    assert {row["name"] for row in metrics(job)} == {"start_seconds", "first_answer_seconds", "tokens_per_second"}


def metrics(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("dies", "server_died", "ValueError: ModelOpt currently only supports: ['FP8'] quantizations"),
        ("collapses", "server_died", "torch.OutOfMemoryError: CUDA out of memory"),
        ("refuses", "server_answer_wrong", "status 400"),
        ("empty", "server_answer_empty", "every answer of vLLM is empty"),
        ("repeats", "server_answer_degenerate", "one piece of text repeated"),
    ],
)
def test_a_server_that_fails_is_named_by_how(
    run: Run, checkpoint: Path, standin: Standin, tmp_path: Path, what: str, error: str, said: str
) -> None:
    job = run("serve", {"checkpoint": str(checkpoint)}, env=standin(what))
    assert (job.code, job.error) == (1, error), job.out
    assert said in job.record["error"]["message"]
    assert "outputs" not in job.record
    assert not alive(started_servers(tmp_path)[0]["pids"])


def test_a_server_that_is_never_ready_is_given_up(run: Run, checkpoint: Path, standin: Standin, tmp_path: Path) -> None:
    job = run("serve", {"checkpoint": str(checkpoint), "start_minutes": 0.03}, env=standin("silent"))
    assert (job.code, job.error) == (1, "server_not_ready"), job.out
    assert not alive(started_servers(tmp_path)[0]["pids"])


def test_answers_stay_in_the_report_when_they_are_no_text(run: Run, checkpoint: Path, standin: Standin) -> None:
    job = run("serve", {"checkpoint": str(checkpoint), "max_tokens": 12}, env=standin("repeats"))
    assert [answer["text"] for answer in job.report("serve.json")["answers"]] == ["!" * 12] * 2


def test_a_server_that_counts_no_tokens_has_no_speed(run: Run, checkpoint: Path, standin: Standin) -> None:
    job = run("serve", {"checkpoint": str(checkpoint)}, env=standin("wordless"))
    assert (job.code, job.report("serve.json")["tokens_per_second"]) == (0, None)


def test_words_of_the_user_reach_the_server_last(run: Run, checkpoint: Path, standin: Standin, tmp_path: Path) -> None:
    job = run("serve", {"checkpoint": str(checkpoint)}, env=standin("works"), extra_args=["--enforce-eager"])
    assert job.code == 0, job.out
    assert started_servers(tmp_path)[0]["argv"][-1] == "--enforce-eager"
    job = run("serve", {"checkpoint": str(checkpoint)}, env=standin("works"), extra_args=["--enforce-lazy"])
    assert job.error == "server_died"
    assert "unrecognized arguments: --enforce-lazy" in job.record["error"]["message"]


def test_nothing_is_started_where_the_port_is_taken(
    run: Run, checkpoint: Path, standin: Standin, tmp_path: Path
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        job = run("serve", {"checkpoint": str(checkpoint), "port": listener.getsockname()[1]}, env=standin("works"))
    assert (job.error, started_servers(tmp_path)) == ("port_in_use", [])


def test_nothing_is_started_without_a_server(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    job = run("serve", {"checkpoint": str(checkpoint)}, env={"PATH": str(tmp_path / "empty")})
    assert job.error == "server_not_installed"


def test_a_proxy_is_not_asked_for_this_machine(run: Run, checkpoint: Path, standin: Standin) -> None:
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9")
    job = run("serve", {"checkpoint": str(checkpoint)}, env=standin("works") | proxies)
    assert job.code == 0, job.out


@pytest.mark.parametrize(
    ("what", "how"),
    [("silent", signal.SIGKILL), ("silent", signal.SIGTERM), ("silent", signal.SIGINT), ("stubborn", signal.SIGKILL)],
)
def test_a_job_that_is_ended_leaves_no_server(
    start: Start, checkpoint: Path, standin: Standin, tmp_path: Path, what: str, how: signal.Signals
) -> None:
    process = start("serve", {"checkpoint": str(checkpoint), "prompts": "|".join("ab" * 200)}, env=standin(what))
    wait_for(lambda: started_servers(tmp_path) or process.poll() is not None)
    (server,) = started_servers(tmp_path)
    assert len(alive(server["pids"])) == 2
    process.send_signal(how)
    process.communicate(timeout=120)
    wait_for(lambda: not alive(server["pids"]))
    if how != signal.SIGKILL:
        assert observe(tmp_path / RUNS / "serve-1")["state"] == "cancelled"


@pytest.fixture
def core() -> dict[str, str]:
    """The variables under which a job has Megatron-Core."""
    return on_path(packages.installed(packages.MEGATRON_CORE))


@pytest.fixture(scope="module")
def harness() -> dict[str, str]:
    """The variables under which a job has the lm-evaluation-harness."""
    return on_path(packages.installed(packages.LM_EVAL))


def on_path(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(folder)])}


_READ_BACK = """
import json, sys
from megatron.core.datasets.indexed_dataset import IndexedDataset
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print(json.dumps([[tokenizer.decode(one) for one in IndexedDataset(prefix)] for prefix in sys.argv[2:]]))
"""


def read_back(prefixes: list[str], env: Mapping[str, str]) -> list[list[str]]:
    """The documents of binary data, as Megatron-Core itself reads it."""
    words = [sys.executable, "-c", _READ_BACK, str(ensure_tiny_model("tiny:qwen3", default_cache_root())), *prefixes]
    done = subprocess.run(words, env={**os.environ, **env}, capture_output=True, text=True, check=True)
    documents: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return documents


def test_text_and_jsonl_become_data_that_megatron_reads(run: Run, core: dict[str, str], tmp_path: Path) -> None:
    for folder in ("a", HOSTILE):
        (tmp_path / folder).mkdir()
    rows = [json.dumps({"text": text}) for text in ("First of JSONL.", "Second.")]
    (tmp_path / "a" / "data.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / HOSTILE / "data.txt").write_text("A paragraph\nof two lines.\n\n\nAnother.\n")
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as handle:
        handle.write(rows[0])
    names = ["a/data.jsonl", f"{HOSTILE}/data.txt", "packed.jsonl.gz"]
    args = {"jsonl_paths": names, "tokenizer": "tiny:qwen3", "workers": 1, "append_eod": True}
    args["output_dir"] = str(tmp_path / HOSTILE / "out")
    job = run("prepare_data", args, env=core)
    assert (job.code, job.error) == (0, None), job.out
    report = job.report("report.json")
    prefixes = report["data_paths"][1::2]
    assert [Path(prefix).name for prefix in prefixes] == ["data-2_text", "data_text", "packed_text"]
    assert read_back(prefixes, core) == [
        ["<bos>A paragraph\nof two lines.<eos>", "<bos>Another.<eos>"],
        ["<bos>First of JSONL.<eos>", "<bos>Second.<eos>"],
        ["<bos>First of JSONL.<eos>"],
    ]
    assert (report["documents"], report["warnings"]) == (5, [])
    assert report["tokens"] == sum(report["data_paths"][0::2])
    (artifact,) = job.record["outputs"]
    assert (artifact["type"], artifact["path"]) == ("binidx", args["output_dir"])
    assert [(row["name"], row["documents"]) for row in job.record["inputs"]] == list(zip(names, (2, 2, 1), strict=True))


def test_rows_that_give_no_document_are_told(run: Run, core: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"body": "One."}\n\n{"body": "cut sh\n{"body": "Two."}\n')
    args = {"input_dir": "in", "json_keys": ["body"], "tokenizer": "tiny:qwen3", "workers": 1, "output_dir": "out"}
    job = run("prepare_data", args, env=core)
    assert job.code == 0, job.out
    report = job.report("report.json")
    assert report["documents"] == 2
    assert report["warnings"] == ["2 of 4 rows gave no document: blank, or not JSON."]


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({}, "one_data_source"),
        ({"jsonl_paths": ["in/a.jsonl"], "hf_dataset": "x/y"}, "one_data_source"),
        ({"jsonl_paths": ["in/absent.jsonl"]}, "missing_data"),
        ({"jsonl_paths": ["in/a.parquet"]}, "unknown_data"),
        ({"jsonl_paths": ["in/broken.jsonl"]}, "unreadable_data"),
        ({"jsonl_paths": ["in/broken.jsonl.gz"]}, "unreadable_data"),
        ({"jsonl_paths": ["in/a.jsonl"], "json_keys": ["content"]}, "no_text"),
        ({"jsonl_paths": ["in/a.txt"], "json_keys": ["text", "title"]}, "no_text"),
        ({"input_dir": "in/empty"}, "missing_data"),
    ],
)
def test_data_that_cannot_be_tokenized_is_named_before_anything_starts(
    run: Run, core: dict[str, str], tmp_path: Path, args: dict[str, Any], error: str
) -> None:
    (tmp_path / "in" / "empty").mkdir(parents=True)
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "One."}\n')
    (tmp_path / "in" / "a.txt").write_text("One.")
    for name in ("a.parquet", "broken.jsonl", "broken.jsonl.gz"):
        (tmp_path / "in" / name).write_text("no JSON")
    job = run("prepare_data", {"output_dir": "out", "tokenizer": "tiny:qwen3", **args}, env=core)
    assert (job.code, job.error) == (1, error), job.out
    assert not (tmp_path / "out").exists()


def test_a_release_that_skips_compressed_files_is_given_none(run: Run, core: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "megatron_preprocess_data.py"
    script.write_text(
        "import argparse\n"
        "parser = argparse.ArgumentParser()\n"
        "for name in ('input_path', 'output_dir', 'tokenizer'):\n"
        "    parser.add_argument(f'--{name}')\n"
        "parser.parse_args()\n"
    )
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as handle:
        handle.write('{"text": "One."}')
    args = {"jsonl_paths": ["a.jsonl.gz"], "output_dir": "out", "tokenizer": "tiny:qwen3"}
    job = run("prepare_data", args, script={"path": str(script)}, env=core)
    assert job.error == "unknown_data", job.out
    assert "reads no compressed files: a.jsonl.gz" in job.record["error"]["message"]


def test_data_needs_megatron_core_and_says_so(run: Run) -> None:
    job = run("prepare_data", {"jsonl_paths": ["tiny:text"], "tokenizer": "tiny:qwen3", "output_dir": "out"})
    assert job.error == "megatron_core_missing"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model in FP8, as ModelOpt restores it and as a server loads it."""
    folder = tmp_path_factory.mktemp("quantized") / HOSTILE
    saved = {"modelopt_save_path": str(folder / "modelopt"), "export_dir": str(folder / "hf")}
    values = {"hf_model_id": "tiny:qwen3", "calib_size": 16, "calib_seq_length": 128, "eval_size": 0, **saved}
    code = (
        "import json, sys; from scripts.args.quantize import QuantizeArgs; from scripts.entrypoints import quantize; "
        "quantize(args=QuantizeArgs(**json.loads(sys.argv[1])))"
    )
    env = {**os.environ, "NEMO_RUN_DIR": str(folder.parent / "run"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-P", "-c", code, json.dumps(values)], env=env, check=True, capture_output=True)
    return folder


def values_of(job: Job) -> dict[tuple[str, str], float]:
    rows = job.report("report.json")["scores"]
    return {(row["score"]["task"], row["score"]["metric"]): row["score"]["value"] for row in rows}


@pytest.fixture(scope="module")
def before(harness: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The built-in model, scored."""
    run = running(tmp_path_factory.mktemp("before"))
    done = run("evaluate", {"checkpoint": "tiny:qwen3", "batch_size": 8}, env=harness)
    assert (done.code, done.error) == (0, None), done.out
    return done


def test_a_quantization_is_scored_before_and_after(
    run: Run, harness: dict[str, str], before: Job, quantized: Path
) -> None:
    scores = values_of(before)
    assert 2 < scores["tiny_text", "byte_perplexity"] < 6  # an untrained model has 256 at least
    assert 0.25 <= scores["tiny_choice", "acc"] < 0.6
    (artifact,) = before.record["outputs"]
    assert (artifact["type"], artifact["path"]) == ("eval_results", str(before.run_dir / "report"))
    page = (before.run_dir / "report" / "index.html").read_text()
    assert "<svg" in page and "byte_perplexity" in page and before.run_dir.name in page
    assert ("tiny_text/byte_perplexity", scores["tiny_text", "byte_perplexity"]) in [
        (row["name"], row["value"]) for row in metrics(before)
    ]

    args = {"checkpoint": str(quantized / "modelopt"), "batch_size": 8, "baseline": str(before.run_dir)}
    after = run("evaluate", args, env=harness)
    assert (after.code, after.error) == (0, None), after.out
    report = after.report("report.json")
    assert (report["backend"], report["restored"], report["quantization"]) == ("hf", True, "fp8")
    change = {row["score"]["metric"]: row["change"] for row in report["scores"]}["bits_per_byte"]
    assert change == values_of(after)["tiny_text", "bits_per_byte"] - scores["tiny_text", "bits_per_byte"]
    assert change != 0  # without ModelOpt's quantizers it would be
    assert abs(change) < 0.05
    for row in report["scores"]:  # question by question: far closer than by the errors of the two scores
        (low, high), score = row["interval"], row["score"]
        assert low <= row["change"] <= high
        if score["stderr"]:
            assert high - low < 2 * 1.96 * score["stderr"]
    assert report["warnings"] == []
    assert not list(after.run_dir.rglob("samples_*")), "what was asked is not kept unless somebody says so"


def test_an_export_is_never_scored_as_something_else(run: Run, harness: dict[str, str], quantized: Path) -> None:
    export = str(quantized / "hf")
    job = run("evaluate", {"checkpoint": export, "backend": "hf"}, env=harness)
    assert job.error == "backend_cannot_load", job.out
    job = run("evaluate", {"checkpoint": export}, env=harness)  # vLLM, which is not here
    assert job.error == "backend_not_installed", job.out
    restorable = {"checkpoint": str(quantized / "modelopt")}
    job = run("evaluate", restorable | {"backend": "vllm"}, env=harness)
    assert job.error == "backend_cannot_load", job.out
    job = run("evaluate", restorable, script={"path": "my_lm_eval.py"}, env=harness)
    assert job.error == "script_unused", job.out


@pytest.mark.usefixtures("unmeasured")
def test_a_limited_run_is_not_compared_with_a_whole_one(run: Run, harness: dict[str, str], before: Job) -> None:
    args = {"checkpoint": "tiny:qwen3", "tasks": ["tiny_text"], "batch_size": 8, "limit": 2}
    job = run("evaluate", args | {"baseline": str(before.run_dir / "report")}, env=harness)
    assert job.code == 0, job.out
    report = job.report("report.json")
    assert [row["before"] for row in report["scores"]] == [None] * 3
    otherwise, limited = report["warnings"]
    assert otherwise == (
        "baseline_not_comparable: tiny_text was asked otherwise: 34 questions with 0 examples, version 1.0 then, "
        "2 questions with 0 examples, version 1.0 now."
    )
    assert limited.startswith("limited_run_used_as_quality_signal")


@pytest.mark.usefixtures("unmeasured")
def test_a_task_of_the_user_is_asked(run: Run, harness: dict[str, str], tmp_path: Path) -> None:
    own = tmp_path / HOSTILE
    own.mkdir()
    rows = tmp_path / "rows.jsonl"  # the harness takes a path of data as a pattern
    rows.write_text('{"q": "The capital of France is", "a": " Paris"}\n' * 3)
    task = {
        "task": "own_task",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "acc"}],
    }
    (own / "own.yaml").write_text(json.dumps(task))
    args = {"checkpoint": "tiny:qwen3", "tasks": ["own_task"], "include_path": str(own), "batch_size": 2}
    job = run("evaluate", args, env=harness)
    assert job.code == 0, job.out
    assert values_of(job) == {("own_task", "acc"): 0.0}


@pytest.mark.usefixtures("unmeasured")
def test_a_model_that_says_no_number_has_no_scores(run: Run, harness: dict[str, str], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(ensure_tiny_model("tiny:qwen3", default_cache_root()), broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    args = {"checkpoint": str(broken), "tasks": ["tiny_text"], "batch_size": 8, "limit": 2}
    job = run("evaluate", args, env=harness)
    assert (job.code, job.error) == (1, "no_scores"), job.out
    assert "outputs" not in job.record


@pytest.mark.usefixtures("unmeasured")
def test_a_task_that_is_not_there_is_named(run: Run, harness: dict[str, str]) -> None:
    job = run("evaluate", {"checkpoint": "tiny:qwen3", "tasks": ["tiny_test"]}, env=harness)
    assert job.error == "unknown_task"
    assert "args.tasks=tiny_test" in job.record["error"]["message"]
    assert "Did you mean tiny_text?" in job.record["error"]["remedy"]
    job = run("evaluate", {"checkpoint": "tiny:qwen3", "tasks": ["tiny_test@x"]}, env=harness)  # left to the harness
    assert job.error == "script_failed"
    assert "Tasks not found: tiny_test@x" in job.record["error"]["message"]


def test_the_harness_and_the_baseline_are_looked_for_first(run: Run, harness: dict[str, str], tmp_path: Path) -> None:
    assert run("evaluate", {"checkpoint": "tiny:qwen3"}).error == "harness_not_installed"
    job = run("evaluate", {"checkpoint": "tiny:qwen3", "baseline": str(tmp_path)}, env=harness)
    assert (job.error, (job.run_dir / "harness").exists()) == ("unreadable_baseline", False)


def test_only_what_can_be_scored_is_scored(run: Run, harness: dict[str, str], tmp_path: Path) -> None:
    adapter = tmp_path / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    write_safetensors(adapter / "adapter_model.safetensors", {"base_model.a.lora_A.weight": [4, 8]})
    assert run("evaluate", {"checkpoint": str(adapter)}, env=harness).error == "unscorable_checkpoint"


@pytest.mark.parametrize("algorithm", ["prepare_data", "evaluate", "serve"])
def test_a_tool_is_one_process(run: Run, algorithm: str) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "2"}
    assert run(algorithm, {}, env=ranks).error == "world_size_not_one"
    assert run(algorithm, {}, engine="hf").error == "engine_cannot"
