"""What the commands print: for a person, or with --json one document on standard output."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from recipes.catalogue import RECIPES
from recipes.cli.document import FAILED, INTERRUPTED, answer, exit_status, say
from recipes.cli.listing import print_runs
from recipes.experiment.examine import Examined
from recipes.experiment.job import Job
from recipes.experiment.pipeline import pipelines, read
from recipes.experiment.runs import Run
from recipes.experiment.stage import Stage, values_of_recipe
from recipes.experiment.submit import array_of, is_array
from recipes.preflight.subjects import notes
from scripts.args.meaning import Role, fields_of, meanings
from scripts.checkpoints.causal import architectures
from scripts.engines.installed import here
from scripts.entrypoints import ALGORITHMS
from scripts.evaluation.gate import GATE_FAILED
from scripts.run.drawing import size_text
from scripts.run.files import read_limited
from scripts.run.problems import Problem, ProblemsError, error_line
from scripts.run.schema import MAX_BYTES, mapping
from scripts.run.secrets import masked, secrets_here
from scripts.tracking.known import tracked_lines

if TYPE_CHECKING:
    from recipes.catalogue import Recipe

#: Recipes that say whether a checkpoint is any good.
_JUDGES = ("evaluate", "serve")
#: More runs than this end in a line each.
_SHORT_FROM = 4


def _diagnosis_lines(record: dict[str, Any]) -> list[str]:
    """What the logs of a failed run were found to say, and where."""
    found = record.get("diagnosis")
    if not found:
        return []
    place = ":".join(str(part) for part in (found["file"], found["line"]) if part is not None)
    evidence = f"{place}: {found['evidence']}" if place else found["evidence"]
    return [f"{'diagnosis':12} {found['name']}: {found['remedy']}", f"{'evidence':12} {evidence}"]


class Output:
    """Prints either for a person or as JSON; never both on standard output. `quiet`: of runs their ids alone."""

    def __init__(self, *, as_json: bool, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._plans: list[dict[str, Any]] = []
        self._stages: dict[str, Any] = {}  # of a pipeline
        self._named: dict[str, str] = {}  # by the id of a run that is planned, the name of its stage
        self._array: dict[str, Any] = {}  # of a dry run: the one job that all of them would be
        self._told = False
        self.problems: list[Problem] = []  # of what was to be sent, which the place would refuse
        self.warnings: Sequence[Problem] = ()  # of the checks, for the answer

    def plan(self, jobs: Sequence[Job], *, full: bool, sound: bool = True) -> None:
        """What would run, where, and where it leaves its outputs; with `full`, every value and the exact text sent.

        Of jobs that are not `sound`, as much as can be made in spite of what is wrong with them.
        """
        array = full and is_array(jobs)
        self._named = {job.id: job.name for job in jobs}
        self._plans = [_preview(job, full=full and not array, sound=sound) for job in jobs]
        if array:
            self._array = _text(array_of(jobs)[0], sound=sound)
        refusals = (plan.pop("problem", None) for plan in (*self._plans, self._array))
        self.problems = list(dict.fromkeys(filter(None, refusals)))
        if self.as_json or (self.quiet and not full):
            return
        if self._stages and not full:
            return
        if len(self._plans) > 1 and (array or not full):
            _print_preview(self._plans[0] | {"run_dir": None}, full=False, sound=sound)
            for job in jobs:
                say(f"run        {job.id}  {job.name}")
            if array:
                _print_text(self._array, sound=sound)
            return
        for plan in self._plans:
            _print_preview(plan, full=full, sound=sound)

    def pipeline(self, stages: Sequence[Stage], examined: Examined) -> None:
        """The stages of a pipeline: which stand already, by which runs, and why the others are run."""
        jobs = {job.name: job for job in examined.jobs}
        rows = []
        for stage in stages:
            job, run = jobs.get(stage.name), examined.reused.get(stage.name)
            made = run.id if run else job.id if job else None
            why = [f"by {run.id}, {run.state}"] if run else list(examined.changed.get(stage.name, ()))
            facts = {"stage": stage.name, "recipe": stage.partial.recipe, "after": list(stage.after), "run": made}
            rows.append(facts | {"reused": run is not None, "why": why})
        self._stages = {"pipeline": next((job.pipeline for job in examined.jobs), stages[0].pipeline), "stages": rows}
        if self.as_json or self.quiet:
            return
        say(f"{'pipeline':10} {self._stages['pipeline']}")
        width = max(len(row["stage"]) for row in rows)
        for row in rows:
            what = "stands" if row["reused"] else "run" if row["run"] else "refused"
            after = f", after {', '.join(row['after'])}" if row["after"] else ""
            say(
                f"  {row['stage']:{width}}  {what:7}  {row['recipe']}{after}  {'; '.join(row['why'])}".rstrip(),
                as_line=True,
            )

    def stands(self, examined: Examined) -> None:
        """Of a pipeline whose stages stand already, each by a run."""
        runs = list({run.id: run for run in examined.reused.values()}.values())
        if self.as_json:
            answer({"runs": _rows(runs), **self._stages}, status=exit_status([run.state for run in runs]))
        elif self.quiet:
            _say_ids(runs)
        else:
            print_runs(runs, hidden=0)
            say("Nothing has changed, and nothing is run again. --fresh runs it all the same.")

    def values(self, stages: Sequence[Stage], executor: str) -> None:
        """Of stages that are no jobs: what was asked for."""
        for stage in stages:
            named = executor if stage.executor is None else stage.executor
            values = values_of_recipe(stage.partial)
            self._plans.append({"recipe": stage.partial.recipe, "executor": {"name": named}, "values": values})
            if not self.as_json:
                say(f"{'recipe':10} {stage.partial.recipe}\n{'executor':10} {named}\n{_yaml(values)}")

    @property
    def planned(self) -> dict[str, Any]:
        """What a dry run found; of a job array, with the one job that all of them would be."""
        return {"runs": self._plans, **self._array, **self._stages} if self._plans else {}

    @contextmanager
    def following(self) -> Iterator[Callable[[Run], None]]:
        """A watcher to call while jobs run: a table on a terminal, plain lines elsewhere."""
        if self.quiet:
            yield lambda run: None
            return
        from rich.console import Console

        from recipes.cli.follow import Row, follower

        console = Console(stderr=self.as_json)
        self._told = not console.is_terminal
        stages = [row for row in self._stages.get("stages", ()) if row["run"]]
        rows = [Row(name=row["stage"], run_id=row["run"], stands=row["reused"]) for row in stages]
        view = follower(console, rows or [Row(name=name, run_id=run_id) for run_id, name in self._named.items()])
        try:
            yield view.show
        finally:
            view.close()

    def detached(self, runs: Sequence[Run]) -> None:
        """Where detached jobs record themselves."""
        if self.as_json:
            failed = any(run.state == "failed" for run in runs)
            told = {"runs": _rows(runs), **self._stages}
            answer(told, status=FAILED if failed else 0, problems=self.warnings)
            return
        if self.quiet:
            _say_ids(runs)
            return
        if runs[0].record.get("code"):
            say(f"code       {_code_line(runs[0].record['code'])}")
        for run in runs:
            say(f"detached   {run.id}")
        one = runs[0].id
        whole = (runs[0].job.pipeline if runs[0].job else None) or one
        say(f"follow     nemo experiment logs -f {one}\nstatus     nemo experiment status {whole}")
        say(f"cancel     nemo experiment cancel {whole}")

    def left_running(self, runs: Sequence[Run]) -> None:
        """After Ctrl-C: the jobs go on, and how to reach them."""
        if self.as_json:
            answer({"runs": _rows(runs)}, status=INTERRUPTED, problems=self.warnings)
        for run in runs:
            say(f"{run.id} goes on ({run.state} on {run.where}).", to=sys.stderr)
        one = runs[0].id
        say(f"follow     nemo experiment logs -f {one}\ncancel     nemo experiment cancel {one}", to=sys.stderr)

    def results(self, runs: Sequence[Run], *, verbose: bool) -> None:
        """The end of attached jobs: figures, outputs, or the cause of a failure."""
        if self.as_json:
            documents = [run.record | {"dir": str(run.dir), "report": run.report} for run in runs]
            status = exit_status([run.state for run in runs])
            answer({"runs": documents, **self._stages}, status=status, problems=self.warnings)
            return
        if self.quiet:
            _say_ids(runs)
            for run in (run for run in runs if run.record.get("error")):
                say(f"{run.id}  {run.state}: {error_line(run.record['error'])}", to=sys.stderr, as_line=True)
            return
        if len(runs) > _SHORT_FROM:
            self.runs(runs)
            return
        for run in runs:
            self._result(run, verbose=verbose)

    def _result(self, run: Run, *, verbose: bool) -> None:
        record, report = run.record, run.report
        if report is not None and not self._told:  # the job's own log, already shown, ends with it
            from scripts.engines.hf.report import as_text

            say(as_text(report))
        _say_outputs(record, 20)
        if record.get("code"):
            say(f"{'code':20} {_code_line(record['code'])}")
        if record.get("error"):
            say(f"{record['state']}: {error_line(record['error'])}", to=sys.stderr)
            traceback = run.dir / "logs" / "traceback.txt"
            if verbose and traceback.is_file():
                say(read_limited(traceback, MAX_BYTES).decode(errors="replace"), to=sys.stderr)
        for line in _diagnosis_lines(record):
            say(line, to=sys.stderr)
        say(f"{record['state']}  {run.id}\nrun dir    {record.get('run_dir', run.dir)}")
        for line in tracked_lines(record):
            say(line, as_line=True)
        for number, line in enumerate(_next_steps(run)):
            say(f"{'' if number else 'next':10} nemo experiment {line}")

    def status(self, run: Run) -> None:
        """One run as it stands."""
        if self.as_json:
            answer(run.as_data())
            return
        record = run.record
        say(f"{run.state}  {run.id}  on {run.where}")
        for key in ("scheduler", "phase", "submitted_at", "started_at", "finished_at"):
            if record.get(key):
                say(f"{key:12} {record[key]}")
        say(f"{'run dir':12} {record.get('run_dir', run.dir)}")
        _say_outputs(record, 12)
        for line in tracked_lines(record):
            say(line, as_line=True)
        for warning in record.get("warnings", []):
            if warning.get("severity") == "forced":
                say(f"{'forced':12} {warning['name']}  {warning['key']}: {warning['cause']}")
        if record.get("error"):
            say(f"{'cause':12} {error_line(record['error'])}")
        for line in _diagnosis_lines(record):
            say(line)
        if run.note:
            say(f"{'note':12} this is the last that is known. {run.note}")

    def catalogue(self, recipes: "list[Recipe]", problems: Sequence[Problem]) -> None:
        """The catalogue, by algorithm: what of it this Python can run by itself, and what would let it run the rest.

        `problems`: of recipes that cannot be read.
        """
        found = {recipe.name: here(recipe.family.args) for recipe in recipes}
        if self.as_json:
            keys = ("name", "summary", "algorithm", "consumes", "produces")
            rows = [{key: getattr(recipe, key) for key in keys} for recipe in recipes]
            rows = [row | {"here": found[row["name"]].by, "needs": found[row["name"]].needs} for row in rows]
            made = [{"name": name, "summary": summary} for name, summary in _pipelines()]
            answer({"recipes": rows, "pipelines": made}, problems=problems)
            return
        width = max(len(recipe.name) for recipe in recipes)
        say(f"{'recipe':{width}}  {'here':10}  what it does")
        order = list(dict.fromkeys(recipe.algorithm for recipe in recipes))
        together = sorted(recipes, key=lambda recipe: order.index(recipe.algorithm))
        for algorithm, of in groupby(together, key=lambda recipe: recipe.algorithm):
            listed = list(of)
            say(f"\n{algorithm}: {ALGORITHMS[algorithm].doc.partition(chr(10))[0]}")
            for recipe in listed:
                say(f"{recipe.name:{width}}  {', '.join(found[recipe.name].by) or '-':10}  {recipe.summary}")
            for needs, these in groupby(listed, key=lambda recipe: found[recipe.name].needs):
                if needs:
                    names = [recipe.name for recipe in these]
                    say(f"  {names[0]}{f' to {names[-1]}' if len(names) > 1 else ''}: {needs}")
        say("\npipelines: Recipes one after the other, each on what those before it leave.")
        for name, summary in _pipelines():
            say(f"{name:{width}}  {'':10}  {summary}")
        say("\nOn another machine (executor=slurm, docker, lepton) its container counts. More of one: recipes NAME.")

    def architectures(self, fmt: str | None) -> None:
        """What became of each architecture that was tried, in one format or in all."""
        table = architectures()
        rows = {kind: {f: said for f, said in of.items() if fmt in (None, f)} for kind, of in table["tried"].items()}
        if self.as_json:
            answer(table | {"tried": rows})
            return
        say(f"tried, tiny, with transformers {table['transformers']} and ModelOpt {table['modelopt']}:")
        width = max(map(len, rows))
        for kind, of in rows.items():
            for name, said in of.items():
                say(f"{kind:{width}}  {name:13}  {said}")

    def recipe(self, described: dict[str, Any]) -> None:
        """One recipe: values, meaning, consumes, produces."""
        if self.as_json:
            answer(described)
            return
        say(f"{described['name']}: {described['summary']}")
        say(f"consumes   {', '.join(described['consumes'])}\nproduces   {', '.join(described['produces'])}")
        say(f"hardware   {described['hardware'] or 'any'}\n")
        for row in described["values"]:
            say(f"{row['key']} = {json.dumps(row['value'], ensure_ascii=False)}   ({row['type']})")
            if row["meaning"]:
                say(f"    {row['meaning']}")
        for title in ("strategies", "errors", "model_cards"):
            if described[title]:
                say(f"\n{title.replace('_', ' ')}\n" + "\n".join(f"    {line}" for line in described[title]))
        self._releases(described["releases"])

    def _releases(self, rows: Sequence[dict[str, Any]]) -> None:
        """The releases that have the recipe's script: what the recipe says to each, and what it cannot say."""
        said = ("script", "flags", "left_out", "problems")
        if rows:
            say("\nreleases")
        for _, group in groupby(rows, key=lambda row: [row[key] for key in said]):
            same = list(group)
            first = same[0]
            names = ", ".join(
                row["release"] + (f" (nemo:{', nemo:'.join(row['containers'])})" if row["containers"] else "")
                for row in same
            )
            say(f"    {names}")
            say(f"        {first['script']}\n        {' '.join(first['flags'])}")
            for key in first["left_out"]:
                say(f"        without {key}")
            for problem in first["problems"]:
                say(f"        {problem}")

    def runs(self, runs: Sequence[Run], *, hidden: int = 0, problems: Sequence[Problem] = ()) -> None:
        """Recorded runs, a line each; `hidden` more are not shown, and `problems` are why others may be missing."""
        if self.as_json:
            answer({"runs": [run.as_data() for run in runs], "hidden": hidden}, problems=problems)
        elif self.quiet:
            _say_ids(runs)
        else:
            print_runs(runs, hidden=hidden)


def _pipelines() -> list[tuple[str, str]]:
    """Those that can be read, with what they are."""
    found = []
    for name, file in pipelines().items():
        with suppress(ProblemsError):
            found.append((name, read(file).summary))
    return found


def _say_outputs(record: dict[str, Any], width: int) -> None:
    for output in record.get("outputs") or []:
        say(f"{output['type']:{width}} {output['path']}  ({size_text(output['bytes'])})")


def _say_ids(runs: Sequence[Run]) -> None:
    for run in runs:
        say(run.id, as_line=True)


def _rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [{"id": run.id, "run_dir": str(run.dir), "state": run.state} for run in runs]


def _next_steps(run: Run) -> Iterator[str]:
    """Commands that a run is mostly followed by."""
    if run.state != "succeeded":
        if mapping(run.record.get("error")).get("name") == GATE_FAILED:  # it did its work, and would do the same again
            yield f"verdict {run.id}"
            return
        yield f"logs {run.id}"
        if run.state in ("failed", "cancelled", "lost"):
            yield f"resume {run.id}"
        return
    if run.report is not None:
        yield f"open {run.id}"
    recipe = RECIPES.get(str(run.record.get("recipe")))
    after = [*_JUDGES, recipe.family.args.EXPORTER if recipe else ""]
    for name, kind in ((name, RECIPES[name].family.args) for name in after if name in RECIPES):
        left = {name for name in run.artifacts if name.startswith("checkpoint")}
        taken = ((one.name, {meaning.consumes, *meaning.accepts}) for one, meaning in meanings(kind))
        if field := next((field for field, types in taken if types & left), None):
            yield f"run {name} args.{field}='${{artifact:{run.id}}}'"


def _preview(job: Job, *, full: bool, sound: bool) -> dict[str, Any]:
    """A job as plain data, with what every rank would run; with `full`, with the exact text that would be sent."""
    script = None
    if job.addressed is not None:
        script = {
            "name": job.addressed.script,
            "path": job.addressed.path,
            "release": job.addressed.release,
            "known_by": job.addressed.known_by or None,
            "argv": list(job.command.words) if job.words else None,
            "left_out": list(job.command.left_out) if job.words else [],
        }
    plan = {
        "id": job.id,
        "recipe": job.recipe,
        "executor": {"name": job.executor, **asdict(job.profile)},
        "engine": job.engine,
        "script": script,
        "command": list(job.words) if job.words else None,
        "shape": {"nodes": job.nodes, "processes": job.processes, "torchrun": job.ranked},
        "after": list(job.after),
        "run_dir": str(job.run_dir),
        "values": job.values,
        "resolved": asdict(job.resolved),
        "notes": notes(job),
        "warnings": [problem.as_data() for problem in job.warnings],
        "skipped": [vars(skipped) for skipped in job.skipped],
    }
    if full:
        plan |= _text(job, sound=sound)
    shown: dict[str, Any] = masked(plan, secrets_here(job.profile.secrets))
    return shown


def _text(job: Job, *, sound: bool) -> dict[str, Any]:
    """What would be sent; of a job that is not sound, nothing where it cannot be made."""
    from recipes.experiment.submit import would_send

    try:
        return would_send(job)
    except Exception as error:  # whatever NeMo-Run makes of values that were refused
        if sound:
            raise
        why = str(error).strip().splitlines()
        return {"code": None, "submits": None, "cannot": f"{type(error).__name__}: {why[0] if why else ''}"}


def _yaml(values: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=200)).rstrip()


def _said(plan: dict[str, Any], *roles: Role) -> Any:
    """The first value of a plan's arguments in one of these roles."""
    args, recipe = plan["values"]["args"], RECIPES.get(plan["recipe"])
    named = [name for role in roles for name in fields_of(recipe.family.args, role)] if recipe else []
    return next((args[name] for name in named if args.get(name)), None)


def _print_preview(plan: dict[str, Any], *, full: bool, sound: bool) -> None:
    args, shape, script = plan["values"]["args"], plan["shape"], plan["script"]
    release = f", release {script['release']} (by {script['known_by']})" if script and script["release"] else ""
    lines = {
        "recipe": plan["recipe"],
        "engine": plan["engine"],
        "executor": plan["executor"]["name"],
        "machines": f"{shape['nodes']} x {shape['processes']} processes" if shape["torchrun"] else None,
        "after": ", ".join(plan["after"]),
        "script": f"{script['path']}{release}" if script else None,
        "model": _said(plan, "model"),
        "format": _said(plan, "format", "format_recipe"),
        "formats": ", ".join(_said(plan, "formats") or ()),
        "run dir": plan["run_dir"],
    }
    for key, value in lines.items():
        if value:
            say(f"{key:10} {value}")
    if not full:
        for note in plan["notes"]:
            if "not used" in note and "machines" in note:
                say(f"note: {note}")
        return
    say(_yaml(plan["values"]))
    for key, value in plan["resolved"].items():
        if value != args[key]:
            say(f"on the node: args.{key} = {value}")
    for note in plan["notes"]:
        say(f"note: {note}")
    if plan["command"]:
        say(f"{'every rank' if script else 'the job'} runs:\n{shlex.join(plan['command'])}")
    _print_text(plan, sound=sound)


def _print_text(plan: dict[str, Any], *, sound: bool) -> None:
    if plan["code"]:
        say(f"code       {_code_line(plan['code'])}")
    if plan["submits"] is None:
        say(f"would submit: nothing can be made of these values ({plan['cannot']})")
    else:
        say(f"would submit{'' if sound else ', were it not refused'}:\n{plan['submits']}")


def _code_line(code: dict[str, Any]) -> str:
    whose = "the recipes alone" if code["packager"] == "none" else code["packager"]
    line = f"{whose}: {code['files']} files, {code['bytes'] / 1e3:.0f} kB"
    for key, meaning in (
        ("changed", "uncommitted, sent"),
        ("untracked", "untracked, not sent"),
        ("withheld", "withheld"),
    ):
        if code.get(key):
            line += f"; {meaning}: {', '.join(code[key][:5])}" + (" ..." if len(code[key]) > 5 else "")
    return line
