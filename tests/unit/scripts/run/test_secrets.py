"""Secrets travel in a private file that goes when the job is over."""

import json
import os
from pathlib import Path

import pytest

from scripts.run.files import write_private
from scripts.run.problems import JobError
from scripts.run.secrets import NAMES, VARIABLE, Mask, forget_secrets, load_secrets, pack_secrets, redacted


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run" / "secrets.json"
    monkeypatch.setenv(VARIABLE, str(path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return path


def test_round_trip(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a 'b' $c\nd")
    content = pack_secrets(["HF_TOKEN", "NOT_SET_ANYWHERE"])
    assert content is not None
    write_private(file, content)
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.delenv("HF_TOKEN")
    assert load_secrets() == ["HF_TOKEN"]
    assert os.environ["HF_TOKEN"] == "a 'b' $c\nd"
    forget_secrets()
    assert not file.exists()
    assert load_secrets() == [], "a rank that comes late finds them used up"
    monkeypatch.delenv("HF_TOKEN")


def test_what_is_set_already_wins(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "the node's own")
    write_private(file, json.dumps({"HF_TOKEN": "the submitter's"}).encode())
    load_secrets()
    assert os.environ["HF_TOKEN"] == "the node's own"


@pytest.mark.parametrize(("content", "mode"), [(b'{"A": "tok"}', 0o640), (b'{"A": "tok', 0o600), (b"\xff", 0o600)])
def test_a_file_that_is_not_what_it_should_be(file: Path, content: bytes, mode: int) -> None:
    write_private(file, content)
    file.chmod(mode)
    with pytest.raises(JobError) as refused:
        load_secrets()
    assert refused.value.name == "secrets_unreadable"
    assert "tok" not in str(refused.value).replace(str(file), "")


def test_none_is_set_and_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("EMPTY_ONE", "")
    assert pack_secrets(["EMPTY_ONE", "NOT_SET_ANYWHERE"]) is None
    assert load_secrets() == []
    forget_secrets()


def test_what_is_shown_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "plain-looking")
    monkeypatch.setenv("SITE_TOKEN", "plain-looking-too")
    monkeypatch.setenv("TRACKER", "https://tracker")
    monkeypatch.setenv(NAMES, "TRACKER")
    said = "plain-looking, plain-looking-too, https://tracker, hf_aBcDeFgHiJ"
    assert redacted(said) == "<HF_TOKEN>, <SITE_TOKEN>, <TRACKER>, ***"


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_secret_is_found_across_pieces(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "plain-pläin")
    said = "bad token plain-pläin\nplain-p".encode()
    mask = Mask()
    shown = b"".join(mask.feed(said[at : at + size]) for at in range(0, len(said), size))
    assert shown == b"bad token <HF_TOKEN>\n"
    assert mask.rest() == b"plain-p"
