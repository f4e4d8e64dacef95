"""URLs of object stores where a job is submitted: what is wrong with them, and what is left to the node."""

from pathlib import Path

import pytest

from recipes import Stage, find
from recipes.experiment.examine import examine
from recipes.experiment.stage import Options
from scripts.run.problems import Problem

PASSWORD = "opensesame"


def found(executor: str, tmp_path: Path, url: str = "", root: str = "") -> list[Problem]:
    """What is said of the two keys."""
    (tmp_path / "executors.yaml").write_text("site: {kind: slurm, account: a, image: null}\n")
    partial = find("program").build()
    partial.args.command, partial.args.checkpoint = ["true"], url or "Qwen/Qwen3-8B"
    overrides = {"output_root": root} if root else {}
    options = Options(profiles=tmp_path / "executors.yaml", online=False, overrides=overrides)
    problems = examine([Stage(name="one", partial=partial)], executor, options).problems
    return [one for one in problems if one.key in ("args.checkpoint", "executor.output_root")]


@pytest.mark.parametrize("executor", ["local", "site"])
@pytest.mark.parametrize(
    ("url", "name", "right"),
    [
        (f"s3://me:{PASSWORD}@bucket/x", "secret_in_url", "by the environment"),
        (f"s3://bucket/x?X-Amz-Signature={PASSWORD}", "secret_in_url", "by the environment"),
        ("s4://bucket/x", "wrong_value", "Did you mean s3?"),
        ("s3://", "wrong_value", "Write s3://BUCKET/PREFIX"),
    ],
)
def test_a_url_that_is_none_is_refused_and_shows_no_secret(
    tmp_path: Path, executor: str, url: str, name: str, right: str
) -> None:
    for problems in (found(executor, tmp_path, url=url), found(executor, tmp_path, root=url)):
        assert {one.name for one in problems} == {name} and right in problems[0].remedy
        assert PASSWORD not in str(problems)


def test_what_is_not_known_from_here_is_left_to_the_node(tmp_path: Path) -> None:
    for executor in ("local", "site"):
        assert found(executor, tmp_path, url="s3://bucket/x", root="s3://bucket/runs") == []
    assert found("site", tmp_path, url="gs://bucket/x", root="gs://bucket/runs") == []
    here = found("local", tmp_path, url="gs://bucket/x", root="gs://bucket/runs")
    assert {one.name for one in here} == {"store_not_installed"} and "gcsfs" in here[0].cause


def test_a_folder_that_no_run_published_is_no_artifact(tmp_path: Path) -> None:
    (problem,) = found("local", tmp_path, url=f"file://{tmp_path}")
    assert problem.name == "missing_input" and problem.remedy == f"Use {tmp_path}."
