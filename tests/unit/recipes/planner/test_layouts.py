"""Layouts that are proposed: those nearest to what was asked for, and the smallest that a job fits in."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from recipes.experiment.job import Job
from recipes.models import ModelFacts, facts_of
from recipes.planner.gpus import Gpu
from recipes.planner.layout import Layout
from recipes.planner.megatron_memory import memory_of
from recipes.planner.memory import need_of
from recipes.planner.search import alternatives, smallest
from tests.jobs import script_specs

_GIB = 1 << 30
PROFILES = """
slurm: {account: a, image: "nvcr.io/nvidia/nemo:26.06", job_dir: /lustre/me, gpu: h100-80gb}
four: {extends: slurm, gpus: 4}
docker: {kind: docker, image: "nvcr.io/nvidia/nemo:26.06", gpu: h100-80gb}
unknown: {extends: slurm, gpu: null}
"""
QWEN3_235B = "Qwen/Qwen3-235B-A22B"


@pytest.fixture
def job(tmp_path: Path) -> Any:
    return script_specs(tmp_path, PROFILES)


def known(name: str) -> ModelFacts:
    facts = facts_of(name)
    assert facts is not None
    return facts


def gpu(memory: float) -> Gpu:
    return Gpu(name="some", memory=int(memory * _GIB), sm=90, bf16_tflops=989.0, bandwidth=3.35)


def sizes(layout: Layout) -> tuple[int, ...]:
    return layout.world, layout.tp, layout.pp, layout.ep, layout.etp


def test_the_nearest_larger_layouts_of_the_same_processes_come_first() -> None:
    asked = Layout(nodes=2, processes=8, tp=3, pp=2)
    assert [(one.tp, one.pp) for one in alternatives(asked, [])] == [(4, 2), (8, 2)]
    assert [one.tp for one in alternatives(asked, [], limit=9)] == [4, 8, 2, 1]
    assert {one.world for one in alternatives(asked, [], limit=9)} == {16}


def test_a_layout_that_is_valid_is_its_own_alternative() -> None:
    asked = Layout(nodes=1, processes=8, tp=2, pp=2)
    assert alternatives(asked, [known("Qwen/Qwen3-8B")]) == (asked,)


def test_alternatives_suit_every_model() -> None:
    """Qwen2.5-7B has 28 heads, Llama-3.2-3B 24 of them in 8 groups."""
    seven, three = known("Qwen/Qwen2.5-7B-Instruct"), known("meta-llama/Llama-3.2-3B")
    assert [one.tp for one in alternatives(Layout(nodes=1, processes=8, tp=8), [seven], limit=9)] == [4, 2, 1]
    assert [one.tp for one in alternatives(Layout(nodes=2, processes=6, tp=5), [three], limit=9)] == [4, 2, 1]
    assert [one.tp for one in alternatives(Layout(nodes=1, processes=8, tp=3), [seven, three], limit=9)] == [4, 2, 1]


def test_several_sizes_are_changed_where_one_is_not_enough() -> None:
    assert [(one.tp, one.pp) for one in alternatives(Layout(nodes=1, processes=8, tp=3, pp=5), [])] == [(2, 4), (4, 2)]
    asked = Layout(nodes=64, processes=8, tp=3, pp=5, ep=7, cp=3, etp=5)
    found = alternatives(asked, [known("Qwen/Qwen3-30B-A3B")])
    assert len(found) == 2 and all(one.divides and one.ep > 1 for one in found)


def test_experts_are_respread_only_where_they_are_spread() -> None:
    facts = known("Qwen/Qwen3-30B-A3B")
    assert [one.ep for one in alternatives(Layout(nodes=1, processes=8, ep=3), [facts])] == [4, 8]
    assert all(one.ep == 1 for one in alternatives(Layout(nodes=1, processes=8, tp=3), [facts], limit=9))


def test_tensor_parallelism_stays_within_a_machine() -> None:
    assert all(one.tp <= 4 for one in alternatives(Layout(nodes=4, processes=4, tp=3), [], limit=9))


def test_there_is_always_one() -> None:
    """Seven processes share 36 layers in no other way than a copy each."""
    (found,) = alternatives(Layout(nodes=1, processes=7, tp=3, pp=2), [known("Qwen/Qwen3-8B")])
    assert (found.tp, found.pp) == (1, 1)


def test_the_smallest_layout_fits_and_the_next_smaller_one_is_told_why_not(job: Any) -> None:
    spec = job("quantize_fp8", args__hf_model_id=QWEN3_235B)
    proposal = smallest(spec)
    assert proposal is not None and spec.gpu is not None
    assert sizes(proposal.layout) == (8, 2, 1, 8, 1)
    assert proposal.memory.total <= spec.gpu.usable
    (rejected,) = proposal.smaller
    assert rejected.layout.world == 4
    assert rejected.reason.endswith("GiB > 72.7 GiB")
    assert " GiB of weights + " in rejected.reason


def test_no_smaller_layout_fits(job: Any) -> None:
    """Every layout of half the GPUs, tried one by one through the job's own arguments."""
    spec = job("quantize_fp8", args__hf_model_id=QWEN3_235B)
    room = spec.gpu.usable
    for tp, pp, ep in product((1, 2, 4), repeat=3):
        args = replace(spec.resolved, tp=tp, pp=pp, ep=ep)
        memory = memory_of(replace(spec, args=args, resolved=args, processes=4))
        assert memory is None or memory.total > room


def test_one_gpu_is_enough_where_it_is(job: Any) -> None:
    proposal = smallest(job("quantize_modelopt"))
    assert proposal is not None
    assert sizes(proposal.layout) == (1, 1, 1, 1, 1) and proposal.smaller == ()


def test_smaller_gpus_mean_more_of_them(job: Any) -> None:
    spec = job("quantize_modelopt")
    found = [smallest(replace(spec, gpu=gpu(memory))) for memory in (8, 12, 24, 80)]
    assert [sizes(one.layout)[:3] for one in found if one] == [(8, 8, 1), (4, 4, 1), (1, 1, 1), (1, 1, 1)]


def test_nothing_fits_in_next_to_nothing(job: Any) -> None:
    assert smallest(replace(job("quantize_modelopt"), gpu=gpu(2))) is None


def test_only_sizes_that_the_script_has_are_proposed(job: Any) -> None:
    """Pruning is cut by layers only, an export too: its tensors would be halves."""
    pruned = smallest(replace(job("prune"), gpu=gpu(16)))
    assert pruned is not None and sizes(pruned.layout) == (2, 1, 2, 1, 1)
    exported = smallest(replace(job("export"), gpu=gpu(16)))
    assert exported is not None and sizes(exported.layout) == (2, 1, 2, 1, 1)
    assert pruned.smaller[0].layout.world == 1


def test_layers_that_do_not_divide_are_no_stages(job: Any) -> None:
    """36 layers: eight even stages would have room, but there are none; those that were asked for are tried."""
    values = {f"args__num_layers_in_{end}_pipeline_stage": None for end in ("first", "last")}
    assert smallest(replace(job("prune_uneven", **values), gpu=gpu(9.5))) is None
    uneven = smallest(replace(job("prune_uneven"), gpu=gpu(9.5)))
    assert uneven is not None and uneven.memory.stage == "stage 8 of 8: head, layers 34-36"
    even = smallest(replace(job("prune_uneven"), gpu=gpu(11)))
    assert even is not None and even.memory.stage == "stage 4 of 4: head, layers 28-36"


def test_a_smaller_number_of_gpus_may_suit_no_layout(job: Any) -> None:
    """30 layers: four stages are not even, eight are as they were asked for."""
    spec = job("prune_uneven")
    cut = replace(known("Qwen/Qwen3-8B"), blocks=(("attention", "mlp"),) * 30)
    proposal = smallest(replace(spec, models={"hf_model_name_or_path": cut}, gpu=gpu(9)))
    assert proposal is not None and proposal.layout.pp == 8
    assert [one.reason for one in proposal.smaller] == ["30 layers do not divide by pp = 4"]


def test_a_training_uses_copies_that_its_samples_divide_over(job: Any) -> None:
    proposal = smallest(job("distill"))
    assert proposal is not None
    layout, batch = proposal.layout, 768
    assert layout.world == 4 and batch % layout.dp == 0
    odd = smallest(job("distill", args__gbs=7))
    assert odd is not None and odd.layout.dp == 1


def test_experts_of_a_teacher_count_too(job: Any) -> None:
    proposal = smallest(job("distill", args__teacher_hf_path=QWEN3_235B, args__student_hf_path="Qwen/Qwen3-30B-A3B"))
    assert proposal is not None
    assert proposal.layout.world > 8 and proposal.layout.ep > 1
    assert proposal.memory.parts["teacher"] > proposal.memory.parts["weights"]


def test_machines_are_as_large_as_the_profile_says(job: Any) -> None:
    proposal = smallest(job("quantize_fp8", "four", args__hf_model_id=QWEN3_235B, torchrun__nproc_per_node=4))
    assert proposal is not None
    assert (proposal.layout.nodes, proposal.layout.processes) == (2, 4) and proposal.layout.tp <= 4


def test_an_executor_of_one_machine_is_offered_no_second_one(job: Any) -> None:
    heavy = {"args__teacher_hf_path": QWEN3_235B, "args__student_hf_path": QWEN3_235B}
    assert smallest(job("distill", "docker", **heavy)) is None
    assert smallest(job("distill", **heavy)) is not None


def test_one_process_scripts_are_offered_one_process(job: Any) -> None:
    """Before Megatron-Bridge 0.4 conversion was one process."""
    spec = job("hf_to_megatron", args__hf_model=QWEN3_235B, script__release="0.3")
    assert spec.addressed is not None and spec.addressed.script in spec.args.ONE_PROCESS
    assert smallest(spec) is None
    assert smallest(job("hf_to_megatron", args__hf_model=QWEN3_235B)) is not None


def fits(spec: Job) -> bool | None:
    need = need_of(spec)
    return None if need is None else need.fits


def test_what_is_not_known_is_not_guessed(job: Any) -> None:
    spec = job("quantize_modelopt")
    assert fits(spec) is True
    assert fits(replace(spec, gpu=gpu(4))) is False
    assert fits(replace(spec, gpu=None)) is None and smallest(replace(spec, gpu=None)) is None
    half = replace(known("Qwen/Qwen3-8B"), vocab_size=None)
    unknown = replace(spec, models={"hf_model_name_or_path": half})
    assert fits(unknown) is None and smallest(unknown) is None
    assert smallest(job("quantize_fp8", engine="hf")) is None


def test_a_gpu_is_not_filled_to_the_brim() -> None:
    assert gpu(100).usable == int(92 * _GIB)
