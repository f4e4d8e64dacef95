"""The probe: a recipe that does nothing but show that an executor works."""

from typing import TYPE_CHECKING

from recipes.base import partial_from
from scripts.probe import probe as entrypoint
from scripts.types import ProbeArgs

if TYPE_CHECKING:
    import nemo_run as run


def probe() -> "run.Partial[None]":
    """Try an executor: every rank reports where it runs, and the ranks reach each other."""
    return partial_from(entrypoint, ProbeArgs, recipe="probe", algorithm="probe", config="default")
