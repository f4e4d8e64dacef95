"""What a text names, told by its argument: a model, data, a checkpoint, a folder to write.

And whether the job, where it runs, would take it for that. What is wrong with what is there is said elsewhere.
"""

import difflib
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from executors.base import is_below
from recipes.experiment.job import Job
from recipes.models.hub import published
from scripts.args.meaning import Meaning, values_of
from scripts.checkpoints.hub_cache import is_hub_name
from scripts.checkpoints.kinds import CONVERSION
from scripts.run.files import is_folder, is_there
from scripts.run.problems import Problem
from scripts.run.registry import check
from scripts.stores.objects import is_url

#: Pages of the hub, as a browser shows them, and what fsspec calls its repositories.
_PAGE = re.compile(
    r"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)(?:datasets/)?([\w.-]+/[\w.-]+?)(?:\.git)?(?:[/?#].*)?"
)
#: A variable of a shell in a path: `$HOME/models`, `/lustre/$USER`; it is text like any other here.
_VARIABLE = re.compile(r"(?:^|/)\$\{?(\w+)\}?")
#: Data is in a file or folder, and in no data set of the hub, where its name ends or begins like that.
_FILE = re.compile(r"\.{1,2}/.*|.*/.*/.*|.*\.(?:jsonl?|ndjson|txt|md|gz|parquet|csv|arrow)", re.DOTALL)
_RECIPE_FILE = re.compile(r"[./~$].*\.ya?ml")
#: Bytes that Linux takes (limits.h: NAME_MAX, and PATH_MAX with its end).
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
_NEEDED: Mapping[str, str] = {
    "model": "a model is needed: a folder, or a name of the hub (org/name)",
    "data": "data is needed: a file, a folder, or a name of the hub",
    "path": "a path is needed",
    "output": "a folder to write is needed",
}
_NOWHERE = "a relative path means nothing where the job runs"


@check("missing_input", "missing_model", "wrong_value", "wrong_checkpoint_kind", "path_not_mounted")
def texts_that_name(job: Job) -> Iterator[Problem]:
    """Texts that name nothing, or nothing that the job could find under that name."""
    return iter(faults(job))


def faults(job: Job) -> list[Problem]:
    """Why texts cannot name what their arguments are for, whatever is there; other checks leave these alone."""
    return [fault for key, text, meaning in _texts(job) if (fault := _fault_of(job, key, text, meaning)) is not None]


def faulty(job: Job) -> set[str]:
    """The keys of those."""
    return {fault.key for fault in faults(job)}


def _texts(job: Job) -> Iterator[tuple[str, str, Meaning]]:
    """The texts that name something the engine uses, each with its key; but for what another run leaves."""
    for field, value, meaning in values_of(job.resolved):
        if not meaning.used_by(job.engine) or field in job.promised:
            continue
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str) or is_below(text, str(job.run_dir)):
                continue
            if meaning.names or (_names_a_recipe(text, meaning) and not (job.here and job.engine == "hf")):
                yield f"args.{field}", text, meaning
    if job.script.path is not None:
        yield "script.path", job.script.path, Meaning(doc="", path="read")
    if job.profile.run_folders and job.capabilities.reads_run_dir:  # of this machine, whatever the job sees of it
        root = posixpath.join(Path.cwd(), posixpath.expanduser(job.profile.run_folders))
        yield "executor.output_root", root, Meaning(doc="", path="write")


def _names_a_recipe(text: str, meaning: Meaning) -> bool:
    return meaning.role in ("format", "format_recipe") and _RECIPE_FILE.fullmatch(text) is not None


def _fault_of(job: Job, key: str, text: str, meaning: Meaning) -> Problem | None:
    if text.startswith("tiny:") or "\0" in text:
        return None
    wrong = partial(_wrong, key, text)
    kind = meaning.names or "path"
    needed = f"a {meaning.consumes} is needed" if kind == "path" and meaning.consumes else _NEEDED[kind]
    if not text.strip() or text in ("null", "None"):
        cause = f"{f'{text} is the name of nothing' if text.strip() else 'it is empty'}: {needed}"
        return wrong(name="missing_input", cause=cause, remedy=f"Set {key}.")
    if max(map(len, text.encode(errors="replace").split(b"/"))) > _LONGEST_NAME or len(text) > _LONGEST_PATH:
        cause = f"no file system takes a name above {_LONGEST_NAME} bytes, or a path above {_LONGEST_PATH}"
        return _wrong(key, f"{text[:60]}...", cause=cause, remedy="Use a shorter one.")
    if job.here and is_there(text):
        return None
    page = _PAGE.fullmatch(text)
    if page is not None or "://" in text:
        named = page[1] if page and kind in ("model", "data") else text.removeprefix("file://")
        remedy = f"Use {named}." if named != text else "Name a folder that the job sees."
        if kind == "output" and is_url(text):
            remedy = "Leave it, and set executor.output_root to a URL: what is left in the run directory goes there."
        return wrong(cause=f"it is a URL, which nothing here fetches or writes; {needed}", remedy=remedy)
    if (variable := _VARIABLE.search(text)) is not None:
        instead = text[: variable.start(1)].rstrip("${") + f"${{oc.env:{variable[1]}}}" + text[variable.end() :]
        cause = f"${variable[1]} is not expanded: no shell reads it"
        return wrong(cause=cause, remedy=f"Write the path, or {instead}, which is filled in where the job runs.")
    if text.startswith("~"):
        user = text.partition("/")[0]
        cause = (
            f"there is no user {user[1:]} here" if job.here else f"{user} is somebody else's home where the job runs"
        )
        return wrong(cause=cause, remedy="Write the path from / on.")
    plain = text.strip().rstrip("/")
    if text != text.strip() or (kind == "model" and is_hub_name(plain) and plain != text):
        return wrong(cause="a name has no space or slash at its end", remedy=f"Use {plain}.")
    return None if posixpath.isabs(text) else _relative(job, kind, meaning, text, wrong)


def _wrong(key: str, value: str, name: str = "wrong_value", **facts: Any) -> Problem:
    return Problem(name=name, key=key, value=value, **facts)


def _relative(job: Job, kind: str, meaning: Meaning, text: str, wrong: Callable[..., Problem]) -> Problem | None:
    """Of what is no absolute path, and nothing that the job sees from here."""
    of_hub, needs = is_hub_name(text), meaning.consumes
    if kind == "path" and of_hub and needs.startswith("checkpoint_"):
        cause, remedy = f"it is a name of the hub, and a {needs} is needed", CONVERSION.get(("checkpoint_hf", needs))
        return wrong(name="wrong_checkpoint_kind", cause=cause, remedy=remedy or "Name its folder.")
    if kind in ("model", "data") and (of_hub or (kind == "data" and not _FILE.fullmatch(text))):
        if job.here or not is_folder(text):
            return None  # the hub's, or a data set that the script knows
    elif job.here:
        if kind in ("model", "output") or needs.startswith("checkpoint_") or (kind == "data" and job.engine == "hf"):
            return None  # the checks of what it must hold look for it
        return wrong(
            name="missing_input", cause="there is nothing here", remedy="Name what is there, or make it first."
        )
    elif kind == "model" and "/" not in text:
        known = {name.rpartition("/")[2].lower(): name for name in published().configs}
        close = difflib.get_close_matches(text.lower(), known, 1)
        remedy = f"Did you mean {known[close[0]]}?" if close else ""
        return wrong(name="missing_model", cause="it is neither an absolute path nor org/name", remedy=remedy)
    vanishes = kind == "output" and job.in_container
    cause = "what is written to a relative path vanishes with the container" if vanishes else _NOWHERE
    cause += "" if kind == "output" or is_there(text) else ", and there is nothing here either"
    remedy = "Write the path from / on, as the job sees it."
    name = "path_not_mounted" if job.in_container else "missing_input"
    return wrong(name=name, cause=cause, remedy=remedy, can_force=True)
