"""Whether what a model says is text at all."""

import re
from typing import Literal

#: Of a server's answers, in the folder of the report.
REPORT = "serve.json"
#: One piece of text, eight times or more from the beginning to the end, which may cut the last one short.
_ONE_PIECE = re.compile(r"(?s)(.{1,16}?)\1{7,}.{0,15}")

Flaw = Literal["empty", "one piece of text, repeated"]


def flaw_of(text: str) -> Flaw | None:
    """What is wrong with an answer; None for one that may be right.

    A wrong scale in a quantized checkpoint shows in no log, but here at once.
    """
    if not text.strip():
        return "empty"
    return "one piece of text, repeated" if _ONE_PIECE.fullmatch(text.strip()) else None
