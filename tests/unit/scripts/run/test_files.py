import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.run.content import content_of
from scripts.run.files import staged, write_json, write_text
from scripts.run.problems import JobError


def test_write_text_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    write_text(target, "one")
    write_text(target, "zwei ü")
    assert target.read_text(encoding="utf-8") == "zwei ü"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]


def test_write_json_that_cannot_be_serialized_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"a": 1})
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_staged_publishes_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with pytest.raises(RuntimeError), staged(final) as folder:
        (folder / "half").write_text("x")
        assert not final.exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with staged(final) as folder:
        (folder / "whole").write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (final / "whole").read_text() == "x"


def test_a_pipe_and_a_link_to_nothing_are_published_too(tmp_path: Path) -> None:
    with staged(tmp_path / "final") as partial:
        os.mkfifo(partial / "pipe")
        (partial / "link").symlink_to("nowhere")
    assert sorted(path.name for path in (tmp_path / "final").iterdir()) == ["link", "pipe"]


def test_staged_refuses_what_is_there(tmp_path: Path) -> None:
    final = tmp_path / "out"
    final.mkdir()
    with staged(final) as folder:  # an empty folder is no loss
        (folder / "a").write_text("1")
    with pytest.raises(JobError, match="output_exists"), staged(final):
        pytest.fail("must not get here")
    assert (final / "a").read_text() == "1"


def test_staged_refuses_what_appears_meanwhile(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with pytest.raises(JobError, match="output_exists"), staged(final) as folder:
        (folder / "mine").write_text("1")
        final.mkdir()
        (final / "theirs").write_text("2")
    assert [p.name for p in final.iterdir()] == ["theirs"]


_HOLD = """
import sys, time
from pathlib import Path
from scripts.run.files import staged
with staged(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_leftovers_of_a_killed_writer_go_and_a_live_writer_stays(tmp_path: Path) -> None:
    final = tmp_path / "out"
    writers = [subprocess.Popen([sys.executable, "-c", _HOLD, str(final)], stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    writers[0].kill()
    writers[0].wait()
    try:
        with staged(final) as folder:
            partials = [p for p in tmp_path.iterdir() if p.is_dir() and p != folder]
            assert len(partials) == 1, "the killed writer's folder is gone, the live one's is not"
            (folder / "whole").write_text("x")
    finally:
        writers[1].kill()
        writers[1].wait()
    assert [p.name for p in final.iterdir()] == ["whole"]


def test_digest_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "a").write_bytes(b"12345")
        (tmp_path / name / "b").write_bytes(b"6")
        time.sleep(0.01)
    one, two = content_of(tmp_path / "one"), content_of(tmp_path / "two")
    assert one == two
    assert (one.bytes, one.files) == (6, 2)
    (tmp_path / "two" / "b").rename(tmp_path / "two" / "c")
    assert content_of(tmp_path / "two").digest != one.digest
    (tmp_path / "one" / "b").write_bytes(b"7")
    assert content_of(tmp_path / "one").digest != one.digest
