"""How far a run is: progress.json of its run directory, where that can be read from here."""

from dataclasses import dataclass
from pathlib import Path

from recipes.experiment.runs import Run
from scripts.run.drawing import took_text
from scripts.run.record import read_json
from scripts.run.schema import number

_FILE = {
    **{"phase": str, "done": int, "total": int, "unit": str},
    **{f"{name}?": (float, int) for name in ("since", "first", "at")},
}
_MOST = 1e15


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Of the present phase; `rate` is in units a second, None before the second step."""

    phase: str
    done: int
    total: int
    unit: str
    rate: float | None

    @property
    def left(self) -> float | None:
        """Seconds, if it goes on as it did."""
        return (self.total - self.done) / self.rate if self.rate else None

    def __str__(self) -> str:
        left = "" if self.left is None else f", {took_text(self.left)} left"
        return f"{self.phase} {self.done}/{self.total} {self.unit}{left}"


def progress_of(run: Run) -> Progress | None:
    """None where it does not run, or says nothing of its present phase."""
    if run.state != "running":
        return None
    file = read_json(Path(str(run.record.get("run_dir", run.dir))) / "progress.json", _FILE)
    if file is None or file["phase"] != run.record.get("phase") or not 0 <= file["done"] <= file["total"]:
        return None
    since, first, at = (number(file.get(name), _MOST) for name in ("since", "first", "at"))
    rate = None
    if since is not None and first is not None and at is not None and at > since and file["done"] > first:
        rate = (file["done"] - first) / (at - since)
    return Progress(rate=rate, **{name: file[name] for name in ("phase", "done", "total", "unit")})
