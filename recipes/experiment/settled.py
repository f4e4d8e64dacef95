"""Runs that ended for good, as the index keeps them: thousands are listed without opening the folder of one."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from executors.base import Mount, path_through
from recipes.experiment.index import Index, refreshed
from recipes.experiment.job import Job
from recipes.experiment.runs import Run, look
from recipes.experiment.store import RunFolder, has_records, runs_dir
from scripts.run.problems import JobError
from scripts.run.record import FINAL_STATES, read_record


class _Records:
    """Those of all settled runs, read together when the first is asked for."""

    @cached_property
    def texts(self) -> dict[str, str]:
        with refreshed() as index:
            return index.records()


class SettledRun(Run):
    """A run about which nothing can change any more; what is not shown in a list is read where somebody asks."""

    settled = True

    def __init__(self, folder: RunFolder, submitted: str, shown: str, records: _Records) -> None:
        object.__setattr__(self, "folder", folder)
        self.submitted, self._records = submitted, records
        self._shown: dict[str, Any] = json.loads(shown)

    @cached_property
    def record(self) -> dict[str, Any]:
        text = self._records.texts.get(self.id)
        return read_record(self.dir) if text is None else json.loads(text)

    @cached_property
    def job(self) -> Job | None:
        return Run.read(self.folder).job

    @property
    def state(self) -> str:
        return str(self._shown["state"])

    @property
    def where(self) -> str:
        return str(self._shown["where"])

    @property
    def figure(self) -> str:
        kept = self._shown["figure"]
        return super().figure if kept is None else str(kept)

    @property
    def outputs(self) -> list[dict[str, Any]]:
        return self._shown["outputs"]  # type: ignore[no-any-return]

    def path_here(self, path: Path) -> Path | None:
        mounts = self._shown["mounts"]
        return path_through(path, None if mounts is None else [Mount(**mount) for mount in mounts])


def known_runs() -> list[Run]:
    """Every run recorded on this machine, oldest first; those that may change yet as they stand now.

    Raises JobError where the folder of them cannot be read.
    """
    try:
        with refreshed() as index:
            others = look(filter(has_records, map(RunFolder.of, index.others())))
            _keep(index, others)
            records = _Records()
            home = runs_dir()
            kept = {row[0]: SettledRun(RunFolder(dir=home / row[0]), *row[1:], records) for row in index.settled()}
    except OSError as error:
        raise JobError.of_os_error(error) from error
    found: list[tuple[str, str, Run]] = [(run.submitted, run.id, run) for run in kept.values()]
    found += [(run.record.get("submitted_at", ""), run.id, run) for run in others if run.id not in kept]
    return [run for _, _, run in sorted(found, key=lambda row: row[:2])]


def _keep(index: Index, runs: Iterable[Run]) -> None:
    index.keep((run.id, json.dumps(_shown(run)), json.dumps(run.record)) for run in runs if _is_settled(run))


def _is_settled(run: Run) -> bool:
    """One without a job here is what its record says, unless that is its last word for lack of another."""
    alone = run.job is None and run.state in FINAL_STATES - {"lost"}
    return (run.settled or alone) and not run.note and not run.folder.is_foreign


def _shown(run: Run) -> dict[str, Any]:
    """What lists show of it."""
    mounts = run.job.place.seen_through(run.job.run_dir) if run.job else None
    figure = None
    with suppress(TypeError, AttributeError, ValueError, KeyError, OverflowError, ZeroDivisionError):
        # A report that is not seen now may be later.
        figure = None if run.state == "succeeded" and run.report is None else run.figure
    rows = None if mounts is None else [asdict(mount) for mount in mounts]
    return {"state": run.state, "where": run.where, "outputs": run.outputs, "figure": figure, "mounts": rows}
