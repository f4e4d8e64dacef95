"""An artifact: one output of a run, and the words that find one."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from executors.base import is_below
from recipes.experiment.index import refreshed
from recipes.experiment.pipeline_runs import with_those_that_stood
from recipes.experiment.run_ids import LEAST_PART, find_run, find_runs_of
from recipes.experiment.runs import Run, look
from recipes.experiment.settled import known_runs
from recipes.experiment.store import RunFolder, run_folders
from recipes.experiment.tags import tag_of
from scripts.run.files import is_there
from scripts.run.problems import Problem, ProblemsError, nearest
from scripts.stores.objects import is_url

#: So many hexadecimal digits of a digest name an artifact; a run's id ends with fewer.
_LEAST_DIGITS = 8
_DIGEST = re.compile(rf"(?:sha256:)?([0-9a-f]{{{_LEAST_DIGITS},64}})")


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a run wrote down of an output, when it had published it."""

    run: Run
    type: str
    path: str  # as the job saw it, or a URL
    bytes: int
    files: int | None
    digest: str | None  # None: an early run's, which wrote none
    quantization: str | None = None  # the format that it was found to be in

    @property
    def reference(self) -> str:
        """What finds it: on the command line, and in a value as `${artifact:REFERENCE}`."""
        return f"{self.run.id}.{self.type}"

    @property
    def in_store(self) -> bool:
        """Whether it was published to an object store, which `path` is the URL in."""
        return is_url(self.path)

    @property
    def place(self) -> Path | None:
        """Where it lies on this machine, be it there still or not; None where its disk is not seen from here."""
        return None if self.in_store else self.run.path_here(Path(self.path))

    @property
    def made_at(self) -> str:
        return str(self.run.record.get("finished_at") or self.run.record.get("submitted_at") or "")

    def as_data(self) -> dict[str, Any]:
        """As `artifacts --json` has it."""
        facts = {name: getattr(self, name) for name in ("reference", "type", "bytes", "files", "digest", "made_at")}
        here = self.place
        return facts | {"run": self.run.id, "path": self.path, "here": here is not None and is_there(here)}


def artifacts_of(runs: Iterable[Run], kind: str | None = None) -> list[Artifact]:
    """Of runs, in their order; of one type where it is named."""
    found = []
    for run in runs:
        for output in run.outputs:
            facts: dict[str, Any] = {name: output.get(name) for name in ("bytes", "files", "digest", "quantization")}
            one = Artifact(run=run, type=output["type"], path=output["path"], **facts)
            found += [one] if kind in (None, one.type) else []
    return found


def find_artifacts(word: str) -> list[Artifact]:
    """What `word` names: a tag, a run, RUN.TYPE, a path, or the first digits of a digest. Raises ProblemsError.

    A path names what it is, or lies in; of several the last that was made. Digits name one content, wherever it lies.
    """
    if tag := tag_of(word):
        word = f"{tag.run}.{tag.type}"
    if is_url(word):
        made = [one for one in artifacts_of(known_runs()) if one.in_store and is_below(word, one.path)]
        return _some(made[-1:], word, "no run is recorded here that left it")
    if os.sep in word:
        path = os.path.realpath(word)
        made = [one for one in artifacts_of(known_runs()) if one.place and is_below(path, os.path.realpath(one.place))]
        return _some(made[-1:], word, "no run is recorded here that left it")
    if match := _DIGEST.fullmatch(word.lower()):
        with refreshed() as index:  # thousands of runs are not looked at for it
            ids = index.runs_with_outputs(digest=f"sha256:{match[1]}")
        found = artifacts_of(look(map(RunFolder.of, ids)))
        made = [one for one in found if (one.digest or "").startswith(f"sha256:{match[1]}")]
        if made or word.startswith("sha256:"):
            return _some(made, word, "no artifact has that digest")
    name, _, kind = word.partition(".")
    try:
        runs = look([find_run(name)])
    except ProblemsError as error:
        raise ProblemsError([replace(problem, key="REF") for problem in error.problems]) from None
    left = artifacts_of(runs)
    if not left:
        state = runs[0].state
        raise _unknown(word, f"the run left nothing; its state is {state}", f"nemo experiment status {runs[0].id}")
    types = [one.type for one in left]
    return _some([one for one in left if kind in ("", one.type)], word, f"the run left {', '.join(types)}", kind, types)


def find_runs(word: str) -> list[Run]:
    """The run that `word` names, all of a pipeline, or all that it may: those of a sweep begin alike.

    Raises ProblemsError.
    """
    try:
        runs = look(find_runs_of(word))
        return [run for some in with_those_that_stood(runs) for run in some] if len(runs) > 1 else runs
    except ProblemsError:
        several = [folder for folder in run_folders() if word and word in folder.id]
        begin = [folder for folder in several if folder.id.startswith(word)]
        if not (begin or (several and len(word) >= LEAST_PART)):
            raise
        return look(begin or several)


def _some(found: list[Artifact], word: str, cause: str, kind: str = "", types: Sequence[str] = ()) -> list[Artifact]:
    if not found:
        remedy = nearest(kind, types) if types else "nemo experiment artifacts lists them."
        raise _unknown(word, cause, remedy)
    return found


def _unknown(word: str, cause: str, remedy: str) -> ProblemsError:
    return ProblemsError([Problem(name="unknown_artifact", key="REF", value=word, cause=cause, remedy=remedy)])
