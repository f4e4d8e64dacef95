"""Checks on the submitting machine: every mistake that can be seen there, all at once, nothing written.

None imports torch, none touches the network but those of `hub`, and these only for a run that is
about to start.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from importlib import util
from pathlib import Path

from recipes.family_checks import family_checks, family_notes
from recipes.quantize_checks import model_folder, quantize_checks, quantize_notes
from recipes.script_checks import input_problems, script_checks, script_notes
from recipes.spec import Spec, written
from recipes.tool_checks import installed_checks, tool_checks, tool_notes
from scripts.files import weight_bytes
from scripts.problems import Problem
from scripts.types import meanings

#: What the hf engine imports; the local executor runs it in the environment that submits.
ENGINE_PACKAGES = ("torch", "transformers", "modelopt", "datasets", "safetensors", "jinja2", "matplotlib")
#: Checkpoint, export and working copies, as a multiple of the source checkpoint.
_DISK_FACTOR = 2.2
_TINY_BYTES = 64 << 20


def preflight(spec: Spec) -> list[Problem]:
    """Every Problem of `spec`; empty when it may run."""
    unusable = list(_characters(spec))
    return unusable or [problem for check in (*COMMON, *CHECKS[spec.engine]) for problem in check(spec)]


def notes(spec: Spec) -> list[str]:
    """What a user should know although nothing is wrong."""
    if spec.engine == "script":
        return [*script_notes(spec), *family_notes(spec)]
    return list(quantize_notes(spec)) if spec.engine == "hf" else list(tool_notes(spec))


def _characters(spec: Spec) -> Iterator[Problem]:
    for field in fields(spec.resolved):
        value = getattr(spec.resolved, field.name)
        if isinstance(value, str) and "\0" in value:
            cause = "no file name or argument can hold a NUL character"
            yield Problem(name="wrong_value", key=f"args.{field.name}", value=repr(value), cause=cause)


def _home(spec: Spec) -> Iterator[Problem]:
    """NeMo-Run puts its home into shell lines, scripts and mounts as it is."""
    from nemo_run.config import get_nemorun_home

    home = get_nemorun_home()
    wrong = sorted(set(re.findall(r"[^\w@%+=:,./~-]|:" if spec.profile.kind == "docker" else r"[^\w@%+=:,./~-]", home)))
    if spec.profile.kind != "local" and wrong:
        cause = f"what NeMo-Run does for {spec.profile.kind} breaks on {' '.join(map(repr, wrong))} in its path"
        remedy = "Set NEMORUN_HOME to a folder whose path has letters, digits and . _ / - only."
        yield Problem(name="wrong_home", key="NEMORUN_HOME", value=home, cause=cause, remedy=remedy)


def _shape(spec: Spec) -> Iterator[Problem]:
    if not spec.capabilities.multi_node and spec.shape.nodes != 1:
        key = "torchrun.nnodes" if spec.torchrun.nnodes != 1 else "executor.nodes"
        cause = f"the {spec.profile.kind} executor has one machine"
        yield Problem(name="too_many_nodes", key=key, value=spec.shape.nodes, cause=cause, remedy=f"Use {key}=1.")
    shape = {"torchrun.nproc_per_node": spec.torchrun.nproc_per_node, "torchrun.nnodes": spec.torchrun.nnodes}
    for key, value in shape.items() | {("executor.nodes", 1 if spec.profile.nodes is None else spec.profile.nodes)}:
        if value < 1:
            yield Problem(name="out_of_range", key=key, value=value, cause="at least 1 is needed")


def _installed(spec: Spec) -> Iterator[Problem]:
    if spec.profile.kind != "local":
        return  # `executors check` looks at the place itself
    missing = [name for name in ENGINE_PACKAGES if util.find_spec(name) is None]
    if missing:
        cause = f"the job runs in this environment, which lacks {', '.join(missing)}"
        remedy = 'Install them: pip install "modelopt-recipes[hf]", or ".[hf]" in a checkout.'
        yield Problem(name="engine_not_installed", key="engine", value="hf", cause=cause, remedy=remedy)


def _outputs(spec: Spec) -> Iterator[Problem]:
    paths = {key: path for key, _, path in written(spec)}
    sources = dict(_read(spec))
    for key, path in paths.items():
        if spec.here and path.exists() and (not path.is_dir() or any(path.iterdir())):
            cause = "it already holds something, and nothing is overwritten"
            yield Problem(
                name="output_exists", key=key, value=path, cause=cause, remedy="Name another folder, or remove it."
            )
        trouble = _cannot_write(_existing_parent(path)) if spec.here else None
        if trouble:
            yield Problem(name="output_not_writable", key=key, value=path, cause=trouble)
        others = {**sources, **{name: other for name, other in paths.items() if name < key}}
        for other_key, other in others.items():
            if _overlap(path, other):
                cause = f"it overlaps {other_key}={other}"
                own = _OVERLAPS.get(spec.algorithm) if other_key in sources else None
                name = own or "output_overlaps_input"
                yield Problem(name=name, key=key, value=path, cause=cause, remedy="Name a folder of its own.")


#: What algorithms of the script engine call an output that lies in an input.
_OVERLAPS = {
    "quantize": "source_checkpoint_overwritten",
    "convert": "source_checkpoint_overwritten",
    "prune": "output_path_overlaps_input",
    "distill": "output_dir_overlaps_checkpoint_roots",
    "qat": "output_dir_overlaps_checkpoint_roots",
}


def _read(spec: Spec) -> Iterator[tuple[str, Path]]:
    """The inputs that are paths; where they cannot be looked at, those that can be nothing else."""
    for field, meaning in meanings(spec.resolved):
        value = getattr(spec.resolved, field.name)
        for item in value if isinstance(value, list) else [value]:
            if meaning.consumes and isinstance(item, str):
                path = Path(item).expanduser()
                if path.is_absolute() or (spec.here and path.exists()):
                    yield f"args.{field.name}", path


def _disk(spec: Spec) -> Iterator[Problem]:
    if not spec.here:
        return
    folder = model_folder(spec)
    if folder is None and not spec.args.hf_model_id.startswith("tiny:"):
        return  # the size is unknown here
    needed = int((weight_bytes(folder) if folder else _TINY_BYTES) * _DISK_FACTOR)
    for key, _, path in written(spec):
        anchor = _existing_parent(path)
        free = shutil.disk_usage(anchor).free
        if free < needed:
            cause = f"about {needed / 1e9:.1f} GB will be written and {anchor} has {free / 1e9:.1f} GB free"
            yield Problem(name="not_enough_disk", key=key, value=path, cause=cause, remedy="Write elsewhere.")
            return


COMMON: tuple[Callable[[Spec], Iterator[Problem]], ...] = (_home, _shape)
#: By engine; None is an algorithm without a choice.
CHECKS: Mapping[str | None, tuple[Callable[[Spec], Iterator[Problem]], ...]] = {
    "hf": (_installed, quantize_checks, _outputs, _disk),
    "script": (script_checks, family_checks, tool_checks, installed_checks, _outputs),
    None: (input_problems, tool_checks, installed_checks, _outputs),
}


def _existing_parent(path: Path) -> Path:
    for parent in (path.absolute(), *path.absolute().parents):
        if parent.exists():
            return parent
    return Path("/")


def _cannot_write(folder: Path) -> str | None:
    """Why nothing can be made in `folder`; None when it can. Tried with a file that has no name."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"nothing can be made in {folder} ({error.strerror})"


def _overlap(one: Path, other: Path) -> bool:
    first, second = one.resolve(), other.resolve()
    return first == second or first in second.parents or second in first.parents
