"""Why a run failed, found in what it printed: the first cause, the line that shows it, and what to do.

Logs are searched for the signatures of configs/diagnosis.yaml, the rank that failed first before the
others. Nothing here raises for what a log holds, and nothing reads more of it than its end.
"""

import functools
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from configs import CONFIGS
from scripts.run.ending import Ending
from scripts.run.files import regular
from scripts.run.secrets import redacted

#: A log that an earlier attempt began holds this line where the next one starts.
NEXT_ATTEMPT = "--- the next attempt of this run ---"
#: How much of the end of each log is searched: what was printed long before is not why it ended.
LOG_BYTES = 256 << 10
_FILES = 64
_SECONDS = 5.0
#: Between the clocks of the machines that write and read a run directory.
CLOCK_SKEW_SECONDS = 5.0
#: Tracebacks that chain to each other lie within this many characters of the last line that tells something.
_LAST_WORDS = 16 << 10
#: Of lines that repeat, so many of the last ones are looked at.
_HITS = 100
_EVIDENCE = 300
_UNTOLD = ("warnings.log", "supervisor.log")
#: Lines of ours repeat the cause without its place; what they repeat stands above them.
_OWN = re.compile(r"\[\d\d:\d\d:\d\d\] (?:failed|diagnosis): |scripts\.[\w.]{1,60}\.JobError: ")
#: A frame of a traceback, and the source below it, which a rank's name may precede; a long call takes several lines.
_FRAME = re.compile(r'File "[^"\n]{1,500}", line \d{1,9}, in ')
_INDENTED = re.compile(r"(?:\[[^\]\n]{1,40}\]:? ?|\d{1,5}: ){0,2} {4}")
_QUOTED_LINES = 12
_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]{0,20}[ -/]?[@-~]|\][^\x07\x1b\n]{0,200}(?:\x07|\x1b\\)?)")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """One kind of failure; the fields are explained in configs/diagnosis.yaml."""

    name: str
    patterns: tuple[re.Pattern[str], ...]
    frames: re.Pattern[str] | None
    phases: tuple[str, ...]
    scheduler: tuple[str, ...]
    consequence: bool
    remedy: str
    source: str

    def applies(self, traceback: str, phase: str | None) -> bool:
        """Whether it happened where this signature says; one that says nothing applies everywhere."""
        if self.frames is None and not self.phases:
            return True
        return phase in self.phases or (self.frames is not None and self.frames.search(traceback) is not None)


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Every signature in order, and the errors that need one."""

    signatures: tuple[Signature, ...]
    vague: frozenset[str]


@functools.cache
def catalogue() -> Catalogue:
    """The shipped catalogue."""
    import yaml

    raw = yaml.safe_load((CONFIGS / "diagnosis.yaml").read_text(encoding="utf-8"))
    return Catalogue(signatures=tuple(map(_read, raw["signatures"])), vague=frozenset(raw["vague"]))


def _read(raw: dict[str, Any]) -> Signature:
    frames = raw.get("frames")
    return Signature(
        name=raw["name"],
        patterns=tuple(re.compile(pattern, re.MULTILINE) for pattern in raw["patterns"]),
        frames=re.compile("|".join(frames)) if frames else None,
        phases=tuple(raw.get("phases", ())),
        scheduler=tuple(raw.get("scheduler", ())),
        consequence=raw.get("consequence", False),
        remedy=raw["remedy"],
        source=raw["source"],
    )


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A failure that the catalogue knows; `file` is a log's name, with the number of the line where it has one."""

    name: str
    evidence: str
    file: str | None
    line: int | None
    remedy: str


@dataclass(frozen=True, kw_only=True)
class _Log:
    """The end of a log; `path` is None for one that was read elsewhere, whose lines have no numbers here."""

    name: str
    text: str
    path: Path | None
    start: int  # the byte at which the text begins


#: A signature, and where a log shows it.
_Hit = tuple[Signature, re.Match[str]]


def diagnose(
    logs: Path,
    *,
    since: float,
    error: Mapping[str, Any],
    phase: str | None = None,
    scheduler: str | None = None,
    printed: Mapping[str, bytes] | None = None,
) -> Diagnosis | None:
    """What the catalogue makes of a failed run; None where its `error` says enough, or nothing is known.

    `logs` is the run directory's folder of logs, of which files older than `since` (seconds since the
    epoch) belong to another attempt. `printed` are logs that lie elsewhere. `scheduler` is the
    scheduler's word (JobState.name), which nothing in a log contradicts.
    """
    if not is_vague(error):
        return None
    known = catalogue()
    deadline = time.monotonic() + _SECONDS
    ordered = next((signature for signature in known.signatures if scheduler in signature.scheduler), None)
    signatures = known.signatures if ordered is None else (ordered,)
    consequence: Diagnosis | None = None
    elsewhere = (_log(name, data[-LOG_BYTES:], 0, None) for name, data in (printed or {}).items())
    for log in chain(_logs(logs, since), elsewhere):
        if time.monotonic() > deadline:
            break
        hit = _best(log.text, signatures, phase, alone=bool(_rank(log.name)))
        if hit is None:
            continue
        found = _diagnosis(hit, log, phase)
        if not hit[0].consequence or ordered is not None:
            return found
        consequence = consequence or found
    if consequence is not None:
        return consequence
    return _of_words(str(error["message"]), signatures, ordered, phase)


def diagnose_unbegun(error: Mapping[str, Any]) -> Diagnosis | None:
    """The same for a run that never began: logs in its directory are an earlier attempt's, only its error tells."""
    return _of_words(str(error["message"]), catalogue().signatures, None, None) if is_vague(error) else None


def is_vague(error: Mapping[str, Any]) -> bool:
    """Whether an error says only that a job failed. One that names its own cause is not to be contradicted."""
    return error["name"] in catalogue().vague


def _of_words(
    message: str, signatures: tuple[Signature, ...], ordered: Signature | None, phase: str | None
) -> Diagnosis | None:
    """From the error's own message, where no log says more."""
    if ordered is not None:
        remedy = ordered.remedy.format(phase=phase or "the run")
        return Diagnosis(name=ordered.name, evidence=clean(message), file=None, line=None, remedy=remedy)
    hit = _best(message, signatures, phase, alone=False)
    words = _Log(name="", text=message, path=None, start=0)
    return None if hit is None else _diagnosis(hit, words, phase)


def clean(line: str, around: str = "") -> str:
    """A line of a log as it can be shown: no control characters, no secrets, at most 300 characters.

    Of a longer line it is the part where `around` stands, else its beginning.
    """
    text = redacted(_ESCAPE.sub("", line))
    text = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    begin = max(0, text.find(around) - _EVIDENCE // 3) if len(text) > _EVIDENCE else 0
    text = f"...{text[begin:]}" if begin else text
    return text if len(text) <= _EVIDENCE else text[: _EVIDENCE - 3] + "..."


def _best(text: str, signatures: tuple[Signature, ...], phase: str | None, *, alone: bool) -> _Hit | None:
    """The most specific cause among the last words of a log; a consequence only where there is no cause."""
    hits = [
        (signature, match)
        for signature in signatures
        for match in sorted(_matches(text, signature), key=lambda match: match.start())
    ]
    if not hits:
        return None
    ending = Ending(text, alone=alone)
    hits = [hit for hit in hits if ending.tells(hit[1].start())]
    for consequence in (False, True):
        among = [hit for hit in hits if hit[0].consequence is consequence]
        if consequence and not ending.is_explained(match.start() for _, match in among):
            return None  # an error of no known kind came first
        last = max((match.start() for _, match in among), default=0) - _LAST_WORDS
        for signature, match in among:
            at = match.start()
            before = text[max(0, at - _LAST_WORDS) : at]
            traceback = before[before.rfind("Traceback (most recent call last)") :]
            if at >= last and signature.applies(traceback, phase):
                return signature, match
    return None


def _matches(text: str, signature: Signature) -> Iterator[re.Match[str]]:
    for pattern in signature.patterns:
        for match in deque(pattern.finditer(text), maxlen=_HITS):
            if not ("\n" in match[0] or _OWN.search(_line(text, match)) or _is_source(text, match.start())):
                yield match


def _is_source(text: str, at: int) -> bool:
    """Whether a traceback quotes this line from a program: what a program can say is not what it said."""
    begin = text.rfind("\n", 0, at) + 1
    for _ in range(_QUOTED_LINES):
        if begin == 0 or not _INDENTED.match(text, begin):
            return False
        above = text.rfind("\n", 0, begin - 1) + 1
        if _FRAME.search(text, above, begin):
            return True
        begin = above
    return False


def _line(text: str, match: re.Match[str]) -> str:
    """The line of a match; a progress bar that was drawn over itself counts as several."""
    begin = max(text.rfind("\n", 0, match.start()), text.rfind("\r", 0, match.start())) + 1
    ends = [end for end in (text.find("\n", match.end()), text.find("\r", match.end())) if end >= 0]
    return text[begin : min(ends, default=len(text))]


def _diagnosis(hit: _Hit, log: _Log, phase: str | None) -> Diagnosis:
    signature, match = hit
    groups = {name: clean(value or "it") for name, value in match.groupdict().items()}
    return Diagnosis(
        name=signature.name,
        evidence=clean(_line(log.text, match), match[0]),
        file=log.name or None,
        line=_number(log, match.start()),
        remedy=signature.remedy.format_map({**groups, "phase": phase or "the run"}),
    )


def _number(log: _Log, at: int) -> int | None:
    """The number of a line, counted from the beginning of its file."""
    if log.path is None:
        return None
    before, left = 0, log.start
    with suppress(OSError), open(log.path, "rb", opener=regular) as handle:
        while left and (chunk := handle.read(min(left, 1 << 20))):
            before += chunk.count(b"\n")
            left -= len(chunk)
        return before + log.text.count("\n", 0, at) + 1
    return None


def _logs(folder: Path, since: float) -> Iterator[_Log]:
    """The ends of a run's logs, those of the rank that failed first before the others'."""
    failed: dict[str, float] = {}
    files: list[Path] = []
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            with suppress(OSError):
                written = path.stat().st_mtime
                if written < since - CLOCK_SKEW_SECONDS:
                    continue
                if path.name.endswith(".error.json"):
                    failed[_rank(path.name)] = written
                elif path.suffix in (".log", ".txt") and path.name not in _UNTOLD:
                    files.append(path)
    late = max(failed.values(), default=0.0) + 1

    def order(path: Path) -> tuple[Any, ...]:
        """Ranks by number, before what their launcher printed; what a rank printed before how it ended."""
        rank = _rank(path.name)
        number = int(rank.removeprefix("rank") or 0)
        return failed.get(rank, late), not rank, number, path.name.startswith("traceback"), path.name

    for path in sorted(files, key=order)[:_FILES]:
        with suppress(OSError), open(path, "rb", opener=regular) as handle:
            start = max(0, handle.seek(0, os.SEEK_END) - LOG_BYTES)
            handle.seek(start)
            yield _log(path.name, handle.read(LOG_BYTES), start, path)


def _rank(name: str) -> str:
    """The rank whose file this is: `rank3.log`, `rank3.error.json`, `traceback.rank3.txt`; rank 0's is plain."""
    found = re.search(r"rank\d+", name)
    return found[0] if found else "rank0" if name == "traceback.txt" else ""


def _log(name: str, data: bytes, start: int, path: Path | None) -> _Log:
    marker = NEXT_ATTEMPT.encode()
    if marker in data:
        cut = data.rindex(marker)
        data, start = data[cut:], start + cut
    return _Log(name=name, text=_ESCAPE.sub("", data.decode("utf-8", "replace")), path=path, start=start)
