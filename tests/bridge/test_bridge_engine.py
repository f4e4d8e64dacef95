"""Real Megatron-Bridge and ModelOpt: quantize, restore, generate, export and convert, on one rank and on two."""

import json
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest

from scripts.args.convert import HfToMegatronArgs, MegatronToHfArgs
from scripts.args.export import ExportArgs, ExportDistilledArgs
from scripts.args.quantize import QuantizeArgs, QuantizeModelOptArgs
from scripts.checkpoints import look
from scripts.engines import cpu_runtime
from scripts.formats import FORMATS, MIXABLE
from tests.bridge.conftest import SMALL, begin_anew, nemo, run_of, tensors, work
from tests.testbed.waiting import until

pytestmark = pytest.mark.integration
#: Activations in float32: in bfloat16 the two implementations of a layer round differently, by up to 2%.
EXACT: dict[str, Any] = {"dtype": "float32"}


@pytest.mark.parametrize("format_name", MIXABLE)  # the others are like one of them, or were tried once
def test_each_format_is_quantized_saved_and_what_megatron_can_exported(
    format_name: str, source: Path, text: Path, tmp_path: Path, parallel: None
) -> None:
    """The export of the Megatron path is the hf engine's: the same scales, and bit for bit the same weights."""
    from scripts.engines.bridge import quantize, transfer

    checkpoint, exported = tmp_path / "megatron", tmp_path / "hf"
    args = QuantizeArgs(
        hf_model_id=str(source),
        calib_dataset=str(text),
        export_quant_cfg=format_name,
        megatron_save_path=str(checkpoint),
        **SMALL,
        **EXACT,
    )
    quantize.quantize(work(args, tmp_path))
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["evaluation"]["tokens"] > 50
    assert 0 <= report["evaluation"]["kl_divergence"] < 1
    assert report["not_shown"] == list(cpu_runtime.LIMITS)
    found = look(checkpoint)
    assert found.kind == "checkpoint_megatron" and found.modelopt_state and not found.problems
    if not FORMATS[format_name].megatron_export:
        return
    begin_anew()
    paths = {"megatron_load_path": str(checkpoint), "export_dir": str(exported)}
    transfer.export(work(ExportArgs(hf_model_id=str(source), **paths, **EXACT), tmp_path))
    assert look(exported).quantization == format_name
    compare(tensors(exported), tensors(by_hf(args, tmp_path)))


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Megatron holds q, k and v in one weight, gate and up in another: each has the largest of their scales."""
    assert ours.keys() == theirs.keys()
    same = 0
    for name, value in theirs.items():
        stem, _, kind = name.rpartition(".")
        if value.numel() == 1 and "scale" in kind:
            largest = max(float(theirs[f"{one}.{kind}"]) for one in beside(stem))
            assert abs(float(ours[name]) / largest - 1) <= 1e-3, name
            continue
        scales = [f"{stem}.{scale}" for scale in ("weight_scale", "weight_scale_2") if f"{stem}.{scale}" in theirs]
        if all(ours[one].equal(theirs[one]) for one in scales if theirs[one].numel() == 1):
            assert ours[name].dtype == value.dtype and ours[name].equal(value), name
            same += bool(scales)
    assert same >= 8  # at least o_proj and down_proj of each of the four layers


def beside(stem: str) -> list[str]:
    parent, _, last = stem.rpartition(".")
    groups = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
    return [f"{parent}.{one}" for group in groups if last in group for one in group] or [stem]


def by_hf(args: QuantizeArgs, folder: Path) -> Path:
    """The same model, text and format through the hf engine."""
    from dataclasses import replace

    from scripts.engines.hf.engine import quantize_checkpoint
    from scripts.run.record import Record

    exported = folder / "hf-engine"
    record = Record.submit(folder / "hf-run")
    alone = replace(args, export_dir=str(exported), megatron_save_path=None, layer_noise="none", device="cpu")
    quantize_checkpoint(alone, record)
    return exported


def test_conversions_there_and_back_change_nothing(source: Path, tmp_path: Path, parallel: None) -> None:
    from scripts.engines.bridge import transfer

    there, back = tmp_path / "megatron", tmp_path / "hf"
    transfer.hf_to_megatron(work(HfToMegatronArgs(hf_model=str(source), megatron_path=str(there)), tmp_path))
    assert look(there).kind == "checkpoint_megatron" and look(there).quantization is None
    begin_anew()
    args = MegatronToHfArgs(hf_model=str(source), megatron_path=str(there), hf_path=str(back), no_progress=True)
    transfer.megatron_to_hf(work(args, tmp_path))
    begin_anew()
    paths = {"megatron_path": str(there), "hf_export_path": str(tmp_path / "student")}
    transfer.export_distilled(work(ExportDistilledArgs(student_hf_path=str(source), **paths), tmp_path))
    before = tensors(source)
    for after in (tensors(back), tensors(tmp_path / "student")):
        assert before.keys() == after.keys()
        assert all(after[name].equal(value) for name, value in before.items())


def test_a_recipe_of_modelopt_is_a_format(source: Path, text: Path, tmp_path: Path, parallel: None) -> None:
    """In the words of Model-Optimizer's own script; the recipe's key/value cache is quantized and exported, too."""
    from scripts.engines.bridge import quantize, transfer

    made, exported = tmp_path / "megatron", tmp_path / "hf"
    told = {"recipe": "general/ptq/nvfp4_default-kv_fp8", "calib_dataset_name": str(text), "skip_generate": True}
    small = {"calib_num_samples": 4, "seq_length": 64, "export_megatron_path": str(made)}
    args = QuantizeModelOptArgs(hf_model_name_or_path=str(source), **told, **small)
    quantize.quantize_modelopt(work(args, tmp_path))
    assert (look(made).kind, look(made).quantization) == ("checkpoint_megatron", "nvfp4")
    kinds = json.loads((tmp_path / "report" / "report.json").read_text())["quantizers"]["kinds"]
    assert kinds["k_bmm E4M3"] == kinds["v_bmm E4M3"] == 4
    begin_anew()
    paths = {"megatron_load_path": str(made), "export_dir": str(exported)}
    transfer.export(work(ExportArgs(hf_model_id=str(source), **paths), tmp_path))
    written = json.loads((exported / "hf_quant_config.json").read_text())["quantization"]
    assert (written["quant_algo"], written["kv_cache_quant_algo"]) == ("NVFP4", "FP8")


def report_of(record: dict[str, Any]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((record["folder"] / "report" / "report.json").read_text())
    return report


@pytest.mark.timeout(1500)  # two commands of two ranks, each of which imports all of Megatron
def test_two_ranks_through_the_command_line(source: Path, text: Path, home: Path) -> None:
    """Quantize with tp=2, then generate at pp=2 from what it left."""
    given = [f"args.hf_model_id={source}", "executor=local", "engine=bridge", "--yes"]
    small = [f"args.{name}={value}" for name, value in SMALL.items()]
    done = nemo(home, "run", "quantize_fp8", *given, *small, f"args.calib_dataset={text}", "args.tp=2")
    assert done.returncode == 0, done.stdout + done.stderr
    quantized = run_of(home, "quantize_fp8")
    assert report_of(quantized)["quantizers"]["kinds"] == {"weight E4M3": 4 * 4, "input E4M3": 4 * 4}
    assert quantized["state"] == "succeeded" and quantized["engine"] == "bridge"
    assert quantized["not_shown"] == list(cpu_runtime.LIMITS)
    (checkpoint,) = (one["path"] for one in quantized["outputs"] if one["type"] == "checkpoint_megatron")
    assert len(list((quantized["folder"] / "ranks").glob("[01].json"))) == 2
    reads = f"args.megatron_load_path={checkpoint}"
    done = nemo(home, "run", "generate", *given, reads, "args.tp=1", "args.pp=2", "args.osl=4", "args.prompts=1 quick")
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads((run_of(home, "generate")["folder"] / "report" / "generations.json").read_text())
    assert [row["prompt"] for row in said["generations"]] == ["1 quick"]


@pytest.mark.timeout(1500)  # a command of two ranks, and one of one
def test_experts_on_two_ranks(experts: Path, text: Path, home: Path) -> None:
    """Quantize with ep=2, export on one rank: each expert is the source's, within what FP8 loses."""
    given = [f"args.hf_model_id={experts}", "executor=local", "engine=bridge", "--yes"]
    small = [f"args.{name}={value}" for name, value in SMALL.items()]
    done = nemo(home, "run", "quantize_fp8", *given, *small, f"args.calib_dataset={text}", "args.ep=2")
    assert done.returncode == 0, done.stdout + done.stderr
    record = run_of(home, "quantize_fp8")
    assert report_of(record)["quantizers"]["kinds"] == {"weight E4M3": 2 * (2 + 4 * 2), "input E4M3": 2 * (2 + 4 * 2)}
    (checkpoint,) = (one["path"] for one in record["outputs"] if one["type"] == "checkpoint_megatron")
    done = nemo(home, "run", "export", *given, f"args.megatron_load_path={checkpoint}")
    assert done.returncode == 0, done.stdout + done.stderr
    (exported,) = (one["path"] for one in run_of(home, "export")["outputs"] if one["type"] == "checkpoint_hf")
    card = (Path(exported) / "README.md").read_text()  # with what was measured when it was quantized
    assert "- fp8" in card and "| held-out perplexity |" in card and str(home) not in card and str(experts) not in card
    before, after = tensors(experts), tensors(Path(exported))
    names = [name for name in after if ".experts." in name and name.endswith(".weight")]
    assert len(names) == 2 * 4 * 3 and look(Path(exported)).quantization == "fp8"
    for name in names:
        restored = after[name].float() * after[f"{name}_scale"].float()
        assert (restored - before[name].float()).abs().max() <= before[name].float().abs().max() / 16, name


def workers_of(run_dir: Path) -> dict[str, psutil.Process]:
    """The processes in which the ranks of a run work, by rank."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "scripts.engines.bridge.worker" in process.cmdline():
                env = process.environ()
                if env.get("NEMO_RUN_DIR") == str(run_dir):
                    found[env["RANK"]] = process
    return found


@pytest.mark.timeout(900)  # two ranks, each of which imports all of Megatron
def test_a_rank_that_crashes_ends_the_run_within_30_s(source: Path, text: Path, home: Path) -> None:
    given = [f"args.hf_model_id={source}", f"args.calib_dataset={text}", "executor=local", "engine=bridge", "--yes"]
    done = nemo(home, "run", "quantize_fp8", *given, "args.tp=2", "args.calib_size=100000", "--detach", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (run_dir,) = (home / "runs").glob("quantize_fp8_*")

    def begun() -> bool:
        return len(workers_of(run_dir)) == 2 and all(one.cpu_times().user > 1 for one in workers_of(run_dir).values())

    until(begun)
    workers_of(run_dir)["1"].kill()
    began = monotonic()
    until(lambda: run_of(home, "quantize_fp8")["state"] == "failed")
    assert monotonic() - began < 30
    error = run_of(home, "quantize_fp8")["error"]
    assert error["name"] == "script_killed" and "rank1" in error["message"] and "signal 9" in error["message"], error
    until(lambda: not workers_of(run_dir))
