"""This machine: NeMo-Run's LocalExecutor, with the Python that submits."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import nemo_run as run


@dataclass(frozen=True, kw_only=True)
class LocalProfile:
    """Values of a `kind: local` profile."""

    kind: Literal["local"] = "local"
    nodes: int = 1
    env: dict[str, str] = field(default_factory=dict)


def local(profile: LocalProfile | None = None, **env: str) -> "run.LocalExecutor":
    """A LocalExecutor for `profile`, with `env` added to its environment.

    NeMo-Run starts the `python` that it finds on PATH; the interpreter that submits comes first
    there, so that a job of a virtual environment that was never activated still runs inside it.
    """
    import nemo_run as run

    profile = profile or LocalProfile()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    env_vars: dict[str, Any] = {"PATH": path, **profile.env, **env}
    return run.LocalExecutor(ntasks_per_node=1, nodes=profile.nodes, env_vars=env_vars)
