"""Files that pretend to be bundles: each is refused by name, and nothing is written beside where its content goes."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from recipes.experiment.bundle_file import FORMAT, read, refuse_place, unpack, write
from scripts.run.problems import JobError, ProblemsError

CONTENT = b"what a program reads"
STAGE = {
    **{"recipe": "probe", "family": "probe", "executor": "local", "profile": {}, "after": [], "values": {}},
    **{"run": "probe_1126-0805-47f9a1", "outputs": []},
}


def document(**facts: Any) -> dict[str, Any]:
    return {
        **{
            "format": FORMAT,
            "schema": 1,
            "id": "probe_1126-0805-47f9a1",
            "pipeline": None,
            "versions": {},
            "git": None,
        },
        **{"stages": {"probe": STAGE}, "inputs": [], "code": None},
        "trees": [{"name": "own", "files": {"a/b.txt": "files/1"}, "executable": []}],
        "files": {"files/1": {"bytes": len(CONTENT), "sha256": sha256(CONTENT).hexdigest()}},
        **facts,
    }


def tree(name: str, within: str = "own") -> dict[str, Any]:
    return document(trees=[{"name": within, "files": {name: "files/1"}, "executable": []}])


def archive(file: Path, data: Any, name: str = "files/1", content: bytes = CONTENT, **facts: Any) -> Path:
    """A tar as anybody can make one, which is right but for what the case has wrong."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for member, text in (("bundle.json", json.dumps(data).encode()), (name, content)):
            info = tarfile.TarInfo(member)
            info.size = len(text)
            for key, value in facts.items() if member == name else ():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(text))
        end = tar.offset
    file.write_bytes(gzip.compress(raw.getvalue()[:end] + bytes(2 * tarfile.BLOCKSIZE)))
    return file


def test_what_was_written_is_read_and_unpacked_and_no_file_is_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "run.tar.gz"
    write(file, document(), {"files/1": CONTENT}, lambda read: None)
    data = read(file)
    unpack(file, data, tmp_path / "there", lambda read: None)
    assert data == document() and (tmp_path / "there/0/own/a/b.txt").read_bytes() == CONTENT
    with pytest.raises(ProblemsError, match="output_exists"):
        write(file, document(), {"files/1": CONTENT}, lambda read: None)
    with pytest.raises(ProblemsError, match="output_not_writable"):
        refuse_place(tmp_path / "nowhere" / "run.tar.gz")
    with pytest.raises(JobError, match="was changed"):
        write(tmp_path / "other.tar.gz", document(), {"files/1": b"something else here."}, lambda read: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.tar.gz", "there"]


def test_what_anybody_makes_right_is_unpacked(tmp_path: Path) -> None:
    file = archive(tmp_path / "run.tar.gz", document())
    unpack(file, read(file), tmp_path / "there", lambda read: None)
    assert (tmp_path / "there/0/own/a/b.txt").read_bytes() == CONTENT


HOSTILE: dict[str, Callable[[Path], object]] = {
    "no tar": lambda file: file.write_bytes(b"PK\3\4 something else"),
    "gzip of something else": lambda file: file.write_bytes(gzip.compress(b"x" * 4096)),
    "nothing": lambda file: file.write_bytes(b""),
    "no JSON": lambda file: archive(file, "text"),
    "of another product": lambda file: archive(file, document(format="other")),
    "a newer one": lambda file: archive(file, document(schema=2, trees=[])),
    "a version in words": lambda file: archive(file, document(schema="1")),
    "a version that is true": lambda file: archive(file, document(schema=True)),
    "a library's version that is no text": lambda file: archive(file, document(versions={"torch": 2})),
    "a library of two lines": lambda file: archive(file, document(versions={"torch\n2": "2"})),
    "a pipeline that leads out": lambda file: archive(file, document(pipeline="../../x")),
    "stages of no pipeline": lambda file: archive(file, document(stages={"a": STAGE, "b": STAGE})),
    "an executable that is not there": lambda file: archive(
        file, document(trees=[{"name": "own", "files": {"a": "files/1"}, "executable": ["b"]}])
    ),
    "a tree of a long name": lambda file: archive(file, tree("b", within="b" * 300)),
    "a file of a long name": lambda file: archive(file, tree("a/" + "b" * 300)),
    "a stage that is none": lambda file: archive(file, document(stages={"probe": 1})),
    "no stage": lambda file: archive(file, document(stages={})),
    "an absolute name": lambda file: archive(file, tree("/etc/passwd")),
    "a name that leads out": lambda file: archive(file, tree("a/../../b")),
    "a tree that leads out": lambda file: archive(file, tree("b", within="..")),
    "a tree below another": lambda file: archive(file, tree("b", within="a/b")),
    "a file in a file": lambda file: archive(
        file, document(trees=[{"name": "own", "files": {"a": "files/1", "a/b": "files/1"}, "executable": []}])
    ),
    "a tree of nothing": lambda file: archive(
        file, document(trees=[{"name": "own", "files": {"a": "files/2"}, "executable": []}])
    ),
    "a member that leads out": lambda file: archive(file, document(), "../files/1"),
    "an absolute member": lambda file: archive(file, document(), "/files/1"),
    "a link": lambda file: archive(file, document(), type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": lambda file: archive(file, document(), type=tarfile.LNKTYPE, linkname="bundle.json"),
    "a device": lambda file: archive(file, document(), type=tarfile.CHRTYPE),
    "another content": lambda file: archive(file, document(), content=CONTENT[::-1]),
    "more than was promised": lambda file: archive(file, document(), content=CONTENT * 1000),
    "a bundle.json without end": lambda file: archive(file, {"format": FORMAT, "x": "y" * (9 << 20)}),
    "more than is listed": lambda file: archive(file, document(files={}, trees=[])),
    "a huge member": lambda file: archive(
        file, document(files={"files/1": {"bytes": 1 << 58, "sha256": sha256(CONTENT).hexdigest()}})
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_bundle_is_refused_by_name(case: str, tmp_path: Path) -> None:
    file = tmp_path / "run.tar.gz"
    HOSTILE[case](file)
    with pytest.raises(ProblemsError) as caught:
        unpack(file, read(file), tmp_path / "home" / "there", lambda read: None)
    named = {"a newer one": "newer_bundle", "a huge member": "not_enough_disk"}.get(case, "unreadable_bundle")
    assert [(one.name, one.key, one.value) for one in caught.value.problems] == [(named, "--bundle", file)]
    assert not (tmp_path / "home" / "there").exists() and not (tmp_path / "b").exists()


def test_one_that_is_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole, file = tmp_path / "whole.tar.gz", tmp_path / "run.tar.gz"
    write(whole, document(), {"files/1": CONTENT}, lambda read: None)
    content = whole.read_bytes()
    for length in range(0, len(content) - 8, 7):
        file.write_bytes(content[:length])
        with pytest.raises(ProblemsError, match="unreadable_bundle"):
            unpack(file, read(file), tmp_path / "there", lambda read: None)
        assert not (tmp_path / "there").exists()
