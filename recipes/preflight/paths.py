"""The paths that a job reads and writes, and where they lie on this machine, if they do."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from executors.base import is_below
from recipes.experiment.job import Job
from recipes.models import hub
from scripts.args.meaning import meanings

#: Arguments that name a whole model without being an input by type.
NAMES_A_MODEL = frozenset(
    {
        *("hf_model_id", "hf_model", "hf_path", "hf_model_path", "student_hf_path", "student_hf_model"),
        *("hf_model_name_or_path", "pretrained_model_name"),
    }
)
#: Arguments that name something to read although no artifact type stands for it.
ALSO_READ = NAMES_A_MODEL | {
    *("tokenizer", "tokenizer_model", "hf_dataset", "calib_dataset", "calib_dataset_name", "finetune_hf_dataset"),
    *("mmlu_dataset", "sft_dataset_root", "test_image_path", "image_path", "prompts_path", "ground_truth_path"),
    *("include_path", "offline_distillation_data", "export_kd_teacher_model_config"),
}
#: Arguments that name something to write that is no artifact.
ALSO_WRITTEN = frozenset({"prune_intermediate_ckpt", "data_path_to_cache", "save_ground_truth_path", "cache_dir"})


@dataclass(frozen=True, kw_only=True)
class Named:
    """A path and the argument that names it."""

    key: str
    field: str
    path: str
    consumes: str  # the artifact type; empty where there is none


def inputs_of(job: Job) -> Iterator[Named]:
    """What the job reads, as it sees it; a name that may as well be a hub's is none, unless it is a folder here."""
    for field, meaning in meanings(job.resolved):
        if meaning.produces or not (meaning.consumes or field.name in ALSO_READ):
            continue
        value = getattr(job.resolved, field.name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and item and "\0" not in item:
                path = posixpath.expanduser(item)  # leaves `~nobody` as it is, where Path raises
                if posixpath.isabs(path) or (job.here and posixpath.exists(path)):
                    yield Named(key=f"args.{field.name}", field=field.name, path=path, consumes=meaning.consumes)


def written_beside(job: Job) -> Iterator[Named]:
    """What the job writes that is no artifact."""
    for field, _ in meanings(job.resolved):
        value = getattr(job.resolved, field.name)
        if field.name in ALSO_WRITTEN and isinstance(value, str) and posixpath.isabs(value):
            yield Named(key=f"args.{field.name}", field=field.name, path=value, consumes="")


def path_here(job: Job, path: str | Path) -> Path | None:
    """Where a path of the job lies on this machine; None where that is elsewhere, or cannot be told."""
    return job.place.path_here(path, job.run_dir)


def model_folder(job: Job, name: str) -> Path | None:
    """The folder of a model that the job names, where its files can be read here: its own, or a cached snapshot."""
    path = posixpath.expanduser(name)
    found = path_here(job, path) if posixpath.isabs(path) or job.here else None
    return found if found is not None and posixpath.isdir(found) else hub.cached_model(name)


def overlap(one: str | Path, other: str | Path) -> bool:
    """Whether one of two paths lies in the other, links followed."""
    first, second = real(str(one)), real(str(other))
    return is_below(first, second) or is_below(second, first)


def real(path: str) -> str:
    """An absolute path with links followed, as far as they can be."""
    try:
        return posixpath.realpath(path)
    except (OSError, ValueError):  # a folder that is closed to us, characters that no file system has
        return posixpath.abspath(path)
