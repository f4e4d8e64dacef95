"""What a tracker is to the process that follows a run for it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.tracking.told import Point, Told


@dataclass(frozen=True, kw_only=True)
class Where:
    """Under what a tracker has the run, and where it is looked at: an address, or a folder of this machine."""

    id: str
    url: str | None = None
    folder: Path | None = None
    note: str | None = None  # why it is in a folder, where it was to be sent


class Tracker(ABC):
    """A run at one tracker. Whatever is raised is said of the tracker, tried again, and no fault of the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # it may write there

    @abstractmethod
    def begin(self, told: Told) -> Where:
        """Make the run there, with its values and facts."""

    @abstractmethod
    def measure(self, points: Sequence[Point]) -> None:
        """Tell figures over time."""

    @abstractmethod
    def end(self, told: Told) -> None:
        """Tell what came of it: figures, report, outputs, and its state, one of those that are final."""
