"""Pruned by Megatron-Bridge, and then distilled: transformers says of the outcome what Megatron says."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.args.distill import DistillArgs
from scripts.args.export import ExportArgs
from scripts.args.quantize import QuantizeArgs
from scripts.engines import cpu_runtime
from tests.bridge.conftest import begin_anew, nemo, perplexity, run_of, work
from tests.hf_models import tokenizer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def record(source: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a search with a score of its own, in a process where Transformer Engine's layers are of plain torch."""
    home = tmp_path_factory.mktemp("pruning")
    given = [f"args.hf_model_name_or_path={source}", f"args.calib_dataset_name={text}", "executor=local"]
    small = ["args.calib_num_samples=8", "args.seq_length=64", "args.pp_size=1", "args.top_k=2", "--yes"]
    search = ["args.prune_target_params=1.5e6", "args.ss_channel_divisor=64", "args.max_depth_pruning=0.5"]
    done = nemo(home, "run", "prune", *given, *small, *search, "engine=bridge", "torchrun.nproc_per_node=1")
    assert done.returncode == 0, done.stdout + done.stderr
    return run_of(home, "prune")


@pytest.fixture
def pruned(record: dict[str, Any]) -> Path:
    (folder,) = (one["path"] for one in record["outputs"] if one["type"] == "checkpoint_hf")
    return Path(folder)


def test_a_pruned_model_says_in_transformers_what_it_says_in_megatron(
    record: dict[str, Any], pruned: Path, source: Path, text: Path
) -> None:
    from scripts.engines.hf.samples import choose_samples

    assert record["state"] == "succeeded" and record["not_shown"] == list(cpu_runtime.LIMITS)
    figures = json.loads((record["folder"] / "report" / "pruning.json").read_text())["evaluation"]
    assert "perplexity_after" in (record["folder"] / "metrics.jsonl").read_text()
    assert 1e6 < figures["parameters_after"] < 1.5e6 < figures["parameters_before"]
    as_text = QuantizeArgs(
        hf_model_id=str(source), calib_dataset=str(text), calib_size=8, calib_seq_length=64, eval_size=16
    )
    assert perplexity(pruned, choose_samples(as_text, tokenizer()).held_out) == pytest.approx(
        figures["perplexity_after"], rel=0.01
    )


def test_a_distilled_one_has_the_same_logits_in_both(
    pruned: Path, source: Path, tmp_path: Path, parallel: None
) -> None:
    """In float32, of the weights as they were trained; the largest difference of any logit."""
    import torch
    from modelopt.torch.utils.plugins import megatron_prefill
    from transformers import AutoModelForCausalLM

    from scripts.engines.bridge import loaded, train

    exported, checkpoint = tmp_path / "hf", tmp_path / "out" / "checkpoints"
    short: dict[str, Any] = {"use_mock_data": True, "seq_length": 64, "gbs": 4, "train_iters": 2, "lr": 1e-3}
    short |= {"lr_warmup_iters": 1, "eval_interval": 2, "eval_iters": 1, "log_interval": 1}
    paths = {"teacher_hf_path": str(source), "student_hf_path": str(pruned), "output_dir": str(tmp_path / "out")}
    train.distill(work(DistillArgs(**paths, hf_export_path=str(exported), **short), tmp_path))
    begin_anew()
    ids = torch.arange(3, 51)[None]
    args = ExportArgs(hf_model_id=str(pruned), megatron_load_path=str(checkpoint), dtype="float32")
    megatron = loaded.load(args, checkpoint=str(checkpoint))
    ours = megatron_prefill(megatron.model, ids)[0, :, : megatron.vocabulary].float()
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)(ids).logits[0]
    assert theirs.abs().max() > 0.1
    assert (ours - theirs).abs().max() <= 1e-3
