"""On the node: inputs that are URLs are fetched once, into a cache by digest; the engine sees folders."""

import hashlib
import posixpath
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from scripts.run.content import content_of
from scripts.run.files import locked, staged, write_json
from scripts.run.problems import JobError
from scripts.run.record import Record, read_json
from scripts.stores.objects import Manifest, joined, manifest_above, opened, urls_in
from scripts.tiny.model import default_cache_root

Args = TypeVar("Args")
#: Beside what was fetched: where it is from.
_ORIGIN = "origin.json"
_FACTS = {"url": str, "run": str, "digest": str}
_MB = 1e6


def fetched(args: Args, record: Record) -> Args:
    """Resolved `args` with the folder of this machine in the place of each URL that is an input.

    Ranks of one machine fetch once. Raises JobError: missing_input, artifact_damaged, or as `objects.opened` does.
    """
    here = {url: str(_fetched(url, record)) for url in dict.fromkeys(url for _, url in urls_in(args))}

    def local(value: Any) -> Any:
        return [here.get(item, item) for item in value] if isinstance(value, list) else here.get(value, value)

    fields = {name for name, _ in urls_in(args)}
    return replace(args, **{name: local(getattr(args, name)) for name in fields})  # type: ignore[type-var]


def origin_of(path: Path) -> dict[str, str]:
    """Of what lies in the cache, and may be a part of an artifact: its URL, the run that made it, its digest."""
    for folder in path.parents:
        if folder.parent == _root() and (said := read_json(folder / _ORIGIN, _FACTS)) is not None:
            below = path.relative_to(folder).parts[1:]
            url = joined(said["url"], *below)
            return {"name": url, "path": url, "run": said["run"], "digest": said["digest"]}
    return {}


def _root() -> Path:
    return default_cache_root().with_name("fetched")


def _fetched(url: str, record: Record) -> Path:
    found = manifest_above(url)
    if found is None:
        cause = f"{url}: no manifest is beside it, so that no run has published it, or not all of it."
        raise JobError("missing_input", cause, "Name an artifact that a run left: nemo experiment artifacts.")
    whole, manifest, rest = found
    digits = manifest.digest.removeprefix("sha256:")[:16]
    folder = _root() / f"{digits}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    path = folder / posixpath.basename(whole)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock")):
        if _is_here(path, manifest):
            record.line(f"{url}: fetched before, {path}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            with record.phase("fetch"), staged(folder) as partial:
                record.line(f"{whole} -> {path}")
                _get(whole, manifest, partial / path.name, record)
                write_json(partial / _ORIGIN, {"url": whole, "run": manifest.run, "digest": manifest.digest})
    return path / rest


def _is_here(path: Path, manifest: Manifest) -> bool:
    files = {path / name: size for name, size in manifest.sizes.items()}
    return all(file.is_file() and file.stat().st_size == size for file, size in files.items())


def _get(url: str, manifest: Manifest, into: Path, record: Record) -> None:
    done, total = 0, sum(manifest.sizes.values())
    with opened(url) as (fs, base):
        for name, size in manifest.sizes.items():
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                fs.get_file(joined(base, name), str(target))
            except FileNotFoundError:
                raise _damaged(url, f"{name or url} is gone") from None
            if target.stat().st_size != size:
                raise _damaged(url, f"{name or url} has {target.stat().st_size} bytes, not {size}")
            done += size
            record.progress(round(done / _MB), round(total / _MB), "MB")
    read = content_of(into)
    if read.digest != manifest.digest:
        listing = {one.name: one.sha256 for one in manifest.files}
        changed = next((name for name, digest in read.listing.items() if listing.get(name) != digest), "")
        raise _damaged(url, f"{changed} holds something else than was published")


def _damaged(url: str, cause: str) -> JobError:
    return JobError("artifact_damaged", f"{url}: {cause}.", "Have it made again: resume or run what made it.")
