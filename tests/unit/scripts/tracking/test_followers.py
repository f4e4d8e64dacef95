"""The processes that follow a run, from the side of the job: it knows at its end how each has fared."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.run.files import write_json
from scripts.tracking import followers
from scripts.tracking.followers import Followers, asked_for


def test_a_word_that_is_no_tracker_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELOPT_RECIPES_TRACK", "wandb,mlflow,other,wandb")
    assert asked_for() == ("mlflow", "wandb")
    monkeypatch.delenv("MODELOPT_RECIPES_TRACK")
    assert asked_for() == ()


def test_one_that_never_started_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()

    def fails(*_: object, **__: object) -> None:
        raise ValueError("no room")

    monkeypatch.setattr(followers.subprocess, "Popen", fails)
    started, stopped = Followers(tmp_path, ("mlflow",)), Followers(tmp_path, ("wandb",))
    started.start()
    for one in (started, stopped):  # the second was stopped before it came to that
        one.end(0)
    (fault,) = started.warnings()
    assert (fault["name"], fault["value"]) == ("tracking_failed", "mlflow") and "no room" in fault["cause"]
    assert [one["cause"] for one in stopped.warnings()] == ["its process had not started"]


def test_what_is_the_jobs_is_not_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    seen: dict[str, Any] = {}
    real = subprocess.Popen

    def started(words: list[str], **how: Any) -> "subprocess.Popen[bytes]":
        seen.update(how)
        write_json(tmp_path / "tracking" / "mlflow.json", {"state": "sent", "id": "1"})
        return real(["true"], **how)

    for name in ("NEMO_RUN_DIR", "RANK", "WORLD_SIZE", "MODELOPT_RECIPES_SECRETS", "MODELOPT_RECIPES_TRACK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(followers.subprocess, "Popen", started)
    one = Followers(tmp_path, ("mlflow",))
    one.start()
    one.end(10)
    assert not {"NEMO_RUN_DIR", "RANK", "WORLD_SIZE", "MODELOPT_RECIPES_SECRETS"} & seen["env"].keys()
    assert seen["env"]["CUDA_VISIBLE_DEVICES"] == "" and seen["env"]["PATH"] == os.environ["PATH"]
    assert seen["start_new_session"] and seen["stdin"] == subprocess.DEVNULL
    assert one.tracked() == {"mlflow": {"state": "sent", "id": "1"}} and one.warnings() == []
