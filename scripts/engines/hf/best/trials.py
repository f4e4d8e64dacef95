"""What a search has tried, kept in its run folder from trial to trial: a later attempt goes on from there.

search/trials.json (schema 1): `of`, what figures depend on, as digests and words; `trials`; `noise`, what each group of
layers adds to the divergence, by format; `sensitivities`, what AutoQuantize says of that.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.engines.hf.best.decisions import Trial
from scripts.run import schema
from scripts.run.files import write_json
from scripts.run.record import Record

FOLDER, _FILE = "search", "trials.json"
_TRIAL = {
    **{"number": int, "stage": str, "formats": [str], "size": int, "calibrated": int, "scored": int, "kl": float},
    **{"increase": float, "agreement": float, "seconds": float, "asked": dict},
}
_SCHEMA = {"schema": schema.one_of(1), "of": dict, "trials": [_TRIAL], "noise": dict, "sensitivities?": dict}


@dataclass(kw_only=True)
class Tried:
    """The trials of a run so far."""

    folder: Path
    of: Mapping[str, str]
    trials: list[Trial] = field(default_factory=list)
    noise: dict[str, list[float]] = field(default_factory=dict)
    sensitivities: dict[str, list[float]] = field(default_factory=dict)

    def add(self, trial: Trial) -> None:
        """Keep one more."""
        self.trials.append(trial)
        self.write()

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / _FILE, self.as_data())

    def as_data(self) -> dict[str, Any]:
        """As the file has it."""
        rows = [asdict(one) | {"formats": list(one.formats), "asked": dict(one.asked)} for one in self.trials]
        tables = {"noise": self.noise, "sensitivities": self.sensitivities}
        return {"schema": 1, "of": dict(self.of), "trials": rows, **tables}

    def find(self, stage: str, formats: tuple[str, ...]) -> Trial | None:
        """What was measured of that before."""
        return next((one for one in self.trials if one.stage == stage and one.formats == formats), None)


def taken_up(record: Record, of: Mapping[str, str]) -> Tried:
    """Those of an ended attempt, where figures would be the same; else none. The log says which."""
    tried = Tried(folder=record.dir / FOLDER, of=of)
    for left in (place / FOLDER / _FILE for place in record.earlier):
        if not left.is_file():
            continue
        try:
            found = schema.read(left, _SCHEMA)
            trials = [Trial(**{**row, "formats": tuple(row["formats"])}) for row in found["trials"]]
        except (OSError, ValueError) as error:
            record.line(f"{left} cannot be gone on from: {error}")
            continue
        if others := [name for name in of if found["of"].get(name) != of[name]]:
            record.line(f"{left} is of other values ({', '.join(others)}): searching anew")
            continue
        record.line(f"{len(trials)} trials of an earlier attempt are taken up: {left}")
        tried.trials, tried.noise = trials, dict(found["noise"])
        tried.sensitivities = dict(found.get("sensitivities", {}))
        tried.write()
        break
    return tried
