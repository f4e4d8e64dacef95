"""What can be wrong with one algorithm's job in particular: its named errors, each with its remedy."""

import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from recipes.layout import sizes_of
from recipes.spec import Spec
from scripts.problems import Problem

_WORTH_SCORING = 128  # calibration samples; the documents name 128 to 512 as common
#: Flags of Megatron-LM that a distillation cannot be combined with (its model builder says so), and why.
_NOT_WITH_KD = {
    "--manual-gc": "it leaks memory in every step",
    "--tp-comm-overlap": "its communication is not made for two models",
    "--num-layers-per-virtual-pipeline-stage": "interleaved pipelines are not supported",
    "--num-virtual-stages-per-pipeline-rank": "interleaved pipelines are not supported",
    "--virtual-pipeline-model-parallel-size": "interleaved pipelines are not supported",
}
_INTERLEAVED = frozenset(flag for flag, why in _NOT_WITH_KD.items() if why.startswith("interleaved"))


def family_checks(spec: Spec) -> Iterator[Problem]:
    """Every Problem that comes of what the algorithm is."""
    for check in (_sizes, _layout, _export, _prune, _distill, _wandb, _card, _interleaved):
        yield from check(spec)


def family_notes(spec: Spec) -> Iterator[str]:
    """Named warnings: what the results must not be taken for."""
    args = spec.args
    if getattr(args, "use_mock_data", False):
        yield "mock_data_used_as_quality_signal: the data is random tokens; losses and scores say nothing about quality"
    samples = getattr(args, "calib_size", None) or getattr(args, "calib_num_samples", None)
    if spec.engine == "script" and samples is not None and samples < _WORTH_SCORING:
        yield f"tiny_calibration_used_as_quality_signal: {samples} calibration samples show that it runs, no more"
    if getattr(args, "use_random_calib", False):
        yield "tiny_calibration_used_as_quality_signal: random images show that it runs, no more"


def _sizes(spec: Spec) -> Iterator[Problem]:
    numbers = dict(sizes_of(spec.args).values())
    names = ("calib_size", "calib_num_samples", "seq_length", "mbs", "gbs", "train_iters", "osl", "calib_batch_size")
    numbers |= {f"args.{name}": value for name in names if (value := getattr(spec.args, name, None)) is not None}
    for key, value in numbers.items():
        if value < 1:
            yield Problem(name="out_of_range", key=key, value=value, cause="at least 1 is needed")


def _layout(spec: Spec) -> Iterator[Problem]:
    """World size = tp x pp x cp x dp, and the experts' own layout (Megatron-Core's parallel_state)."""
    sizes = sizes_of(spec.args)
    if not sizes or not spec.args.RANKED or any(value < 1 for _, value in sizes.values()):
        return
    world = spec.shape.nodes * spec.torchrun.nproc_per_node
    name = "invalid_parallel_divisibility" if spec.algorithm == "prune" else "world_size_not_divisible"
    groups: tuple[tuple[str, ...], ...] = (("tp", "pp", "cp"), ("etp", "ep", "pp"))
    for group in groups:
        used = {size: sizes[size] for size in group if size in sizes and sizes[size][1] > 1}
        needed = prod(value for _, value in used.values())
        if world % needed:
            key, value = max(used.values(), key=lambda one: one[1])
            yield _not_divisible(name, key, value, used, needed, world)
            return
    needed = prod(value for _, value in (sizes[size] for size in ("tp", "pp", "cp") if size in sizes))
    if not spec.args.DATA_PARALLEL and world != needed:
        cause = f"{world} processes, and this script makes use of {needed}: tp x pp x cp, no data parallelism"
        remedy = f"Use torchrun.nproc_per_node={needed}, on one machine." if needed <= 8 else ""
        key = "torchrun.nproc_per_node"
        yield Problem(name=name, key=key, value=spec.torchrun.nproc_per_node, cause=cause, remedy=remedy)


def _not_divisible(name: str, key: str, value: int, used: Mapping[str, Any], needed: int, world: int) -> Problem:
    product = " x ".join(used)
    cause = f"{world} processes do not divide by {product} = {needed}"
    more = -(-world // needed) * needed
    remedy = (
        f"Use {more} processes (torchrun.nnodes x torchrun.nproc_per_node), or sizes whose product divides {world}."
    )
    return Problem(name=name, key=key, value=value, cause=cause, remedy=remedy)


def _export(spec: Spec) -> Iterator[Problem]:
    """The exporters write each rank's shard of a tensor as if it were the whole, without an error."""
    if spec.algorithm != "export" or spec.args.DATA_PARALLEL:
        return
    for size, (key, value) in sizes_of(spec.args).items():
        if size in ("tp", "etp") and value > 1:
            cause = (
                "the exporter does not gather tensor-parallel shards: the checkpoint would be corrupt, without an error"
            )
            yield Problem(
                name="export_needs_tp1", key=key, value=value, cause=cause, remedy=f"Use {key}=1, and pp for size."
            )


_TARGETS = ("prune_target_params", "prune_target_active_params", "prune_target_memory_mb")


def _prune(spec: Spec) -> Iterator[Problem]:
    if not hasattr(spec.args, "prune_target_params"):
        return
    targets = [name for name in _TARGETS if getattr(spec.args, name) is not None]
    fixed = spec.args.prune_export_config
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
    outputs = [name for name in ("output_hf_path", "output_megatron_path") if getattr(spec.args, name)]
    if len(outputs) != 1:
        cause = "the script writes one of output_hf_path and output_megatron_path"
        remedy = "Set the other one to null." if outputs else "Set one of them."
        value = getattr(spec.args, outputs[-1]) if outputs else None
        yield Problem(name="not_one_output", key="args.output_megatron_path", value=value, cause=cause, remedy=remedy)


def _distill(spec: Spec) -> Iterator[Problem]:
    args = spec.args
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
        yield from _vocabularies(spec)
    if spec.recipe.startswith("qad") and hasattr(args, "student_megatron_path") and args.student_megatron_path is None:
        cause = "QAD needs the quantized student; without it this is plain distillation"
        key = "args.student_megatron_path"
        yield Problem(
            name="missing_input", key=key, value=None, cause=cause, remedy="Set it to what quantize_modelopt left."
        )
    if spec.algorithm == "distill" or getattr(args, "export_kd_teacher_load", None):
        for word in spec.extra_args:
            if (why := _NOT_WITH_KD.get(word.partition("=")[0].replace("_", "-"))) is not None:
                yield Problem(
                    name="kd_incompatible", key="extra_args", value=word, cause=f"not with distillation: {why}"
                )


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


def _vocabularies(spec: Spec) -> Iterator[Problem]:
    """Distillation compares logits: both models must mean the same tokens."""
    from recipes.model_facts import read_config

    sizes = {}
    for key in ("teacher_hf_path", "student_hf_path"):
        folder = Path(getattr(spec.resolved, key)).expanduser()
        config = read_config(folder) if spec.here and folder.is_dir() else None
        if config is not None and isinstance(config.get("vocab_size"), int):
            sizes[key] = config["vocab_size"]
    if len(set(sizes.values())) > 1:
        cause = (
            f"the teacher's vocabulary has {sizes['teacher_hf_path']} tokens, the student's {sizes['student_hf_path']}"
        )
        value = spec.args.student_hf_path
        name = "teacher_student_or_tokenizer_mismatch"
        yield Problem(
            name=name, key="args.student_hf_path", value=value, cause=cause, remedy="Use models of one family."
        )


def _wandb(spec: Spec) -> Iterator[Problem]:
    project = getattr(spec.args, "wandb_project", None)
    if project is None:
        return
    name = "WANDB_API_KEY"
    if name not in spec.profile.secrets and spec.profile.kind != "local":
        cause = f"the job is not given {name}: the profile's secrets do not name it"
        remedy = f"Add {name} to the secrets of the profile."
        yield Problem(name="wandb_not_inherited", key="args.wandb_project", value=project, cause=cause, remedy=remedy)
    elif name not in os.environ and spec.profile.kind != "lepton":  # Lepton keeps secrets of its own
        cause = f"the job is to be given {name}, and it is not set here"
        yield Problem(
            name="wandb_not_inherited", key="args.wandb_project", value=project, cause=cause, remedy=f"Set {name}."
        )


def _card(spec: Spec) -> Iterator[Problem]:
    from scripts.script.cards import REMOTE_CODE, cards

    card = getattr(spec.args, "model_card", "")
    if card in cards() and REMOTE_CODE in cards()[card] and not spec.args.trust_remote_code:
        cause = f"{card} brings Python code of its own, which is not run unless it is trusted"
        remedy = "Look at that code, then set args.trust_remote_code=true."
        yield Problem(name="remote_code_not_trusted", key="args.model_card", value=card, cause=cause, remedy=remedy)


def _interleaved(spec: Spec) -> Iterator[Problem]:
    """Megatron-LM's scripts print a line about interleaved pipelines and end with status 0, nothing done."""
    for word in spec.extra_args if hasattr(spec.args, "model_card") else ():
        if word.partition("=")[0] in _INTERLEAVED:
            cause = "the script would end at once, with status 0 and nothing done"
            yield Problem(
                name="pipeline_not_interleaved", key="extra_args", value=word, cause=cause, remedy="Leave it out."
            )
