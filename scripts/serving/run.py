"""One check of a server, from the checkpoint's folder to a report.

report/serve.json (schema 1): `server`, `argv`, `checkpoint`, `algorithm`, `quantization`, `model`, `start_seconds`,
`first_answer_seconds` (both since it was started), `tokens_per_second` (null where the server counts no
tokens), `answers` (prompt, text, tokens, seconds, flaw), `warnings`.
"""

import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.args import constraints
from scripts.args.meaning import ScriptArgs, ScriptSpec
from scripts.args.serve import ServeArgs
from scripts.engines.child import Output, last_words
from scripts.engines.inputs import inputs_of
from scripts.engines.script.locate import child_environment
from scripts.run import page
from scripts.run.files import write_json, write_text
from scripts.run.problems import JobError
from scripts.run.record import Record
from scripts.run.registry import refuse
from scripts.serving import checks
from scripts.serving.checks import check_checkpoint, check_gpus, choose_port, prompts_of
from scripts.serving.client import Answer, Client, UnreachableError
from scripts.serving.flaws import REPORT, flaw_of
from scripts.serving.servers import SERVERS, command_line, find_program, started
from scripts.tiny.model import local_model

SCHEMA = 1
_POLL_SECONDS = 0.5
#: Between a broken connection and the end of the server that broke it.
_DEATH_SECONDS = 5.0
_ERROR = re.compile(r"^.*?((?:\w+\.)*\w*(?:Error|Exception|Failure)\b.*)", re.MULTILINE)


def check_server(args: ScriptArgs, script: ScriptSpec, extra_args: Sequence[str], record: Record) -> None:
    """Start, ask, judge, stop, report. Raises JobError for everything that is understood."""
    assert isinstance(args, ServeArgs)
    refuse(args, script, constraints, checks)
    assert args.checkpoint is not None
    server = SERVERS[args.server]
    program = find_program(server, script.path)
    model = local_model(args.checkpoint, record)
    with record.phase("check the checkpoint"):
        served = check_checkpoint(args, model)
        record.update(inputs=inputs_of(args), quantization=served.quantization)
        for doubt in served.doubts:
            record.line(f"warning: {doubt}")
        check_gpus(args, served)
        port = choose_port(args.port)
    words = [*command_line(server, program, args, model=served.model, method=served.method, port=port), *extra_args]
    record.line(f"server: {shlex.join(words)}")
    write_json(record.dir / "logs" / "server.command.json", {"argv": words})
    output = Output(record.dir / "logs" / "server.tail.log")
    with started(words, env=child_environment(os.environ), output=output) as process:

        def refuse_dead(within: float = 0.0) -> None:
            """Raise JobError `server_died` if it has ended, or does so `within` seconds."""
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(within)
                cause = f"it ended with status {status}: {last_words(output.tail, _ERROR) or 'it said nothing'}"
                raise JobError("server_died", cause, "All that it said is in logs/rank0.log.")

        facts, answers = _measure(args, refuse_dead, Client(port, answer_seconds=args.answer_minutes * 60), record)
    with record.phase("report"):
        report: dict[str, Any] = {"schema": SCHEMA, "server": args.server, "argv": words, "checkpoint": args.checkpoint}
        report |= {"algorithm": served.algorithm, "quantization": served.quantization, **facts}
        _report(args, report, answers, record)


def expected_command(
    args: ScriptArgs, script: ScriptSpec, extra_args: Sequence[str], _run_dir: Path, *, here: bool
) -> list[str]:
    """The server's command before it is started; what only its node knows is in angle brackets."""
    assert isinstance(args, ServeArgs)
    server, model = SERVERS[args.server], args.checkpoint or "<checkpoint>"
    unquantized = args.quantization == "none" or model.startswith("tiny:")
    method = None if unquantized else "<of the checkpoint>" if args.quantization == "auto" else args.quantization
    with suppress(JobError):  # it is not here, or a check says what is wrong with it
        method = check_checkpoint(args, model).method
    program, port = server.expected_program(script.path), args.port or "<a free port>"
    words = command_line(server, program, args, model=model, method=method, port=port)
    return [*words, *extra_args]


def _measure(
    args: ServeArgs, refuse_dead: Callable[..., None], client: Client, record: Record
) -> tuple[dict[str, Any], list[Answer]]:
    """What the report says of the server while it ran, and its answers."""
    began = time.monotonic()
    try:
        with record.phase("start the server"):
            _wait(args, refuse_dead, client, began, record)
            start_seconds = time.monotonic() - began
            model = client.model()
        answers: list[Answer] = []
        first_answer_seconds = 0.0
        with record.phase("ask"):
            prompts = prompts_of(args)
            for prompt in prompts:
                answers.append(client.complete(model, prompt, args.max_tokens))
                first_answer_seconds = first_answer_seconds or time.monotonic() - began
                record.progress(len(answers), len(prompts), "prompts")
    except UnreachableError as error:
        refuse_dead(_DEATH_SECONDS)
        cause = f"{error}, after it had said that it was ready."
        raise JobError("server_not_ready", cause, "Raise args.answer_minutes, or look at logs/rank0.log.") from error
    refuse_dead()
    figures = {"start_seconds": round(start_seconds, 3), "first_answer_seconds": round(first_answer_seconds, 3)}
    return {"model": model, **figures, "tokens_per_second": _tokens_per_second(answers)}, answers


def _wait(args: ServeArgs, refuse_dead: Callable[..., None], client: Client, began: float, record: Record) -> None:
    seconds = args.start_minutes * 60
    while not client.healthy():
        refuse_dead()
        elapsed = time.monotonic() - began
        if elapsed > seconds:
            cause = f"it did not say that it was ready within {args.start_minutes:g} minutes."
            raise JobError("server_not_ready", cause, "Raise args.start_minutes, or look at logs/rank0.log.")
        record.progress(round(elapsed), max(1, round(seconds)), "s")
        time.sleep(_POLL_SECONDS)
    refuse_dead()  # then another server has answered


def _report(args: ServeArgs, report: dict[str, Any], answers: Sequence[Answer], record: Record) -> None:
    """Raises JobError `server_answer_empty` and `server_answer_degenerate`, after the report was written."""
    flaws = [flaw_of(answer.text) for answer in answers]
    rows = [asdict(answer) | {"flaw": flaw} for answer, flaw in zip(answers, flaws, strict=True)]
    warnings = [f"{row['prompt']!r}: the answer is {row['flaw']}." for row in rows if row["flaw"]]
    folder = record.dir / "report"
    report |= {"answers": rows, "warnings": warnings}
    write_json(folder / REPORT, report)
    write_text(folder / "index.html", _as_html(report, page.about(record.dir)))
    for answer in answers:
        record.line(f"{answer.prompt!r} -> {answer.text!r} ({answer.seconds:.2f} s)")
    for name in ("start_seconds", "first_answer_seconds", "tokens_per_second"):
        if report[name] is not None:
            record.metric(name, report[name])
    title = SERVERS[args.server].title
    if set(flaws) == {"empty"}:
        cause = f"every answer of {title} is empty."
        raise JobError("server_answer_empty", cause, "Try other prompts; is it the checkpoint's end-of-text token?")
    if None not in flaws:
        cause = f"every answer of {title} is one piece of text repeated, or empty."
        remedy = "Compare with the checkpoint it was made of: scales may be missing, or not of the format that it took."
        raise JobError("server_answer_degenerate", cause, remedy)
    for warning in warnings:
        record.line(f"warning: {warning}")
    record.artifact("eval_results", folder, server=args.server, quantization=report["quantization"])


def _as_html(report: Mapping[str, Any], about: Mapping[str, str]) -> str:
    measured = {
        "start (s)": report["start_seconds"],
        "first answer (s)": report["first_answer_seconds"],
        "tokens/s, one prompt at a time": report["tokens_per_second"],
    }
    rows = [(name, "-" if value is None else f"{value:.2f}") for name, value in measured.items()]
    said = [(row["prompt"], row["text"], row["flaw"] or "", f"{row['seconds']:.2f}") for row in report["answers"]]
    title = f"{report['checkpoint']} by {SERVERS[report['server']].title}"
    answers = page.section("Answers", page.table(("prompt", "answer", "", "s"), said, left=3))
    return page.page(title, about=about, notes=report["warnings"], parts=[page.table(("", ""), rows), answers])


def _tokens_per_second(answers: Sequence[Answer]) -> float | None:
    """Of one prompt at a time; without the first, which warms the server up, where there are others."""
    counted = answers[1:] or answers
    if any(answer.tokens is None for answer in counted):
        return None
    seconds = sum(answer.seconds for answer in counted)
    return round(sum(answer.tokens or 0 for answer in counted) / max(seconds, 1e-9), 1)
