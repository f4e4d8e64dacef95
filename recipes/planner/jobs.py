"""From a job's arguments to the work of its ranks: a reader for each class of arguments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

from recipes.experiment.job import Job
from recipes.models import ModelFacts, facts_of
from recipes.planner.configured import configured
from recipes.planner.divisibility import Stages
from recipes.planner.work import Kind, Work, layout_of_work
from scripts.args.convert import HfToMegatronArgs, MegatronToHfArgs, MergeLoraArgs
from scripts.args.distill import DistillArgs, DistillBridgeArgs, QatArgs
from scripts.args.export import ExportArgs, ExportDistilledArgs, ExportModelOptArgs
from scripts.args.generate import GenerateArgs, GenerateVlmArgs
from scripts.args.megatron_lm import (
    MegatronLmArgs,
    MlmConvertArgs,
    MlmExportArgs,
    MlmFinetuneArgs,
    MlmGenerateArgs,
    MlmMmluArgs,
    MlmPruneArgs,
    MlmQuantizeArgs,
    MlmValidateArgs,
)
from scripts.args.prune import PruneArgs
from scripts.args.quantize import QuantizeArgs, QuantizeModelOptArgs, QuantizeVlmArgs

#: Tokens of an image with its question: a megapixel in patches of 28 x 28, as Qwen's vision models cut it.
_IMAGE_TOKENS = 2048
#: Tokens of an MMLU question after five examples, at most, and how many there are (arXiv:2009.03300).
_QUESTION_TOKENS, _QUESTIONS = 2048, 14042
#: The same for the first turn of MT-Bench (arXiv:2306.05685).
_PROMPT_TOKENS, _PROMPTS = 512, 80
#: What Megatron-LM's post-training scripts calibrate on where nothing is said.
_CALIBRATION_TOKENS = 512
#: Part of MMLU that Minitron's search asks of each candidate, as its script's own score function says.
_ASKED = 0.05


def work_of(job: Job) -> Work | None:
    """The work of a job; None where it has none for a GPU of ours, nothing is known of its model, or sizes are none."""
    reader = _READERS.get(type(job.resolved))
    model = None if reader is None else _facts(job, reader.model)
    if reader is None or model is None or _on_cpu(job.resolved):
        return None
    work = reader.read(job, model)
    return work if work.is_possible and layout_of_work(job).is_possible else None


def is_of_gpus(job: Job) -> bool:
    """Whether it is a job of the script engine whose work on GPUs is described here."""
    return job.engine == "script" and type(job.resolved) in _READERS and not _on_cpu(job.resolved)


def _facts(job: Job, name: str) -> ModelFacts | None:
    """Of the model that an argument names; a name with a slash that no argument has is the model itself."""
    if "/" in name:
        return facts_of(name)
    value = getattr(job.resolved, name)
    return job.models.get(name) or (facts_of(value) if isinstance(value, str) else None)


def _on_cpu(args: Any) -> bool:
    return getattr(args, "cpu", False) is True or getattr(args, "device", None) == "cpu"


def _searched(format_name: str | None) -> bool:
    return "awq" in (format_name or "").lower()


def _quantize(job: Job, model: ModelFacts) -> Work:
    """Also of the hf engine. Releases whose script has no such flags take shorter samples, one at a time."""
    args: QuantizeArgs = job.resolved
    return Work(
        kind="calibration",
        model=model,
        tokens=args.calib_seq_length,
        batch=args.calib_batch_size,
        samples=args.calib_size,
        fake_quantized=True,
        searched=_searched(args.export_quant_cfg),
        every_expert=args.force_all_expert_routing,
    )


def _quantize_vlm(job: Job, model: ModelFacts) -> Work:
    args: QuantizeVlmArgs = job.resolved
    return Work(
        kind="calibration",
        model=model,
        tokens=_IMAGE_TOKENS,
        samples=args.calib_size,
        fake_quantized=not args.skip_quantization,
        searched=_searched(args.export_quant_cfg),
    )


def _quantize_modelopt(job: Job, model: ModelFacts) -> Work:
    args: QuantizeModelOptArgs = job.resolved
    return Work(
        kind="calibration",
        model=model,
        tokens=args.seq_length,
        batch=args.calib_batch_size,
        samples=args.calib_num_samples,
        fake_quantized=True,
        searched=_searched(args.recipe or args.quant_cfg),
    )


def _prune(job: Job, model: ModelFacts) -> Work:
    args: PruneArgs = job.resolved
    return Work(
        kind="scoring",
        model=model,
        tokens=args.seq_length,
        batch=args.calib_batch_size,
        samples=args.calib_num_samples,
        questions=0 if args.prune_export_config is not None else args.top_k * ceil(_ASKED * _QUESTIONS),
        stages=(args.num_layers_in_first_pipeline_stage, args.num_layers_in_last_pipeline_stage),
    )


def _distill(job: Job, model: ModelFacts) -> Work:
    args: DistillArgs = job.resolved
    return Work(
        kind="training",
        model=model,
        teacher=_facts(job, "teacher_hf_path"),
        tokens=args.seq_length,
        batch=args.mbs,
        samples=(args.train_iters or 0) * args.gbs,
        global_batch=args.gbs,
        sequence_parallel=True,
        recompute=(args.recompute_num_layers or 1) if args.recompute_granularity == "full" else 0,
        fake_quantized=args.student_megatron_path is not None,
    )


def _bridge_training(job: Job, model: ModelFacts) -> Work:
    """What the configuration leaves out is as Megatron-Bridge's Llama recipes have it."""
    read = partial(configured, job.resolved.config, job.extra_args)
    batch = read("train.global_batch_size", 512)
    distills = isinstance(job.resolved, DistillBridgeArgs)
    full = read("model.recompute_granularity", "") == "full"
    return Work(
        kind="training",
        model=model,
        teacher=facts_of("meta-llama/Llama-3.2-3B") if distills else None,
        tokens=read("model.seq_length", 8192),
        batch=read("train.micro_batch_size", 1),
        samples=read("train.train_iters", 0) * batch,
        global_batch=batch,
        sequence_parallel=read("model.sequence_parallel", False),
        recompute=read("model.recompute_num_layers", 1) if full else 0,
        distributed_optimizer=read("ddp.use_distributed_optimizer", True),
        fake_quantized=not distills,
    )


def _generate(job: Job, model: ModelFacts, *, image: int = 0) -> Work:
    prompts = job.resolved.prompts.split("|")
    return Work(
        kind="generation",
        model=model,
        tokens=image + max(map(len, prompts)),  # in characters: a token has at least one
        samples=len(prompts),
        new_tokens=job.resolved.osl,
        fake_quantized=True,
    )


def _transfer(job: Job, model: ModelFacts) -> Work:
    ends = (getattr(job.resolved, f"num_layers_in_{end}_pipeline_stage", None) for end in ("first", "last"))
    return Work(kind="transfer", model=model, tokens=0, stages=(next(ends), next(ends)))


def _mlm(job: Job, model: ModelFacts, *, kind: Kind, read: Callable[[Any], dict[str, Any]]) -> Work:
    """A script of the Megatron-LM family."""
    args: MegatronLmArgs = job.resolved
    parallel = getattr(args, "sequence_parallel", False)
    return Work(kind=kind, model=model, stages=_mlm_stages(args), sequence_parallel=parallel, **read(args))


def _mlm_stages(args: MegatronLmArgs) -> Stages:
    return args.decoder_first_pipeline_num_layers, args.decoder_last_pipeline_num_layers


def _mlm_finetune(job: Job, model: ModelFacts) -> Work:
    """SFT, QAT, KD or QAD. A teacher's card is not said: it counts as large as the student, which it mostly is not."""
    args: MlmFinetuneArgs = job.resolved
    return Work(
        kind="training",
        model=model,
        teacher=model if args.export_kd_teacher_load is not None else None,
        tokens=args.seq_length or model.context or 0,
        batch=args.micro_batch_size,
        samples=args.train_samples or (args.train_iters or 0) * args.global_batch_size,
        global_batch=args.global_batch_size,
        stages=_mlm_stages(args),
        sequence_parallel=args.sequence_parallel,
        distributed_optimizer="--use-distributed-optimizer" in job.extra_args,
        fake_quantized=True,
    )


def _mlm_quantize(args: MlmQuantizeArgs) -> dict[str, Any]:
    return {
        "tokens": args.calib_max_sequence_length or _CALIBRATION_TOKENS,
        "batch": args.calib_batch_size or 1,
        "samples": args.calib_size or 0,
        "fake_quantized": True,
        "searched": _searched(args.recipe or args.export_quant_cfg),
        "every_expert": args.force_all_expert_routing,
    }


def _mlm_prune(args: MlmPruneArgs) -> dict[str, Any]:
    return {"tokens": args.calib_max_sequence_length or _CALIBRATION_TOKENS, "samples": args.calib_size}


def _mlm_mmlu(args: MlmMmluArgs) -> dict[str, Any]:
    samples = round(_QUESTIONS * args.fraction)
    sizes = {"tokens": _QUESTION_TOKENS, "batch": args.mmlu_batch_size or 1, "samples": samples, "new_tokens": 1}
    return {**sizes, "fake_quantized": True}


def _mlm_prompts(args: MlmGenerateArgs | MlmValidateArgs) -> dict[str, Any]:
    part = args.fraction if isinstance(args, MlmGenerateArgs) else 1.0
    sizes = {"tokens": _PROMPT_TOKENS, "samples": round(_PROMPTS * part), "new_tokens": args.osl}
    return {**sizes, "fake_quantized": True}


@dataclass(frozen=True)
class _Reader:
    """`model`: the argument that names the model, or the name of the model that the script itself has."""

    model: str
    read: Callable[[Job, ModelFacts], Work]


def _mlm_reader(kind: Kind, read: Callable[[Any], dict[str, Any]]) -> _Reader:
    return _Reader("model_card", partial(_mlm, kind=kind, read=read))


_READERS: Mapping[type, _Reader] = {
    QuantizeArgs: _Reader("hf_model_id", _quantize),
    QuantizeVlmArgs: _Reader("hf_model_id", _quantize_vlm),
    QuantizeModelOptArgs: _Reader("hf_model_name_or_path", _quantize_modelopt),
    PruneArgs: _Reader("hf_model_name_or_path", _prune),
    DistillArgs: _Reader("student_hf_path", _distill),
    DistillBridgeArgs: _Reader("meta-llama/Llama-3.2-1B", _bridge_training),
    QatArgs: _Reader("hf_path", _bridge_training),
    GenerateArgs: _Reader("hf_model_id", _generate),
    GenerateVlmArgs: _Reader("hf_model_id", partial(_generate, image=_IMAGE_TOKENS)),
    ExportArgs: _Reader("hf_model_id", _transfer),
    ExportModelOptArgs: _Reader("hf_model_name_or_path", _transfer),
    ExportDistilledArgs: _Reader("student_hf_path", _transfer),
    HfToMegatronArgs: _Reader("hf_model", _transfer),
    MegatronToHfArgs: _Reader("hf_model", _transfer),
    MergeLoraArgs: _Reader("hf_model_path", _transfer),
    MlmConvertArgs: _mlm_reader("transfer", lambda _: {"tokens": 0}),
    MlmExportArgs: _mlm_reader("transfer", lambda _: {"tokens": 0}),
    MlmFinetuneArgs: _Reader("model_card", _mlm_finetune),
    MlmQuantizeArgs: _mlm_reader("calibration", _mlm_quantize),
    MlmPruneArgs: _mlm_reader("scoring", _mlm_prune),
    MlmGenerateArgs: _mlm_reader("generation", _mlm_prompts),
    MlmMmluArgs: _mlm_reader("generation", _mlm_mmlu),
    MlmValidateArgs: _mlm_reader("generation", _mlm_prompts),
}
