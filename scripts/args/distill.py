"""Arguments of `distill` and of QAD, which is `distill` with a quantized student."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from scripts.args.meaning import Role, ScriptArgs, Work, doc
from scripts.args.shared import hub_model, megatron_checkpoint, quantized_checkpoint, remote_code, written


@dataclass(frozen=True, kw_only=True)
class DistillArgs(ScriptArgs):
    """What `distill` does: a teacher's logits teach a student. Source: Model-Optimizer examples/megatron_bridge."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Model-Optimizer/examples/megatron_bridge/distill.py",)
    BRIDGE: ClassVar[str] = "scripts.engines.bridge.train:distill"
    WORK: ClassVar[Work | None] = "training"

    teacher_hf_path: str = hub_model("Qwen/Qwen3-8B", role="teacher")
    student_hf_path: str = hub_model("Qwen/Qwen3-4B", chained=True)
    student_megatron_path: str | None = megatron_checkpoint(
        "QAD: the student's quantized checkpoint, whose ModelOpt state is restored", quantized=True
    )
    trust_remote_code: bool = remote_code("a model's repository")
    data_paths: list[str | float] | None = doc(
        "Megatron blend: [weight, prefix, weight, prefix ...]", None, consumes="binidx", role="data"
    )
    data_path_to_cache: str | None = doc("where the data's index is kept", None, path="write")
    use_mock_data: bool = doc("random tokens: for plumbing only", False, role="mock_data")
    sft: bool = doc("distill on conversations", False, engine="nvidia")
    sft_dataset_root: str | None = doc(
        "folder of training.jsonl and validation.jsonl, for sft", None, path="read", role="data", engine="nvidia"
    )
    output_dir: str | None = written(
        "checkpoints and logs; a run that goes on finds its own there",
        "checkpoint_megatron",
        in_place=True,
        within="checkpoints",
        required=True,
    )
    hf_export_path: str | None = written("the trained student, exported at the end", "checkpoint_hf")
    student_hf_model: str | None = doc("whose configuration and tokenizer the export takes", None, role="reference")
    seq_length: int = doc("tokens per sample", 4096, role="sequence")
    mbs: int = doc("samples per GPU and step of accumulation", 1, role="micro_batch")
    gbs: int = doc("samples per iteration", 768, role="global_batch")
    train_iters: int | None = doc("iterations", None, required=True, role="iterations")
    lr: float = doc("learning rate", 1e-4, role="learning_rate")
    min_lr: float = doc("learning rate at the end", 1e-5, role="min_learning_rate")
    lr_warmup_iters: int = doc("iterations until the learning rate is reached", 50, role="warmup", least=0)
    kd_loss_scale: float = doc("weight of the distillation loss against the other", 1.0, optional=True, above=0)
    no_skip_lm_loss: bool = doc("add the language model's own loss", False)
    eval_interval: int = doc("iterations between validations", 100, role="eval_interval")
    eval_iters: int = doc("batches of a validation", 32, least=0)
    log_interval: int = doc("iterations between lines in the log", 10, least=1)
    save_interval: int | None = doc("iterations between checkpoints; null is eval_interval", None, role="save_interval")
    checkpoint_keep_last: int | None = doc("checkpoints to keep", None, role="checkpoints_kept", least=-1)
    exit_interval: int | None = doc("stop after this many iterations, to go on later", None, least=1)
    exit_duration_in_mins: int | None = doc(
        "stop after this many minutes, to go on later", None, role="stop_minutes", least=1
    )
    validate_only: bool = doc("validate, train nothing", False)
    seed: int = doc("seed of the data's order", 1234, optional=True)
    recompute_granularity: Literal["selective", "full"] | None = doc(
        "recompute activations to save memory", None, role="recompute"
    )
    recompute_method: Literal["uniform", "block"] | None = doc("with full: which layers", None)
    recompute_num_layers: int | None = doc("with full: how many layers", None, role="recompute_layers", least=1)
    recompute_modules: list[str] | None = doc("with selective: which modules", None)
    wandb_project: str | None = doc(
        "Weights & Biases; needs WANDB_API_KEY in the profile's secrets", None, role="wandb"
    )
    wandb_entity: str | None = doc("Weights & Biases", None)
    wandb_exp_name: str | None = doc("Weights & Biases", None)
    tp_size: int = doc("tensor parallel size", 1, role="tp")
    pp_size: int = doc("pipeline parallel size", 1, role="pp")
    cp_size: int = doc("context parallel size", 1, optional=True, role="cp")
    ep_size: int = doc("expert parallel size", 1, optional=True, role="ep")
    etp_size: int = doc("expert tensor parallel size", 1, optional=True, role="etp")

    def own(self) -> dict[Role, Any]:
        return {"sequence_parallel": True, "save_interval": self.eval_interval}

    def work(self) -> dict[str, Any]:
        return {"fake_quantized": self.student_megatron_path is not None}


@dataclass(frozen=True, kw_only=True)
class QadArgs(DistillArgs):
    """What `qad` does: the same with a quantized student, which stays quantized."""

    EXPORTER: ClassVar[str] = "export_modelopt"


@dataclass(frozen=True, kw_only=True)
class _ConfiguredArgs(ScriptArgs):
    """What both of Megatron-Bridge's own trainings have: they take nearly everything from a file of configuration."""

    WORK: ClassVar[Work | None] = "training"

    config: dict[str, Any] = doc(
        "sections over the script's own recipe", {}, flags=("config_file",), file="distill.yaml", role="config"
    )
    output_dir: str | None = written(
        "checkpoints; a run that goes on finds its own there",
        "checkpoint_megatron",
        in_place=True,
        into=("checkpoint.save", "checkpoint.load"),
    )
    debug: bool = doc("log more", False)


@dataclass(frozen=True, kw_only=True)
class DistillBridgeArgs(_ConfiguredArgs):
    """What `distill_llama` does: Llama-3.2-3B teaches 1B. Source: Megatron-Bridge examples/distillation/llama."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Megatron-Bridge/examples/distillation/llama/distill_llama32_3b-1b.py",)
    MODELS: ClassVar[dict[Role, str]] = {"model": "meta-llama/Llama-3.2-1B", "teacher": "meta-llama/Llama-3.2-3B"}


@dataclass(frozen=True, kw_only=True)
class QatArgs(_ConfiguredArgs):
    """What `qat` does. Source: Megatron-Bridge examples/quantization/pretrain_quantized_llama3_8b.py."""

    SCRIPTS: ClassVar[tuple[str, ...]] = ("Megatron-Bridge/examples/quantization/pretrain_quantized_llama3_8b.py",)
    BRIDGE: ClassVar[str] = "scripts.engines.bridge.train:train_quantized"
    EXPORTER: ClassVar[str] = "export"

    hf_path: str | None = doc(
        "the model it was made of: a folder or a hub name", "meta-llama/Meta-Llama-3-8B", role="model"
    )
    config: dict[str, Any] = doc(
        "sections model, train, scheduler, logger, checkpoint over the script's recipe",
        {},
        flags=("config_file",),
        file="qat.yaml",
        role="config",
    )
    pretrained_checkpoint: str | None = quantized_checkpoint(
        "the quantized checkpoint to begin with", into=("checkpoint.pretrained_checkpoint",)
    )

    def own(self) -> dict[Role, Any]:
        """The script's own recipe for Llama 3 8B, which it starts from where it is given no model."""
        return {} if self.hf_path else {"cp": 2}

    def work(self) -> dict[str, Any]:
        return {"fake_quantized": True}
