"""The trackers that there are, and what a run records of each; nothing of theirs is imported."""

import shlex
from collections.abc import Mapping
from typing import Any, Literal, get_args

from scripts.run import schema

Name = Literal["mlflow", "wandb", "tensorboard"]
#: As profiles have them. Each is its own top module, which the extra `track` brings.
NAMES: tuple[Name, ...] = get_args(Name)
#: Names them to a job, with commas between.
VARIABLE = "MODELOPT_RECIPES_TRACK"
#: Where MLflow's server is.
MLFLOW_URI = "MLFLOW_TRACKING_URI"
#: In the run directory: what trackers write there, and NAME.json, how it stands with each.
FOLDER = "tracking"
#: `kept`: in files of the run directory, which somebody may look at or send.
TRACKED = {
    "state": schema.one_of("following", "sent", "kept", "failed"),
    **{f"{key}?": (str, None) for key in ("id", "url", "folder", "error")},
}
_LOOK = {"wandb": "wandb sync", "tensorboard": "tensorboard --logdir"}


def tracked_lines(record: Mapping[str, Any]) -> list[str]:
    """Where each tracker shows a recorded run, or what to type for that, or why it cannot be seen; a line each."""
    lines = []
    for name in NAMES:
        one = (record.get("tracked") or {}).get(name)
        if one is None:
            continue
        said = one.get("url") or ""
        if not said and one.get("folder"):
            said = f"{_LOOK[name]} {shlex.quote(one['folder'])}"
        if one["state"] == "failed" or (one.get("error") and not said):
            said = f"{said}  (not sent: {one.get('error')})".strip()
        lines.append(f"{name:12} {said or one['state']}")
    return lines
