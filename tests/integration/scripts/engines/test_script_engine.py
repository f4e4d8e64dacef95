"""The script engine from the command line to the script and back: local torchrun, Slurm with two nodes, Docker.

Stand-ins: NVIDIA's scripts, made of the flag tables (tests/testbed/standin.py). Real are torchrun, Slurm, the Docker
engine, NeMo-Run, argparse, and the checkpoints that the stand-ins leave.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipes.catalogue import RECIPES
from recipes.experiment.prepare import prepare_all
from recipes.experiment.stage import Options, Stage
from scripts.engines.script.flags.tables import container_path, releases_of
from scripts.engines.script.locate import is_module
from scripts.run.files import write_json
from tests.testbed.docker import Engine
from tests.testbed.places import docker_profile, slurm_profile
from tests.testbed.scripted import (
    Ran,
    User,
    begin,
    carry_out,
    fill,
    for_another_run,
    on_one_process,
)
from tests.testbed.slurm import Cluster
from tests.testbed.standin import write_huggingface, write_megatron, write_standin
from tests.testbed.waiting import until

pytestmark = pytest.mark.integration

QUANTIZE = "Megatron-Bridge/examples/quantization/quantize.py"
DISTILL = "Model-Optimizer/examples/megatron_bridge/distill.py"
#: Everything that a shell, YAML, argparse or a template could take for something else.
HOSTILE = "--tp 9 it's \"quoted\" $(touch here) `id` $HOME a;b|c&d>e\n{x} %s \\n * ~ é漢字🙂 #='"
RECEIVED = f"{HOSTILE} ${{late}}"  # which is escaped on the command line: late values are written so
HOSTILE_NAME = 'it\'s "é漢" $(x) &'
_FAMILIES = {
    recipe.family.name: name
    for name, recipe in reversed([*RECIPES.items()])
    if any(not is_module(script) for script in getattr(recipe.family.args, "SCRIPTS", ()))
}


def hostile_words(user: User) -> list[str]:
    """A quantization of a model, into a folder, with prompts that nobody should call so."""
    model = write_huggingface(user.folder / "models" / HOSTILE_NAME)
    output = user.folder / "out" / HOSTILE_NAME / "-checkpoint"
    words = [f"args.hf_model_id={model}", f"args.megatron_save_path={output}", rf"args.prompts={HOSTILE} \${{late}}"]
    return [*words, "args.ep=1", "args.compress=true", "args.export_kv_cache_quant=fp8"]


def is_true(ran: Ran, world: int, plan: Any) -> None:
    """The record, the files beside it and the plan agree with what the script received on every rank."""
    record = ran.record
    assert (record["state"], record["engine"], record["error"]) == ("succeeded", "script", None)
    argv = record["script"]["argv"]
    assert argv == for_another_run(plan["script"]["argv"], plan["id"], record["id"])
    ranks = ran.received()
    assert [rank["env"]["RANK"] for rank in ranks] == [str(rank) for rank in range(world)]
    for number, rank in enumerate(ranks):
        assert rank["argv"] == argv
        python, script, *words = ran.command(number)["argv"]
        assert (script, words) == (record["script"]["path"], argv)
        assert Path(python).name.startswith("python")
        assert rank["env"]["WORLD_SIZE"] == str(world)
        assert rank["env"]["PYTHONSAFEPATH"] is None
        own = [entry for entry in rank["sys_path"] if Path(entry, "scripts", "script", "engine.py").is_file()]
        assert own == [], "its `scripts` is not ours"
        assert rank["sys_path"][0] == str(Path(script).parent)
        assert f"rank {number}" in ran.log(number)
    assert record["script"]["digest"].startswith("sha256:")
    assert record["script"]["releases"]
    assert ran.left_behind() == []


def is_quantized(record: dict[str, Any], output: str) -> None:
    (made,) = record["outputs"]
    assert (made["type"], made["path"], made["files"]) == ("checkpoint_megatron", output, 7)
    assert made["bytes"] > 1000 and made["digest"].startswith("sha256:")
    assert (made["quantization"], made["iteration"]) == ("fp8", 1)
    assert (Path(output) / "latest_checkpointed_iteration.txt").read_text() == "1"
    assert [one.name for one in Path(output).parent.iterdir()] == [Path(output).name], "nothing is left beside it"


def got(ran: Ran) -> list[dict[str, Any]]:
    return [rank["args"] for rank in ran.received()]


def test_four_ranks_of_a_local_torchrun(user: User) -> None:
    words = ["executor=local", "torchrun.nproc_per_node=4", *hostile_words(user)]
    words.append(f"script.path={user.checkout(QUANTIZE, 'v0.6.0')}")
    extra = ("--disable-hf-datasets-file-lock",)
    plan = user.plan("quantize_fp8", *words, extra=extra)
    ran = user.run("quantize_fp8", *words, extra=extra)
    assert ran.done is not None and ran.done.code == 0, ran.done
    is_true(ran, 4, plan)
    output = next(word for word in words if "save_path" in word).partition("=")[2]
    is_quantized(ran.record, output)
    model = next(word for word in words if "hf_model_id" in word).partition("=")[2]
    for args in got(ran):
        assert (args["prompts"], args["hf_model_id"]) == (RECEIVED, model)
        assert (args["compress"], args["export_kv_cache_quant"]) == (True, True)
        assert args["disable_hf_datasets_file_lock"] is True
    assert ran.record["inputs"] == [{"type": "checkpoint_hf", "name": model}]
    assert ran.record["script"]["argv"][-1] == extra[0]
    assert set(ran.record["script"]["left_out"]) == {"args.calib_seq_length", "args.calib_batch_size"}
    assert {"check the script", "prepare", "run the script", "verify"} <= set(ran.record["timings"])
    assert not (user.folder / "here").exists()


def test_two_nodes_of_slurm(user: User, cluster: Cluster) -> None:
    user.env = {"SLURM_CONF": cluster.env["SLURM_CONF"]}
    user.profiles["slurm"] = slurm_profile(secrets=[])
    script = user.checkout(QUANTIZE, "v0.5.1") / QUANTIZE.partition("/")[2]
    words = ["executor=slurm", "torchrun.nnodes=2", "torchrun.nproc_per_node=2", *hostile_words(user)]
    words += [f"script.path={script}", "script.release=0.5"]
    plan = user.plan("quantize_fp8", *words)
    ran = user.run("quantize_fp8", *words)
    assert ran.done is not None and ran.done.code == 0, ran.done
    is_true(ran, 4, plan)
    is_quantized(ran.record, next(word for word in words if "save_path" in word).partition("=")[2])
    assert [args["prompts"] for args in got(ran)] == [RECEIVED] * 4
    assert ran.record["script"]["path"] == str(script)
    assert "v0.5.1" in ran.record["script"]["releases"]
    assert [rank["env"]["LOCAL_RANK"] for rank in ran.received()] == ["0", "1", "0", "1"]


def test_the_container_s_own_script(user: User, engine: Engine) -> None:
    """`script.path` is null: the script lies where NVIDIA's container has it."""
    checkout = user.checkout(QUANTIZE, "v0.4.2")
    profile = docker_profile(engine, secrets=[])
    profile["mounts"] += [f"{checkout}:{container_path(QUANTIZE).partition('/examples')[0]}:ro"]
    profile["mounts"] += [f"{user.folder}:{user.folder}"]
    user.profiles["docker"] = profile
    words = ["executor=docker", "torchrun.nproc_per_node=2", "script.release=0.4", *hostile_words(user)]
    plan = user.plan("quantize_fp8", *words)
    assert plan["script"]["path"] == container_path(QUANTIZE)
    ran = user.run("quantize_fp8", *words)
    assert ran.done is not None and ran.done.code == 0, ran.done
    is_true(ran, 2, plan)
    is_quantized(ran.record, next(word for word in words if "save_path" in word).partition("=")[2])
    assert [args["prompts"] for args in got(ran)] == [RECEIVED] * 2
    assert ran.record["script"]["path"] == container_path(QUANTIZE)


def test_a_run_that_goes_on(user: User) -> None:
    """A training that was stopped finds what it had written; the folder is its own from the first attempt on."""
    words = [f"script.path={user.checkout(DISTILL, releases_of(DISTILL)[-1])}"]
    models = [f"args.{name}_hf_path={write_huggingface(user.folder / name)}" for name in ("teacher", "student")]
    first = user.run("distill_tiny", "executor=local", *words, *models, STANDIN="late")
    assert first.error["name"] == "script_failed"
    assert first.record.get("outputs", []) == []
    (output,) = {args["output_dir"] for args in got(first)}
    assert Path(output).is_relative_to(first.dir), "by default outputs lie in the run directory"
    assert [list(rank["found"].values()) for rank in first.received()] == [[[".modelopt-recipes-run"]]]

    again = user.nemo("resume", first.record["id"], "--json")
    assert again.code == 0, again
    until(lambda: first.record["state"] not in ("submitted", "running"))
    record = first.record
    assert record["state"] == "succeeded", record["error"]
    (second,) = first.received()
    assert (second["args"]["output_dir"], list(second["found"])) == (output, [output])
    assert second["found"][output] == [".modelopt-recipes-run", "checkpoints"], "what the first attempt left is there"
    (made,) = record["outputs"]
    assert (made["type"], made["path"]) == ("checkpoint_megatron", f"{output}/checkpoints")
    assert [attempt["error"]["name"] for attempt in record["attempts"]] == ["script_failed"]


def test_figures_of_a_training_are_the_runs_whichever_rank_prints_them(user: User) -> None:
    words = [f"script.path={user.checkout(DISTILL, releases_of(DISTILL)[-1])}", "torchrun.nproc_per_node=2"]
    words += [f"args.{name}_hf_path={write_huggingface(user.folder / name)}" for name in ("teacher", "student")]
    ran = user.run("distill_tiny", "executor=local", "track=[tensorboard]", *words, STANDIN="trains")
    assert ran.record["state"] == "succeeded", ran.done
    rows = [json.loads(line) for line in (ran.dir / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["value"]) for row in rows if row["name"] == "lm loss"] == [(1, 10), (2, 5), (3, 3.333333)]
    assert "lm loss" not in ran.log(0) and "lm loss" in ran.log(1)
    events = EventAccumulator(ran.record["tracked"]["tensorboard"]["folder"]).Reload()
    assert [one.step for one in events.Scalars("lm loss")] == [1, 2, 3]


def test_another_release_on_the_node(user: User, cluster: Cluster) -> None:
    """The job was written for a release that the node does not have: it ends before the script starts."""
    user.env = {"SLURM_CONF": cluster.env["SLURM_CONF"]}
    user.profiles["slurm"] = slurm_profile(secrets=[])
    checkout = user.checkout(QUANTIZE, "v0.2.2")
    words = [f"script.path={checkout}", "script.release=0.6", "args.trust_remote_code=true", "args.ep=1"]
    words += [f"args.hf_model_id={write_huggingface(user.folder / 'm')}", "torchrun.nproc_per_node=1"]
    ran = user.run("quantize_fp8", "executor=slurm", *words)
    assert ran.done is not None and ran.done.code == 1
    assert ran.error["name"] == "script_drift"
    assert "args.trust_remote_code: this script has no flag --trust-remote-code" in ran.error["message"]
    assert "v0.2.2" in ran.error["message"]
    assert "script.release" in ran.error["remedy"]
    assert ran.received() == [], "the script never started"
    assert ran.record["timings"]["check the script"] < 5


# --- one process, without the launcher -----------------------------------------------------------------------------


def job(recipe: str, folder: Path, checkpoints: Mapping[str, Path], release: str | None = None) -> Any:
    """A recipe for one process with the newest stand-in, or that of `release`, filled in."""
    partial = RECIPES[recipe].build()
    fill(partial.args, checkpoints)
    on_one_process(partial)
    partial.engine = "script"
    (script, *_) = partial.args.__fn_or_cls__.SCRIPTS
    partial.script.path = str(folder / "checkout")
    write_standin(folder / "checkout", script, release or releases_of(script)[-1])
    return partial


def tokenized(prefix: Path) -> str:
    """Data that no stand-in reads."""
    for ending in (".bin", ".idx"):
        Path(f"{prefix}{ending}").touch()
    return str(prefix)


def test_there_are_families() -> None:
    assert len(_FAMILIES) > 20


@pytest.mark.parametrize("family", _FAMILIES)
def test_every_family(
    family: str, tmp_path: Path, checkpoints: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked as `run` checks it, carried out, its outputs verified and where they belong."""
    monkeypatch.setattr("nemo_run.config._NEMORUN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "of somebody who accepted every licence")
    recipe = RECIPES[_FAMILIES[family]]
    partial = job(recipe.name, tmp_path, checkpoints)
    if getattr(partial.args, "data_paths", None):
        partial.args.data_paths = [1.0, tokenized(tmp_path / "text")]
    roomy = Options(online=False, force=frozenset({"not_enough_disk"}))  # a stand-in writes little, whatever the model
    (submission,) = prepare_all([Stage(name=family, partial=partial)], "local", roomy)
    ran = carry_out(submission.partial, submission.run_dir)
    assert ran.record["state"] == "succeeded", ran.error
    (received,) = ran.received()
    assert received["argv"] == ran.record["script"]["argv"]
    made = {output["type"]: Path(output["path"]) for output in ran.record.get("outputs", [])}
    spoken = recipe.algorithm in ("generate", "evaluate", "validate")
    assert set(made) <= set(recipe.produces) and bool(made) is not spoken
    assert all(path.is_relative_to(ran.dir) and any(path.iterdir()) for path in made.values())
    assert ran.left_behind() == []
    # Port 0: one that was free before half a minute of imports may be another's by then.
    assert [received["env"][name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")] == (
        ["0", "1", "0"] if recipe.family.args.RANKED else [None, None, None]
    )


def test_qat_reads_one_yaml_file(tmp_path: Path, checkpoints: Mapping[str, Path]) -> None:
    partial = job("qat_tiny", tmp_path, checkpoints)
    partial.extra_args = ["train.train_iters=5", "logger.name=it's $(x) é", "model.tp=2"]
    ran = carry_out(partial, tmp_path / "run")
    assert ran.record["state"] == "succeeded", ran.error
    (received,) = ran.received()
    assert received["rest"] == partial.extra_args == received["argv"][-3:]
    file = ran.dir / "qat.yaml"
    assert received["args"]["config_file"] == str(file)
    config = yaml.safe_load(file.read_text())
    output = f"{ran.dir}/optimize/qat/run"
    begun = str(checkpoints["quantized"])
    expected = {"pretrained_checkpoint": begun, "save": output, "load": output, "save_interval": 20, "finetune": True}
    assert config["checkpoint"] == expected
    assert config["train"] == {"train_iters": 20, "global_batch_size": 8, "eval_iters": 0}
    assert ran.record["outputs"][0]["path"] == output


def test_a_rank_waits_for_what_rank_0_writes(tmp_path: Path, checkpoints: Mapping[str, Path]) -> None:
    """The file that its script reads; what another launch of the same run had prepared does not count."""
    partial = job("qat_tiny", tmp_path, checkpoints)
    run_dir = tmp_path / "run"
    write_json(run_dir / "ranks" / "prepared.json", {"TORCHELASTIC_RUN_ID": None, "MASTER_PORT": "1"})
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "2"}
    second = begin(partial, run_dir, RANK="1", **launch)
    log = run_dir / "logs" / "rank1.log"
    until(lambda: log.is_file() and "check the script" in log.read_text())
    second.join(0.5)
    assert not (run_dir / "received").exists()
    first = begin(partial, run_dir, RANK="0", **launch)
    for process in (first, second):
        process.join(60)
        assert process.exitcode == 0
    assert [rank["env"]["RANK"] for rank in Ran(dir=run_dir).received()] == ["0", "1"]


def test_distillation_in_megatron_lm_reads_its_own(tmp_path: Path, checkpoints: Mapping[str, Path]) -> None:
    partial = job("mlm_distill", tmp_path, checkpoints)
    ran = carry_out(partial, tmp_path / "run")
    assert ran.record["state"] == "succeeded", ran.error
    (received,) = ran.received()
    assert received["args"]["export_kd_cfg"] == f"{ran.dir}/kd.yaml"
    assert yaml.safe_load((ran.dir / "kd.yaml").read_text()) == partial.args.kd
    words = received["rest"]
    assert words[words.index("--load") + 1] == str(checkpoints["checkpoint_megatron"])
    assert words[words.index("--tokenizer-model") + 1] == partial.args.model_card
    assert "--num-layers" in words, "the model card's own"


def test_the_latest_iteration(tmp_path: Path, checkpoints: Mapping[str, Path]) -> None:
    partial = job("megatron_to_hf", tmp_path, checkpoints)
    root = write_megatron(tmp_path / "trained", iterations=(1, 40, 5))
    partial.args.megatron_path = str(root)
    ran = carry_out(partial, tmp_path / "run")
    assert ran.received()[0]["args"]["megatron_path"] == f"{root}/iter_0000005", "the one that the tracker names"
    partial.args.megatron_path = f"{root}/iter_0000040"
    assert carry_out(partial, tmp_path / "other").received()[0]["args"]["megatron_path"] == f"{root}/iter_0000040"


def test_a_flag_that_the_script_has_not(tmp_path: Path, checkpoints: Mapping[str, Path]) -> None:
    partial = job("quantize_fp8", tmp_path, checkpoints)
    partial.extra_args = ["--calib-sise", "3"]
    ran = carry_out(partial, tmp_path / "run")
    assert ran.error["name"] == "script_drift"
    assert "extra_args: this script has no flag --calib-sise" in ran.error["message"]
    assert "Did you mean --calib-size?" in ran.error["message"]
    assert ran.received() == []


@pytest.mark.parametrize(("release", "name"), [("0.43.0", "modelopt_package_drift"), (None, None)])
def test_a_checkout_of_another_release_than_the_package(
    release: str | None, name: str | None, tmp_path: Path, checkpoints: Mapping[str, Path]
) -> None:
    """The package installed here is newer than 0.43; the branch may be of any release."""
    ran = carry_out(job("prune", tmp_path, checkpoints, release), tmp_path / "run")
    assert (ran.error or {"name": None})["name"] == name
    assert bool(ran.received()) is (name is None)
    if name:
        assert "Model-Optimizer 0.42.0 or 0.43.0, the installed package 0.4" in ran.error["message"]


def test_nothing_is_written_over(tmp_path: Path, checkpoints: Mapping[str, Path]) -> None:
    for recipe, name in (("quantize_fp8", "megatron_save_path"), ("distill_tiny", "output_dir")):
        folder = tmp_path / recipe
        partial = job(recipe, folder, checkpoints)
        output = folder / "out"
        output.mkdir()
        (output / "mine").write_text("x")
        setattr(partial.args, name, str(output))
        ran = carry_out(partial, folder / "run")
        assert (ran.error["name"], ran.received()) == ("output_exists", [])
        assert [file.name for file in output.iterdir()] == ["mine"]


def test_a_script_that_is_not_there(tmp_path: Path, checkpoints: Mapping[str, Path]) -> None:
    partial = job("quantize_fp8", tmp_path, checkpoints)
    for path in (str(tmp_path / "absent.py"), str(tmp_path)):
        partial.script.path = path
        ran = carry_out(partial, tmp_path / f"run-{Path(path).name}")
        assert ran.error["name"] == "script_not_found"
        assert path in ran.error["message"]


def test_a_script_s_own_packages_are_its_own(tmp_path: Path, checkpoints: Mapping[str, Path]) -> None:
    """A module beside the script is found, though it is called like one of ours; PYTHONPATH keeps a user's entries."""
    partial = job("quantize_fp8", tmp_path, checkpoints)
    script = tmp_path / "checkout" / QUANTIZE.partition("/")[2]
    beside = script.parent / "scripts"
    beside.mkdir()
    (beside / "__init__.py").write_text("print('the scripts of the script')\n")
    script.write_text("import scripts\n" + script.read_text())
    root = Path(__file__).resolve().parents[4]
    env = {"PYTHONPATH": f"{root}:{tmp_path}/mine", "PYTHONSAFEPATH": "1"}
    ran = carry_out(partial, tmp_path / "run", **env)
    assert ran.record["state"] == "succeeded", ran.error
    assert "the scripts of the script" in ran.log()
    (received,) = ran.received()
    assert received["env"]["PYTHONPATH"] == f"{tmp_path}/mine"
    assert received["env"]["PYTHONSAFEPATH"] is None
    assert json.loads((ran.dir / "run.json").read_text())["script"]["path"] == str(script)
    assert Path(ran.command(0)["argv"][0]) == Path(sys.executable)


#: More than a GPU of 24 GB holds: 10.5 billion parameters, in one process.
LARGE: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 44, "vocab_size": 128256}
LARGE |= {"num_attention_heads": 32, "num_key_value_heads": 8, "torch_dtype": "bfloat16", "tie_word_embeddings": False}


def test_a_job_that_was_forced_is_recorded_as_such(user: User) -> None:
    import torch
    from safetensors.torch import save_file

    model = write_huggingface(user.folder / "large")
    config = model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | LARGE), encoding="utf-8")
    # Of weights this large, the one that says least of the others.
    save_file({"model.norm.weight": torch.zeros(LARGE["hidden_size"])}, model / "model.safetensors")
    words = [f"script.path={user.checkout(QUANTIZE, 'v0.6.0')}", f"args.hf_model_id={model}", "args.ep=1"]
    words += [f"args.megatron_save_path={user.folder}/out", "executor.gpu=l4", "torchrun.nproc_per_node=1"]
    # What it would write, this machine's disk may not hold.
    refused = user.nemo("run", "quantize_fp8", *words, "--force", "not_enough_disk", "--json")
    assert refused.code == 2
    found = {problem["name"]: problem["severity"] for problem in refused.answer["problems"]}
    assert found["does_not_fit"] == "error"
    assert not user.home.exists(), "nothing is recorded"

    ran = user.run("quantize_fp8", *words, "--force", "does_not_fit", "--force", "not_enough_disk")
    assert ran.record["state"] == "succeeded", ran.error
    (forced,) = [warning for warning in ran.record["warnings"] if warning["name"] == "does_not_fit"]
    assert (forced["severity"], forced["key"], forced["value"]) == ("forced", "executor.gpu", "l4")
    assert ran.done is not None and forced["text"] in ran.done.err
    assert forced in user.nemo("status", ran.dir.name, "--json").json["warnings"]
    assert "forced       does_not_fit  executor.gpu: " in user.nemo("status", ran.dir.name).out
