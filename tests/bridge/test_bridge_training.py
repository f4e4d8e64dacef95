"""Real trainings of Megatron-Bridge: distillation, with a quantized student too, and quantization-aware training."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.args.distill import DistillArgs, QadArgs, QatArgs
from scripts.checkpoints import look
from tests.bridge.conftest import saved, tensors, work

pytestmark = pytest.mark.integration
SHORT: dict[str, Any] = {"use_mock_data": True, "seq_length": 64, "gbs": 4, "train_iters": 3, "lr": 1e-3}
SHORT |= {"lr_warmup_iters": 1, "eval_interval": 3, "eval_iters": 1, "log_interval": 1}


def losses(folder: Path, name: str) -> list[float]:
    rows = json.loads((folder / "report" / "training.json").read_text())["iterations"]
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))
    return [row[name] for row in rows]


def amaxes(checkpoint: Path) -> "dict[str, Any]":
    """The scales in the newest iteration of a Megatron checkpoint."""
    from modelopt.torch.utils.plugins.mbridge import _checkpoint_keys
    from torch.distributed.checkpoint import FileSystemReader, load

    newest = max(checkpoint.glob("iter_*"))
    names = [name for name in _checkpoint_keys(str(newest)) if name.endswith("_amax") and "optimizer" not in name]
    metadata = FileSystemReader(str(newest)).read_metadata().state_dict_metadata
    import torch

    found = {name: torch.empty(metadata[name].size, dtype=metadata[name].properties.dtype) for name in names}
    load(found, storage_reader=FileSystemReader(str(newest)))
    return found


def test_a_student_learns_and_goes_on_from_where_it_was(source: Path, tmp_path: Path, parallel: None) -> None:
    from transformers import AutoModelForCausalLM

    from scripts.engines.bridge import train

    student = saved(tmp_path / "student", "qwen3", num_hidden_layers=2, seed=1)
    paths = {"teacher_hf_path": str(source), "student_hf_path": str(student), "output_dir": str(tmp_path / "out")}
    train.distill(work(DistillArgs(**paths, **SHORT), tmp_path))
    learned = losses(tmp_path, "logits distillation loss")
    assert len(learned) == 3 and learned[-1] < learned[0]
    more = SHORT | {"train_iters": 4, "eval_interval": 4}
    train.distill(work(DistillArgs(**paths, hf_export_path=str(tmp_path / "hf"), **more), tmp_path))
    rows = json.loads((tmp_path / "report" / "training.json").read_text())["iterations"]
    assert [row["iteration"] for row in rows] == [4]  # three were there
    assert look(tmp_path / "out" / "checkpoints").kind == "checkpoint_megatron"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "hf").config.num_hidden_layers == 2
    before, after = tensors(student), tensors(tmp_path / "hf")
    assert before.keys() == after.keys()
    assert not any(value.equal(before[name]) for name, value in after.items() if "proj" in name)


def test_the_scales_of_a_quantized_student_stay(source: Path, quantized: Path, tmp_path: Path, parallel: None) -> None:
    """QAD: what the teacher's logits change is weights."""
    from scripts.engines.bridge import train

    paths = {"teacher_hf_path": str(source), "student_hf_path": str(source), "output_dir": str(tmp_path / "out")}
    train.distill(work(QadArgs(**paths, student_megatron_path=str(quantized), **SHORT), tmp_path))
    trained = tmp_path / "out" / "checkpoints"
    assert look(trained).quantization == "fp8"
    before, after = amaxes(quantized), amaxes(trained)
    assert len(before) > 8 and before.keys() == after.keys()
    assert all(value.equal(after[name]) for name, value in before.items())


def test_quantization_aware_training_keeps_scales(
    source: Path, quantized: Path, tmp_path: Path, parallel: None
) -> None:
    from scripts.engines.bridge import train

    sections = {
        "model": {"tensor_model_parallel_size": 1, "seq_length": 64, "gradient_accumulation_fusion": False},
        "train": {"train_iters": 3, "global_batch_size": 4, "micro_batch_size": 1},
        "validation": {"eval_interval": 3, "eval_iters": 0},
        "optimizer": {"lr": 1e-4, "min_lr": 1e-5},
        "scheduler": {"lr_warmup_iters": 1},
        "logger": {"log_interval": 1},
        "dataset": {"seq_length": 64, "num_workers": 2},
        "checkpoint": {"save_interval": 3, "finetune": True},
    }
    args = QatArgs(
        hf_path=str(source), pretrained_checkpoint=str(quantized), output_dir=str(tmp_path / "out"), config=sections
    )
    train.train_quantized(work(args, tmp_path))
    assert len(losses(tmp_path, "lm loss")) == 3
    assert look(tmp_path / "out").quantization == "fp8"
    before, after = amaxes(quantized), amaxes(tmp_path / "out")
    assert len(before) > 8 and before.keys() == after.keys()
    assert all(value.equal(after[name]) for name, value in before.items())
