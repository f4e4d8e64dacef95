"""Ids that can be read aloud, and the words that find one."""

import re
from pathlib import Path

import pytest

from recipes import ProblemsError, find
from recipes.experiment.run_ids import find_run, new_ids, title_problems
from recipes.experiment.stage import Stage, stages_of
from recipes.experiment.store import RECORDED, RECORDING, RunFolder, run_folders
from recipes.experiment.submit import record_all
from scripts.run.problems import JobError
from scripts.run.record import Record
from tests.jobs import job_of
from tests.runs import recorded


def test_an_id_says_what_and_when() -> None:
    (made,) = new_ids([Stage(name="one", partial=find("quantize_fp8").build())]).values()
    assert re.fullmatch(r"quantize_fp8_(0[1-9]|1[0-2])[0-3]\d-[0-2]\d[0-5]\d-[0-9a-f]{6}", made)


def test_ids_of_a_sweep_say_its_values_and_no_two_are_equal() -> None:
    grid = {"args.export_quant_cfg": ["fp8", "int4_awq"], "args.calib_size": [str(size) for size in range(1, 101)]}
    made = new_ids(stages_of(find("quantize").build(), grid))
    assert len(set(made.values())) == 200
    assert made["args.export_quant_cfg=int4_awq,args.calib_size=64"].startswith("quantize-int4_awq-64_")


def test_a_name_begins_an_id() -> None:
    partial = find("quantize").build()
    (made,) = new_ids([Stage(name="one", partial=partial, title="before-lunch")]).values()
    assert made.startswith("before-lunch_")
    paths = stages_of(partial, {"args.hf_model_id": ["Qwen/Qwen3-8B", "../../x y"]}, "mine")
    assert [one.rpartition("_")[0] for one in new_ids(paths).values()] == ["mine-Qwen3-8B", "mine-x-y"]


@pytest.mark.parametrize("name", ["", "a b", "-a", "_a", "ä", "a/b", "../a", "latest", "a" * 49, "a\n"])
def test_names_that_no_id_can_begin_with(name: str) -> None:
    (problem,) = title_problems(name)
    assert (problem.name, problem.key) == ("bad_run_name", "--name")
    assert title_problems("a" * 48) == title_problems("Mine_2-x") == title_problems(None) == []


def test_words_that_find_a_run(home: Path) -> None:
    old, new = "quantize_fp8_1795214403955-ad07", "quantize_fp8_1126-0805-47f9a1"
    for run_id in (old, new, "mine_1126-0806-000001", "x-mine_1126-0806-000002"):
        recorded(home, run_id)
    assert find_run("ad07").id == find_run("quantize_fp8_17").id == old
    assert find_run("47f9").id == find_run("0805").id == new
    assert find_run("mine").id == "mine_1126-0806-000001", "one that begins with the word counts before others"
    for word in ("quantize", "1126", "", "absent", "f9a", "d"):
        with pytest.raises(ProblemsError) as caught:
            find_run(word)
        assert caught.value.problems[0].name == "unknown_run"


def test_the_latest_run_is_that_which_was_submitted_last(home: Path) -> None:
    with pytest.raises(ProblemsError):
        find_run("latest")
    for number, recipe in enumerate(("quantize_fp8", "prune", "quantize_fp8", "probe")):
        folder = home / "runs" / f"{9 - number}-of-{recipe}"
        Record.submit(folder, id=folder.name, recipe=recipe, submitted_at=f"2026-11-26T0{number}:00:00.000Z")
    (home / "runs" / "garbage").mkdir()
    (home / "runs" / "garbage" / "run.json").write_text('{"submitted_at": "9999", garbage')
    assert find_run("latest").id == "6-of-probe"
    assert find_run("latest:quantize_fp8").id == "7-of-quantize_fp8"
    with pytest.raises(ProblemsError, match="no run of serve"):
        find_run("latest:serve")


def test_an_id_that_is_taken_meanwhile_costs_the_other_run_nothing(home: Path) -> None:
    job = job_of("probe")
    theirs = RunFolder.of(job.id)
    theirs.dir.mkdir(parents=True)
    (theirs.dir / "run.json").write_text("{}")
    with pytest.raises(JobError, match="another run's") as caught:
        record_all([job])
    assert caught.value.name == "run_dir_taken"
    assert (theirs.dir / "run.json").read_text() == "{}"


def test_runs_of_one_submission_are_there_together_or_not_at_all(home: Path) -> None:
    """As it stands where whoever records them is killed before the one rename, or after it."""
    (run,) = record_all([job_of("probe")])
    half = run.dir.parent / f"{RECORDING}abc"
    half.mkdir()
    run.dir.rename(half / run.id)
    assert not run_folders()
    half.rename(half.with_name(f"{RECORDED}abc"))
    assert [folder.id for folder in run_folders()] == [run.id]
    assert not list(home.rglob(f"{RECORDED}*"))
