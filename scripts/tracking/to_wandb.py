"""Weights & Biases, by its library: online where there is a key, else in files that `wandb sync` sends later."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from scripts.run.files import write_json
from scripts.tracking.told import Point, Told, Tracker, Where

_PROJECT = "modelopt-recipes"
_SECONDS = 15
#: What a name of an artifact cannot have.
_FOREIGN = re.compile(r"[^\w\-.]", re.ASCII)


class Wandb(Tracker):
    """A run of Weights & Biases."""

    def begin(self, told: Told) -> Where:
        # Its debug logs and cache stay with the run, and not in whatever folder the job is in.
        os.environ |= {"WANDB_DIR": str(self.folder), "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
        os.environ |= {"WANDB_CACHE_DIR": str(self.folder / "wandb" / "cache")}
        os.environ |= {"WANDB_DATA_DIR": str(self.folder / "wandb" / "data")}
        online = os.environ.get("WANDB_MODE", "online") == "online" and bool(os.environ.get("WANDB_API_KEY"))
        note = None
        try:
            self._run = self._init(told, "online" if online else "offline")
        except Exception as error:
            if not online:
                raise
            note = f"{type(error).__name__}: {error}"
            self._run = self._init(told, "offline")
        self._run.define_metric("*", step_metric="step")
        kept = None if online and note is None else Path(str(self._run.settings.sync_dir))
        return Where(id=self._run.id, url=None if kept else self._run.url, folder=kept, note=note)

    def _init(self, told: Told, mode: Literal["online", "offline"]) -> Any:
        import wandb

        # It is this process that it would measure, and this one's arguments and repository that it would send.
        settings = wandb.Settings(
            **{"silent": True, "console": "off", "init_timeout": _SECONDS, "login_timeout": _SECONDS},
            **{"disable_git": True, "disable_code": True, "disable_job_creation": True},
            **{"x_disable_stats": True, "x_disable_meta": True, "x_disable_machine_info": True},
        )
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            name=told.id,
            group=told.id,  # with its other attempts
            dir=str(self.folder),
            config={**told.values, "modelopt_recipes": dict(told.facts)},
            tags=[told.facts[key][:64] for key in ("recipe", "algorithm") if key in told.facts],
            mode=mode,
            settings=settings,
        )

    def measure(self, points: Sequence[Point]) -> None:
        rows: dict[tuple[int, float], dict[str, float]] = {}
        for one in points:
            rows.setdefault((one.step, one.time), {})[one.name] = one.value
        for (step, time), row in rows.items():
            self._run.log({**row, "step": step, "time": time})

    def end(self, told: Told) -> None:
        import wandb

        self._run.summary.update({f"report/{name}": value for name, value in told.figures.items()})
        self._run.summary.update({"state": told.state, "error": told.facts.get("error")})
        if told.report:
            report = wandb.Artifact(_FOREIGN.sub("-", f"report-{told.id}")[:128], type="report")
            for path in told.report:
                report.add_file(str(path), name=path.relative_to(told.report_folder).as_posix())
            self._run.log_artifact(report)
        for number, output in enumerate(told.outputs):
            self._run.log_artifact(self._reference(wandb, told, number, output))
        self._run.finish(exit_code=0 if told.state == "succeeded" else 1)

    def _reference(self, wandb: Any, told: Told, number: int, output: Mapping[str, Any]) -> Any:
        """An output by name and digest; what it holds stays where it is."""
        file = self.folder / "wandb" / f"output-{number}.json"
        write_json(file, dict(output))
        name = _FOREIGN.sub("-", f"{output['type']}-{number}-{told.id}")[:128]
        reference = wandb.Artifact(name, type=str(output["type"]), metadata=dict(output))
        reference.add_file(str(file), name="output.json")
        return reference
