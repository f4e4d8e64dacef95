"""Stages that stand already: by which runs, and when not."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes import pipeline
from recipes.experiment import examine as module
from recipes.experiment.examine import Examined, examine
from recipes.experiment.stage import Options
from recipes.experiment.store import RunFolder
from recipes.experiment.submit import record_all
from scripts.run.problems import Problem
from scripts.run.record import Record, read_record
from scripts.run.registry import Findings


@pytest.fixture
def look(home: Path, tmp_path: Path) -> Callable[..., Examined]:
    file = tmp_path / "one.yaml"
    file.write_text(json.dumps({"stages": {"one": {"recipe": "quantize_tiny"}}}))

    def found(*, force: tuple[str, ...] = (), fresh: bool = False, **values: str) -> Examined:
        stages = pipeline(str(file), {f"one.{key.replace('__', '.')}": value for key, value in values.items()})
        return examine(stages, "local", Options(online=False, force=frozenset(force), fresh=fresh))

    return found


def ended(look: Callable[..., Examined], state: str = "succeeded", report: Any = None, **error: str) -> str:
    (run,) = record_all(look().jobs)
    record = Record(run.dir, read_record(run.dir))
    record.finish(state, {"name": "n", "message": "m", "remedy": "r", **error} if error else None)
    (run.dir / "report").mkdir()
    (run.dir / "report" / "report.json").write_text(json.dumps(report or {}))
    return run.id


def test_the_same_stands_and_another_value_does_not(look: Callable[..., Examined]) -> None:
    assert look().changed["one"] == ("it was not run before",)
    run_id = ended(look)
    again = look()
    assert not again.jobs and again.reused["one"].id == run_id
    other = look(args__calib_size="7")
    assert not other.reused and other.changed["one"][0].startswith("args.calib_size ")
    assert look(fresh=True).changed["one"] == ("--fresh",)


def test_a_damaged_record_of_another_run_is_passed_over(look: Callable[..., Examined]) -> None:
    run_id = ended(look)
    job = RunFolder.of(run_id).job
    document = json.loads(job.read_text())
    document["job"]["after"] = [5]
    job.write_text(json.dumps(document))
    assert look(args__calib_size="7").changed["one"] == ("it was not run before",)


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_one_that_ended_badly_does_not_stand(state: str, look: Callable[..., Examined]) -> None:
    run_id = ended(look, state, name="told_to_fail")
    assert look().changed["one"] == (f"{run_id} was the same, and is not whole, or ended badly",)


def test_a_new_limit_is_held_against_the_old_figures(look: Callable[..., Examined]) -> None:
    scores = {"perplexity_base": 10.0, "perplexity_quantized": 10.2, "kl_divergence": 0.1}
    run_id = ended(look, report={"evaluation": scores})
    assert look(gate__max_increase="5%").reused["one"].id == run_id
    (problem,) = look(gate__max_increase="1%").errors
    assert (problem.name, problem.key) == ("gate_failed", "one.args.gate") and run_id in problem.cause


def test_what_its_own_gate_failed_stands_for_a_gate_that_it_keeps(look: Callable[..., Examined]) -> None:
    scores = {"perplexity_base": 10.0, "perplexity_quantized": 10.2, "kl_divergence": 0.1}
    run_id = ended(look, "failed", {"evaluation": scores}, name="gate_failed")
    assert not look().reused
    assert look(gate__max_increase="5%").reused["one"].id == run_id


def test_what_stands_is_not_checked_as_if_it_ran(
    look: Callable[..., Examined], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(look)
    full = Problem(name="not_enough_disk", key="args.export_dir", value=None, cause="it is full", can_force=True)
    monkeypatch.setattr(module, "preflight", lambda job: Findings(problems=(full,)))
    assert look().reused and not look().problems
    (problem,) = look(fresh=True).errors
    assert problem.key == "one.args.export_dir"
    assert not look(fresh=True, force=("not_enough_disk",)).errors


def test_values_that_are_wrong_are_told_of_what_would_stand_too(look: Callable[..., Examined]) -> None:
    """A limit that there is not could be judged by nobody."""
    ended(look, report={"evaluation": {"perplexity_base": 10.0, "perplexity_quantized": 10.2}})
    (problem,) = look(gate__max_incraese="5%").errors
    assert (problem.name, problem.key) == ("bad_gate", "one.args.gate")


@pytest.mark.parametrize("word", ["mk.py", "--config=mk.py", "{tmp_path}/a/mk.py"])
def test_what_the_words_of_a_program_name_counts(
    word: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, word.format(tmp_path=tmp_path), "{output_hf}", ".", "x" * 300]
    stage = {"recipe": "program", "args": {"command": command}}

    def look(folder: str, source: str) -> Examined:
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        Path("p.yaml").write_text(json.dumps({"stages": {"one": stage}}))
        Path("mk.py").write_text(source)
        return examine(pipeline("./p.yaml", {}), "local", Options(online=False))

    run_id = ended(lambda: look("a", "print(1)"))
    assert look("a", "print(1)").reused["one"].id == run_id
    if not Path(command[1]).is_absolute():
        assert look("b", "print(1)").reused["one"].id == run_id
        assert look("b", "print(22)").changed["one"][0].startswith("the content of the files of args.command")
    assert look("a", "print(333)").changed["one"][0].startswith("the content of the files of args.command")
