"""Kinds of executor: ours, and those that another package brings."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import CONFIGS
from executors.kinds import place_of
from executors.profiles.init import add_profile
from executors.profiles.load import list_profiles, load_profile
from recipes import probe, submit
from scripts.run.problems import ProblemsError

ROOT = CONFIGS.parent
KINDS = ("local", "slurm", "docker", "lepton")


def test_no_kind_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, executors; from executors.kinds import kinds; kinds(); executors.load_profile('local', {});"
        f"print([name for name in sys.modules for kind in {KINDS[1:]} if name.startswith('executors.' + kind)],"
        " [name for name in ('nemo_run', 'docker', 'leptonai') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] []\n"


def install(site: Path, name: str, entry: str, **modules: str) -> None:
    """What pip leaves of a distribution that brings a kind."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[modelopt_recipes.executors]\n{entry}\n")
    for module, text in modules.items():
        (site / f"{module}.py").write_text(text)


def of_readme(language: str) -> str:
    """The example of executors/README.md in one language."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / "executors/README.md").read_text(), re.DOTALL)
    return str(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where packages are installed, of somebody with no profiles yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("nemo_run.config._NEMORUN_HOME", str(tmp_path / "home"))  # read once, at import
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def test_a_kind_of_another_package(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = of_readme("toml").splitlines()[-1].replace('"', "")
    install(site, "polite-executor", entry, polite=of_readme("python"))
    (source,) = [source for source in list_profiles()[0] if source.name == "polite"]
    assert (source.kind, source.files, source.problems) == ("polite", (site / "polite",), ())
    add_profile("polite", "mine", Path("executors.yaml"))
    place = place_of(load_profile("mine", {"niceness": "3"})[0])
    assert [probe.name for probe in place.probes() if not probe.passed] == []
    with pytest.raises(ProblemsError, match="from 0 on"):
        submit(probe(), "mine", {"niceness": "-1"})
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{site}")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    run = submit(probe(), "mine", {"niceness": "3"})
    assert run.state == "succeeded", run.record
    assert (run.record["executor"]["kind"], run.record["executor"]["niceness"]) == ("polite", 3)


@pytest.mark.parametrize(
    ("entries", "kind", "told"),
    [
        ({"one": "ray = gone:KIND"}, "ray", "broken_kind"),
        ({"one": "ray = wrong:KIND"}, "ray", "broken_kind"),
        ({"one": "ray = wrong:KIND", "two": "ray = wrong:KIND"}, "ray", "kind_taken"),
        ({"one": "slurm = wrong:KIND"}, "slurm", "kind_taken"),
    ],
)
def test_a_package_that_is_at_fault_is_named(site: Path, entries: dict[str, str], kind: str, told: str) -> None:
    for name, entry in entries.items():
        install(site, name, entry, wrong="KIND = 1")
    sources, broken = list_profiles()
    (problem,) = [*(problem for source in sources for problem in source.problems), *broken]
    assert (problem.name, [name for name in entries if f"{name} 1.0" not in problem.cause]) == (told, [])
    assert load_profile("local", {})[1] == []
    assert [one.name for one in load_profile(kind, {})[1]] == ([told] if kind == "ray" else [])
