"""Trackers are asked for in a profile or a word; what would keep a job from reaching them is said before it runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from executors.base import job_variables, own_variables
from executors.docker.profile import DockerProfile
from executors.kinds import kind_of
from executors.local import LocalProfile
from executors.profiles.load import load_profile
from recipes.preflight import tracking
from recipes.values import parse_words
from scripts.engines import installed
from scripts.run.registry import carry_out, checks_of
from scripts.run.secrets import NAMES
from tests.conftest import Done
from tests.jobs import PlainJob, job_of

URI = "MLFLOW_TRACKING_URI"
pytestmark = pytest.mark.usefixtures("away")


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(URI, raising=False)
    (tmp_path / "executors.yaml").write_text(
        "local: {track: [mlflow]}\n"
        f"here: {{kind: local, track: [mlflow], env: {{{URI}: 'http://x'}}}}\n"
        f"open: {{kind: local, track: [mlflow], env: {{{URI}: 'http://me:pw@x'}}}}\n"
        f"odd: {{kind: local, track: [mlflow], env: {{{URI}: 'http://[x/a:b@c'}}}}\n"
        "box: {kind: docker, image: i, track: [mlflow]}\n"
        f"told: {{kind: docker, image: i, track: [mlflow], secrets: [{URI}]}}\n"
        f"site: {{kind: slurm, account: a, image: null, track: [mlflow], setup: ['export {URI}=http://x']}}\n"
        "files: {kind: docker, image: i, track: [wandb, tensorboard]}\n"
    )
    return tmp_path / "executors.yaml"


def problems(executor: str, profiles: Path) -> list[str]:
    found = carry_out(checks_of(tracking), job_of("probe", executor, profiles)).problems
    return [one.name for one in found]


@pytest.mark.parametrize(
    ("executor", "address", "names"),
    [
        ("local", "", ["tracker_not_set"]),
        ("local", "http://x", []),
        ("here", "", []),
        ("open", "", ["secret_in_env"]),
        ("odd", "", []),
        ("box", "http://x", ["tracker_not_set"]),  # what is set here is not set there
        ("told", "", ["tracker_not_set"]),
        ("told", "http://x", []),
        ("site", "", []),
        ("files", "", []),
    ],
)
def test_where_mlflows_server_is(
    profiles: Path, monkeypatch: pytest.MonkeyPatch, executor: str, address: str, names: list[str]
) -> None:
    monkeypatch.setenv(URI, address)
    assert problems(executor, profiles) == names


def test_libraries_are_looked_for_where_the_job_runs_here(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "is_installed", lambda name: name != "mlflow" and installed.is_installed(name))
    assert problems("here", profiles) == ["tool_not_installed"]
    assert problems("told", profiles) == ["tracker_not_set"]


def test_a_job_is_told_by_a_variable_of_its_own_on_every_kind() -> None:
    job = PlainJob(id="x", run_dir=Path("/r"))
    assert own_variables(job, LocalProfile()) == {"PYTHONSAFEPATH": "1", "NEMO_RUN_DIR": "/r"}
    listed = own_variables(job, LocalProfile(secrets=["HF_TOKEN", URI]))
    assert listed[NAMES] == URI, "a job is told which of its variables are secrets, where a name does not say it"
    asked = DockerProfile(image="i", track=["mlflow", "wandb"])
    assert job_variables(job, asked, {})["MODELOPT_RECIPES_TRACK"] == "mlflow,wandb"
    reserved = load_profile("local", {"env.MODELOPT_RECIPES_TRACK": "mlflow"})[1]
    assert [one.name for one in reserved] == ["wrong_value"]


@pytest.mark.parametrize("kind", ["local", "slurm", "docker", "lepton"])
def test_every_kind_has_the_key(kind: str) -> None:
    assert kind_of(kind).profile().track == []
    assert load_profile(kind, {"track": "[mlflow,wandb]"})[0].track == ["mlflow", "wandb"]
    assert load_profile(kind, {"track": "tensorboard"})[0].track == ["tensorboard"]
    (wrong,) = (one for one in load_profile(kind, {"track": "[mlflw]"})[1] if one.key == "executor.track")
    assert "mlflow" in str(wrong)


def test_a_bare_word_is_the_profiles() -> None:
    assert parse_words(["track=[mlflow]", "executor.track=wandb"])[0].profile == {"track": "wandb"}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("executor=local", '"MODELOPT_RECIPES_TRACK": "wandb"'),
        ("executor=slurm executor.account=a", "export MODELOPT_RECIPES_TRACK=wandb"),
        ("executor=docker executor.image=i", "MODELOPT_RECIPES_TRACK"),
    ],
)
def test_a_dry_run_shows_the_variable(nemo: Callable[..., Done], words: str, text: str) -> None:
    done = nemo("run", "probe", *words.split(), "track=[wandb]", "--dryrun", "--json")
    assert text in done.json["submits"], done.err
    assert done.json["executor"]["track"] == ["wandb"]
    assert "MODELOPT_RECIPES_TRACK" not in nemo("run", "probe", *words.split(), "--dryrun", "--json").json["submits"]
