"""From the text that was named to tokens, by ModelOpt's script, and what came of it."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.args import constraints
from scripts.args.data import PrepareDataArgs
from scripts.args.meaning import ScriptArgs, ScriptSpec
from scripts.checkpoints.datasets import blend, token_files
from scripts.data import sources as sources_of_text
from scripts.data.sources import DataSource, gather
from scripts.engines.script.engine import run_script
from scripts.engines.script.flags.reader import read_interface
from scripts.engines.script.locate import locate
from scripts.run.files import write_json
from scripts.run.problems import JobError
from scripts.run.record import Record
from scripts.run.registry import refuse
from scripts.tiny.model import local_model

SCHEMA = 1
_LOOK = "Look at logs/rank0.log for what it skipped."


def prepare(args: ScriptArgs, script: ScriptSpec, extra_args: Sequence[str], record: Record) -> None:
    """Tokenize, and report. Raises JobError for everything that is understood."""
    assert isinstance(args, PrepareDataArgs)
    refuse(args, script, constraints, sources_of_text)
    values: dict[str, Any] = {"tokenizer": local_model(args.tokenizer, record)}
    sources: list[DataSource] = []
    if args.hf_dataset is None:
        folder = record.dir / "jsonl"
        with record.phase("gather the text"):
            sources = gather(args, folder)
        _refuse_unread(args, script, sources)
        values |= {"jsonl_paths": None, "input_dir": str(folder)}
    spelled = dataclasses.replace(script, flag_style="underscore")
    run_script(dataclasses.replace(args, **values), spelled, extra_args, record)
    inputs = [{"type": "training_jsonl", "name": source.name, "documents": source.documents} for source in sources]
    record.update(inputs=inputs or [{"type": "dataset", "name": args.hf_dataset}])
    with record.phase("report"):
        report_data(args, sources, record)


def _refuse_unread(args: ScriptArgs, script: ScriptSpec, sources: Sequence[DataSource]) -> None:
    """Before ModelOpt 0.43 the script leaves compressed files out, and says nothing."""
    compressed = [source.name for source in sources if source.compressed]
    if not compressed:
        return
    located = locate(args.SCRIPTS, script.path)
    interface = read_interface(located.file, located.roots)
    if interface.closed and interface.find("jsonl_paths") is None:
        cause = f"this release of {located.file.name} reads no compressed files: {', '.join(compressed)}."
        raise JobError("unknown_data", cause, "Decompress them, or use ModelOpt 0.43 or later.")


def report_data(args: PrepareDataArgs, sources: Sequence[DataSource], record: Record) -> None:
    """Say what the script made of `sources`.

    Raises JobError `no_documents` and `data_left_out`: what it wrote is whole, and not what was asked for.
    """
    assert args.output_dir is not None  # the script requires it
    files = token_files(Path(args.output_dir))
    if not sum(file.tokens for file in files):
        raise JobError("no_documents", f"{args.output_dir} holds no token.", _LOOK)
    every = bool(sources) and args.max_tokens is None
    if every and len(files) != len(sources) * len(args.json_keys):
        cause = f"{len(sources)} files with {len(args.json_keys)} fields became {len(files)} files of tokens."
        raise JobError("data_left_out", cause, _LOOK)
    documents = sum(file.documents for file in files)
    expected = sum(source.documents for source in sources) * len(args.json_keys)
    lost = f"{expected - documents} of {expected} rows gave no document: blank, or not JSON."
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "tokenizer": args.tokenizer,
        "documents": documents,
        "tokens": sum(file.tokens for file in files),
        "files": [{"prefix": str(file.prefix), "documents": file.documents, "tokens": file.tokens} for file in files],
        "data_paths": blend(files),
        "warnings": [lost] if every and documents < expected else [],
    }
    write_json(record.dir / "report" / "report.json", report)
    for name in ("documents", "tokens"):
        record.metric(name, report[name])
    for file in files:
        record.line(f"{file.prefix}: {file.documents} documents, {file.tokens} tokens")
    for warning in report["warnings"]:
        record.line(f"warning: {warning}")
    record.line(f"data_paths: {json.dumps(report['data_paths'])}")
