"""Arguments of `program`: a program of the user's own, with what it takes and what it leaves."""

from dataclasses import dataclass

from scripts.args.meaning import ScriptArgs, doc
from scripts.args.shared import written


@dataclass(frozen=True, kw_only=True)
class ProgramArgs(ScriptArgs):
    """What `program` does: it runs words, on each rank, and looks at what they left. Supervised fine-tuning, say."""

    command: list[str] | None = doc(
        "its words: [python, sft.py, --model, {checkpoint}, --out, {output_hf}]; {NAME} is the argument of that name",
        None,
        required=True,
        role="command",
    )
    checkpoint: str | None = doc(
        "the checkpoint that it begins with: a folder or a hub name",
        None,
        consumes="checkpoint_hf",
        accepts=("checkpoint_modelopt", "checkpoint_megatron"),
        chained=True,
        role="checkpoint",
    )
    data: str | None = doc(
        "the data that it reads", None, consumes="training_jsonl", accepts=("binidx",), path="read", role="data"
    )
    files: list[str] | None = doc(
        "further files that it reads, as what its source imports: a stage is run again when one of them changes, or a "
        "file that its words name",
        None,
        path="read",
    )
    output_hf: str | None = written("the Hugging Face checkpoint that it writes", "checkpoint_hf")
    output_megatron: str | None = written("the Megatron checkpoint that it writes", "checkpoint_megatron")
