"""An index of the runs of this machine, and of the content of files: what thousands of folders would be read for.

It is made of the folders, and of nothing else: one that is gone, damaged or of another version is made anew. A folder
is read again when something was put into it, or its records are other files; a file, when its size or its times are
others.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from executors.base import nemorun_home
from recipes.experiment.store import RunFolder, let_appear, runs_dir, stamp
from scripts.run.content import content_of, files_below
from scripts.run.record import read_json
from scripts.run.schema import listed, mapping

_VERSION = 2
_WAIT_SECONDS = 10.0
_TABLES = """
create table runs (id text primary key, stamp text, state text, recipe text, submitted text, fingerprint text);
create index runs_by_fingerprint on runs (fingerprint);
create table outputs (run text, type text, path text, bytes integer, files integer, digest text, made text);
create index outputs_by_run on outputs (run);
create index outputs_by_digest on outputs (digest);
create table settled (run text primary key, shown text, record text);
create table contents (path text primary key, files text, digest text);
"""


class Index:
    """The index as a database beside the runs; `refreshed` opens it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def _rows(self, asked: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """What it says; of one that turns out to be damaged, what it says once it is made anew."""
        try:
            return self._db.execute(asked, values).fetchall()
        except sqlite3.Error as error:
            self.renew(error)
            return self._db.execute(asked, values).fetchall()

    def renew(self, error: sqlite3.Error) -> None:
        """Go on in memory: it is no database of ours any more, or the disk has no room."""
        _drop(self._db, error)
        self._db = _made(sqlite3.connect(":memory:"))
        self.refresh()

    def refresh(self) -> None:
        """Read the folders that were written since, and forget those that are gone."""
        let_appear()
        known = dict(self._db.execute("select id, stamp from runs"))
        there: dict[str, str] = {}
        with suppress(FileNotFoundError), os.scandir(runs_dir()) as entries:
            there = {entry.name: stamp(entry.path) for entry in entries if not entry.name.startswith(".")}
        gone = [(run_id,) for run_id in known if run_id not in there]
        changed = [run_id for run_id, now in there.items() if known.get(run_id) != now]
        if not gone and not changed:
            return
        with self._db:
            self._forget([*gone, *((run_id,) for run_id in changed)])
            for run_id in changed:
                self._take(run_id, there[run_id])

    def _forget(self, ids: list[tuple[str]]) -> None:
        self._db.executemany("delete from runs where id = ?", ids)
        self._db.executemany("delete from outputs where run = ?", ids)
        self._db.executemany("delete from settled where run = ?", ids)

    def _take(self, run_id: str, now: str) -> None:
        folder = RunFolder.of(run_id)
        record = read_json(folder.dir / "run.json") or {}
        kept = mapping(mapping(read_json(folder.job)).get("job")).get("fingerprint")
        fingerprint = mapping(kept).get("digest")
        said = [str(record.get(key) or "") for key in ("state", "recipe", "submitted_at")]
        row = (run_id, now, *said, fingerprint if isinstance(fingerprint, str) else None)
        self._db.execute("insert into runs values (?, ?, ?, ?, ?, ?)", row)
        made = str(record.get("finished_at") or record.get("submitted_at") or "")
        for output in map(mapping, listed(record.get("outputs"))):
            facts = [output.get(key) for key in ("type", "path", "bytes", "files", "digest")]
            if isinstance(facts[0], str) and all(isinstance(fact, (str, int, type(None))) for fact in facts):
                self._db.execute("insert into outputs values (?, ?, ?, ?, ?, ?, ?)", (run_id, *facts, made))

    def with_fingerprint(self, digest: str) -> list[str]:
        """The runs whose results depend on the same, the newest first."""
        asked = "select id from runs where fingerprint = ? order by submitted desc, id desc"
        return [run_id for (run_id,) in self._rows(asked, (digest,))]

    def of_recipe(self, recipe: str) -> list[str]:
        """The runs of a recipe that have a fingerprint, the newest first."""
        asked = "select id from runs where recipe = ? and fingerprint is not null order by submitted desc, id desc"
        return [run_id for (run_id,) in self._rows(asked, (recipe,))]

    def runs_with_outputs(self, *, kind: str | None = None, digest: str = "") -> list[str]:
        """The runs that left an output of a type, or of a digest that begins so; the oldest first."""
        asked = (
            "select distinct runs.id from outputs join runs on runs.id = outputs.run where (? is null or type = ?) "
            "and (? = '' or substr(digest, 1, length(?)) = ?) order by submitted, runs.id"
        )
        return [run_id for (run_id,) in self._rows(asked, (kind, kind, digest, digest, digest))]

    def others(self) -> list[str]:
        """The runs of which nothing is kept, that may change yet."""
        return [one for (one,) in self._rows("select id from runs where id not in (select run from settled)")]

    def settled(self) -> list[tuple[str, str, str]]:
        """Those that cannot change any more: id, when it was submitted, and what was kept to be shown."""
        return self._rows("select id, submitted, shown from settled join runs on id = run")

    def records(self) -> dict[str, str]:
        """The records of those, by their ids."""
        return dict(self._rows("select run, record from settled"))

    def keep(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """That runs cannot change any more: id, what to show of each, and its record. Until something is put there."""
        with suppress(sqlite3.Error), self._db:
            self._db.executemany("insert or replace into settled values (?, ?, ?)", rows)

    def content(self, path: Path) -> str | None:
        """The digest of what a file or a folder holds; None where it cannot be read. It is read where that is new."""
        real = os.path.realpath(path)
        try:
            before = _files(real)
            for files, digest in self._rows("select files, digest from contents where path = ?", (real,)):
                if files == before:
                    return str(digest)
            found = content_of(Path(real)).digest
            if _files(real) != before:  # somebody writes there
                return None
        except OSError:
            return None
        with suppress(sqlite3.Error), self._db:
            self._db.execute("insert or replace into contents values (?, ?, ?)", (real, before, found))
        return found


@contextmanager
def refreshed() -> Iterator[Index]:
    """The index as the folders are now. One that cannot be kept on the disk is made in memory."""
    with _opened() as connection:
        index = Index(connection)
        try:
            index.refresh()
        except sqlite3.Error as error:
            index.renew(error)
        yield index


@contextmanager
def _opened() -> Iterator[sqlite3.Connection]:
    connection = None
    try:
        # Who only asks leaves nothing behind where nothing is.
        file = str(_path()) if runs_dir().is_dir() else ":memory:"
        connection = _made(sqlite3.connect(file, timeout=_WAIT_SECONDS))
    except (sqlite3.Error, OSError) as error:
        _drop(connection, error)
        connection = _made(sqlite3.connect(":memory:"))
    try:
        yield connection
    finally:
        connection.close()


def _drop(connection: sqlite3.Connection | None, error: Exception) -> None:
    """Close what cannot be used, and remove it where it is damaged; not where another process has it at the moment."""
    if connection is not None:
        connection.close()
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        with suppress(OSError):
            _path().unlink()


def _made(connection: sqlite3.Connection) -> sqlite3.Connection:
    """With the tables of this version. Raises sqlite3.Error."""
    (version,) = connection.execute("pragma user_version").fetchone()
    if version != _VERSION:
        if version or connection.execute("select count(*) from sqlite_master").fetchone() != (0,):
            raise sqlite3.DatabaseError("it is of another version")
        connection.executescript(f"begin; {_TABLES} pragma user_version = {_VERSION}; commit;")
    return connection


def _files(path: str) -> str:
    """Names, sizes and times of everything below a path, in one text. Raises OSError."""
    if not Path(path).is_dir():
        return _stated(path)
    found = {os.path.relpath(file, path): str(file) for file in files_below(Path(path))}
    return json.dumps({name: _stated(file) for name, file in sorted(found.items())})


def _stated(path: str) -> str:
    try:
        state = os.stat(path)  # noqa: PTH116 - of thousands
    except FileNotFoundError:  # a link to nothing
        return "nothing"
    return f"{state.st_ino} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"


def _path() -> Path:
    return Path(nemorun_home()) / "index.sqlite"
