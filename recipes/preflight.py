"""Checks on the submitting machine: every mistake that can be seen there, all at once, nothing written.

Each check is a function from a Spec to problems. None imports torch, none touches the network but
`hub`, and that one only for a run that is about to start.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes import hub
from recipes.model_facts import linear_shapes, local_model_problem
from scripts.errors import JobError
from scripts.files import weight_bytes
from scripts.formats import FITS_ANY_WIDTH, FORMATS, format_error, format_problems
from scripts.hf.quantizers import refuse_compress, refuse_weight_only
from scripts.late import resolve, run_tag
from scripts.problems import Problem
from scripts.texts import read, source_of
from scripts.types import QuantizeArgs, ScriptSpec, Torchrun

if TYPE_CHECKING:
    import nemo_run as run

    from executors import LocalProfile

OUTPUTS = ("modelopt_save_path", "export_dir")
#: What the hf engine imports; the local executor runs it in the environment that submits.
ENGINE_PACKAGES = ("torch", "transformers", "modelopt", "datasets", "safetensors", "jinja2", "matplotlib")
_PARALLEL = ("tp", "pp", "ep", "etp")
#: Checkpoint, export and working copies, as a multiple of the source checkpoint.
_DISK_FACTOR = 2.2
_TINY_BYTES = 64 << 20
_PEEKED_ROWS = 200


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A job about to be submitted: its values, where it runs, and the run directory it would get."""

    recipe: str
    args: QuantizeArgs
    resolved: QuantizeArgs
    script: ScriptSpec
    torchrun: Torchrun
    extra_args: list[str]
    profile: "LocalProfile"
    run_dir: Path
    online: bool


def spec_of(
    partial: "run.Partial[Any]", profile: "LocalProfile", run_dir: Path, *, online: bool
) -> tuple[Spec | None, list[Problem]]:
    """Build the typed values of `partial` and resolve its late values as they will be in `run_dir`."""
    from fiddle import build

    args = build(partial.args)
    tag = run_tag(args.hf_model_id, args.export_quant_cfg)
    try:
        resolved = QuantizeArgs(**resolve(asdict(args), run_dir=run_dir, run_tag=tag))
    except JobError as error:
        return None, [Problem(name=error.name, key="args", value=None, cause=error.cause, remedy=error.remedy)]
    spec = Spec(
        recipe=partial.recipe,
        args=args,
        resolved=resolved,
        script=build(partial.script),
        torchrun=build(partial.torchrun),
        extra_args=list(partial.extra_args),
        profile=profile,
        run_dir=run_dir,
        online=online,
    )
    return spec, []


def preflight(spec: Spec) -> list[Problem]:
    """Every Problem of `spec`; empty when it may run."""
    unusable = list(_characters(spec))
    return unusable or [problem for check in CHECKS for problem in check(spec)]


def _characters(spec: Spec) -> Iterator[Problem]:
    for field in fields(spec.resolved):
        value = getattr(spec.resolved, field.name)
        if isinstance(value, str) and "\0" in value:
            cause = "no file name or argument can hold a NUL character"
            yield Problem(name="wrong_value", key=f"args.{field.name}", value=repr(value), cause=cause)


def notes(spec: Spec) -> list[str]:
    """What a user should know although nothing is wrong."""
    found = ["engine hf writes args.modelopt_save_path and args.export_dir; args.megatron_save_path is not used"]
    processes = spec.torchrun.nproc_per_node * spec.torchrun.nnodes
    if processes > 1:
        found.append(f"engine hf is one process; torchrun asks for {processes}, which is not used")
    if not spec.online and not _is_local(spec.args.hf_model_id) and hub.cached_model(spec.args.hf_model_id) is None:
        found.append(f"args.hf_model_id={spec.args.hf_model_id} is not on this machine; a run fetches it from the hub")
    return found


def _numbers(spec: Spec) -> Iterator[Problem]:
    least = {"calib_size": 1, "calib_seq_length": 8, "calib_batch_size": 1, "eval_size": 0}
    for name, minimum in least.items():
        value = getattr(spec.args, name)
        if value < minimum:
            yield Problem(name="out_of_range", key=f"args.{name}", value=value, cause=f"at least {minimum} is needed")


def _installed(_: Spec) -> Iterator[Problem]:
    missing = [name for name in ENGINE_PACKAGES if util.find_spec(name) is None]
    if missing:
        cause = f"the job runs in this environment, which lacks {', '.join(missing)}"
        remedy = 'Install them: pip install "modelopt-recipes[hf]", or ".[hf]" in a checkout.'
        yield Problem(name="engine_not_installed", key="engine", value="hf", cause=cause, remedy=remedy)


def _shape(spec: Spec) -> Iterator[Problem]:
    for name in _PARALLEL:
        value = getattr(spec.args, name)
        if value != 1:
            cause = "the hf engine runs as one process, without parallelism"
            yield Problem(
                name="engine_has_no_parallelism",
                key=f"args.{name}",
                value=value,
                cause=cause,
                remedy=f"Use args.{name}=1.",
            )
    for key, value in (("torchrun.nnodes", spec.torchrun.nnodes), ("executor.nodes", spec.profile.nodes)):
        if value != 1:
            cause = "the local executor has one machine"
            yield Problem(name="too_many_nodes", key=key, value=value, cause=cause, remedy=f"Use {key}=1.")
    if spec.torchrun.nproc_per_node < 1:
        value = spec.torchrun.nproc_per_node
        yield Problem(name="out_of_range", key="torchrun.nproc_per_node", value=value, cause="at least 1 is needed")
    if spec.script.path is not None:
        cause = "the hf engine runs ModelOpt itself, no script"
        remedy = "Use script.path=null."
        yield Problem(name="script_unused", key="script.path", value=spec.script.path, cause=cause, remedy=remedy)
    if spec.extra_args:
        cause = "they go to an upstream script, and the hf engine runs none"
        yield Problem(
            name="extra_args_unused", key="extra_args", value=spec.extra_args, cause=cause, remedy="Remove them."
        )


def _format(spec: Spec) -> Iterator[Problem]:
    value = spec.resolved.export_quant_cfg
    error = format_error(value)
    if error:
        yield Problem(name="unsupported_quant_recipe", key="args.export_quant_cfg", value=value, cause=error)
        return
    folder = _model_folder(spec)
    shapes = linear_shapes(folder) if folder and value in FORMATS else {}
    for sentence in format_problems(value, shapes)[:1] if shapes else []:
        cause = f"{value} does not fit this model: {sentence}"
        remedy = FITS_ANY_WIDTH
        yield Problem(name="format_does_not_fit", key="args.export_quant_cfg", value=value, cause=cause, remedy=remedy)


def _combinations(spec: Spec) -> Iterator[Problem]:
    if format_error(spec.resolved.export_quant_cfg):
        return
    for key, refuse in (("weight_only", refuse_weight_only), ("compress", refuse_compress)):
        if getattr(spec.resolved, key):
            try:
                refuse(spec.resolved)
            except JobError as error:
                yield Problem(name=error.name, key=f"args.{key}", value=True, cause=error.cause, remedy=error.remedy)


def _model(spec: Spec) -> Iterator[Problem]:
    name = spec.resolved.hf_model_id
    found = local_model_problem(name) if _is_local(name) else hub.model_problem(name, online=spec.online)
    if found:
        yield Problem(name=found[0], key="args.hf_model_id", value=name, cause=found[1], remedy=found[2])


def _data(spec: Spec) -> Iterator[Problem]:
    for key in ("calib_dataset", "eval_dataset"):
        value = getattr(spec.resolved, key)
        if value is None and (key == "eval_dataset" or spec.args.hf_model_id.startswith("tiny:")):
            continue
        try:
            source = source_of(value, spec.args.hf_model_id)
            if source.kind in ("jsonl", "text"):
                rows = sum(
                    1
                    for _, text in zip(range(_PEEKED_ROWS), read(source, spec.args.calib_text_key), strict=False)
                    if text.strip()
                )
                needed = 2 if key == "calib_dataset" and spec.args.eval_dataset is None and spec.args.eval_size else 1
                if rows < needed:
                    raise JobError(
                        "too_little_text", f"{source.place} holds {rows} texts; {needed} are needed.", "Give more text."
                    )
            elif source.kind == "hub":
                hub.require_dataset(source.place, online=spec.online)
        except JobError as error:
            yield Problem(name=error.name, key=f"args.{key}", value=value, cause=error.cause, remedy=error.remedy)


def _outputs(spec: Spec) -> Iterator[Problem]:
    paths = {f"args.{name}": Path(value) for name in OUTPUTS if (value := getattr(spec.resolved, name))}
    inputs = {"args.hf_model_id": spec.resolved.hf_model_id, "args.calib_dataset": spec.resolved.calib_dataset}
    sources = {
        key: Path(value).expanduser() for key, value in inputs.items() if value and Path(value).expanduser().exists()
    }
    for key, path in paths.items():
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            cause = "it already holds something, and nothing is overwritten"
            yield Problem(
                name="output_exists", key=key, value=path, cause=cause, remedy="Name another folder, or remove it."
            )
        anchor = _existing_parent(path)
        trouble = _cannot_write(anchor)
        if trouble:
            yield Problem(name="output_not_writable", key=key, value=path, cause=trouble)
        others = {**sources, **{name: other for name, other in paths.items() if name < key}}
        for other_key, other in others.items():
            if _overlap(path, other):
                cause = f"it overlaps {other_key}={other}"
                yield Problem(
                    name="output_overlaps_input", key=key, value=path, cause=cause, remedy="Name a folder of its own."
                )


def _disk(spec: Spec) -> Iterator[Problem]:
    folder = _model_folder(spec)
    if folder is None and not spec.args.hf_model_id.startswith("tiny:"):
        return  # the size is unknown here
    needed = int((weight_bytes(folder) if folder else _TINY_BYTES) * _DISK_FACTOR)
    for name in OUTPUTS:
        value = getattr(spec.resolved, name)
        if not value:
            continue
        anchor = _existing_parent(Path(value))
        free = shutil.disk_usage(anchor).free
        if free < needed:
            cause = f"about {needed / 1e9:.1f} GB will be written and {anchor} has {free / 1e9:.1f} GB free"
            yield Problem(
                name="not_enough_disk", key=f"args.{name}", value=value, cause=cause, remedy="Write elsewhere."
            )
            return


CHECKS: tuple[Callable[[Spec], Iterator[Problem]], ...] = (
    _installed,
    _numbers,
    _shape,
    _format,
    _combinations,
    _model,
    _data,
    _outputs,
    _disk,
)


def _is_local(model: str) -> bool:
    return model.startswith("tiny:") or Path(model).expanduser().exists() or not hub.is_hub_name(model)


def _model_folder(spec: Spec) -> Path | None:
    path = Path(spec.resolved.hf_model_id).expanduser()
    return path if path.is_dir() else hub.cached_model(spec.resolved.hf_model_id)


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
