"""The probe: a recipe that does nothing but show that an executor works."""

from typing import TYPE_CHECKING

from recipes.family import Family
from scripts.args.probe import ProbeArgs
from scripts.entrypoints import probe as entrypoint

if TYPE_CHECKING:
    import nemo_run as run

PROBE = Family(name="probe", entrypoint=entrypoint, args=ProbeArgs, also=("probe_report",))


def probe() -> "run.Partial[None]":
    """Try an executor: every rank reports where it runs, and the ranks reach each other."""
    return PROBE.recipe()
