"""The CLI as its users meet it: a process, its exit status, what it prints, what it leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from recipes.cli.commands import register
from recipes.experiment.job import Job
from recipes.experiment.runs import Run
from scripts.run.problems import JobError
from tests.answers import answer_of, data_of
from tests.conftest import Done

Nemo = Callable[..., Done]


def _app() -> typer.Typer:
    """The commands in this process, which is faster than one of their own."""
    app = typer.Typer()
    register(app)
    return app


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_dry_run_shows_everything_and_writes_nothing(nemo: Nemo, home: Path, tmp_path: Path) -> None:
    done = nemo("run", "quantize_fp8", "executor=local", "args.hf_model_id=Qwen/Qwen3-0.6B", "--dryrun")
    assert done.code == 0, done.err
    for expected in (
        "engine     hf",
        "fdl_runner",
        "calib_size: 512",
        "on the node: args.export_dir",
        "not on this machine",
    ):
        assert expected in done.out
    assert _files(home) == []
    assert _files(tmp_path / "work") == []


def test_a_dry_run_shows_everything_of_a_job_that_is_refused(nemo: Nemo, home: Path) -> None:
    words = ["run", "quantize_fp8", "executor=slurm", "args.calib_sze=3", "args.export_quant_cfg=fp9", "--dryrun"]
    done = nemo(*words)
    assert done.code == 2
    for expected in (
        "calib_size: 512",
        "--export-quant-cfg fp9",
        "would submit, were it not refused:",
        "#SBATCH",
        "torchrun",
    ):
        assert expected in done.out, expected
    assert "unknown_key" in done.err and "2 problems; nothing was submitted." in done.err
    told = nemo(*words, "--json")
    assert told.answer["outcome"] == "refused" and "#SBATCH" in told.json["submits"]
    assert {one["name"] for one in told.answer["problems"]} == {"unknown_key", "unsupported_quant_recipe"}
    assert _files(home) == []


def test_a_package_that_no_job_can_carry_is_told_after_everything(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    import nemo_run.config

    monkeypatch.setattr(nemo_run.config, "_NEMORUN_HOME", str(home))

    (tmp_path / "weights.bin").write_bytes(os.urandom(900_000))
    monkeypatch.chdir(tmp_path)
    mount = "{path: /p, mount_path: /mnt/shared, from: node-nfs:s}"
    profile = (
        f"cloud: {{extends: lepton, node_group: g, resource_shape: gpu.8xh100, mounts: [{mount}], packager: pattern"
    )
    (tmp_path / "executors.yaml").write_text(f"{profile}, include: ['*.bin'], nemo_run_dir: /mnt/shared}}\n")
    words = ["run", "probe", "executor=cloud", "--dryrun"]
    done = CliRunner().invoke(_app(), words)
    assert done.exit_code == 2, done.output
    assert "# launch.sh, in the package:" in done.stdout
    assert "Problem package_too_large   executor.packager=pattern: " in done.stderr
    told = CliRunner().invoke(_app(), [*words, "--json"]).stdout
    assert "launch.sh" in data_of(told)["submits"] and answer_of(told)["problems"][-1]["name"] == "package_too_large"
    done = CliRunner().invoke(_app(), [*words[:-1], "--detach", "--yes"])
    assert done.exit_code == 2 and "1 problem; nothing was submitted." in done.stderr
    assert _files(home) == []


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["executor=lepton"], ["engine     script", "would submit"]),  # its profile lacks what it needs
        (["executor=slurm", "torchrun.nnodes=0"], ["calib_size: 512", "would submit"]),
        (["executor=slrum"], ["executor   slrum", "calib_size: 512"]),
        (["executor=slurm", "args.export_dir=/"], ["calib_size: 512"]),  # decisive: no more can be said
    ],
)
def test_a_dry_run_shows_what_can_be_made(nemo: Nemo, words: list[str], shown: list[str]) -> None:
    done = nemo("run", "quantize_fp8", *words, "--dryrun")
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert all(text in done.out for text in shown), done.out


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (
            ["serve", "args.checkpoint=Qwen/Qwen3-8B"],
            "vllm serve Qwen/Qwen3-8B --host 127.0.0.1 --port '<a free port>'",
        ),
        (["serve_sglang", "args.checkpoint=/m/fp8", "args.port=8000"], "python -m sglang.launch_server --model-path"),
        (["serve", "args.checkpoint=/m/fp8"], "--quantization '<of the checkpoint>'"),
        (["evaluate", "args.tasks=[mmlu]", "args.limit=5"], "python -m lm_eval --model hf --model_args"),
        (["evaluate", "args.tasks=[mmlu]", "args.apply_chat_template=true", "--", "--x"], "--x --apply_chat_template"),
    ],
)
def test_a_dry_run_shows_the_command_of_a_tool(nemo: Nemo, words: list[str], command: str) -> None:
    cut = words.index("--") if "--" in words else len(words)
    done = nemo("run", *words[:cut], "executor=slurm", "--dryrun", *words[cut:])
    assert command in done.out.partition("the job runs:")[2], done.out


@pytest.mark.parametrize(
    ("executor", "word"),
    [
        ("local", "args.message=${oc.env:HF_TOKEN}"),
        ("local", "args.message=${oc.env:HF_TOKEN,none} ${oc.env:USER,x}"),
        ("local", "args.message=hf_MARKER_0123"),
        ("slurm", "extra_args=[--token, hf_MARKER_0123]"),
        ("mine", "args.message=${oc.env:SITE}"),
    ],
)
def test_a_secret_is_in_no_value(nemo: Nemo, home: Path, work: Path, executor: str, word: str) -> None:
    (work / "executors.yaml").write_text("mine: {extends: slurm, secrets: [SITE]}\n")
    env = {"HF_TOKEN": "hf_MARKER_0123", "SITE": "hf_MARKER_0123"}
    for how in (["--dryrun"], ["--dryrun", "--json"], ["--yes"]):
        done = nemo("run", "probe", f"executor={executor}", word, *how, env=env)
        assert done.code == 2 and "secret_in_args" in done.out + done.err
        assert "MARKER" not in done.out + done.err
    assert _files(home) == []


def test_dry_run_as_json(nemo: Nemo) -> None:
    done = nemo(
        "run", "quantize", "--config", "nvfp4", "args.calib_size=7", "args.hf_model_id=tiny:llama", "--dryrun", "--json"
    )
    plan = done.json
    assert plan["values"]["args"]["calib_size"] == 7
    assert plan["values"]["args"]["export_quant_cfg"] == "nvfp4"
    assert plan["resolved"]["export_dir"].startswith(plan["run_dir"])
    assert "tiny-llama-nvfp4" in plan["resolved"]["export_dir"]


def test_a_user_s_file_lies_between_recipe_and_command_line(nemo: Nemo, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("args: {hf_model_id: 'tiny:qwen3', calib_size: 11, calib_seq_length: 99}\n")
    plan = nemo("run", "quantize_fp8", "--config", str(mine), "args.calib_size=64", "--dryrun", "--json").json
    args = plan["values"]["args"]
    assert (args["calib_size"], args["calib_seq_length"], args["export_quant_cfg"]) == (64, 99, "fp8")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["quantze_fp8"], ["Did you mean quantize_fp8?"]),
        (["quantize_fp8", "executor=locl"], ["Did you mean local?"]),
        (["quantize_fp8", "args.calib_sze=3"], ["Did you mean args.calib_size?"]),
        (["quantize_fp8", "args.export_quant_cfg=fp9"], ["fp8"]),
        (["quantize_fp8", "args.hf_model_id=./none"], ["missing_model"]),
        (["quantize_fp8", "args.calib_dataset=./none.jsonl"], ["missing_data"]),
        (["quantize_fp8", "word"], ["not_an_override"]),
        (["quantize_fp8", "--", "--new-flag"], ["extra_args_unused"]),
        (["probe", "--", "--new-flag"], ["extra_args_unused"]),
        (["quantize_fp8", "--config", "./none.yaml"], ["unknown_config"]),
        (["quantize_fp8", "executor="], ["unknown_executor"]),
        (["quantize_fp8", "--config", "~nobody-here/x.yaml"], ["unknown_config"]),
        (["quantize_fp8", "args.calib_dataset=~nobody-here/x.jsonl"], ["there is no user nobody-here"]),
        (["quantize_fp8", "--sweep", "args.calib_size=1,2", "--sweep", "args.calib_size=3"], ["not_a_sweep", "twice"]),
        (["quantize_fp8", "--sweep", "args.calib_size=1\n2,3"], ["not_a_sweep"]),
        (["nope", "executor=nope", "word"], ["unknown_recipe", "unknown_executor", "not_an_override", "3 problems"]),
    ],
)
def test_refusals(nemo: Nemo, home: Path, tmp_path: Path, words: list[str], expected: list[str]) -> None:
    cut = words.index("--") if "--" in words else len(words)
    base = [*words[:cut], "--dryrun" if len(words) > 2 else "--yes", *words[cut:]]
    if not any(word.startswith("args.hf_model_id") for word in words):
        base.insert(1, "args.hf_model_id=tiny:qwen3")
    done = nemo("run", *base)
    assert done.code == 2, done.out
    assert "Traceback" not in done.err
    for text in expected:
        assert text in done.err
    assert "nothing was submitted" in done.err
    assert _files(home) == []
    assert _files(tmp_path / "work") == []


def test_refusals_as_json(nemo: Nemo) -> None:
    done = nemo("run", "quantize_fp8", "args.hf_model_id=./none", "args.calib_size=0", "--json", "--yes")
    assert done.code == 2
    assert {problem["name"] for problem in done.answer["problems"]} >= {"missing_model", "out_of_range"}


@pytest.mark.parametrize(
    ("words", "place", "detached"),
    [
        (["-r", "slurm"], "slurm", False),
        (["-b", "slurm"], "slurm", True),
        (["-b", "slurm", "executor=slurm"], "slurm", True),
        (["executor=docker"], "docker", False),
        ([], "local", False),
    ],
)
def test_a_profile_by_the_words_r_and_b(
    monkeypatch: pytest.MonkeyPatch, words: list[str], place: str, detached: bool
) -> None:
    seen = {}

    def start(jobs: list[Job], *, detach: bool, watch: object) -> list[Run]:
        seen.update(place=jobs[0].executor, detach=detach)
        raise JobError("stopped_here", "so far")

    monkeypatch.setattr("recipes.experiment.submit.start_sweep", start)
    done = CliRunner().invoke(_app(), ["run", "probe", *words, "--yes"])
    assert (done.exit_code, seen) == (1, {"place": place, "detach": detached}), done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["probe", "-r", "slurm", "-b", "slurm"], "-r is an attached run"),
        (["probe", "-r", "slurm", "--detach"], "-r is an attached run"),
        (["probe", "-r", "slurm", "executor=docker"], "a job runs in one place"),
        (["executor=slurm", "probe"], "Write: nemo experiment run probe executor=slurm"),
        (["probe", "--executor", "slurm"], "Write executor=slurm."),
        (["quantize_fp8", "--calib-size=64"], "Write args.calib_size=64."),
        (["quantize_fp8", "--calib_size", "64"], "Write args.calib_size=64."),
    ],
)
def test_words_that_do_not_fit_say_what_to_type(words: list[str], said: str) -> None:
    done = CliRunner().invoke(_app(), ["run", *words, "-d"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert done.exit_code == 2 and said in done.output, done.output


def test_configs_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("args: {calib_size: 7, calib_seq_length: 99}")
    (tmp_path / "b.yaml").write_text("args: {calib_size: 8}")
    words = ["run", "quantize", "-c", "nvfp4", "-c", str(tmp_path / "a.yaml"), "-c", str(tmp_path / "b.yaml")]
    shown = CliRunner().invoke(_app(), [*words, "-r", "slurm", "--dry-run", "--json"])
    args = data_of(shown.stdout)["values"]["args"]
    assert (args["export_quant_cfg"], args["calib_size"], args["calib_seq_length"]) == ("nvfp4", 8, 99)


@pytest.mark.parametrize("how", [["quantize", "-c", "tiny"], ["quantize_tiny"]])
def test_tiny_is_the_same_command_wherever_an_image_is_named(how: list[str]) -> None:
    def shown(*words: str) -> Any:
        return data_of(CliRunner().invoke(_app(), ["run", *words, "--dryrun", "--json"]).stdout)

    tiny, whole = shown(*how, "-b", "slurm"), shown("quantize", "-b", "slurm")
    assert (tiny["engine"], tiny["shape"]) == (whole["engine"], whole["shape"])
    changed = [(one, other) for one, other in zip(tiny["command"], whole["command"], strict=True) if one != other]
    assert changed[0] == ("16", "512") and len(changed) == 2, "the other one is the run's own folder"
    here = shown(*how)
    assert (here["engine"], here["values"]["args"]["hf_model_id"]) == ("hf", "tiny:qwen3")
    assert shown(*how, "-b", "slurm", "executor.image=null")["engine"] == "hf"
    assert shown(*how, "-b", "slurm", "engine=hf")["values"]["args"]["hf_model_id"] == "tiny:qwen3"
    mine = shown(*how, "-b", "slurm", "args.hf_model_id=Qwen/Qwen3-8B")
    assert mine["values"]["args"]["hf_model_id"] == "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("a: [", "unreadable_config"),
        (None, "unknown_config"),
        ("executor: slurm", "unknown_key"),
        ("arsg: {tp: 1}", "unknown_key"),
        ("extends: fp9", "unknown_config"),
    ],
)
def test_a_config_that_cannot_be_read_is_all_that_is_said(tmp_path: Path, config: str | None, name: str) -> None:
    if config is not None:
        (tmp_path / "a.yaml").write_text(config)
    words = ["run", "export", "-c", str(tmp_path / "a.yaml"), "--json", "--dryrun"]  # which lacks what it needs
    problems = answer_of(CliRunner().invoke(_app(), words).stdout)["problems"]
    assert [one["name"] for one in problems] == [name]


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (["executor=slurm", "executor.mem=200X", "executor.nodes=0"], {"executor.mem", "executor.nodes"}),
        (["executor=slurm", "executor.tme=1"], {"executor.tme"}),
        (["executor=lokal"], {"executor"}),
    ],
)
def test_a_config_that_cannot_be_read_hides_nothing_of_the_place(
    tmp_path: Path, words: list[str], more: set[str]
) -> None:
    (tmp_path / "a.yaml").write_text("a: [")
    told = CliRunner().invoke(_app(), ["run", "export", "-c", str(tmp_path / "a.yaml"), *words, "--json", "--dryrun"])
    assert {one["key"] for one in answer_of(told.stdout)["problems"]} == {"file", *more}


def test_unknown_options_are_refused(nemo: Nemo) -> None:
    done = nemo("run", "quantize_fp8", "--dtach")
    assert done.code == 2
    assert "--detach" in done.err


def test_the_catalogue(nemo: Nemo) -> None:
    assert "quantize_w4a8_awq" in nemo("recipes").out
    one = nemo("recipes", "quantize_nvfp4")
    assert "args.calib_size = 2000   (int)" in one.out
    assert "consumes   checkpoint_hf" in one.out and "hardware   b200" in one.out
    assert nemo("recipes", "quantize_nvfp4", "--json").json["algorithm"] == "quantize"
    assert len(nemo("recipes", "--json").json["recipes"]) >= 60
    assert "v0.4.2" in one.out
    assert "without args.calib_seq_length" in one.out
    assert nemo("recipes", "nope").code == 2


@pytest.mark.parametrize("command", ["run", "recipes", "ps"])
def test_help_has_an_example(nemo: Nemo, command: str) -> None:
    done = nemo(command, "--help")
    assert done.code == 0
    assert f"Example: nemo experiment {command}" in " ".join(done.out.split())


def test_nemo_run_s_own_commands_are_still_there(cold_nemo: Nemo) -> None:
    done = cold_nemo("--help")
    for command in ("list", "logs", "status", "cancel", "run", "recipes", "ps"):
        assert command in done.out


def test_ps_tells_damaged_records_apart(nemo: Nemo, home: Path) -> None:
    folder = home / "runs" / "quantize_1-a"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{")
    done = nemo("ps", "--json")
    assert done.code == 0
    assert [row["state"] for row in done.json] == ["unreadable"]


@pytest.mark.parametrize(
    "words", [("recipes", "quantze_fp8"), ("recipes", "--json"), ("run", "quantize_fp8", "--dtach")]
)
def test_the_script_nemo_does_what_the_tests_process_does(nemo: Nemo, cold_nemo: Nemo, words: tuple[str, ...]) -> None:
    """All other tests fork their commands from a process that has imported torch: here is the proof that they may."""
    assert cold_nemo(*words) == nemo(*words)
