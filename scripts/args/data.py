"""Arguments of `prepare_data`: from text to the binary data that Megatron trains on."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from scripts.args.meaning import ScriptArgs, doc
from scripts.args.shared import written


@dataclass(frozen=True, kw_only=True)
class PrepareDataArgs(ScriptArgs):
    """What `prepare_data` does. Source: ModelOpt's own module megatron_preprocess_data, which needs Megatron-Core.

    One of `jsonl_paths`, `input_dir` and `hf_dataset`. Of a text file each paragraph is a document; of one
    without blank lines, each line.
    """

    SCRIPTS: ClassVar[tuple[str, ...]] = ("-m modelopt.torch.utils.plugins.megatron_preprocess_data",)
    TOOL: ClassVar[tuple[str, str] | None] = ("megatron.core", "data")
    RANKED: ClassVar[bool] = False  # it has worker processes of its own

    jsonl_paths: list[str] | None = doc(
        "JSONL (.jsonl, .jsonl.gz) or text files (.txt, .md); tiny:text is what the built-in models learned",
        None,
        flags=("jsonl_paths", "input_path"),
        consumes="training_jsonl",
        path="read",
        role="data",
    )
    input_dir: str | None = doc(
        "a folder whose JSONL and text files to take",
        None,
        flags=("input_dir", "input_path"),
        consumes="training_jsonl",
        path="read",
        role="data",
    )
    hf_dataset: str | None = doc(
        "a data set of the hub, or a folder of one", None, flags=("hf_dataset", "dataset"), role="data"
    )
    hf_name: str | None = doc("its subset; null takes all", None, flags=("hf_name", "subset"))
    hf_split: str | None = doc("its split; null takes all", None, flags=("hf_split", "split"))
    hf_max_samples_per_split: int | None = doc("rows of each split, at most", None, least=1)
    hf_streaming: bool = doc("fetch only the rows that are used", False)
    tokenizer: str = doc(
        "of the model that will be trained: a folder, a hub name or tiny:qwen3", "Qwen/Qwen3-8B", role="tokenizer"
    )
    output_dir: str | None = written("folder of .bin and .idx files", "binidx", required=True)
    json_keys: list[str] = doc("fields to tokenize, each into data of its own; a list of messages is a chat", ["text"])
    append_eod: bool = doc("end each document with the end-of-sequence token: for text, not for chats", False)
    max_sequence_length: int | None = doc("tokens of a document, at most; the rest of it is dropped", None, least=1)
    max_tokens: int | None = doc("stop after so many tokens, taken from the beginning of each file", None, least=1)
    workers: int = doc("processes", 8, least=1)
    log_interval: int = doc("documents between lines in the log", 100_000, least=1)
    reasoning_content: Literal["strip", "inline", "native"] = doc("what becomes of a chat's reasoning", "strip")
    strip_newlines: bool = doc("make line ends of a text spaces", False)
