"""Artifacts in an object store: what a URL names there, and the manifest that says whether it is whole.

    s3://bucket/prefix/RUN/optimize/.../hf                  an artifact, object by object
    s3://bucket/prefix/RUN/optimize/.../hf.manifest.json    written last: its files, its digest, the run that made it

fsspec is a filesystem here and nothing else. Credentials and endpoints are those of the environment, as each
filesystem reads them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL ...); nothing of them is in a URL.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from scripts.args.meaning import values_of
from scripts.run import schema
from scripts.run.content import Content, digest_of
from scripts.run.problems import JobError, install, is_disk_full, nearest

SUFFIX = ".manifest.json"
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
#: What fsspec opens, and is no place that keeps what one run leaves for another to list and read.
_NO_STORES = frozenset({"memory", "http", "https", "hf", "data"})
_USUAL = ("s3", "gs", "az", "file")
_SCHEMA = 1
_FIELDS = {
    **{"schema": schema.one_of(_SCHEMA), "type": str, "run": str, "digest": str, "folder": bool},
    "files": [{"name": str, "bytes": int, "sha256": str}],
}
_ANEW = "Do not use it; have it made again."
_MANIFEST_BYTES = 64 << 20
_DIGITS = 18
_PIECE = 8 << 20
#: Objects that are read at a time, each by a thread.
_AT_ONCE = 8
#: So many folders above an input its manifest is looked for: an iteration of a checkpoint, a prefix of data.
_ABOVE = 4
#: An endpoint that is not there is given up after seconds, not minutes.
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}}
}


@dataclass(frozen=True, kw_only=True)
class File:
    """One object of an artifact; its name is empty where the artifact is that one object."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact in a store holds, as the run that made it wrote down when everything was there."""

    type: str
    run: str
    digest: str
    folder: bool  # else it is one file
    files: tuple[File, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each object, by its name below the artifact; "" is the artifact that is one file."""
        return {one.name if self.folder else "": one.bytes for one in self.files}

    @property
    def content(self) -> bytes:
        """As it is in the store."""
        return (json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def of(cls, content: bytes) -> "Manifest":
        """Read back. Raises ValueError where it is none, or its files are not those of its digest."""
        found = schema.fitting(schema.parse(content, digits=_DIGITS), _FIELDS)
        files = tuple(File(**{key: row[key] for key in ("name", "bytes", "sha256")}) for row in found["files"])
        for one in files:
            if {"", ".", ".."} & set(one.name.split("/")) or "\0" in one.name:
                raise ValueError(f"{one.name!r} is no name of a file")
        if digest_of({one.name: one.sha256 for one in files}) != found["digest"]:
            raise ValueError("its files are not those of its digest: it was changed")
        if not found["folder"] and len(files) != 1:
            raise ValueError("it is to be one file")
        return cls(**{key: found[key] for key in ("type", "run", "digest", "folder")}, files=files)


def is_url(text: object) -> bool:
    """Whether a text is a URL of what may be a store; `fault` says what is wrong with it."""
    match = _URL.fullmatch(text) if isinstance(text, str) else None
    return match is not None and match[1] not in _NO_STORES


def fault(url: str) -> JobError | None:
    """Why a URL names no store, or must not be written down; by its words alone. It is not shown: it may be secret."""
    scheme, rest = url.partition("://")[::2]
    if "@" in rest.partition("/")[0] or "?" in rest:
        cause = f"a URL of {scheme} holds a user, a password or a signature, which would stand in files"
        remedy = "Leave it out; give credentials by the environment (AWS_ACCESS_KEY_ID ...), or executor.secrets."
        return JobError("secret_in_url", cause, remedy)
    from fsspec import available_protocols

    if scheme not in available_protocols():
        return JobError("wrong_value", f"{url}: nothing opens {scheme}://", nearest(scheme, _USUAL))
    if not rest.strip("/") or ".." in rest.split("/"):
        return JobError("wrong_value", f"{url} names no place in a store", "Write s3://BUCKET/PREFIX.")
    return None


def urls_in(args: Any) -> list[tuple[str, str]]:
    """The inputs of `args` that are URLs, each with its field."""
    return [
        (name, item)
        for name, value, meaning in values_of(args)
        for item in (value if isinstance(value, list) else [value])
        if meaning.reads and is_url(item)
    ]


def joined(url: str, *below: str) -> str:
    """A URL further down."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in below if part.strip("/"))])


@contextmanager
def opened(url: str) -> Iterator[tuple[Any, str]]:
    """The filesystem of a URL, and its path there. FileNotFoundError passes.

    Raises JobError `store_not_installed`, and `store_unreachable` for whatever goes wrong inside the block.
    """
    if error := fault(url):
        raise error
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        # What a listing said before is not asked for again: others write there too.
        yield url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **_OPTIONS.get(scheme, {}))
    except (JobError, FileNotFoundError):
        raise
    except ImportError as error:
        brings = install("s3") if scheme in ("s3", "s3a") else f"Install what fsspec needs for {scheme}://."
        raise JobError("store_not_installed", f"no filesystem for {scheme}:// is installed: {error}.", brings) from None
    except Exception as error:  # each filesystem has errors of its own; all mean that the store cannot be used
        if is_disk_full(error):
            raise  # of this machine
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        remedy = "Look at the bucket, AWS_ENDPOINT_URL and the credentials that the environment gives."
        raise JobError("store_unreachable", f"{url}: {said}.", remedy) from error


def manifest_of(url: str) -> Manifest | None:
    """The manifest of the artifact that `url` is; None where there is none.

    Raises JobError `artifact_damaged` for one that was changed, and as `opened` does.
    """
    try:
        with opened(url.rstrip("/") + SUFFIX) as (fs, path):
            if fs.info(path)["size"] > _MANIFEST_BYTES:
                raise JobError("artifact_damaged", f"{url}{SUFFIX} is no manifest: it is too large.", _ANEW)
            content: bytes = fs.cat_file(path)
    except FileNotFoundError:
        return None
    try:
        return Manifest.of(content)
    except (ValueError, KeyError, TypeError) as error:
        raise JobError("artifact_damaged", f"{url}{SUFFIX}: {error}.", _ANEW) from None


def manifest_above(url: str) -> tuple[str, Manifest, str] | None:
    """The artifact that `url` is or lies in: its URL, its manifest, and what of it is named.

    Raises as `manifest_of` does.
    """
    whole, rest = url.rstrip("/"), ""
    for _ in range(_ABOVE):
        if (found := manifest_of(whole)) is not None:
            return whole, found, rest
        above, _, name = whole.rpartition("/")
        if above.endswith("/") or above.count("/") < 3:  # the bucket
            return None
        whole, rest = above, posixpath.join(name, rest) if rest else name
    return None


def objects_of(url: str) -> dict[str, int]:
    """The bytes of each object at or below `url`, by its name there; empty where there is none. Raises as `opened`."""
    with opened(url) as (fs, path):
        try:
            found = fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
        root = path.rstrip("/")
        return {name[len(root) :].strip("/"): int(facts["size"]) for name, facts in found.items()}


def is_whole(url: str, digest: str | None) -> bool:
    """Whether the artifact is there as it was published, as far as its manifest and the sizes say.

    Raises as `manifest_of` does.
    """
    found = manifest_of(url)
    if found is None or digest != found.digest:
        return False
    there = objects_of(url)
    return all(there.get(name) == size for name, size in found.sizes.items())


def hashes(
    url: str, names: Iterable[str], advance: Callable[[int], None] = lambda read: None, into: Path | None = None
) -> dict[str, str]:
    """The SHA-256 of objects below `url`, each read whole; one that is gone is left out. Raises as `opened` does.

    With `into`, what was read is written there.
    """
    with opened(url) as (fs, path), ThreadPoolExecutor(_AT_ONCE) as pool:

        def one(name: str) -> tuple[str, str | None]:
            digest = hashlib.sha256()
            try:
                with ExitStack() as stack:
                    handle = stack.enter_context(fs.open(joined(path, name), "rb", block_size=_PIECE))
                    own = name or posixpath.basename(path)
                    copy = None if into is None else stack.enter_context(_made(into / own))
                    while piece := handle.read(_PIECE):
                        digest.update(piece)
                        if copy is not None:
                            copy.write(piece)
                        advance(len(piece))
            except FileNotFoundError:
                return name, None
            return name, digest.hexdigest()

        try:
            return {name: digest for name, digest in pool.map(one, names) if digest is not None}
        finally:
            pool.shutdown(cancel_futures=True)


def _made(file: Path) -> IO[bytes]:
    """A new file, in folders that are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.open("xb")


def content_of(
    url: str, advance: Callable[[int], None] = lambda read: None, into: Path | None = None
) -> Content | None:
    """All that is at or below `url`, read whole, as scripts.run.content measures a folder; None where nothing is.

    With `into`, a copy of it is written there. Raises as `opened` does.
    """
    sizes = objects_of(url)
    if not sizes:
        return None
    read = hashes(url, sorted(sizes, key=lambda name: name.split("/")), advance, into)  # in the order of paths
    listing = {name or posixpath.basename(url.rstrip("/")): digest for name, digest in read.items()}
    return Content(bytes=sum(sizes.values()), files=len(sizes), digest=digest_of(listing), listing=listing)
