"""Names of failures: one list, complete and without the dead, and a command that shows it."""

import typer
import yaml
from typer.testing import CliRunner

from configs import CONFIGS
from recipes.cli.explain import explain
from scripts.run.names import names
from tests.answers import data_of
from tests.names import names_given

SIGNATURES = {one["name"] for one in yaml.safe_load((CONFIGS / "diagnosis.yaml").read_text())["signatures"]}


def test_every_name_that_the_code_gives_is_explained() -> None:
    given = names_given()
    assert len(given) > 200, "the search finds none"
    lacking = {name: sorted(files) for name, files in given.items() if name not in names()}
    assert not lacking and names().keys() >= SIGNATURES


def test_no_name_is_explained_that_nothing_gives() -> None:
    assert not names().keys() - names_given().keys() - SIGNATURES


def test_each_name_has_a_meaning_a_remedy_and_a_place() -> None:
    for one in names().values():
        assert one.meaning.endswith(".") and one.remedy and one.found, one.name
        assert set(one.found) <= {"submit", "node", "log"}
        assert ("log" in one.found) == (one.name in SIGNATURES), one.name


def test_a_failure_has_one_name() -> None:
    old = {"model_missing", "model_damaged", "model_unknown", "remote_code", "tokenizer_missing", "unknown_format"}
    assert not names().keys() & (old | {"bad_recipe", "gpu_too_old", "unknown_flags", "unknown_tiny_model"})


def test_the_command_explains_a_name() -> None:
    app = typer.Typer()
    app.command()(explain)
    run = CliRunner()
    shown = run.invoke(app, ["export_needs_tp1"])
    assert shown.exit_code == 0 and "gathers no tensor-parallel shards" in shown.output
    as_data = data_of(run.invoke(app, ["export_needs_tp1", "--json"]).output)
    assert set(as_data) == {"name", "meaning", "remedy", "found"}
    missed = run.invoke(app, ["export_need_tp1"])
    assert missed.exit_code == 2 and "Did you mean export_needs_tp1?" in missed.output
    listed = run.invoke(app, [])
    assert listed.exit_code == 0 and len(listed.output.splitlines()) == len(names())
    assert "Example: nemo experiment explain" in run.invoke(app, ["--help"]).output
