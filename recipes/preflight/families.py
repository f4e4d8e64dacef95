"""What can be wrong with one algorithm's job in particular: its named errors, each with its remedy."""

from collections.abc import Iterator
from typing import Any

from recipes.experiment.job import Job
from scripts.args.configuration import configured
from scripts.args.distill import DistillBridgeArgs, QatArgs
from scripts.run.problems import Problem, Severity
from scripts.run.registry import check

_WORTH_SCORING = 128  # calibration samples; the documents name 128 to 512 as common
#: Flags of Megatron-LM that a distillation cannot be combined with (its model builder says so), and why.
_NOT_WITH_KD = {
    "--manual-gc": "it leaks memory in every step",
    "--tp-comm-overlap": "its communication is not made for two models",
    "--num-layers-per-virtual-pipeline-stage": "interleaved pipelines are not supported",
    "--num-virtual-stages-per-pipeline-rank": "interleaved pipelines are not supported",
    "--virtual-pipeline-model-parallel-size": "interleaved pipelines are not supported",
}
_VIRTUAL_STAGES = "model.virtual_pipeline_model_parallel_size"
#: The same in a configuration of Megatron-Bridge. It collects garbage by hand in its own distillations, if seldom.
_NOT_CONFIGURED_WITH_KD: tuple[tuple[str, int | bool, str, Severity], ...] = (
    (_VIRTUAL_STAGES, 0, "--virtual-pipeline-model-parallel-size", "error"),
    ("model.tp_comm_overlap", False, "--tp-comm-overlap", "error"),
    ("comm_overlap.tp_comm_overlap", False, "--tp-comm-overlap", "error"),
    ("train.manual_gc", False, "--manual-gc", "warning"),
)
_INTERLEAVED = frozenset(flag for flag, why in _NOT_WITH_KD.items() if why.startswith("interleaved"))


_TARGETS = ("prune_target_params", "prune_target_active_params", "prune_target_memory_mb")


@check("target_and_export_config_both_set", "no_target", "not_one_output", engines=("script",), algorithms=("prune",))
def prune_targets(job: Job) -> Iterator[Problem]:
    """A search or a fixed architecture, and one output."""
    if not hasattr(job.args, "prune_target_params"):
        return
    targets = [name for name in _TARGETS if getattr(job.args, name) is not None]
    fixed = job.args.prune_export_config
    if targets and fixed is not None:
        cause = f"args.{targets[0]} asks for a search, and this names the architecture"
        remedy = f"Set one of them to null: args.{targets[0]}=null for this architecture."
        key = "args.prune_export_config"
        yield Problem(name="target_and_export_config_both_set", key=key, value=fixed, cause=cause, remedy=remedy)
    if not targets and fixed is None:
        cause = "nothing says how small the model is to become"
        yield Problem(
            name="no_target",
            key="args.prune_target_params",
            value=None,
            cause=cause,
            remedy="Set a target, or prune_export_config.",
        )
    outputs = [name for name in ("output_hf_path", "output_megatron_path") if getattr(job.args, name)]
    if len(outputs) != 1:
        cause = "the script writes one of output_hf_path and output_megatron_path"
        remedy = "Set the other one to null." if outputs else "Set one of them."
        value = getattr(job.args, outputs[-1]) if outputs else None
        yield Problem(name="not_one_output", key="args.output_megatron_path", value=value, cause=cause, remedy=remedy)


@check("no_data", "two_kinds_of_data", "wrong_blend", "missing_input", "kd_incompatible", engines=("script",))
def distillation(job: Job) -> Iterator[Problem]:
    """Its data, the student of QAD, and what cannot be combined with it."""
    args = job.args
    if hasattr(args, "use_mock_data"):
        sources = [name for name in ("data_paths", "use_mock_data", "sft") if getattr(args, name)]
        if not sources:
            cause = "there is nothing to train on"
            remedy = "Set [weight, prefix, ...] of prepared data, or use_mock_data=true to try the plumbing."
            yield Problem(name="no_data", key="args.data_paths", value=None, cause=cause, remedy=remedy)
        if len(sources) > 1:
            cause = f"args.{sources[0]} gives data too"
            key = f"args.{sources[1]}"
            yield Problem(
                name="two_kinds_of_data", key=key, value=getattr(args, sources[1]), cause=cause, remedy="Choose one."
            )
        yield from _blend(args.data_paths or [])
    if job.recipe.startswith("qad") and hasattr(args, "student_megatron_path") and args.student_megatron_path is None:
        cause = "QAD needs the quantized student; without it this is plain distillation"
        key = "args.student_megatron_path"
        yield Problem(
            name="missing_input", key=key, value=None, cause=cause, remedy="Set it to what quantize_modelopt left."
        )
    if job.algorithm == "distill" or getattr(args, "export_kd_teacher_load", None):
        for word in job.extra_args:
            if (why := _NOT_WITH_KD.get(word.partition("=")[0].replace("_", "-"))) is not None:
                yield Problem(
                    name="kd_incompatible", key="extra_args", value=word, cause=f"not with distillation: {why}"
                )
    if isinstance(args, DistillBridgeArgs):
        yield from _configured_kd(job)


def _configured_kd(job: Job) -> Iterator[Problem]:
    for key, off, flag, severity in _NOT_CONFIGURED_WITH_KD:
        value = configured(job.resolved.config, job.extra_args, key, off)
        if value:
            cause = f"not with distillation: {_NOT_WITH_KD[flag]}"
            yield Problem(name="kd_incompatible", key=f"args.config.{key}", value=value, cause=cause, severity=severity)


def _blend(paths: list[Any]) -> Iterator[Problem]:
    if len(paths) == 1 and isinstance(paths[0], str):
        return  # a folder of prepared data
    for index, entry in enumerate(paths):
        number = isinstance(entry, (int, float)) or str(entry).replace(".", "", 1).isdigit()
        if (index % 2 == 0) != number:
            cause = f"entry {index + 1} is {entry!r}: weights and prefixes take turns"
            remedy = "Write [1.0, /data/tokenized/domain_text_document, ...]."
            yield Problem(name="wrong_blend", key="args.data_paths", value=paths, cause=cause, remedy=remedy)
            return


@check("wandb_not_inherited", engines=("script",), roles=("wandb",))
def wandb(job: Job) -> Iterator[Problem]:
    """Weights & Biases is asked for, and the job has no key of it."""
    project = job.get("wandb")
    name = "WANDB_API_KEY"
    found = job.place.secret(name)
    if found == "unlisted":
        cause = f"the job is not given {name}: the profile's secrets do not name it"
        remedy = f"Add {name} to the secrets of the profile."
        yield Problem(key="args.wandb_project", value=project, cause=cause, remedy=remedy)
    elif found == "unset":
        cause = f"the job is to be given {name}, and it is not set here"
        yield Problem(key="args.wandb_project", value=project, cause=cause, remedy=f"Set {name}.")


@check("remote_code_not_trusted", engines=("script",))
def card_with_code(job: Job) -> Iterator[Problem]:
    """A model card whose model brings code."""
    from scripts.engines.script.cards import REMOTE_CODE, cards

    card = getattr(job.args, "model_card", "")
    if card in cards() and REMOTE_CODE in cards()[card] and not job.args.trust_remote_code:
        cause = f"{card} brings Python code of its own, which is not run unless it is trusted"
        remedy = "Look at that code, then set args.trust_remote_code=true."
        yield Problem(key="args.model_card", value=card, cause=cause, remedy=remedy)


@check("pipeline_not_interleaved", engines=("script",))
def interleaved(job: Job) -> Iterator[Problem]:
    """ModelOpt's state is not kept for them. Megatron-LM's scripts say so and end with status 0, nothing done."""
    trains = isinstance(job.args, QatArgs)
    value = configured(job.resolved.config, job.extra_args, _VIRTUAL_STAGES, 0) if trains else 0
    if value:
        cause = "a checkpoint with ModelOpt's state cannot have virtual stages (Megatron-Bridge raises)"
        key = f"args.config.{_VIRTUAL_STAGES}"
        yield Problem(key=key, value=value, cause=cause, remedy="Leave it out.")
    for word in job.extra_args if hasattr(job.args, "model_card") else ():
        if word.partition("=")[0] in _INTERLEAVED:
            cause = "the script would end at once, with status 0 and nothing done"
            yield Problem(key="extra_args", value=word, cause=cause, remedy="Leave it out.")
