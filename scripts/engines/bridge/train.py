"""Trainings of Megatron-Bridge: distillation, of a quantized student too, and quantization-aware training.

Megatron-Bridge's own loop trains, saves and goes on from its last checkpoint.
"""

from collections.abc import Collection, Mapping
from dataclasses import fields
from time import monotonic
from typing import Any

from scripts.args.distill import DistillArgs, QatArgs
from scripts.engines.bridge.loaded import is_first_rank, not_known, say_progress, sizes_of
from scripts.engines.bridge.transfer import to_hugging_face
from scripts.engines.bridge.worker import Work
from scripts.run.problems import JobError, nearest


def distill(work: Work) -> None:
    """Distill logits (arXiv:1503.02531); a student whose checkpoint is quantized stays it (QAD)."""
    from megatron.bridge.models.distillation_provider import convert_to_distillation_provider
    from megatron.bridge.training.gpt_step import forward_step_modelopt
    from megatron.bridge.training.post_training.checkpointing import has_modelopt_state
    from megatron.bridge.training.post_training.distillation import ModelOptDistillConfig
    from modelopt.torch.utils.plugins.mbridge import load_modelopt_megatron_checkpoint

    args: DistillArgs = work.args
    begins = args.student_megatron_path
    student = _provider(args, args.student_hf_path, load_weights=begins is None)
    teacher = _provider(args, args.teacher_hf_path, load_weights=True)
    if begins is not None and has_modelopt_state(begins):
        student.gradient_accumulation_fusion = False  # Megatron's kernel for it does not know quantized weights
    told = ModelOptDistillConfig(skip_lm_loss=not args.no_skip_lm_loss, kd_loss_scale=args.kd_loss_scale)
    model = convert_to_distillation_provider(student, teacher, told)
    if begins is not None:
        # Before the teacher is put beside it, and before the optimizer is made of its weights.
        model.register_pre_wrap_hook(lambda parts: load_modelopt_megatron_checkpoint(parts, begins), prepend=True)
    _train(_distillation(args, model), forward_step_modelopt, work)
    if args.hf_export_path:
        to_hugging_face(args, args.student_hf_model or args.student_hf_path, _checkpoints(args), args.hf_export_path)


#: What Megatron-Bridge's recipe for Llama 3 8B says over the values that all its recipes begin with; the recipe itself
#: asks the hub for that model, whatever it is to train. recipes/llama/h100/llama3.py of 0.6.2.
_AS_LLAMA_3_8B: dict[str, Any] = {
    "dataset": {"num_workers": 8, "seq_length": 8192},
    "train": {"train_iters": 1168251, "global_batch_size": 512, "micro_batch_size": 1},
    "validation": {"eval_interval": 2000},
    "scheduler": {"lr_warmup_iters": 2000},
}


def train_quantized(work: Work) -> None:
    """Train with fake quantization (QAT): weights move, the scales of a quantized checkpoint stay."""
    from megatron.bridge.models import AutoBridge
    from megatron.bridge.recipes.common import _pretrain_common
    from megatron.bridge.training.gpt_step import forward_step
    from megatron.bridge.training.post_training.checkpointing import has_modelopt_state
    from megatron.bridge.training.utils.omegaconf_utils import apply_overrides, create_omegaconf_dict_config
    from omegaconf import OmegaConf

    args: QatArgs = work.args
    config = _pretrain_common()
    with not_known():
        source = args.hf_path or "meta-llama/Meta-Llama-3-8B"
        config.model = AutoBridge.from_hf_pretrained(source).to_megatron_provider(load_weights=False)
    # The recipe's own number of tokens would give another model larger embeddings, filled up at random.
    config.tokenizer.tokenizer_type, config.tokenizer.vocab_size = "NullTokenizer", config.model.vocab_size
    config.model.context_parallel_size = args.own().get("cp", 1)
    own, kept = create_omegaconf_dict_config(config)
    _refuse_unknown(args.config, own, {name.removeprefix("root.") for name in kept})
    merged = OmegaConf.to_container(OmegaConf.merge(own, _AS_LLAMA_3_8B, args.config), resolve=True)
    apply_overrides(config, merged, kept)
    config.model.seq_length = config.dataset.seq_length
    if args.output_dir:
        config.checkpoint.save = config.checkpoint.load = args.output_dir
        config.logger.tensorboard_dir = f"{args.output_dir}/tb_logs"
    if args.pretrained_checkpoint:
        config.checkpoint.pretrained_checkpoint = args.pretrained_checkpoint
    begins = config.checkpoint.pretrained_checkpoint or config.checkpoint.load
    config.model.restore_modelopt_state = bool(begins and has_modelopt_state(begins))
    _train(config, forward_step, work)


def _refuse_unknown(asked: Mapping[str, Any], own: Any, kept: Collection[str], section: str = "") -> None:
    """Of a configuration's keys, those that Megatron-Bridge has none of, which it would take and never look at.

    `kept`: dotted names of those whose values are no plain data. Raises JobError `unknown_key`.
    """
    for name, value in asked.items():
        key = f"{section}{name}"
        if key in kept:
            continue
        if name not in own:
            beside = {one.removeprefix(section).partition(".")[0] for one in kept if one.startswith(section)}
            cause = f"args.config.{key}: this release of Megatron-Bridge has no such key."
            raise JobError("unknown_key", cause, nearest(name, {*map(str, own), *beside}))
        # What is free in form, such as keyword arguments, is nobody's to know.
        if isinstance(value, Mapping) and isinstance(own[name], Mapping) and (own[name] or not section):
            _refuse_unknown(value, own[name], kept, f"{key}.")


def _provider(args: Any, source: str, *, load_weights: bool) -> Any:
    from megatron.bridge import AutoBridge
    from modelopt.torch.utils.plugins.mbridge import is_vlm_config

    trusted = args.trust_remote_code
    if is_vlm_config(source, trust_remote_code=trusted):
        cause = f"{source} has a vision tower, and the bridge engine distills language models."
        raise JobError("unsupported_model", cause, "Use engine=script.")
    with not_known():
        provider = AutoBridge.from_hf_pretrained(source, trust_remote_code=trusted).to_megatron_provider(load_weights)
    recompute = {one.name: getattr(args, one.name) for one in fields(args) if one.name.startswith("recompute_")}
    told = sizes_of(args) | {"sequence_parallel": args.tp_size > 1, "seq_length": args.seq_length}
    for name, value in (told | recompute).items():
        if value is not None:
            setattr(provider, name, value)
    return provider


def _checkpoints(args: DistillArgs) -> str:
    return f"{args.output_dir}/checkpoints"


def _distillation(args: DistillArgs, model: Any) -> Any:
    """What Megatron-Bridge's loop is told: as NVIDIA's script tells it."""
    from megatron.bridge.recipes.utils.optimizer_utils import distributed_fused_adam_with_cosine_annealing
    from megatron.bridge.training import config as of
    from megatron.core.distributed import DistributedDataParallelConfig

    optimizer, scheduler = distributed_fused_adam_with_cosine_annealing(
        lr_warmup_iters=args.lr_warmup_iters, max_lr=args.lr, min_lr=args.min_lr, adam_beta2=0.95
    )
    return of.ConfigContainer(
        model=model,
        train=of.TrainingConfig(
            train_iters=args.train_iters,
            global_batch_size=args.gbs,
            micro_batch_size=args.mbs,
            exit_interval=args.exit_interval,
            exit_duration_in_mins=args.exit_duration_in_mins,
            manual_gc=True,
            manual_gc_interval=100,
        ),
        validation=of.ValidationConfig(
            eval_interval=args.eval_interval, eval_iters=args.eval_iters, skip_train=args.validate_only
        ),
        optimizer=optimizer,
        scheduler=scheduler,
        ddp=DistributedDataParallelConfig(
            check_for_nan_in_grad=True,
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=True,
            overlap_param_gather=True,
            average_in_collective=True,
            use_distributed_optimizer=True,
        ),
        dataset=_dataset(args),
        logger=of.LoggerConfig(
            log_interval=args.log_interval,
            tensorboard_dir=f"{args.output_dir}/tb_logs",
            log_timers_to_tensorboard=True,
            wandb_project=args.wandb_project,
            wandb_entity=args.wandb_entity,
            wandb_exp_name=args.wandb_exp_name,
        ),
        tokenizer=of.TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=model.vocab_size),
        checkpoint=of.CheckpointConfig(
            save=_checkpoints(args),
            load=_checkpoints(args),
            save_interval=args.save_interval or args.eval_interval,
            most_recent_k=-1 if args.checkpoint_keep_last is None else args.checkpoint_keep_last,
            ckpt_format="torch_dist",
            async_save=True,
            fully_parallel_save=True,
        ),
        rng=of.RNGConfig(seed=args.seed),
        mixed_precision="bf16_mixed",
    )


def _dataset(args: DistillArgs) -> Any:
    from megatron.bridge.training.config import GPTDatasetConfig, MockGPTDatasetConfig
    from megatron.core.datasets.utils import get_blend_from_list

    told: dict[str, Any] = {
        "seq_length": args.seq_length,
        "path_to_cache": args.data_path_to_cache,
        "random_seed": args.seed,
        "reset_attention_mask": False,
        "reset_position_ids": False,
        "eod_mask_loss": False,
        "num_dataset_builder_threads": 1,
        "data_sharding": True,
        "dataloader_type": "single",
        "skip_getting_attention_mask_from_dataset": True,
    }
    if args.use_mock_data:
        return MockGPTDatasetConfig(**told)
    return GPTDatasetConfig(
        blend=get_blend_from_list([str(one) for one in args.data_paths or ()]), split="99,1,0", **told
    )


def _train(config: Any, step: Any, work: Work) -> None:
    """report/training.json holds the losses of every iteration that the last stage of the pipeline saw."""
    from megatron.bridge.training.callbacks import Callback
    from megatron.bridge.training.pretrain import pretrain

    course: list[dict[str, float]] = []
    began = monotonic()

    class Follow(Callback):  # type: ignore[misc]  # of a package that is not there where types are checked
        def on_train_step_end(self, context: Any) -> None:
            done = int(context.state.train_state.step) + 1
            losses = {name: float(value) for name, value in (context.loss_dict or {}).items()}
            course.append({"iteration": done, **losses})
            say_progress("train", done, config.train.train_iters, began)

    pretrain(config, step, callbacks=[Follow()])
    if not is_first_rank():
        return
    last = course[-1] if course else {}
    figures = {name.replace(" ", "_"): value for name, value in last.items() if name != "iteration"}
    work.leave("training.json", evaluation=figures, iterations=course, not_shown=list(work.not_shown))
