"""`nemo experiment plan`: the same for the command line, Python and JSON, and `run` refuses what it refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from configs import CONFIGS
from recipes import RECIPES, ProblemsError, plan, prepare, quantize_fp8
from recipes.experiment.submit import record_all
from recipes.planner.plan import Plan
from tests.conftest import Done

SCHEMA = json.loads((CONFIGS / "schemas" / "plan.json").read_text(encoding="utf-8"))
NEMO = "nvcr.io/nvidia/nemo:26.04"
PLACE = {"image": NEMO, "output_root": "/lustre/runs"}  # where this machine's disk is not looked at
WORDS = [f"executor.{key}={value}" for key, value in PLACE.items()]
ISSUE = ["quantize_fp8", "executor=slurm", "args.hf_model_id=Qwen/Qwen3-30B-A3B", "executor.nodes=2", *WORDS]


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "nemo-home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def planned(name: str, profile: dict[str, str] | None = None, executor: str = "slurm", **args: Any) -> Plan:
    partial = RECIPES[name].build()
    for key, value in args.items():
        setattr(partial.args, key, value)
    return plan(partial, executor, {**PLACE, **(profile or {})})


def names(found: Plan, severity: str = "error") -> list[str]:
    return [problem.name for problem in found.problems if problem.severity == severity]


def test_the_plan_of_a_job_says_where_its_memory_goes(nemo: Callable[..., Done], home: Path) -> None:
    done = nemo("plan", *ISSUE)
    assert (done.code, done.err) == (0, "")
    rows = {line[:10].strip(): line[11:] for line in done.out.splitlines() if line[:1] not in (" ", "")}
    assert rows["recipe"] == "quantize_fp8 on slurm, engine script"
    assert rows["model"].startswith("Qwen/Qwen3-30B-A3B: 30.53 B parameters, 3.3")
    assert rows["machines"] == (
        "2 x 8 processes, ep=8, 16 copies with h100-80gb, 79 GiB (the recipe's stated hardware)"
    )
    assert rows["fits"] == "yes"
    assert "quantize.py --hf-model-id Qwen/Qwen3-30B-A3B" in rows["each rank"]
    assert "  weights" in done.out and "ranks 0-15: stage 1 of 1" in done.out
    assert done.out.splitlines()[-1] == "run would submit it."
    assert list(home.iterdir()) == [], "a plan writes nothing"


def test_what_only_ranks_can_do_is_planned_for_the_script() -> None:
    """A profile without an image says nothing of scripts; several machines or sizes of a layout do."""
    for profile, args in (({"nodes": "2"}, {}), ({}, {"tp": 2}), ({}, {})):
        partial = quantize_fp8()
        partial.args.hf_model_id = "Qwen/Qwen3-30B-A3B"
        for key, value in args.items():
            setattr(partial.args, key, value)
        found = plan(partial, "slurm", {"image": "null", "output_root": "/lustre/runs", **profile})
        assert found.engine == ("script" if profile or args else "hf")
        assert found.fits is not None and (found.memory and found.memory.device) == "GPU"


def test_a_job_on_this_machine_s_processors_is_counted_in_its_memory() -> None:
    partial = RECIPES["quantize_tiny"].build()
    partial.args.device = "cpu"
    found = plan(partial, "local")
    assert found.memory is not None and found.memory.device == "host" and found.fits
    assert (found.gpu, found.time) == (None, None), "estimates of time are for GPUs"
    assert "1 x 1 process on the host's processors" in str(found)


def test_command_line_python_and_json_say_the_same(nemo: Callable[..., Done]) -> None:
    done = nemo("plan", *ISSUE, "--json")
    partial = quantize_fp8()
    partial.args.hf_model_id = "Qwen/Qwen3-30B-A3B"
    here = plan(partial, "slurm", {"nodes": "2", **PLACE})
    document = json.loads(json.dumps(here.as_data()))
    times = ("run_dir", "outputs", "command")  # a run's id is in them
    assert {**done.json, **dict.fromkeys(times)} == {**document, **dict.fromkeys(times)}
    text = nemo("plan", *ISSUE).out.splitlines()
    alike = [line for line in str(here).splitlines() if "quantize_fp8_" not in line]
    assert [line for line in text if "quantize_fp8_" not in line] == alike


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_plan_is_as_its_schema_says(name: str) -> None:
    for executor in ("slurm", "local"):
        found = plan(RECIPES[name].build(), executor)
        document = json.loads(json.dumps(found.as_data()))
        jsonschema.validate(document, SCHEMA)
        assert str(found).splitlines()[-1].startswith(("run would", "1 problem", "2 problem", "3 problem", "4 problem"))


def test_the_schema_refuses_what_it_does_not_describe() -> None:
    document = json.loads(json.dumps(planned("quantize_fp8").as_data())) | {"more": 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


def test_run_refuses_what_plan_refuses(nemo: Callable[..., Done], home: Path) -> None:
    words = [*ISSUE, "args.tp=3", "args.pp=2"]
    told, refused = nemo("plan", *words), nemo("run", *words)
    assert (told.code, refused.code) == (2, 2)
    problems = [line for line in told.out.splitlines() if line.startswith("Problem")]
    assert problems == [line for line in refused.err.splitlines() if line.startswith("Problem")]
    assert problems[0] == (
        "Problem world_size_not_divisible   args.tp=3: 16 processes do not divide by tp x pp = 6."
        "  Try tp=4 pp=2, or tp=8 pp=2."
    )
    assert list(home.iterdir()) == []


def test_a_plan_is_shown_with_its_problems() -> None:
    found = planned("quantize_fp8", {"nodes": "2"}, hf_model_id="Qwen/Qwen3-8B", tp=3, pp=2)
    assert found.refused and "world_size_not_divisible" in names(found)
    assert "1 problem; run would refuse it." in str(found) or "problems; run would refuse it." in str(found)
    assert found.ranks == () and found.models[0].total == 8_190_735_360


def test_a_model_that_is_too_large_is_refused_with_the_smallest_layout_that_fits() -> None:
    found = planned("quantize_fp8", {"gpu": "l4"}, hf_model_id="Qwen/Qwen3-30B-A3B", ep=1)
    assert found.fits is False and names(found) == ["does_not_fit"]
    (problem,) = [one for one in found.problems if one.severity == "error"]
    assert (problem.key, problem.value, problem.can_force) == ("executor.gpu", "l4", True)
    assert "GiB" in problem.cause and "The smallest that fits: torchrun.nnodes=1" in problem.remedy
    assert found.proposal is not None and found.proposal.smaller, "and why the next smaller one does not"
    assert "GiB" in found.proposal.smaller[0].reason
    best = found.proposal.layout
    sizes = {size: getattr(best, size) for size in ("tp", "pp", "ep", "etp")}
    assert planned("quantize_fp8", {"gpu": "l4"}, hf_model_id="Qwen/Qwen3-30B-A3B", **sizes).fits, (
        "what is proposed fits"
    )


def test_the_hardware_that_a_recipe_is_made_for_refuses_nothing() -> None:
    found = planned("quantize_fp8", hf_model_id="Qwen/Qwen3-235B-A22B", tp=1, ep=1)
    assert found.fits is False and "does_not_fit" not in names(found)
    assert "does_not_fit" in names(found, "warning")


def test_what_is_not_known_is_said_and_skips_only_what_needs_it() -> None:
    found = planned("quantize_fp8", {"nodes": "2"}, hf_model_id="somebody/unheard-of", tp=3)
    assert found.memory is None and found.fits is None
    assert "world_size_not_divisible" in names(found), "needs no facts"
    found = planned("quantize_fp8", {"nodes": "2"}, hf_model_id="somebody/unheard-of", tp=2)
    assert {one.name: one.missing for one in found.skipped}["heads_not_divisible"] == ("model.heads",)
    assert "not checked: heads_not_divisible (not known: model.heads)" in str(found)
    assert not found.refused and found.fits is None
    assert "not checked: does_not_fit (not known: model)" in str(found)


def test_a_model_of_an_unknown_kind_is_counted_by_its_files(fake_model: Callable[..., Path]) -> None:
    folder = fake_model()
    (folder / "config.json").write_text(json.dumps({"model_type": "brand_new", "hidden_size": 256}))
    partial = quantize_fp8()
    partial.args.hf_model_id = str(folder)
    (model,) = plan(partial, "local").models
    assert (model.parameters, model.total) == (None, 2 * 100 * 256 + 4 * 256 * 256)


def test_a_typo_is_told_beside_the_plan(nemo: Callable[..., Done]) -> None:
    done = nemo("plan", *ISSUE, "args.calib_sizes=3")
    assert done.code == 2
    assert "Problem unknown_key   args.calib_sizes: there is no such key  Did you mean args.calib_size?" in done.out
    assert "each rank" in done.out


def test_a_recipe_that_is_not_there_has_no_plan(nemo: Callable[..., Done]) -> None:
    done = nemo("plan", "quantise_fp8", "--json")
    assert (done.code, done.answer["problems"][0]["name"]) == (2, "unknown_recipe")


def test_help_has_an_example(nemo: Callable[..., Done]) -> None:
    assert "nemo experiment plan quantize_fp8 executor=slurm" in " ".join(nemo("plan", "--help").out.split())


class TestForce:
    """--force NAME: a judgement is overridden, by name, and the record says so."""

    def test_a_forced_problem_stops_nothing_and_is_recorded(self, nemo: Callable[..., Done], tmp_path: Path) -> None:
        words = [*ISSUE, "executor.gpu=l4", "args.ep=1", "--dryrun"]
        assert nemo("run", *words).code == 2
        done = nemo("run", *words, "--force", "does_not_fit", "--json")
        assert (done.code, [one["severity"] for one in done.json["warnings"] if one["name"] == "does_not_fit"]) == (
            0,
            ["forced"],
        )
        assert "Forced does_not_fit" in done.err

    def test_the_record_says_so(self) -> None:
        partial = quantize_fp8()
        partial.args.hf_model_id, partial.args.ep = "Qwen/Qwen3-30B-A3B", 1
        profile = {**PLACE, "gpu": "l4"}
        with pytest.raises(ProblemsError):
            prepare(partial, "slurm", profile)
        prepared = prepare(partial, "slurm", profile, force=frozenset({"does_not_fit"}))
        (folder,) = record_all([prepared])
        warnings = json.loads((folder.dir / "run.json").read_text(encoding="utf-8"))["warnings"]
        assert [(one["name"], one["severity"]) for one in warnings] == [("does_not_fit", "forced")]

    def test_what_cannot_work_cannot_be_forced(self, tmp_path: Path) -> None:
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "file").write_text("mine")
        partial = RECIPES["quantize_tiny"].build()
        partial.args.hf_model_id, partial.args.export_dir = "tiny:qwen3", str(tmp_path / "taken")
        with pytest.raises(ProblemsError) as caught:
            prepare(partial, "local", force=frozenset({"output_exists"}), online=False)
        (problem,) = [one for one in caught.value.problems if one.name == "output_exists"]
        assert problem.severity == "error" and problem.remedy.endswith("It cannot be forced.")

    def test_a_name_that_no_problem_has_is_told(self) -> None:
        found = plan(RECIPES["probe"].build(), "local", force=["does_not_fitt"])
        assert names(found, "warning") == ["nothing_to_force"] and not found.refused


def test_planning_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import nemo_run\n"
        "with_nemo = {'torch'} & set(sys.modules)\n"
        "for name in ('torch', 'transformers', 'modelopt'): sys.modules.setdefault(name, None)\n"
        "from recipes import plan, quantize_fp8\n"
        "print(plan(quantize_fp8(), 'slurm', {'image': 'nvcr.io/nvidia/nemo:26.04', 'output_root': '/lustre'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "run would submit it." in done.stdout
