import gzip
import json
from pathlib import Path

import pytest

from scripts.args.quantize import QuantizeArgs
from scripts.data.texts import read, source_of
from scripts.engines.hf.samples import choose_samples
from scripts.run.problems import JobError


class Words:
    """A tokenizer that needs no library: one token per word, the same word the same token."""

    def __call__(self, text: str, *, truncation: bool, max_length: int) -> dict[str, list[int]]:
        assert truncation
        return {"input_ids": [sum(word.encode()) for word in text.split()][:max_length]}


def _jsonl(path: Path, rows: list[object]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_kinds_of_source(tmp_path: Path) -> None:
    assert source_of(None, "tiny:qwen3").kind == "builtin"
    assert source_of(None, "Qwen/Qwen3-8B").place == "cnn_dailymail"
    assert source_of(_jsonl(tmp_path / "a.jsonl", ["x"]), "m").kind == "jsonl"
    assert source_of(str(tmp_path), "m").kind == "folder"
    assert source_of("org/name", "m").kind == "hub"
    (tmp_path / "a.bin").write_bytes(b"")
    for missing in (str(tmp_path / "no.jsonl"), "./no", "~/no/where/at/all", "no.txt"):
        with pytest.raises(JobError, match="missing_data"):
            source_of(missing, "m")
    with pytest.raises(JobError, match="unknown_data"):
        source_of(str(tmp_path / "a.bin"), "m")


def test_rows_of_many_shapes(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    path = _jsonl(tmp_path / "a.jsonl", ["plain", {"text": "t"}, {"prompt": "p", "x": 1}, chat, {"text": ["a", "b"]}])
    assert list(read(source_of(path, "m"), None)) == ["plain", "t", "p", "hi\nho", "a\nb"]
    assert list(read(source_of(_jsonl(tmp_path / "b.jsonl", [{"q": "x", "text": "y"}]), "m"), "q")) == ["x"]


@pytest.mark.parametrize(
    ("content", "name", "where"),
    [
        ('{"text": "a"}\n{"text"', "unreadable_data", "line 2"),
        ('{"other": "a"}', "no_text", "other"),
        ('{"text": 7}', "no_text", "int"),
        ('{"other": "a"}', "no_text", "has none of text, prompt"),
        ("7", "no_text", "no keys"),
        ("[]", "no_text", "no keys"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path: Path, content: str, name: str, where: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(JobError, match=name) as caught:
        list(read(source_of(str(tmp_path / "a.jsonl"), "m"), None))
    assert where in caught.value.cause


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        ('{"other": "a"}', "Set args.calib_text_key."),
        ('{"text": 7, "body": "a"}', "Set args.calib_text_key."),
        ('{"n": 7}', '{"text": "..."}'),
        ("7", '{"text": "..."}'),
    ],
)
def test_another_key_is_advised_where_one_could_hold_text(row: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(row)
    with pytest.raises(JobError, match="no_text") as caught:
        list(read(source_of(str(tmp_path / "a.jsonl"), "m"), None))
    assert remedy in caught.value.remedy


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8-sig")
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8-sig")
    assert list(read(source_of(str(tmp_path / "a.jsonl"), "m"), None)) == ["a", "b"]
    assert list(read(source_of(str(tmp_path / "a.txt"), "m"), None)) == ["one", "two"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b'{"text": "a"}'), "compressed"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "no text, but binary data"),
        ('{"text": "a"}'.encode("utf-16"), "UTF-16"),
        ("ä".encode("latin-1"), "not UTF-8"),
    ],
    ids=["gzip", "png", "utf16", "latin1"],  # not the bytes: those of gzip hold the second they were made in
)
def test_a_file_that_is_no_text_says_what_it_is(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JobError, match="unreadable_data") as caught:
        list(read(source_of(str(tmp_path / name), "m"), None))
    assert said in caught.value.cause and caught.value.remedy


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.parquet"])
def test_one_file_of_another_form_says_which_are_taken(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(JobError, match="unknown_data") as caught:
        source_of(str(tmp_path / name), "m")
    assert "a folder of JSONL, Parquet or CSV" in caught.value.remedy


def test_a_device_is_no_data() -> None:
    with pytest.raises(JobError, match=r"unknown_data.*/dev/null is neither a file nor a folder"):
        source_of("/dev/null", "m")


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(JobError, match="unreadable_data"):
            list(read(source_of(str(tmp_path / name), "m"), None))


def test_text_files_by_paragraph_or_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\r\n\r\nfour\n")
    assert list(read(source_of(str(tmp_path / "a.txt"), "m"), None)) == ["one\ntwo", "three", "four"]
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    assert list(read(source_of(str(tmp_path / "b.txt"), "m"), None)) == ["one", "two"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "missing_data.*is empty"),
        (("notes.rst", "deep/er/weights.npy"), "missing_data.*holds no data"),
        (("run.json", "logs/rank0.log", "metrics.jsonl"), "unknown_data.*is a run directory"),
        (("config.json", "model.safetensors", "tokenizer.json"), "unknown_data.*is a model's folder"),
        (("adapter_config.json", "adapter_model.safetensors"), "unknown_data.*is a model's folder"),
    ],
)
def test_a_folder_without_data_says_what_data_is(files: tuple[str, ...], said: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(JobError, match=said) as caught:
        source_of(str(tmp_path), "m")
    assert '{"text": "..."}' in caught.value.remedy


@pytest.mark.parametrize("file", ["a.jsonl", "data/train-0.parquet", "x/y/part.JSON.gz", "a.md", "set/data.arrow"])
def test_a_folder_with_data_is_taken(file: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert source_of(str(tmp_path), "m").kind == "folder"


def test_a_folder_of_the_datasets_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "saved"))
    assert list(read(source_of(str(tmp_path / "saved"), "m"), None)) == ["a", "b"]
    (tmp_path / "raw").mkdir()
    _jsonl(tmp_path / "raw" / "train.jsonl", [{"text": "c"}, {"text": "d"}])
    assert list(read(source_of(str(tmp_path / "raw"), "m"), None)) == ["c", "d"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match="missing_data"):
        list(read(source_of(str(tmp_path / "empty"), "m"), None))


@pytest.mark.parametrize(("rows", "calib", "held"), [(3, 512, 64), (10, 5, 2), (100, 512, 64), (1000, 100, 64)])
def test_calibration_and_scored_text_never_meet(tmp_path: Path, rows: int, calib: int, held: int) -> None:
    path = _jsonl(tmp_path / "a.jsonl", [f"word{i} tail of {i}" for i in range(rows)] * 2)
    samples = choose_samples(
        QuantizeArgs(hf_model_id="m", calib_dataset=path, calib_size=calib, eval_size=held), Words()
    )
    assert samples.calibration
    assert samples.held_out
    assert set(samples.calibration).isdisjoint(samples.held_out)
    assert len(set(samples.calibration)) == len(samples.calibration) <= calib
    assert len(samples.held_out) <= held
    again = choose_samples(QuantizeArgs(hf_model_id="m", calib_dataset=path, calib_size=calib, eval_size=held), Words())
    assert again == samples


def test_samples_that_differ_only_past_the_cut_are_one(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "a.jsonl", ["the same beginning " + f"end{i}" for i in range(50)])
    args = QuantizeArgs(hf_model_id="m", calib_dataset=path, calib_seq_length=3)
    with pytest.raises(JobError, match="too_little_text"):
        choose_samples(args, Words())


def test_a_separate_evaluation_set_loses_what_was_calibrated_on(tmp_path: Path) -> None:
    both = ["in both sets", "here too it is"]
    calib = _jsonl(tmp_path / "a.jsonl", [*both, "only for calibration"])
    held = _jsonl(tmp_path / "b.jsonl", [*both, "only for evaluation"])
    samples = choose_samples(QuantizeArgs(hf_model_id="m", calib_dataset=calib, eval_dataset=held), Words())
    assert len(samples.calibration) == 3
    assert len(samples.held_out) == 1


def test_no_evaluation_asked_for_uses_all_text(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "a.jsonl", ["just one sample"])
    samples = choose_samples(QuantizeArgs(hf_model_id="m", calib_dataset=path, eval_size=0), Words())
    assert (len(samples.calibration), len(samples.held_out)) == (1, 0)
