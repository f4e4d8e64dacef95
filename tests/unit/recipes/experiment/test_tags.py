"""Names of artifacts: given, moved, taken, believed where they stand, and holding what they name."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from recipes.experiment.tags import Tag, give, tag_of, tags
from tests.answers import data_of
from tests.runs import Shell, quantized

NAME = "qwen3-fp8"


@pytest.fixture
def made(home: Path) -> str:
    """A run with two outputs."""
    run_id = quantized(home, "fp8")
    file = home / "runs" / run_id / "run.json"
    record: dict[str, Any] = json.loads(file.read_text())
    outputs = [
        {"type": kind, "path": f"{file.parent}/{kind}", "bytes": 3} for kind in ("checkpoint_hf", "eval_results")
    ]
    file.write_text(
        json.dumps(record | {"outputs": [one | {"files": 1, "digest": f"sha256:{'a' * 64}"} for one in outputs]})
    )
    for one in outputs:
        Path(str(one["path"])).mkdir()
    return run_id


def test_a_name_stands_for_an_artifact_wherever_a_reference_does(made: str) -> None:
    shell = Shell()
    assert shell("artifacts", "tag", f"{made}.checkpoint_hf", NAME).exit_code == 0
    for word in (NAME, f"{NAME}:latest"):
        (row,) = data_of(shell("artifacts", "show", word, "--json").stdout)["artifacts"]
        assert row["reference"] == f"{made}.checkpoint_hf"
    words = [
        "run",
        "evaluate",
        f"args.checkpoint=${{artifact:{NAME}}}",
        "--dryrun",
        "--force",
        "missing_model",
        "--json",
    ]
    plan = data_of(shell(*words, seconds=60).stdout)
    assert plan["resolved"]["checkpoint"].endswith(f"{made}/checkpoint_hf") and plan["after"] == [made]
    assert shell("artifacts", "checkpoint_hf").stdout.rstrip().endswith(f"{NAME}:latest")


def test_a_stage_of_a_pipeline_comes_before_a_name(made: str, tmp_path: Path) -> None:
    command = ["python", "-c", "pass", "{checkpoint}", "{output_hf}"]
    stage = {"recipe": "program", "args": {"command": command}}
    first = {**stage, "args": {"command": command, "checkpoint": f"${{artifact:{made}.checkpoint_hf}}"}}
    file = tmp_path / "two.yaml"
    file.write_text(json.dumps({"stages": {"one": first, "two": stage}}))
    shell = Shell()
    assert shell("artifacts", "tag", f"{made}.checkpoint_hf", "one").exit_code == 0
    plan = data_of(shell("run", str(file), "--dryrun", "--json", seconds=60).stdout)
    runs = {row["stage"]: row["run"] for row in plan["stages"]}
    (two,) = (one for one in plan["runs"] if one["id"] == runs["two"])
    assert runs["one"] in two["resolved"]["checkpoint"] and two["after"] == [runs["one"]]


def test_what_is_written_without_the_reference_is_pointed_at(made: str) -> None:
    shell = Shell()
    shell("artifacts", "tag", f"{made}.checkpoint_hf", NAME)
    done = shell("run", "evaluate", f"args.checkpoint={NAME}", "--dryrun", seconds=60)
    assert done.exit_code == 2 and f"args.checkpoint='${{artifact:{NAME}}}'" in done.stderr


def test_a_name_is_moved_and_versions_stay(made: str) -> None:
    shell = Shell()
    shell("artifacts", "tag", f"{made}.checkpoint_hf", f"{NAME}:v1")
    shell("artifacts", "tag", f"{made}.checkpoint_hf", NAME)
    moved = shell("artifacts", "tag", f"{made}.eval_results", NAME)
    assert f"no more for {made}.checkpoint_hf" in moved.stdout
    assert {name: tag.type for name, tag in tags().items()} == {
        f"{NAME}:v1": "checkpoint_hf",
        f"{NAME}:latest": "eval_results",
    }
    assert shell("artifacts", "untag", NAME).exit_code == 0 and tag_of(NAME) is None
    gone = shell("artifacts", "untag", NAME)
    assert gone.exit_code == 2 and f"There are {NAME}:v1." in gone.stderr


@pytest.mark.parametrize(
    "name", ["", "1a", "a.b", "a/b", "latest", "latest:a", "a:b:c", "ü", "a" * 70, "a\n", "a_0101-0000-abcdef"]
)
def test_what_is_no_name_is_refused(name: str, made: str) -> None:
    done = Shell()("artifacts", "tag", f"{made}.checkpoint_hf", name)
    assert done.exit_code == 2 and "bad_tag" in done.stderr and not tags()


def test_one_name_is_for_one_artifact(made: str) -> None:
    done = Shell()("artifacts", "tag", made, NAME)
    assert done.exit_code == 2 and "it stands for checkpoint_hf, eval_results" in done.stderr


def test_what_has_a_name_is_not_removed(made: str, home: Path) -> None:
    shell = Shell()
    shell("artifacts", "tag", f"{made}.checkpoint_hf", NAME)
    refused = shell("rm", made)
    assert refused.exit_code == 2 and f"artifacts untag {NAME}:latest" in refused.stderr
    shell("artifacts", "untag", NAME)
    assert shell("rm", made).exit_code == 0 and not (home / "runs" / made).exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 2, "tags": {}}', '{"schema": 1, "tags": {"a:latest": 3}}'])
def test_nothing_is_done_on_the_word_of_a_damaged_file(content: str, made: str, home: Path) -> None:
    file = home / "artifacts" / "tags.json"
    file.parent.mkdir()
    file.write_text(content)
    for words in (["artifacts"], ["artifacts", "tag", f"{made}.checkpoint_hf", NAME], ["rm", made]):
        done = Shell()(*words)
        assert (done.exit_code, "damaged_record" in done.stderr) == (1, True), done.output
    assert file.read_text() == content and (home / "runs" / made).exists()


def test_names_that_are_given_at_once_are_all_there(made: str) -> None:
    tag = Tag(run=made, type="checkpoint_hf", digest=None)
    threads = [threading.Thread(target=give, args=(f"n{number}", tag)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(tags()) == {f"n{number}:latest" for number in range(20)}
