"""Ranks of the hf engine: how many share a job's samples, what a plan says of them, and who cannot."""

from pathlib import Path
from typing import Any

import pytest

from recipes import RECIPES, Stage
from recipes.experiment.examine import examine
from recipes.experiment.job import Job
from recipes.experiment.stage import Options
from recipes.planner import shares
from recipes.planner.plan import plan
from recipes.preflight import memory
from recipes.preflight.subjects import notes
from tests.jobs import job_of

MODEL = "Qwen/Qwen3-8B"
PLACE = {"output_root": "/lustre/runs", "gpu": "h100-80gb"}


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Profiles with four GPUs, with GPUs that nobody counts, and with none."""
    file = tmp_path / "executors.yaml"
    slurm = "extends: slurm, output_root: /lustre/runs, image: null, secrets: []"
    file.write_text(
        f"four: {{{slurm}, gpus: 4}}\nsome: {{{slurm}}}\n"
        "box: {extends: docker, output_root: /tmp/runs, image: busybox, gpus: 0, secrets: []}\n"
    )
    return file


def shape(places: Path, executor: str, recipe: str = "quantize_fp8", **values: Any) -> tuple[int, int, bool]:
    given = {"engine": "hf", "args__hf_model_id": MODEL, **values}
    job = job_of(recipe, executor, places, **given)
    assert (job.layout.nodes, job.layout.processes) == ((job.nodes, job.processes) if job.ranked else (1, 1))
    return job.nodes, job.processes, job.ranked


def test_there_is_a_process_for_each_gpu(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shape(places, "some") == (1, 8, True), "what the recipe says"
    assert shape(places, "four") == (1, 4, True), "no more than there are"
    assert shape(places, "box") == (1, 1, False)
    for here, found in ((0, (1, 1, False)), (2, (1, 2, True)), (None, (1, 1, False))):
        for module in (shares, memory):
            monkeypatch.setattr(module, "gpus_here", lambda here=here: here)
        assert shape(places, "local") == found
    assert shape(places, "four", torchrun__nproc_per_node=2) == (1, 2, True)
    assert shape(places, "local", torchrun__nproc_per_node=2, args__device="cpu") == (1, 2, True)
    assert shape(places, "four", torchrun__nproc_per_node=2, torchrun__nnodes=3) == (3, 2, True)


@pytest.mark.parametrize(
    ("recipe", "values"),
    [
        ("quantize_int4_awq", {}),
        ("quantize_fp8", {"args__export_kv_cache_quant": "fp8_affine"}),
        ("quantize_fp8_blockwise", {"args__from_files": True}),
    ],
)
def test_what_one_process_has_to_see_is_not_shared(places: Path, recipe: str, values: dict[str, Any]) -> None:
    assert shape(places, "four", recipe, **values) == (1, 1, False), "the recipe's own number is for a script"
    partial = RECIPES[recipe].build()
    for key, value in {"engine": "hf", "args__hf_model_id": MODEL, "torchrun__nproc_per_node": 2, **values}.items():
        section, _, name = key.partition("__")
        setattr(getattr(partial, section) if name else partial, name or section, value)
    found = examine([Stage(name="one", partial=partial)], "four", Options(profiles=places, online=False)).problems
    (problem,) = (one for one in found if one.name == "world_size_not_one")
    assert (problem.key, problem.value, problem.severity) == ("torchrun.nproc_per_node", 2, "error")


def test_a_small_model_or_a_processor_gets_one_process_where_nobody_asks(places: Path) -> None:
    assert shape(places, "four", args__hf_model_id="tiny:qwen3") == (1, 1, False)
    assert shape(places, "four", args__device="cpu") == (1, 1, False)
    assert shape(places, "four", args__export_quant_cfg="FP8_DEFAULT_CFG") == (1, 1, False), "it could be any algorithm"
    said: list[Job] = [job_of("quantize_fp8", "four", places, engine="hf", args__hf_model_id=MODEL)]
    said.append(job_of("quantize_int4_awq", "four", places, engine="hf", args__hf_model_id=MODEL))
    told = [[note for note in notes(job) if "processes on a machine" in note] for job in said]
    assert "no more GPUs are known" in told[0][0] and "by awq_lite" in told[1][0]


def test_a_plan_says_what_each_rank_has_and_counts_on_all_of_them() -> None:
    partial = RECIPES["quantize_fp8"].build()
    partial.engine, partial.args.hf_model_id = "hf", MODEL
    partial.args.calib_size = 20_000
    shared = plan(partial, "slurm", {**PLACE, "nodes": "2"})
    partial.torchrun.nproc_per_node = 1
    alone = plan(partial, "slurm", PLACE)
    text = "ranks 0-15: each the whole model, 1250 of 20000 samples to calibrate and 4 of 64 samples to score, at most"
    partial.torchrun.nproc_per_node, partial.args.fsdp = 8, True
    assert "ranks 0-15: each 1/16 of every layer, 1250 of 20000" in str(plan(partial, "slurm", {**PLACE, "nodes": "2"}))
    assert text in str(shared) and "not used" not in " ".join(note for note in shared.notes if "machine" in note)
    assert alone.ranks == () and "its one process" in str(alone)
    assert shared.memory and alone.memory and shared.memory.total == alone.memory.total
    assert shared.time and alone.time
    for one, many in zip(alone.time.terms["computing"], shared.time.terms["computing"], strict=True):
        assert one / many == pytest.approx(16)
