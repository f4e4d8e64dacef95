"""What the commands print: for a person, or with --json one document on standard output."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.preflight import notes
from recipes.submission import Run, Submission, values_of
from scripts.problems import Problem
from scripts.record import read_json
from scripts.session import error_line

if TYPE_CHECKING:
    from rich.console import Console

    from recipes.catalogue import Recipe


class Output:
    """Prints either for a person or as JSON; never both on standard output."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._plan: dict[str, Any] = {}
        self._told = False

    def plan(self, submission: Submission, *, full: bool) -> None:
        """What would run, where, and where it leaves its outputs; with `full`, every value and the exact command."""
        import dataclasses

        spec = submission.spec
        resolved = dataclasses.asdict(spec.resolved)
        self._plan = {
            "recipe": spec.recipe,
            "executor": {"name": submission.executor, **dataclasses.asdict(submission.profile)},
            "engine": "hf",
            "run_dir": str(spec.run_dir),
            "command": command_of(submission),
            "values": values_of(submission.partial),
            "resolved": resolved,
            "notes": notes(spec),
        }
        if self.as_json:
            return
        for key in ("recipe", "engine"):
            print(f"{key:10} {self._plan[key]}")
        print(f"executor   {submission.executor}")
        print(f"model      {spec.args.hf_model_id}\nformat     {spec.args.export_quant_cfg}")
        print(f"run dir    {spec.run_dir}", flush=True)
        if not full:
            return
        import yaml

        print(f"command    {' '.join(self._plan['command'])}")
        print(yaml.safe_dump(self._plan["values"], sort_keys=False, allow_unicode=True, width=200).rstrip())
        late = {key: value for key, value in resolved.items() if value != getattr(spec.args, key)}
        for key, value in late.items():
            print(f"on the node: args.{key} = {value}")
        for note in self._plan["notes"]:
            print(f"note: {note}")

    def finish_plan(self) -> None:
        """With --json, the plan alone is the document of a dry run."""
        if self.as_json:
            _print_json(self._plan)

    @contextmanager
    def following(self) -> Iterator[Callable[[Path], None]]:
        """A watcher to call while the job runs: a progress bar on a terminal, plain lines elsewhere."""
        from rich.console import Console

        console = Console(stderr=self.as_json)
        self._told = not console.is_terminal
        follower = _Bar(console) if console.is_terminal else _Lines(console)
        try:
            yield follower.show
        finally:
            follower.close()

    def detached(self, job: Run) -> None:
        """Where a detached job records itself."""
        if self.as_json:
            _print_json({"id": job.id, "run_dir": str(job.dir), "state": "submitted"})
            return
        print(f"detached   {job.id}\nfollow     nemo experiment ps; tail -f {job.dir}/logs/rank0.log")

    def result(self, job: Run, *, verbose: bool) -> None:
        """The end of an attached job: its figures, outputs, or the cause of its failure."""
        record, report = job.record, job.report
        if self.as_json:
            _print_json(record | {"dir": str(job.dir), "report": report})
            return
        if report is not None and not self._told:  # the job's own log, already shown, ends with it
            from scripts.hf.report import as_text

            print(as_text(report))
        for output in record.get("outputs", []):
            print(f"{output['type']:20} {output['path']}  ({output['bytes'] / 1e6:.1f} MB)")
        if record["error"]:
            print(f"{record['state']}: {error_line(record['error'])}", file=sys.stderr)
            traceback = job.dir / "logs" / "traceback.txt"
            if verbose and traceback.is_file():
                print(traceback.read_text(encoding="utf-8"), file=sys.stderr)
        print(f"{record['state']}  {job.id}\nrun dir    {job.dir}")

    def problems(self, problems: Sequence[Problem]) -> None:
        """Every problem, one to a line, on standard error (or as JSON)."""
        if self.as_json:
            rows = [{**vars(problem), "value": _plain(problem.value)} for problem in problems]
            _print_json({"state": "refused", "problems": rows})
        for problem in problems:
            print(problem, file=sys.stderr)
        plural = "s" if len(problems) > 1 else ""
        print(f"{len(problems)} problem{plural}; nothing was submitted.", file=sys.stderr)

    def catalogue(self, recipes: "list[Recipe]") -> None:
        """The catalogue, a line each."""
        if self.as_json:
            keys = ("name", "summary", "algorithm", "consumes", "produces")
            _print_json([{key: getattr(recipe, key) for key in keys} for recipe in recipes])
            return
        width = max(len(recipe.name) for recipe in recipes)
        for recipe in recipes:
            print(f"{recipe.name:{width}}  {recipe.summary}")

    def recipe(self, described: dict[str, Any]) -> None:
        """One recipe: values, meaning, consumes, produces."""
        if self.as_json:
            _print_json(described)
            return
        print(f"{described['name']}: {described['summary']}")
        print(f"consumes   {', '.join(described['consumes'])}\nproduces   {', '.join(described['produces'])}\n")
        for row in described["values"]:
            print(f"{row['key']} = {json.dumps(row['value'], ensure_ascii=False)}   ({row['type']})")
            if row["meaning"]:
                print(f"    {row['meaning']}")

    def runs(self, rows: list[dict[str, Any]]) -> None:
        """Recorded runs, a line each."""
        if self.as_json:
            _print_json(rows)
            return
        for row in rows:
            since = row.get("finished_at") or row.get("started_at") or row.get("submitted_at", "")
            print(f"{row['state']:10}  {row['id']}  {since}  {row['dir']}")


def command_of(submission: Submission) -> list[str]:
    """The command that NeMo-Run's local executor starts for this job."""
    name = submission.spec.recipe
    experiment = submission.run_dir.parent.parent / "experiments" / name / submission.id
    folder = experiment / name / "configs"
    return [
        "python",
        "-m",
        "nemo_run.core.runners.fdl_runner",
        "-n",
        name,
        "-p",
        f"{folder}/{name}_packager",
        f"{folder}/{name}_fn_or_script",
    ]


class _Lines:
    """Follows the job's own log, line by line."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._offset = 0

    def show(self, run_dir: Path) -> None:
        log = run_dir / "logs" / "rank0.log"
        if not log.is_file():
            return
        with log.open("rb") as handle:
            handle.seek(self._offset)
            text = handle.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode("utf-8", errors="replace").splitlines():
            self._console.file.write(line + "\n")
        self._console.file.flush()

    def close(self) -> None:
        self._console.file.flush()


class _Bar:
    """One bar for the present phase, with rate and time left."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        rate = TextColumn("{task.fields[rate]}")
        columns = (
            TextColumn("{task.description:16}"),
            BarColumn(),
            MofNCompleteColumn(),
            rate,
            TimeRemainingColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("starting", total=None, rate="")
        self._phase = ""
        self._progress.start()

    def show(self, run_dir: Path) -> None:
        state = read_json(run_dir / "progress.json")
        phase = (read_json(run_dir / "run.json") or {}).get("phase", "starting")
        if phase != self._phase:
            self._phase = phase
            self._progress.reset(self._task, total=None, description=phase, rate="")
        if state and state["phase"] == phase:
            speed = self._progress.tasks[0].speed
            rate = f"{speed:.1f} {state['unit']}/s" if speed else state["unit"]
            self._progress.update(self._task, completed=state["done"], total=state["total"], rate=rate)

    def close(self) -> None:
        self._progress.stop()


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, list, type(None))) else str(value)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
