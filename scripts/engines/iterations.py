"""What a training prints of each iteration, as Megatron does: ` iteration 5/ 20 | lm loss: 1.07E+01 | ...`."""

import re
from collections.abc import Iterator

#: With `iteration 20 | lm loss value: ...` of a validation; in front stand times, and launchers' names of ranks.
_ITERATION = re.compile(rb"\biteration +(\d{1,12})(?:/ *(\d{1,12}))?\b[^|\r\n]{0,200}\|([^\r\n]*)")
_FIGURE = re.compile(
    r"\s*([^:|\s][^:|]{0,80}?)\s*:\s*([-+]?(?:\d{1,30}\.?\d{0,30}(?:e[-+]?\d{1,4})?|nan|inf))\s*%?\s*", re.IGNORECASE
)
#: Of a line; what comes after that is no figure of an iteration.
_LONGEST = 1 << 12
#: About as many points as anybody looks at. A longer training has fewer of its iterations written down.
MOST_ROWS = 10_000


class Iterations:
    """Finds iterations in output as it comes, in pieces that end anywhere; so many figures altogether, and no more."""

    def __init__(self, most: int = MOST_ROWS) -> None:
        self._most, self._rows = most, 0
        self._rest = b""  # of a line that has not ended

    def feed(self, data: bytes) -> Iterator[tuple[int, dict[str, float]]]:
        """The step and the figures of each iteration whose line ends in `data`."""
        begun, newline, ended = data.rpartition(b"\n")
        if not newline:
            self._rest = (self._rest + data)[:_LONGEST]
            return
        lines, self._rest = self._rest + begun, ended[:_LONGEST]
        if b"iteration" not in lines or self._rows >= self._most:
            return
        for found in _ITERATION.finditer(lines):
            step, last = int(found[1]), int(found[2] or 0)
            figures = _figures(found[3][:_LONGEST].decode("utf-8", "replace"))
            stride = max(1, -(-last * len(figures) // (self._most - len(figures) * 2)))  # the first and the last too
            room = self._most - self._rows
            if figures and len(figures) <= room and (step % stride == 0 or step in (1, last)):
                self._rows += len(figures)
                yield step, figures


def _figures(text: str) -> dict[str, float]:
    parts = (_FIGURE.fullmatch(part) for part in text.split("|"))
    return {part[1]: float(part[2]) for part in parts if part}
