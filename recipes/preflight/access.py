"""Whether a job will get what it needs an account or somebody's trust for. The hub itself is not asked."""

import difflib
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from executors.base import is_below
from recipes.experiment.job import Job
from recipes.models import hub
from scripts.args.meaning import values_of
from scripts.args.megatron_lm import MegatronLmArgs
from scripts.checkpoints.hub_cache import is_hub_name
from scripts.engines.script.cards import REMOTE_CODE, cards
from scripts.run.problems import Problem
from scripts.run.registry import check

_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE")
#: Where a cache lies in a container by default, ~/.cache/huggingface, and what such folders are called elsewhere.
_HOMES, _CACHE_FOLDERS = ("/root", "/home"), frozenset({".cache", "huggingface"})


@check("gated_without_token", can_force=True)
def gated(job: Job) -> Iterator[Problem]:
    for field, name in _fetched(job):
        if not hub.is_gated(name) or (job.here and hub.cached_model(name) is not None) or _has_token(job):
            continue
        other = next(_other_ways(job), None)
        listed = next((name for name in _TOKEN_VARIABLES if job.place.secret(name) == "unset"), _TOKEN_VARIABLES[0])
        cause = "its repository is gated, and the job would have no HF_TOKEN"
        cause += f", unless {other} brings the model or the token" if other else ""
        yield Problem(
            key=f"args.{field}",
            value=name,
            cause=cause,
            remedy=f"Accept its licence on the hub, then {job.place.secret_remedy(listed)}",
            severity="warning" if other else "error",
        )


def _other_ways(job: Job) -> Iterator[str]:
    """What of a profile may let the job have the model all the same; nobody can tell from here."""
    yield from (f"executor.env.{name}" for name in _CACHE_VARIABLES if name in job.profile.env)
    for key, lines in job.place.setup.items():
        if any(name in line for line in lines for name in (*_TOKEN_VARIABLES, *_CACHE_VARIABLES)):
            yield f"executor.{key}"
    for mount in job.place.mounts(job.run_dir) or ():
        at_home = any(is_below(mount.target, home) for home in _HOMES)
        if at_home or _CACHE_FOLDERS & set(PurePosixPath(mount.target).parts):
            yield f"the mount of {mount.target}"


@check("model_not_known", severity="warning")
def nearly_known(job: Job) -> Iterator[Problem]:
    """A hub name that is that of a known model but for a letter; the hub is not asked before the job is."""
    known = hub.published().configs
    for field, name in _fetched(job):
        if name in known or hub.cached_model(name) is not None:
            continue
        close = difflib.get_close_matches(name.lower(), {one.lower(): one for one in known}, n=1, cutoff=0.9)
        meant = next((one for one in known if [one.lower()] == close), None)
        # Versions and sizes: Qwen3-14B is another model than Qwen3-4B, and no misspelling of it.
        if meant is not None and re.findall(r"\d+", meant) == re.findall(r"\d+", name):
            yield Problem(
                key=f"args.{field}",
                value=name,
                cause="nothing is known of it here, and a model of nearly that name is",
                remedy=f"Did you mean {meant}?",
            )


def _fetched(job: Job) -> Iterator[tuple[str, str]]:
    """The arguments that name a model of the hub, each with the name."""
    for field, name, meaning in values_of(job.resolved):
        if meaning.names_a_model and isinstance(name, str) and is_hub_name(name) and not hub.is_local(name):
            yield field, name


def _has_token(job: Job) -> bool:
    """Given by the place, or where `hf auth login` keeps it (huggingface_hub's constants.HF_TOKEN_PATH)."""
    if any(job.place.secret(name) == "given" for name in _TOKEN_VARIABLES):
        return True
    cache = os.environ.get("XDG_CACHE_HOME") or posixpath.expanduser("~/.cache")
    home = os.environ.get("HF_HOME") or posixpath.join(cache, "huggingface")
    file = posixpath.expanduser(os.environ.get("HF_TOKEN_PATH") or posixpath.join(home, "token"))
    return job.here and posixpath.isfile(file)


@check("wandb_not_inherited", roles=("wandb",))
def wandb(job: Job) -> Iterator[Problem]:
    """Weights & Biases is asked for, and the job would have no key of it."""
    name, cause, remedy = "WANDB_API_KEY", "", ""
    found = job.place.secret(name)
    if found == "unlisted":
        cause = f"the job is not given {name}: the profile's secrets do not name it"
        remedy = f"Add {name} to the secrets of the profile."
    elif found == "unset":
        cause, remedy = f"the job is to be given {name}, and it is not set here", f"Set {name}."
    if cause:
        yield Problem(key=job.key("wandb") or "", value=job.get("wandb"), cause=cause, remedy=remedy)


@check("remote_code_not_trusted", args=MegatronLmArgs)
def card_with_code(job: Job) -> Iterator[Problem]:
    """A model card whose model brings code."""
    card = job.args.model_card
    if REMOTE_CODE in cards().get(card, ()) and not job.args.trust_remote_code:
        cause = f"{card} brings Python code of its own, which is not run unless it is trusted"
        remedy = "Look at that code, then set args.trust_remote_code=true."
        yield Problem(key="args.model_card", value=card, cause=cause, remedy=remedy)
