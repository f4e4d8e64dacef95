"""What is about to be submitted: as plain data, and for a person to read."""

from typing import Any

from recipes.experiment.examine import Submission
from recipes.experiment.job import Job
from recipes.experiment.submit import values_of
from recipes.preflight.scripts import command
from recipes.preflight.subjects import notes
from scripts.args.interpolation import MODEL_FIELDS, VARIANT_FIELDS


def preview_of(submission: Submission, *, full: bool) -> dict[str, Any]:
    """A prepared submission as plain data; with `full`, with the exact text that would be sent."""
    import dataclasses

    job = submission.job
    plan = {
        "id": submission.id,
        "recipe": job.recipe,
        "executor": {"name": submission.executor, **dataclasses.asdict(submission.place.profile)},
        "engine": job.engine,
        "script": _script_of(job),
        "shape": dataclasses.asdict(job.shape),
        "after": list(submission.after),
        "run_dir": str(job.run_dir),
        "values": values_of(submission.partial),
        "resolved": dataclasses.asdict(job.resolved),
        "notes": notes(job),
        "warnings": [problem.as_data() for problem in submission.warnings],
        "skipped": [vars(skipped) for skipped in submission.skipped],
    }
    if full:
        from recipes.experiment.dryrun import rehearse

        plan |= rehearse(submission)
    return plan


def _script_of(job: Job) -> dict[str, Any] | None:
    """The script that the job is written for, and what every rank would run."""
    if job.addressed is None:
        return None
    words = command(job)
    return {
        "name": job.addressed.script,
        "path": job.addressed.path,
        "release": job.addressed.release,
        "known_by": job.addressed.known_by or None,
        "argv": list(words.words),
        "left_out": list(words.left_out),
    }


def _command_line(script: dict[str, Any]) -> str:
    import shlex

    return shlex.join(["python", *script["path"].split(" ", 1), *script["argv"]])


def print_preview(plan: dict[str, Any], *, full: bool) -> None:
    args = plan["values"]["args"]
    shape = plan["shape"]
    lines = {
        "recipe": plan["recipe"],
        "engine": plan["engine"],
        "executor": plan["executor"]["name"],
        "machines": f"{shape['nodes']} x {shape['processes']} processes" if shape["torchrun"] else None,
        "after": ", ".join(plan["after"]),
        "script": _script_line(plan["script"]) if plan["script"] else None,
        "model": next(filter(None, (args.get(key) for key in MODEL_FIELDS)), None),
        "format": next(filter(None, (args.get(key) for key in VARIANT_FIELDS)), None),
        "run dir": plan["run_dir"],
    }
    for key, value in lines.items():
        if value:
            print(f"{key:10} {value}", flush=True)
    if not full:
        for note in plan["notes"]:
            if "not used" in note and "machines" in note:
                print(f"note: {note}")
        return
    import yaml

    print(yaml.safe_dump(plan["values"], sort_keys=False, allow_unicode=True, width=200).rstrip())
    for key, value in plan["resolved"].items():
        if value != args[key]:
            print(f"on the node: args.{key} = {value}")
    for note in plan["notes"]:
        print(f"note: {note}")
    if plan["script"]:
        print(f"every rank runs:\n{_command_line(plan['script'])}")
    print_text(plan)


def _script_line(script: dict[str, Any]) -> str:
    release = f", release {script['release']} (by {script['known_by']})" if script["release"] else ""
    return f"{script['path']}{release}"


def print_text(plan: dict[str, Any]) -> None:
    if plan["code"]:
        print(f"code       {code_line(plan['code'])}")
    print(f"would submit:\n{plan['submits']}")


def code_line(code: dict[str, Any]) -> str:
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
