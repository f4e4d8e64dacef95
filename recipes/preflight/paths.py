"""The paths that a job reads and writes, and where they lie on this machine, if they do."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A folder that a container is given."""

    source: str | None  # on this machine, or the storage's own; None: a volume
    target: str
    read_only: bool


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


def mounts_of(job: Job) -> tuple[Mount, ...] | None:
    """What the job's container is given; None for a job without one, which sees its machine's own files."""
    from executors.docker.profile import DockerProfile
    from executors.lepton.profile import LeptonProfile
    from executors.slurm.profile import SlurmProfile
    from executors.slurm.script import other_runs

    profile, run_dir = job.profile, str(job.run_dir)
    own = Mount(source=run_dir, target=run_dir, read_only=False)
    if isinstance(profile, DockerProfile):
        runs = str(job.run_dir.parent)
        return (*map(_mount, profile.mounts), Mount(source=runs, target=runs, read_only=True), own)
    if isinstance(profile, SlurmProfile) and profile.image is not None:
        return (*map(_mount, [*other_runs(profile, str(job.run_dir.parent)), *profile.mounts]), own)
    if isinstance(profile, LeptonProfile):
        return tuple(
            Mount(
                source=None,
                target=posixpath.normpath(str(mount["mount_path"])),
                read_only=isinstance(options := mount.get("mount_options"), dict) and bool(options.get("read_only")),
            )
            for mount in profile.mounts
            if mount.get("mount_path")
        )
    return None


def mount_of(path: str, mounts: tuple[Mount, ...]) -> Mount | None:
    """The mount that a path of the container lies on: of several the one deepest down, and there the last."""
    found = [mount for mount in reversed(mounts) if is_below(path, mount.target)]
    return max(found, key=lambda mount: len(mount.target), default=None)


def path_here(job: Job, path: str | Path) -> Path | None:
    """Where a path of the job lies on this machine; None where that is elsewhere, or cannot be told."""
    if job.here:
        return Path(path)
    mounts = mounts_of(job)
    if mounts is None or (job.profile.kind == "slurm" and getattr(job.profile, "host", None) is not None):
        return None
    mount = mount_of(str(path), mounts)
    if mount is None or mount.source is None or not posixpath.isdir(mount.source):
        return None
    return Path(mount.source) / posixpath.relpath(posixpath.normpath(str(path)), mount.target)


def model_folder(job: Job, name: str) -> Path | None:
    """The folder of a model that the job names, where its files can be read here: its own, or a cached snapshot."""
    path = posixpath.expanduser(name)
    found = path_here(job, path) if posixpath.isabs(path) or job.here else None
    return found if found is not None and posixpath.isdir(found) else hub.cached_model(name)


def is_below(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or lies in it, by its words alone."""
    path = posixpath.normpath(path)
    return path == folder or path.startswith(folder.rstrip("/") + "/")


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


def _mount(text: str) -> Mount:
    """`SOURCE:TARGET[:FLAGS]`; a profile's own checks say what is wrong with one that is not."""
    source, target, *flags = [*text.split(":"), ""][:3]
    source = posixpath.expanduser(source)
    return Mount(
        source=source if source.startswith("/") else None,
        target=posixpath.normpath(target or source),
        read_only="ro" in ",".join(flags).split(","),
    )
