"""`nemo experiment executors`, through typer's own runner: what it prints, its exit status, what it writes."""

import os
import re
import stat
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from executors.base import Probe, UnreachableError
from executors.kinds import SHIPPED, kinds, place_of, shipped_text
from executors.profiles.load import list_profiles, load_profile
from recipes.cli.executors import register
from tests.answers import answer_of

READY = [kind for kind in kinds() if (SHIPPED / f"{kind}.yaml").is_file()]


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "nemo-home"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config/modelopt-recipes/executors.yaml"


def nemo(*words: str) -> Result:
    """`nemo experiment executors WORDS...`, in a group as NeMo-Run makes it."""
    app = typer.Typer()
    app.command("other")(lambda: None)
    register(app)
    result: Result = CliRunner().invoke(app, ["executors", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_list(config: Path) -> None:
    config.parent.mkdir(parents=True)
    config.write_text("mine: {extends: local}\n")
    done = nemo()
    assert done.exit_code == 0, done.output
    assert re.search(r"^mine +local +detaches by a supervisor, one node, no containers$", done.stdout, re.MULTILINE)
    assert f"from    {SHIPPED / 'local.yaml'} (shipped), {config}" in done.stdout


def test_the_list_as_json(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mine: {extends: local, env: {A: '1'}}\n")
    done = nemo("--json", "--profiles", str(file))
    document = answer_of(done.stdout)
    (row,) = [row for row in document["data"]["profiles"] if row["name"] == "mine"]
    assert row["files"] == [str(SHIPPED / "local.yaml"), str(file)]
    assert row["capabilities"]["detach"] == "supervisor"
    assert (row["problems"], document["problems"], done.exit_code) == ([], [], 0)


def test_every_shipped_profile_says_what_it_can_do() -> None:
    rows = answer_of(nemo("--json").stdout)["data"]["profiles"]
    assert [row["name"] for row in rows] == sorted(READY)
    assert all(row["summary"].startswith("detaches by") for row in rows)


def test_broken_profiles_are_listed_with_what_is_wrong(tmp_path: Path) -> None:
    Path("executors.yaml").write_text("mine: {kind: local, nods: 1}\nbad: {kind: nope}\n")
    done = nemo()
    assert done.exit_code == 2
    assert "Did you mean nodes?" in done.stdout
    assert re.search(r"^bad +nope$", done.stdout, re.MULTILINE)
    Path("executors.yaml").write_text("mine: [")
    done = nemo()
    assert done.exit_code == 2
    assert "is not YAML at line 1" in done.stderr
    assert "local" in done.stdout
    assert answer_of(nemo("--json").stdout)["problems"][0]["name"] == "broken_profile_file"


#: What `executors init` says to set.
FIRST = {
    "local": set[str](),
    "docker": {"image", "mounts"},
    "slurm": {"image", "mounts", "job_dir"},
    "lepton": {"image", "mounts", "nemo_run_dir"},
}


@pytest.mark.parametrize("kind", READY)
@pytest.mark.parametrize("name", [None, "my-own.1"])
def test_init_writes_a_profile_that_loads(config: Path, kind: str, name: str | None) -> None:
    done = nemo("init", kind, *(["--name", name] if name else []))
    assert done.exit_code == 0, done.output
    assert f"nemo experiment executors check {name or kind}" in done.stdout
    text = config.read_text()
    shipped = shipped_text(SHIPPED / f"{kind}.yaml")
    assert text.startswith(f"{name or kind}:\n")
    first = [line for line in text.splitlines() if re.match(r"  #  ? ?Set first:|  #   \w+: ", line)]
    below = [line.strip() for line in text.splitlines()[1 + len(first) :]]
    assert below == [line.strip() for line in shipped.splitlines()]
    keys = {line.split()[1].rstrip(":") for line in first[1:]}
    assert keys >= FIRST[kind] and all(key in done.stdout.partition("wrote")[0] for key in keys)
    assert "#" in text
    profile, problems = load_profile(name or kind, {})
    assert (profile.kind, problems) == (kind, [])
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert place_of(profile).profile == load_profile(kind, {})[0]


def test_init_appends_and_keeps_the_rest(config: Path) -> None:
    config.parent.mkdir(parents=True)
    before = "# mine\nold: {kind: local, env: {A: '${oc.env:UNSET}'}}   # comment"
    config.write_text(before)
    config.chmod(0o640)
    assert nemo("init", "local", "--name", "new").exit_code == 0
    assert config.read_text().startswith(f"{before}\n\nnew:\n  # ")
    assert stat.S_IMODE(config.stat().st_mode) == 0o640
    assert {source.name for source in list_profiles()[0]} >= {"old", "new"}
    assert [path.name for path in config.parent.iterdir()] == ["executors.yaml"]


def test_init_here_and_elsewhere(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        assert nemo("init", "local", "--here").exit_code == 0
    finally:
        os.umask(old)
    here = tmp_path / "work/executors.yaml"
    assert stat.S_IMODE(here.stat().st_mode) == 0o644
    file = tmp_path / "else where/p.yaml"
    done = nemo("init", "local", "--name", "x", "--file", str(file))
    assert done.exit_code == 0
    assert load_profile("x", {}, files=file)[1] == []
    assert "--profiles" in done.stdout
    assert nemo("init", "local", "--here", "--file", str(file)).exit_code == 2


def test_init_writes_through_a_link(config: Path, tmp_path: Path) -> None:
    config.parent.mkdir(parents=True)
    (tmp_path / "dotfiles.yaml").write_text("")
    config.symlink_to(tmp_path / "dotfiles.yaml")
    assert nemo("init", "local").exit_code == 0
    assert config.is_symlink()
    assert "kind: local" in (tmp_path / "dotfiles.yaml").read_text()


@pytest.mark.parametrize(
    ("before", "words", "says"),
    [
        ("local: {}\n", ["local"], "line 1: it is there already"),
        ("{a: {kind: local}}\n", ["local"], "nothing can be appended"),
        ("a: {kind: local}\n...\n", ["local"], "nothing can be appended"),
        ("a: [", ["local"], "is not YAML"),
        ("- a\n", ["local"], "must map names"),
        ("", ["locl"], "Did you mean local?"),
        ("", ["local", "--name", "a b"], "a profile's name is"),
        ("", ["local", "--name", "slurm"], "ships under that name"),
    ],
)
def test_init_refuses_and_changes_nothing(config: Path, before: str, words: list[str], says: str) -> None:
    config.parent.mkdir(parents=True)
    config.write_text(before)
    done = nemo("init", *words)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert config.read_text() == before


def test_init_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = nemo("init", "local", "--file", str(tmp_path / "file/executors.yaml"))
    assert done.exit_code == 1
    assert "not_written" in done.stderr


def test_check_passes_or_fails_by_the_machine(tmp_path: Path) -> None:
    """The local executor's own probes, against folders that can and cannot be written."""
    document = answer_of(nemo("check", "local", f"output_root={tmp_path}", "--json").stdout)["data"]
    probes = {probe["name"]: probe for probe in document["probes"]}
    assert probes["output_root"]["passed"]
    assert document["kind"] == "local"
    assert document["passed"] == all(probe["passed"] for probe in document["probes"])


def test_check_prints_a_line_for_each_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    from executors.local import LocalPlace

    probes = [
        Probe(name="one", passed=True, detail="fine"),
        Probe(name="two", passed=False, detail="bad", remedy="Mend."),
    ]
    monkeypatch.setattr(LocalPlace, "probes", lambda self: iter(probes))
    done = nemo("check", "local", "executor.env.A=b c")
    assert done.exit_code == 1
    assert "pass  one              fine" in done.stdout
    assert "FAIL  two              bad\n" in done.stdout
    assert "Mend." in done.stdout
    assert "1 passed, 1 failed" in done.stdout
    monkeypatch.setattr(LocalPlace, "probes", lambda self: iter(probes[:1]))
    assert nemo("check", "local").exit_code == 0


def test_check_of_a_place_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from executors.local import LocalPlace

    def probes(self: LocalPlace) -> object:
        yield Probe(name="one", passed=True, detail="fine")
        raise UnreachableError("slurm_down", "slurmctld does not answer.", "Try later.")

    monkeypatch.setattr(LocalPlace, "probes", probes)
    done = nemo("check", "local")
    assert done.exit_code == 1
    assert "FAIL  slurm_down       slurmctld does not answer." in done.stdout
    assert "Try later." in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["locl"], "Did you mean local?"),
        (["local", "nods=2"], "Did you mean nodes?"),
        (["local", "word"], "KEY=VALUE"),
        (["local", "--profiles", "none.yaml"], "cannot be read"),
    ],
)
def test_check_of_a_broken_profile(words: list[str], says: str) -> None:
    done = nemo("check", *words)
    assert done.exit_code == 2
    assert says in done.stderr
    assert "pass" not in done.stdout
    document = answer_of(nemo("check", *words, "--json").stdout)
    assert (document["outcome"], len(document["problems"])) == ("refused", 1)


def test_options_before_a_command_are_not_lost() -> None:
    done = nemo("--json", "check", "local")
    assert done.exit_code == 2
    assert "options of check stand behind it" in done.output


@pytest.mark.parametrize("words", [[], ["init"], ["check"]])
def test_help_has_an_example(words: list[str]) -> None:
    done = nemo(*words, "--help")
    assert done.exit_code == 0
    assert " ".join(["Example: nemo experiment executors", *words]) in " ".join(done.stdout.split())


def test_what_is_no_file_of_profiles_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in ("/dev/full", str(tmp_path / "pipe")):
        done = nemo("init", "slurm", "--file", file, "--json")
        assert done.exit_code == 1 and answer_of(done.stdout)["error"]["name"] == "not_written"
