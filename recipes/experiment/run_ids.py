"""Ids of runs: `quantize_fp8_1126-0805-47f9a1`, what is run and when it was submitted, and the words that find one.

What stands before the last `_` is the title of the experiment: NeMo-Run finds an experiment's folder by that.
"""

import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from recipes.experiment.stage import Stage
from recipes.experiment.store import RunFolder, run_folders
from scripts.run.problems import Problem, ProblemsError, nearest
from scripts.run.record import DamagedRecordError, read_json, read_record
from scripts.run.schema import mapping

LATEST = "latest"
_TITLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
#: Of every id.
ENDING = re.compile(r"_\d{4}-\d{4}-[0-9a-f]{6}$")
_NOT_OF_TITLE = re.compile(r"[^A-Za-z0-9_-]+")
_MOST_OF_TITLE = 48
#: Of which a pipeline's name and a stage's are parts.
MOST_OF_PIPELINE, MOST_OF_STAGE = 24, 20
#: Of a stage that a sweep copied, whose name has the values.
MOST_OF_COPY = _MOST_OF_TITLE - MOST_OF_PIPELINE - 1
#: Of a part that is not the beginning: `rm 1` is not to find a run by a digit of its id.
LEAST_PART = 4


def new_ids(stages: Sequence[Stage]) -> dict[str, str]:
    """An id for each stage, by the stage's name: its title and the time here, which no run of this machine has.

    The end is as long as it is since run directories may lie where other machines put theirs. Stages of a pipeline have
    the same: `mine-quantize_1126-0805-47f9a1` is one of the pipeline `mine_1126-0805-47f9a1`.
    """
    now = datetime.now().strftime("%m%d-%H%M")
    while True:
        together = f"_{now}-{secrets.token_hex(3)}"
        ids: dict[str, str] = {}
        for stage in stages:
            ending = together
            while not stage.pipeline and (ending == together or f"{_title(stage)}{ending}" in ids.values()):
                ending = f"_{now}-{secrets.token_hex(3)}"
            ids[stage.name] = f"{_title(stage)}{ending}"
        if len(set(ids.values())) == len({stage.name for stage in stages}) and not any(
            RunFolder.of(made).dir.exists() for made in ids.values()
        ):
            return ids


def _title(stage: Stage) -> str:
    title = (
        f"{stage.pipeline[:MOST_OF_PIPELINE]}-{stage.name}" if stage.pipeline else stage.title or stage.partial.recipe
    )
    return _NOT_OF_TITLE.sub("-", title).lstrip("_-")[:_MOST_OF_TITLE].rstrip("_-")


def pipeline_of(run_id: str, stage: str) -> str:
    """The id of the pipeline that a stage's run is of."""
    title, _, ending = run_id.rpartition("_")
    return f"{title.removesuffix(f'-{stage}')}_{ending}"


def runs_of_pipeline(pipeline: str) -> list[RunFolder]:
    """The runs of a pipeline, by its id; none where there is no such pipeline."""
    title, _, ending = pipeline.rpartition("_")
    if not title:
        return []
    named = [folder for folder in run_folders() if folder.id.startswith(f"{title}-")]
    return [folder for folder in named if folder.id.endswith(f"_{ending}")]


def find_runs_of(word: str) -> list[RunFolder]:
    """The run that a word names, or all of the pipeline that it names: by its id, or a part that is of all its runs.

    Raises ProblemsError as `find_run` does.
    """
    folders = run_folders()
    titled = runs_of_pipeline(word) if "_" in word else []
    if titled and not any(folder.id == word for folder in folders):
        return titled
    held = [folder for folder in folders if len(word) >= LEAST_PART and word in folder.id]
    pipelines = {_pipeline_in(folder) for folder in held}
    if len(held) > 1 and len(pipelines) == 1 and None not in pipelines:
        return held
    return [find_run(word)]


def _pipeline_in(folder: RunFolder) -> str | None:
    """The pipeline that a run's job.json names."""
    named = mapping(mapping(read_json(folder.job)).get("job")).get("pipeline")
    return named if isinstance(named, str) else None


def is_title(value: Any) -> bool:
    """the title of a run or a pipeline"""
    return isinstance(value, str) and len(value) <= _MOST_OF_TITLE and not _NOT_OF_TITLE.search(value)


def title_problems(name: str | None) -> list[Problem]:
    """What is wrong with a name that somebody gives to a run."""
    if name is None or (_TITLE.fullmatch(name) and len(name) <= _MOST_OF_TITLE and name != LATEST):
        return []
    cause = f"a name is at most {_MOST_OF_TITLE} letters, digits, `_` and `-`, and begins with a letter or digit"
    cause = f"`{LATEST}` is the last run of all" if name == LATEST else cause
    return [Problem(name="bad_run_name", key="--name", value=name, cause=cause)]


def find_run(word: str) -> RunFolder:
    """The run that `word` names: its id, a part that no other has, `latest`, or `latest:RECIPE`. Raises ProblemsError.

    Of ids that begin with the word and others that hold it, the first count; a rank's number is no part of an id.
    """
    folders = run_folders()
    if word.partition(":")[0] == LATEST:
        return _latest(folders, word)
    matches = [folder for folder in folders if folder.id == word]
    matches = matches or [folder for folder in folders if word and folder.id.startswith(word)]
    if len(word) >= LEAST_PART:
        matches = matches or [folder for folder in folders if word in folder.id]
    if len(matches) == 1:
        return matches[0]
    cause = "several runs have that in their ids" if matches else "no run of that id is recorded here"
    names = [folder.id for folder in (matches or folders)][-8:]
    remedy = nearest(word, names) if names else "nemo experiment ps --all lists them."
    raise ProblemsError([Problem(name="unknown_run", key="ID", value=word, cause=cause, remedy=remedy)])


def _latest(folders: Sequence[RunFolder], word: str) -> RunFolder:
    """That which was submitted last, of one recipe where the word names one; by what their records say."""
    recipe = word.partition(":")[2]
    found = []
    for folder in folders:
        try:
            record = read_record(folder.dir)
        except (OSError, DamagedRecordError):
            continue
        if not recipe or record.get("recipe") == recipe:
            found.append((str(record.get("submitted_at")), folder.id, folder))
    if found:
        return max(found)[2]
    cause = f"no run of {recipe} is recorded here" if recipe else "no run is recorded here"
    remedy = "nemo experiment ps --all lists what is."
    raise ProblemsError([Problem(name="unknown_run", key="ID", value=word, cause=cause, remedy=remedy)])
