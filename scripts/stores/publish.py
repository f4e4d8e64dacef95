"""On the node: a job's outputs are put below the URL that its profile has for `output_root`, each whole or not at all.

The engine writes into the run directory as ever. When it is done, `unpublished.json` there says what it left; the
objects go up, are read back, and the manifest is written last. An attempt that finds that file of the one before it
goes on from there, without the engine.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from scripts.run.content import FOLDER as MANIFESTS
from scripts.run.content import content_of, listing_in
from scripts.run.files import write_json
from scripts.run.problems import JobError
from scripts.run.record import Follower, Record, read_json
from scripts.stores.objects import SUFFIX, File, Manifest, hashes, is_whole, joined, manifest_of, objects_of, opened

#: What tells a job the URL, and that its run directory keeps a copy of what is published.
STORE, KEEP = "MODELOPT_RECIPES_OUTPUT_STORE", "MODELOPT_RECIPES_KEEP_OUTPUTS"
NOTE = "unpublished.json"
_NOTED = {"outputs": [{"type": str, "path": str, "digest": str}], "inputs?": [dict]}
#: Of what a run recorded, what a later attempt that only publishes could not know.
_OF_THE_ENGINE = ("outputs", "inputs", "resolved", "engine", "device", "quantization", "timings")
#: What people and other commands read in the run directory: a copy is published, and it stays.
_STAY = ("eval_results", "probe_report")
#: Of an attempt's folder, what a further attempt has of its own.
_OWN = frozenset({NOTE, "run.json", "logs", "heartbeat", "progress.json", "attempts", "tracking"})
_MB = 1e6


def address(root: str, run_dir: str | Path, path: str | Path) -> str | None:
    """Where an output of a run is published; None for one that was named outside of the run directory.

    All attempts of a run publish to one place, also where each has a run directory of its own (`-r2`).
    """
    run_dir, path = Path(run_dir), Path(path)
    if not path.is_relative_to(run_dir):
        return None
    return joined(root, _run_of(run_dir), path.relative_to(run_dir).as_posix())


def _run_of(run_dir: Path) -> str:
    return re.sub(r"-r\d{1,3}$", "", run_dir.name)


def taken_up(record: Record) -> bool:
    """Whether the attempt before had made everything, and was stopped while it was published; then it is here again.

    Of several ranks all come to the same answer, and rank 0 brings the outputs. Raises JobError `output_missing`
    where something of it is another by now.
    """
    before = list(takewhile(lambda folder: (folder / NOTE).is_file(), record.earlier if os.environ.get(STORE) else []))
    noted = read_json(before[0] / NOTE, _NOTED) if before else None
    if noted is None or isinstance(record, Follower):
        return noted is not None
    write_json(record.dir / NOTE, noted)  # whoever is stopped now left a part here, and a part there
    for path in [path for folder in before for path in folder.iterdir()]:
        if path.name not in _OWN and not (record.dir / path.name).exists():
            _move(path, record.dir / path.name)
    outputs = [{**one, "path": _there(one["path"], record)} for one in noted["outputs"]]
    for one in outputs:
        if not Path(one["path"]).exists() or content_of(Path(one["path"])).digest != one["digest"]:
            (record.dir / NOTE).unlink()
            cause = f"{one['path']} is not what the attempt before had made and was publishing."
            raise JobError("output_missing", cause, "Resume once more: everything is made anew.")
    record.update(**{**{key: noted[key] for key in _OF_THE_ENGINE if key in noted}, "outputs": outputs})
    record.line("made by the attempt before; what is left is to publish it")
    return True


def _there(path: str, record: Record) -> str:
    """Where an output of an attempt lies in this one's run directory."""
    folders = [one for one in (record.dir, *record.earlier) if Path(path).is_relative_to(one)]
    return str(record.dir / Path(path).relative_to(folders[0])) if folders else path


def _move(path: Path, to: Path) -> None:
    try:
        path.rename(to)
    except OSError:  # another attempt's directory, which a container sees read-only
        shutil.copytree(path, to) if path.is_dir() else shutil.copy2(path, to)


def publish(record: Record) -> None:
    """Put what the engine left into the store, if the job has one, and record each output by its URL.

    Raises JobError `upload_failed` with everything kept here; the manifests that are written by then stand.
    """
    root, outputs = os.environ.get(STORE), record.values.get("outputs", [])
    if not root or isinstance(record, Follower):
        return
    urls = {one["path"]: url for one in outputs if (url := address(root, record.dir, one["path"])) is not None}
    for path in (one["path"] for one in outputs if one["path"] not in urls):
        record.line(f"{path} stays there: it was named outside of the run directory")
    write_json(record.dir / NOTE, {key: record.values[key] for key in _OF_THE_ENGINE if key in record.values})
    with record.phase("publish"):
        try:
            _put_all(record, [one for one in outputs if one["path"] in urls], urls)
        except (JobError, OSError) as error:
            cause = error.cause if isinstance(error, JobError) else f"{error}."
            keeps = f"What was made is kept in {record.dir}; when the store answers, resume the run: it only publishes."
            remedy = f"{error.remedy}  {keeps}".strip() if isinstance(error, JobError) else keeps
            raise JobError("upload_failed", cause, remedy) from error
    record.update(outputs=[{**one, "path": urls.get(one["path"], one["path"])} for one in outputs])
    (record.dir / NOTE).unlink(missing_ok=True)
    if not os.environ.get(KEEP):
        for one in outputs:
            if one["path"] in urls and one["type"] not in _STAY:
                _remove(Path(one["path"]))
                record.line(f"published, and removed here: {one['path']}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _put_all(record: Record, outputs: list[dict[str, Any]], urls: Mapping[str, str]) -> None:
    total, done = 2 * sum(one["bytes"] for one in outputs), 0

    def advance(count: int) -> None:  # of what went up, and of what was read back
        nonlocal done
        done += count
        record.progress(round(done / _MB), round(total / _MB), "MB up and read back")

    for one in outputs:
        record.line(f"{one['path']} -> {urls[one['path']]}")
        _put(one, urls[one["path"]], record, advance)


def _put(output: Mapping[str, Any], url: str, record: Record, advance: Callable[[int], None]) -> None:
    """One artifact: what is not there yet, read back, then the manifest."""
    run = _run_of(record.dir)
    if _stands(url, output["digest"], run):
        advance(2 * output["bytes"])
        return
    path, listing = Path(output["path"]), listing_in(record.dir, output["digest"])
    if listing is None:
        raise JobError("upload_failed", f"{record.dir / MANIFESTS} does not say which files {path} holds.", "")
    folder = path.is_dir()
    files = {name if folder else "": path / name if folder else path for name in listing}
    sizes = {name: file.stat().st_size for name, file in files.items()}
    digests = dict(zip(files, listing.values(), strict=True))
    there = objects_of(url)
    kept = hashes(url, [name for name, size in sizes.items() if there.get(name) == size])
    new = [name for name, digest in digests.items() if kept.get(name) != digest]
    with opened(url) as (fs, base):
        for name in there.keys() - files.keys():  # of an attempt of this run that had made something else
            fs.rm_file(joined(base, name))
        for name, file in files.items():
            target = joined(base, name)
            if name in new:
                fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                fs.put_file(str(file), target)
            advance(sizes[name] * (1 if name in new else 2))
    read = kept | hashes(url, new, advance)
    if wrong := next((name for name, digest in digests.items() if read.get(name) != digest), None):
        raise JobError("upload_failed", f"{joined(url, wrong)}: what was read back is not what was sent.", "")
    rows = [
        File(name=name, bytes=size, sha256=listing[name]) for name, size in zip(listing, sizes.values(), strict=True)
    ]
    whole = Manifest(type=output["type"], run=run, digest=output["digest"], folder=folder, files=tuple(rows))
    with opened(url + SUFFIX) as (fs, target):
        fs.pipe_file(target, whole.content)


def _stands(url: str, digest: str, run: str) -> bool:
    """Whether the artifact was published by then; the manifest of another content of this run goes."""
    try:
        found = manifest_of(url)
        if found is None or is_whole(url, digest):
            return found is not None
        if found.run != run:
            raise JobError("output_exists", f"{url} is what {found.run} left.", "Set another executor.output_root.")
    except JobError as error:
        if error.name != "artifact_damaged":
            raise
    with opened(url + SUFFIX) as (fs, path):
        fs.rm_file(path)
    return False
