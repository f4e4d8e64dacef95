"""Digests and manifests: of every content its own, and a manifest that others can read."""

import hashlib
import os
import subprocess
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from scripts.run.content import content_of, listing_in, manifest_of, manifest_path, reading, written
from scripts.run.files import write_text


def folder(path: Path) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "b.txt").write_text("two")
    (path / "deep" / "a b.bin").write_bytes(bytes(range(256)) * 9000)
    (path / "empty").touch()
    return path


def test_the_digest_is_over_names_and_contents_as_it_always_was(tmp_path: Path) -> None:
    found = content_of(folder(tmp_path / "one"))
    tree = hashlib.sha256()
    for name in ("b.txt", "deep/a b.bin", "empty"):
        digest = hashlib.sha256((tmp_path / "one" / name).read_bytes()).hexdigest()
        assert found.listing[name] == digest
        tree.update(f"{name}\0{digest}\n".encode())
    assert (found.digest, found.files, found.bytes) == (f"sha256:{tree.hexdigest()}", 3, 3 + 256 * 9000)
    assert content_of(folder(tmp_path / "two")) == found


@pytest.mark.parametrize("name", ["new\nline", "back\\slash", "\\n", "carriage\rreturn", "漢字", " x ", "\udcff"])
def test_a_manifest_says_every_name_and_coreutils_can_check_it(name: str, tmp_path: Path) -> None:
    made = folder(tmp_path / "made")
    (made / os.fsencode(name).decode("utf-8", "surrogateescape")).write_text("odd")
    found = content_of(made)
    file = manifest_path(tmp_path, found.digest)
    write_text(file, manifest_of(found))
    assert listing_in(tmp_path, found.digest) == found.listing
    words = ["sha256sum", "--check", "--strict", "--quiet", str(file)]
    assert subprocess.run(words, cwd=made, capture_output=True).returncode == 0
    (made / "b.txt").write_text("twp")
    assert subprocess.run(words, cwd=made, capture_output=True).returncode == 1


@pytest.mark.parametrize("damage", ["", "cut", "other", "none", "a folder"])
def test_a_damaged_manifest_says_nothing(damage: str, tmp_path: Path) -> None:
    found = content_of(folder(tmp_path / "made"))
    file, text = manifest_path(tmp_path, found.digest), manifest_of(found)
    if damage == "a folder":
        file.mkdir(parents=True)
    elif damage != "none":
        write_text(file, {"": text, "cut": text[:-9], "other": text.replace("b.txt", "c.txt")}[damage])
    assert (listing_in(tmp_path, found.digest) is None) == bool(damage)


def test_progress_is_in_bytes(tmp_path: Path) -> None:
    pieces: list[int] = []
    found = content_of(folder(tmp_path / "made"), pieces.append)
    assert sum(pieces) == found.bytes and len(pieces) > 3


def test_what_was_read_when_it_was_written_is_not_read_again(tmp_path: Path) -> None:
    """Unless it was written to since, or was copied: the name alone says nothing."""
    made = folder(tmp_path / "made")
    found, file = content_of(made), made / "deep" / "a b.bin"
    pieces: list[int] = []
    known = {written(file): found.listing["deep/a b.bin"]}
    made = made.rename(tmp_path / "moved")
    assert content_of(made, pieces.append, known=known) == found and sum(pieces) == 3
    (file := made / "deep" / "a b.bin").write_bytes(bytes(reversed(file.read_bytes())))
    assert content_of(made, known=known).listing["deep/a b.bin"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_files_are_read_beside_the_work(tmp_path: Path) -> None:
    """One after another, each to its end; what nobody waits for is given up."""
    made = folder(tmp_path / "made")
    with reading() as measure:
        each = [measure(file) for file in (made / "deep" / "a b.bin", made / "b.txt", made) * 3]
        assert [one.result().bytes for one in each] == [256 * 9000, 3, 3 + 256 * 9000] * 3
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    with reading() as measure:
        endless = measure(large)
    with pytest.raises(CancelledError):
        endless.result(timeout=20)
