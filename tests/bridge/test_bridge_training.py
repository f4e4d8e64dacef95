"""Real trainings of Megatron-Bridge: distillation, with a quantized student too, and quantization-aware training."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.args.convert import HfToMegatronArgs, MergeLoraArgs
from scripts.args.distill import DistillArgs, QadArgs, QatArgs
from scripts.checkpoints import look
from scripts.run.problems import JobError
from tests.bridge.conftest import begin_anew, saved, tensors, work

pytestmark = pytest.mark.integration
SHORT: dict[str, Any] = {"use_mock_data": True, "seq_length": 64, "gbs": 4, "train_iters": 3, "lr": 1e-3}
SHORT |= {"lr_warmup_iters": 1, "eval_interval": 3, "eval_iters": 1, "log_interval": 1}


def losses(folder: Path, name: str) -> list[float]:
    rows = json.loads((folder / "report" / "training.json").read_text())["iterations"]
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))
    return [row[name] for row in rows]


def amaxes(checkpoint: Path) -> dict[str, Any]:
    """The scales in the newest iteration of a Megatron checkpoint."""
    return {name: value for name, value in weights(checkpoint, "_amax").items() if name.endswith("_amax")}


def weights(checkpoint: Path, part: str) -> dict[str, Any]:
    """Tensors of the model in the newest iteration of a Megatron checkpoint whose names have a part."""
    from modelopt.torch.utils.plugins.mbridge import _checkpoint_keys
    from torch.distributed.checkpoint import FileSystemReader, load

    newest = max(checkpoint.glob("iter_*"))
    names = [name for name in _checkpoint_keys(str(newest)) if part in name and "optimizer" not in name]
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
    assert losses(tmp_path, "logits distillation loss")[0] > 1e-6  # of the same weights: the teacher is not quantized
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


@pytest.mark.parametrize(
    ("key", "near"), [("optimizer.lrr", "lr"), ("optimiser.lr", "optimizer"), ("model.seq_len", "seq")]
)
def test_a_key_that_megatron_would_never_look_at_is_refused(
    source: Path, quantized: Path, tmp_path: Path, parallel: None, key: str, near: str
) -> None:
    from scripts.engines.bridge import train

    section, _, name = key.partition(".")
    paths = {"hf_path": str(source), "pretrained_checkpoint": str(quantized), "output_dir": str(tmp_path / "out")}
    with pytest.raises(JobError, match="unknown_key") as refused:
        train.train_quantized(work(QatArgs(**paths, config={section: {name: 1}}), tmp_path))
    assert near in refused.value.remedy and not (tmp_path / "out").exists()


def test_an_adapter_is_merged_into_its_base(source: Path, tmp_path: Path, parallel: None) -> None:
    """One that Megatron-Bridge trained: each merged weight is the base's and the adapter's product, added."""
    from megatron.bridge import AutoBridge
    from megatron.bridge.peft.lora import LoRA
    from megatron.bridge.recipes.common import _pretrain_common
    from megatron.bridge.training.gpt_step import forward_step
    from megatron.bridge.training.pretrain import pretrain

    from scripts.engines.bridge import lora, transfer

    base, adapter, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    transfer.hf_to_megatron(work(HfToMegatronArgs(hf_model=str(source), megatron_path=str(base)), tmp_path))
    begin_anew()
    config = _pretrain_common()
    config.model = AutoBridge.from_hf_pretrained(str(source)).to_megatron_provider(load_weights=False)
    config.model.seq_length = config.dataset.seq_length = 64
    config.dataset.num_workers = 2
    config.tokenizer.tokenizer_type, config.tokenizer.vocab_size = "NullTokenizer", config.model.vocab_size
    config.train.train_iters, config.train.global_batch_size, config.train.micro_batch_size = 3, 4, 1
    config.validation.eval_iters, config.scheduler.lr_warmup_iters, config.checkpoint.save_interval = 0, 1, 3
    config.checkpoint.save, config.checkpoint.load = str(adapter), None
    config.checkpoint.pretrained_checkpoint, config.logger.tensorboard_dir = str(base), None
    config.optimizer.lr, config.peft = 1e-2, LoRA(dim=8, alpha=16)
    pretrain(config, forward_step)
    assert look(adapter).kind == "checkpoint_lora"
    begin_anew()
    lora.merge(
        work(MergeLoraArgs(lora_checkpoint=str(adapter), hf_model_path=str(source), output=str(merged)), tmp_path)
    )
    assert look(merged).kind == "checkpoint_megatron" and not look(merged).problems
    parts, after = weights(adapter, "adapter"), weights(merged, "linear_proj.weight")
    for name, value in weights(base, "linear_proj.weight").items():
        inner, outer = (
            parts[name.replace(".weight", f".adapter.{which}.weight")] for which in ("linear_in", "linear_out")
        )
        expected = value.float() + 16 / 8 * outer.float() @ inner.float()
        assert not after[name].equal(value)
        assert after[name].float().allclose(expected, rtol=1e-2, atol=1e-3), name
