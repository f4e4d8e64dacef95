"""What of a log tells how its program ended, and what only tells of errors that it got over.

A program that catches an error prints as much of it as one that dies of it. What comes afterwards tells them apart:
another traceback of the same process, or work that goes on.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

#: Whose line it is, where several processes write one log: torchrun's, torch's, srun's and vLLM's ways to say it.
_WHO = r"(?:\[[^\]\n]{1,40}\]:? ?|\([^()\n]{1,40}pid=\d{1,9}\) |\d{1,5}: ){0,3}"
_LINE = re.compile(rf"(?P<who>{_WHO})(?P<said>[^\n]*)\n?")
_TRACEBACK = "Traceback (most recent call last):"
#: torch's own hook, which prints what nothing caught.
_UNCAUGHT = re.compile(r"\[rank\d{1,6}\]: ?$")
_BECAUSE = "The above exception was the direct cause of the following exception:"
_WHILE_HANDLING = "During handling of the above exception, another exception occurred:"
#: A worker's own traceback, in the words of the exception that brought it.
_BROUGHT = re.compile(r"Original Traceback |Original exception was:|\S{1,200}RemoteTraceback:")
#: Exceptions that only say that another process failed, or is to be asked.
_OF_ANOTHER = re.compile(
    r"(?:\S{0,200}\.)?(?:ChildFailedError|CalledProcessError|JobError|BrokenProcessPool|SystemExit|KeyboardInterrupt"
    r"|SignalException)\b|.{0,200}(?:[Rr]oot cause above|DataLoader worker \(pid\(s\))"
)
#: What stands above the traceback of something that does not end the program.
_ASIDE = re.compile(r"Exception ignored in|Error in atexit\._run_exitfuncs|--- Logging error ---")
#: Work that goes on: steps, samples, our own phases.
_GOES_ON = re.compile(
    r"(?:.{0,80}\b)?(?:[Ii]ter(?:ation)?|[Ss]tep|[Ee]poch|[Ss]ample|[Bb]atch)s?\b[ :=#\[]{1,3}\d{1,9}"
    r"|\[\d\d:\d\d:\d\d\] (?!failed: |diagnosis: )"
)
#: A progress bar, which is drawn once more when its program dies.
_BAR = re.compile(r".{0,200}\d{1,3}%\||.{0,200}\d{1,9}/\d{1,9} \[")
#: Frames of what is done on the way out.
_CLEANUP = re.compile(
    r'\s*File "(?:.{0,300}/(?:shutil|tempfile)\.py"|.{1,400} in (?:__exit__|__del__|close|cleanup|shutdown|teardown'
    r"|destroy_process_group|unlink|rmtree)$)"
)
#: What programs and their launchers still print when they end.
_LAST_RITES = re.compile(
    r"$|\s|\[?[WEIF]\d{4}\b|\[rank|frame #|#\d|Exception raised from|\*\*\*|terminate called|srun:|slurmstepd:"
    r"|wandb:|[=-]{5}|Failures:|Root Cause|For debugging consider|CUDA kernel errors|Compile with|\S{0,200}Warning:"
    r"|\[\d\d:\d\d:\d\d\]"
)
#: Between these, torchrun's summary lists those that it ended itself because of the first.
_FAILURES, _ROOT_CAUSE = "Failures:", "Root Cause"
_WORDS = 40  # lines that an exception's own words take at most
_LINES_OF_WORK = 8  # so many other lines are work as well; an exception's own words are rarely as many
#: A level or a word by which a program says that it goes on.
_SOFT = re.compile(
    r"(?:.{0,80}\b)?(?:WARNING|WARN|INFO|DEBUG|warning)\b|.{0,300}?\w{0,40}Warning: |\[?[WI]\d{4}\b"
    r"|.{0,300}?\b(?:retrying|[Ff]alling back|going on without|will be ignored|[Ss]kipping)\b"
)
#: What the machine says, not the program: it counts wherever it stands.
_MACHINE = re.compile(
    r".{0,200}?NCCL WARN |slurmstepd: error|srun: error|\[ *\d{1,9}\.\d{1,6}\] |Fatal Python error"
    r"|.{0,200}?\[?E\d{3,4} [\d:. ]{1,40}(?:ProcessGroup|NCCLUtils|TCPStore|socket|torch/)"
)


@dataclass(frozen=True, kw_only=True)
class _Row:
    start: int
    end: int
    who: str
    said: str


@dataclass(frozen=True, kw_only=True)
class _Chain:
    """Tracebacks of which each led to the next; its numbers are of rows."""

    who: str
    rows: tuple[int, ...]
    begin: int  # of the part that came out: what was being handled before it had been caught
    end: int  # ... and where a failing cleanup begins
    last: str  # the exception that came out
    after: int  # how many rows of the same process stand above its end
    aside: bool

    @property
    def of_another(self) -> bool:
        return self.aside or _OF_ANOTHER.match(self.last) is not None


class Ending:
    """Which lines of a log tell how its program ended. `alone`: one process has written it."""

    def __init__(self, text: str, *, alone: bool) -> None:
        self._rows = [
            _Row(start=match.start(), end=match.end(), who=match["who"], said=match["said"])
            for match in _LINE.finditer(text)
            if match[0]
        ]
        self._of: dict[str, list[int]] = {}
        for number, row in enumerate(self._rows):
            self._of.setdefault(row.who, []).append(number)
        chains = sorted((chain for who in self._of for chain in self._chains(who)), key=lambda chain: chain.rows[0])
        finals = self._finals([chain for chain in chains if not chain.of_another], alone=alone)
        within = {number for chain in chains for number in chain.rows}
        over = {number for chain in chains if not chain.of_another for number in chain.rows}
        if finals:  # what is printed on the way out is the end only where nothing else is
            over |= {number for chain in chains if chain.aside for number in chain.rows}
        over -= {number for chain in finals for number in chain.rows if chain.begin <= number < chain.end}
        known = alone or any(_UNCAUGHT.search(chain.who) for chain in finals)
        ending = min((chain.rows[0] for chain in finals), default=0) if known else 0
        worked = {
            who: max((n for n in of if _GOES_ON.match(self._rows[n].said)), default=0) for who, of in self._of.items()
        }
        for number, row in enumerate(self._rows):
            before = number < max(ending, worked[row.who])
            aside = number not in within and (before or _SOFT.match(row.said) is not None)
            if aside and not _MACHINE.match(row.who + row.said):
                over.add(number)
        self._over = over | self._ended_by_torchrun()
        self._finals_at = [(self._rows[chain.begin].start, self._words_end(chain)) for chain in finals]
        self._starts = [row.start for row in self._rows]

    def tells(self, position: int) -> bool:
        """Whether what stands at `position` of the text says something about the end."""
        return bisect_right(self._starts, position) - 1 not in self._over

    def _words_end(self, chain: _Chain) -> int:
        """Where what an exception says may end: some of its words stand below its first line."""
        of = self._of[chain.who]
        return self._rows[of[min(chain.after + _LINES_OF_WORK, len(of)) - 1]].end

    def is_explained(self, positions: Iterable[int]) -> bool:
        """Whether each traceback that ended a process holds one of `positions`."""
        there = list(positions)
        return all(any(start <= one <= stop for one in there) for start, stop in self._finals_at)

    def _ended_by_torchrun(self) -> set[int]:
        roots = [number for number, row in enumerate(self._rows) if row.said.startswith(_ROOT_CAUSE)]
        begins = [number for number, row in enumerate(self._rows) if row.said.startswith(_FAILURES)]
        return set(range(begins[-1], roots[-1])) if roots and begins else set()

    def _finals(self, chains: list[_Chain], *, alone: bool) -> list[_Chain]:
        """Those that ended a process, as far as can be told."""
        uncaught = next((chain.rows[0] for chain in chains if _UNCAUGHT.search(chain.who)), None)
        found = []
        following: dict[str, _Chain] = {}
        for chain in reversed(chains):
            later = following.get(chain.who)
            following[chain.who] = chain
            if later and (alone or chain.who):
                continue
            if uncaught is not None and not chain.who and chain.rows[0] < uncaught:
                continue
            if not self._went_on(chain, later):
                found.append(chain)
        return found

    def _went_on(self, chain: _Chain, later: _Chain | None) -> bool:
        """Whether a process that had printed a traceback worked on."""
        other, bars, inside = 0, 0, False
        for number in self._of[chain.who][chain.after :]:
            if later and number >= later.rows[0]:
                break
            said = self._rows[number].said
            if said.startswith(_TRACEBACK):
                inside = True
            elif inside:
                inside = said.startswith((" ", "\t"))
            elif _GOES_ON.match(said):
                return True
            elif _BAR.match(said):
                bars += 1 + said.count("\r")
            elif not _LAST_RITES.match(said):
                other += 1
        return bars > 1 or other >= _LINES_OF_WORK

    def _chains(self, who: str) -> Iterator[_Chain]:
        same, at = self._of[who], 0
        while at < len(same):
            if not self._said(same, at).startswith(_TRACEBACK):
                at += 1
                continue
            first = begin = handled = at
            end: int | None = None
            while True:
                start = at
                at, last = self._traceback(same, start)
                if end is None and begin == start > first and self._is_cleanup(same[start:at]):
                    begin, end = handled, start
                joint, handling = self._joint(same, at)
                if joint is None:
                    break
                at = joint
                if handling and end is None:
                    handled, begin = begin, joint
            yield _Chain(
                who=who,
                rows=tuple(same[first:at]),
                begin=same[begin],
                end=same[at - 1] + 1 if end is None else same[end],
                last=last,
                after=at,
                aside=first > 0 and _ASIDE.match(self._said(same, first - 1)) is not None,
            )

    def _is_cleanup(self, rows: list[int]) -> bool:
        return any(_CLEANUP.match(self._rows[number].said) for number in rows)

    def _said(self, same: list[int], at: int) -> str:
        return self._rows[same[at]].said

    def _traceback(self, same: list[int], at: int) -> tuple[int, str]:
        """Where the traceback at `at` ends, and the exception below its frames."""

        def frames(at: int) -> int:
            while at < len(same) and (self._said(same, at).startswith((" ", "\t")) or not self._said(same, at)):
                at += 1
            return at

        at = frames(at + 1)
        last = self._said(same, at) if at < len(same) else ""
        return frames(min(at + 1, len(same))), last  # its words may go on, indented, as a list of tensors does

    def _joint(self, same: list[int], at: int) -> tuple[int | None, bool]:
        """Where the next traceback of the chain begins, and whether the one before was being handled by then."""
        joined = ""
        for index in range(at, min(at + _WORDS, len(same))):
            said = self._said(same, index)
            if _BROUGHT.match(said):
                return index, False
            if said in (_BECAUSE, _WHILE_HANDLING):
                joined = said
            elif said.startswith(_TRACEBACK):
                return (index, joined == _WHILE_HANDLING) if joined else (None, False)
        return None, False
