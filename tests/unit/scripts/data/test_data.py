"""Training data without a tokenizer: what is found and laid out, and what is read of the binary files."""

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from scripts.args import constraints
from scripts.args.data import PrepareDataArgs
from scripts.checkpoints.datasets import blend, token_files
from scripts.data import sources
from scripts.data.run import report_data
from scripts.data.sources import gather
from scripts.engines.script.command import compose
from scripts.engines.script.flags.interface import Flag, Interface
from scripts.run.problems import JobError, Problem
from scripts.run.record import Record
from scripts.run.registry import OnNode, carry_out, checks_of


def told(args: PrepareDataArgs) -> list[Problem]:
    """What the checks say of its values, whatever this Python lacks."""
    other = ("harness_not_installed", "server_not_installed", "megatron_core_missing", "missing_value")
    found = carry_out(checks_of(constraints, sources), OnNode(resolved=args)).problems
    return [one for one in found if one.name not in other]


def write_pair(prefix: Path, documents: list[list[int]]) -> None:
    """Binary data as Megatron-Core writes it (index version 1, tokens of two bytes)."""
    lengths = [len(document) for document in documents if document]
    offsets = [2 * sum(lengths[:number]) for number in range(len(lengths))]
    ends, held = [0], 0
    for document in documents:
        held += bool(document)
        ends.append(held)
    index = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, len(lengths), len(ends))
    index += struct.pack(f"<{len(lengths)}i{len(lengths)}q{len(ends)}q", *lengths, *offsets, *ends)
    prefix.with_name(prefix.name + ".idx").write_bytes(index)
    tokens = [token for document in documents for token in document]
    prefix.with_name(prefix.name + ".bin").write_bytes(struct.pack(f"<{len(tokens)}H", *tokens))


def rows_of(path: Path) -> list[Any]:
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    return [json.loads(line) for line in text.splitlines()]


def test_a_blend_weighs_each_file_by_its_tokens(tmp_path: Path) -> None:
    write_pair(tmp_path / "b.v1_text", [[1, 2, 3], [4]])
    write_pair(tmp_path / "a_text", [[5]])
    write_pair(tmp_path / "c_text", [[]])
    files = token_files(tmp_path)
    found = [(file.prefix.name, file.documents, file.tokens) for file in files]
    assert found == [("a_text", 1, 1), ("b.v1_text", 2, 4), ("c_text", 1, 0)]
    assert blend(files) == [1, str(tmp_path / "a_text"), 4, str(tmp_path / "b.v1_text")]


def test_data_that_is_cut_short_is_unreadable(tmp_path: Path) -> None:
    write_pair(tmp_path / "a_text", [[1, 2, 3]])
    (tmp_path / "a_text.bin").write_bytes(b"\1\0")
    with pytest.raises(JobError, match="unreadable_checkpoint"):
        token_files(tmp_path)


def test_files_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    for number, folder in enumerate("abc"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.jsonl").write_text(f'{{"text": "{number}"}}\n')
    (tmp_path / "data.txt").write_text("line one\nline two\n")
    names = [str(tmp_path / folder / "data.jsonl") for folder in "abc"] + [str(tmp_path / "data.txt")]
    found = gather(PrepareDataArgs(jsonl_paths=names), tmp_path / "out")
    assert [source.file.name for source in found] == ["data.jsonl", "data-2.jsonl", "data-3.jsonl", "data-4.jsonl"]
    assert [rows_of(source.file) for source in found[:3]] == [[{"text": str(number)}] for number in range(3)]
    assert rows_of(found[3].file) == [{"text": "line one"}, {"text": "line two"}]
    assert [source.documents for source in found] == [1, 1, 1, 2]


def test_a_folder_gives_its_files_and_nothing_else(tmp_path: Path) -> None:
    data = tmp_path / "in"
    (data / "deeper").mkdir(parents=True)
    (data / "b.jsonl").write_text('{"content": "B"}')
    (data / "a.md").write_text("# A\n\nof two\n")
    for name in ("notes.pdf", ".hidden", "text.txt.gz", "deeper/c.jsonl"):
        (data / name).write_text("x")
    with gzip.open(data / "c.jsonl.gz", "wt") as handle:
        handle.write('{"content": "C"}\n{"content": "D"}')
    found = gather(PrepareDataArgs(input_dir=str(data), json_keys=["content"]), tmp_path / "out")
    assert [source.file.name for source in found] == ["a.jsonl", "b.jsonl", "c.jsonl.gz"]
    assert [source.compressed for source in found] == [False, False, True]
    assert [source.documents for source in found] == [2, 1, 2]
    assert rows_of(found[0].file) == [{"content": "# A"}, {"content": "of two"}]
    assert rows_of(found[2].file) == [{"content": "C"}, {"content": "D"}]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_byte_order_mark_does_not_reach_the_script(ending: str, tmp_path: Path) -> None:
    content = '{"text": "A"}\n{"text": "B"}\n'.encode("utf-8-sig")
    given = tmp_path / f"a{ending}"
    given.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    (source,) = gather(PrepareDataArgs(jsonl_paths=[str(given)]), tmp_path / "out")
    assert (source.file.name, source.documents, source.compressed) == ("a.jsonl", 2, False)
    assert rows_of(source.file) == [{"text": "A"}, {"text": "B"}]


def test_the_built_in_text_needs_no_file(tmp_path: Path) -> None:
    (source,) = gather(PrepareDataArgs(jsonl_paths=["tiny:text"]), tmp_path / "out")
    assert source.documents == len(rows_of(source.file)) > 100


def test_one_source_is_asked_for() -> None:
    assert not told(PrepareDataArgs(hf_dataset="a/b"))
    for args in (PrepareDataArgs(), PrepareDataArgs(jsonl_paths=["a"], input_dir="b")):
        assert [problem.name for problem in told(args)] == ["one_data_source"]
    args = PrepareDataArgs(input_dir="b", json_keys=[])
    assert [problem.key for problem in told(args)] == ["args.json_keys"]


#: What the script takes, by release of ModelOpt: 0.37 to 0.41, and since 0.43.
_OLD = ("input_path", "dataset", "subset", "split", "output_dir", "tokenizer", "append_eod")
_NEW = ("input_dir", "jsonl_paths", "hf_dataset", "hf_name", "hf_split", "output_dir", "tokenizer", "append_eod")


@pytest.mark.parametrize(
    ("flags", "values", "expected"),
    [
        (_OLD, {"input_dir": "/run/jsonl"}, "--input_path /run/jsonl"),
        (_NEW, {"input_dir": "/run/jsonl"}, "--input_dir /run/jsonl"),
        (_OLD, {"hf_dataset": "a/b", "hf_name": "c", "hf_split": "train"}, "--dataset a/b --subset c --split train"),
        (_NEW, {"hf_dataset": "a/b", "hf_name": "c"}, "--hf_dataset a/b --hf_name c"),
    ],
)
def test_every_release_is_given_what_it_calls_its_source(
    flags: tuple[str, ...], values: dict[str, str], expected: str
) -> None:
    kinds = {"append_eod": "on", "json_keys": "list"}
    declared = tuple(
        Flag(names=(f"--{name}",), kind=kinds.get(name, "value"))  # type: ignore[arg-type]
        for name in (*flags, "json_keys", "workers", "log_interval", "reasoning_content")
    )
    args = PrepareDataArgs(output_dir="/out", append_eod=True, **values)  # type: ignore[arg-type]
    made = compose(args, Interface(flags=declared), style="hyphen")
    assert not made.problems
    assert expected in " ".join(made.words)


def reported(tmp_path: Path, pairs: dict[str, list[list[int]]], rows: list[int], **values: Any) -> Any:
    """report.json, after files with so many rows became these pairs."""
    out = tmp_path / "out"
    out.mkdir()
    for name, documents in pairs.items():
        write_pair(out / name, documents)
    names = []
    for number, count in enumerate(rows):
        names.append(str(tmp_path / f"{number}.jsonl"))
        Path(names[-1]).write_text('{"text": "x"}\n' * count)
    args = PrepareDataArgs(jsonl_paths=names, output_dir=str(out), tokenizer="t", **values)
    record = Record.submit(tmp_path / "run")
    report_data(args, gather(args, tmp_path / "jsonl"), record)
    return json.loads((tmp_path / "run" / "report" / "report.json").read_text())


def test_what_became_of_the_text_is_reported(tmp_path: Path) -> None:
    report = reported(tmp_path, {"0_text": [[1, 2], [3]], "1_text": [[4]]}, [2, 2])
    assert (report["documents"], report["tokens"]) == (3, 4)
    assert report["data_paths"] == [3, str(tmp_path / "out" / "0_text"), 1, str(tmp_path / "out" / "1_text")]
    assert report["warnings"] == ["1 of 4 rows gave no document: blank, or not JSON."]


def test_a_file_that_was_left_out_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="data_left_out: 2 files with 1 fields became 1 files of tokens"):
        reported(tmp_path, {"0_text": [[1]]}, [1, 1])


def test_with_a_limit_of_tokens_files_may_be_left_out(tmp_path: Path) -> None:
    assert reported(tmp_path, {"0_text_tokens1": [[1]]}, [1, 1], max_tokens=1)["warnings"] == []


def test_no_token_at_all_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no_documents"):
        reported(tmp_path, {"0_text": [[]]}, [1])
