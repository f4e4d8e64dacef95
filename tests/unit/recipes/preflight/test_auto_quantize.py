"""A search for the format of each layer: what is refused where it is submitted, and what the rest knows of it."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from recipes import auto_quantize, chain, evaluate
from recipes.experiment.chain import wired
from recipes.experiment.examine import examine
from recipes.experiment.stage import Options, Stage
from recipes.planner.workload import workload_of
from recipes.values import set_value
from scripts.args.auto_quantize import SEARCHED, AutoQuantizeArgs
from scripts.args.meaning import ScriptSpec
from scripts.engines.hf import search_checks
from scripts.engines.hf.search import _least_threshold
from scripts.formats import builtin_recipes
from scripts.run.problems import JobError, Problem
from scripts.run.registry import refuse
from tests.jobs import job_of

RECIPE = "general/auto_quantize/nvfp4_fp8_at_5p4bits"


def said(*words: str) -> dict[str, Problem]:
    partial = auto_quantize()
    for word in ("args.hf_model_id=tiny:qwen3", *words):
        key, _, value = word.partition("=")
        assert not set_value(partial, key, value)
    problems = examine([Stage(name="one", partial=partial)], "local", Options(online=False)).problems
    return {problem.name: problem for problem in problems if problem.severity == "error"}


@pytest.mark.parametrize(
    ("words", "name", "told"),
    [
        (("args.formats=[nvfp4,fp9]",), "unsupported_quant_recipe", "fp8"),
        (("args.formats=[]",), "missing_value", "nvfp4"),
        (("args.effective_bits=4.4",), "effective_bits_out_of_reach", "from 4.5 to below 16"),
        (("args.effective_bits=7", "args.formats=[fp8]"), "effective_bits_out_of_reach", "from 8 to below 16"),
        (("args.effective_bits=16",), "effective_bits_out_of_reach", "below 16"),
        (("args.effective_bits=0",), "out_of_range", ""),
        (("args.effective_bits=8", "args.formats=[fp8]", "args.allow_no_quant=false"), "nothing_to_search", "quantize"),
        ((f"args.recipe={RECIPE}", "args.formats=[fp8]"), "contradiction", "Leave one"),
        (("args.recipe=general/auto_quantize/nvfp4_fp8",), "unsupported_quant_recipe", RECIPE),
        (("args.recipe=general/ptq/fp8_default-kv_fp8",), "unsupported_quant_recipe", ""),
        (("args.formats=[w4a8_awq,fp8]",), "format_not_restorable", "args.modelopt_save_path=null"),
        (("engine=script",), "engine_cannot", "engine=hf"),
        (("engine=bridge",), "engine_cannot", "engine=hf"),
    ],
)
def test_what_cannot_be_is_refused_by_name(words: tuple[str, ...], name: str, told: str) -> None:
    problem = said(*words)[name]
    assert told in problem.remedy and not problem.can_force


def test_every_recipe_of_modelopt_passes_and_so_do_the_formats() -> None:
    assert len(builtin_recipes("auto_quantize")) > 5
    for recipe in builtin_recipes("auto_quantize"):
        assert said(f"args.recipe={recipe}") == {}
    assert said(f"args.formats=[{','.join(set(SEARCHED) - {'w4a8_awq'})}]") == {}
    assert said("args.formats=[w4a8_awq,fp8]", "args.modelopt_save_path=null") == {}


def test_the_node_refuses_the_same(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("quantize: {}\n")
    wrong: dict[str, dict[str, Any]] = {
        "effective_bits_out_of_reach": {"effective_bits": 4.0},
        "unsupported_quant_recipe": {"recipe": str(own)},
    }
    for name, values in wrong.items():
        with pytest.raises(JobError) as caught:
            refuse(AutoQuantizeArgs(**values), ScriptSpec(), search_checks)
        assert caught.value.name == name


def test_outputs_are_named_after_what_is_searched() -> None:
    for values, name in (
        ({}, "nvfp4-fp8-5.4bits"),
        ({"formats": ["int4_awq", "fp8"], "effective_bits": 6.0}, "int4_awq-fp8-6bits"),
        ({"recipe": RECIPE}, "nvfp4_fp8_at_5p4bits"),
        ({"recipe": RECIPE, "effective_bits": 6.0}, "nvfp4_fp8_at_5p4bits-6bits"),
    ):
        assert AutoQuantizeArgs(**values).variant() == name  # type: ignore[arg-type]


def test_a_search_takes_longer_than_one_format_and_by_divergence_longer_still() -> None:
    def passes(**values: Any) -> int:
        named = {f"args__{name}": value for name, value in values.items()}
        work = workload_of(job_of("auto_quantize", engine="hf", args__device="cuda", **named))
        assert work is not None and work.model.layers
        return work.rounds * work.samples + work.scored * (
            work.passes_scored + work.passes_of_layer * work.model.layers
        )

    assert 512 < passes() < passes(method="kl_div")
    assert passes(formats=["nvfp4", "fp8"]) < passes(formats=["int4_awq", "fp8"])


def test_a_chain_scores_what_a_search_leaves() -> None:
    first, second = wired(chain(auto_quantize(), evaluate()))
    assert first.name in str(second.partial.args.checkpoint)


class _Searcher:
    """What a search has found of three layers: sizes 4 and 8, and what each loses."""

    candidate_stats: ClassVar = {
        f"layer{at}": {"formats": ["small", "large"], "scores": [loss, 0.0], "costs": [4.0, 8.0]}
        for at, loss in enumerate((3.0, 1.0, 2.0))
    }


@pytest.mark.parametrize(("room", "small"), [(24.0, 0), (20.0, 1), (17.0, 2), (16.0, 2), (12.0, 3)])
def test_the_threshold_is_the_least_that_keeps_the_size(room: float, small: int) -> None:
    best, satisfied = _least_threshold(_Searcher(), room)
    assert satisfied and sum(one["costs"] for one in best.values()) <= room
    assert [one["format"] for one in best.values()].count("small") == small
    assert not _least_threshold(_Searcher(), 11.0)[1]
