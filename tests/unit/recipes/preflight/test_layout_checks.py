"""What is wrong with a layout is told before it is queued: by numbers of the world, of the model, of the batch."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from executors import load_profile, place_of
from recipes import find
from recipes.experiment.job import Job, job_of
from recipes.experiment.stage import Options, Stage
from recipes.models import ModelFacts
from recipes.planner.layout import Layout, layers_fit, uneven_stages, violations
from recipes.preflight import layout
from scripts.run.problems import Problem
from scripts.run.registry import Check, Findings, carry_out, checks_of
from tests.conftest import Done

PROFILE = {"account": "a", "image": "nvcr.io/nvidia/nemo:26.06", "job_dir": "/lustre/me"}
#: Of a Llama with 24 heads in 6 groups, so that what is often true does not hide what is checked.
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 24,
    "num_key_value_heads": 6,
    "num_hidden_layers": 36,
    "head_dim": 128,
    "vocab_size": 128000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
EXPERTS = {
    **LLAMA,
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 12,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 770,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
HYBRID = {
    **LLAMA,
    "model_type": "nemotron_h",
    "architectures": ["NemotronHForCausalLM"],
    "num_hidden_layers": 4,
    "hybrid_override_pattern": "M-M*",
    "mamba_num_heads": 64,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "ssm_state_size": 128,
    "conv_kernel": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
Make = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path) -> Make:
    """A folder with a config.json, which is all that these checks read of a model."""

    def make(config: Mapping[str, Any] = LLAMA, /, name: str = "model", **changed: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**config, **changed}))
        return str(folder)

    return make


def spec_for(recipe: str, *, profile: Mapping[str, str] | None = None, kind: str = "slurm", **values: Any) -> Job:
    """The Job of a recipe with these values: `args__tp=2`, `torchrun__nnodes=2`, `extra_args=[...]`."""
    partial = find(recipe).build()
    for key, value in values.items():
        section, _, name = key.partition("__")
        setattr(getattr(partial, section) if name else partial, name or section, value)
    overrides = {**(PROFILE if kind == "slurm" else {}), **(profile or {})}
    loaded, problems = load_profile(kind, overrides)
    assert problems == []
    stage, options = Stage(name="one", partial=partial), Options(overrides=overrides, online=False)
    spec, wrong = job_of(stage, "run", kind, place_of(loaded), options)
    assert spec is not None, wrong
    return spec


def findings(checks: Sequence[Check], recipe: str, **values: Any) -> Findings:
    return carry_out(checks, spec_for(recipe, **values))


def told(recipe: str, **values: Any) -> list[Problem]:
    return list(findings(checks_of(layout), recipe, **values).problems)


def named(recipe: str, **values: Any) -> list[tuple[str, str]]:
    return [(problem.name, problem.key) for problem in told(recipe, **values)]


def test_the_sentence_is_what_the_documents_promise() -> None:
    (problem,) = told("quantize_fp8", args__hf_model_id="/m", args__tp=3, args__pp=2, args__ep=1, torchrun__nnodes=2)
    assert str(problem) == (
        "Problem world_size_not_divisible   args.tp=3: 16 processes do not divide by tp x pp = 6.  "
        "Try tp=4 pp=2, or tp=8 pp=2."
    )
    assert not problem.can_force


def test_what_is_offered_is_in_the_words_of_the_script(model: Make) -> None:
    (problem,) = told("quantize_modelopt", args__hf_model_name_or_path=model(num_key_value_heads=8), args__tp_size=6)
    assert problem.remedy == "Try tp_size=8, or tp_size=4."
    (problem,) = told("prune", args__hf_model_name_or_path=model(name="pruned"), args__pp_size=3)
    assert (problem.name, problem.remedy) == ("invalid_parallel_divisibility", "Try pp_size=2.")


def test_what_is_offered_suits_the_model(model: Make) -> None:
    """4 and 8 divide 16 processes, and neither divides into 6 query groups or by them."""
    values = {"args__ep": 1, "args__pp": 2, "torchrun__nnodes": 2}
    (problem,) = told("quantize_fp8", args__hf_model_id=model(), args__tp=5, **values)
    assert problem.remedy == "Try tp=2 pp=2, or tp=1 pp=2."


def test_nobody_waits_for_layouts_of_a_world_that_is_not_meant() -> None:
    (problem,) = told("quantize_fp8", args__hf_model_id="/m", args__tp=7, args__ep=1, torchrun__nnodes=10**12)
    assert problem.remedy == "Use a multiple of 7 processes (torchrun.nnodes x torchrun.nproc_per_node)."


def test_a_script_without_data_parallelism_uses_every_process() -> None:
    (problem,) = told("export", args__megatron_load_path="/c", args__pp=2, torchrun__nproc_per_node=4)
    assert (problem.name, problem.key) == ("world_size_not_divisible", "torchrun.nproc_per_node")
    assert problem.remedy == "Use torchrun.nproc_per_node=2, on one machine."


def test_experts_have_a_layout_of_their_own() -> None:
    (problem,) = told("quantize_fp8", args__hf_model_id="/m", args__tp=1, args__ep=4, args__etp=4)
    assert problem.name == "world_size_not_divisible"
    assert "8 processes do not divide by etp x ep = 16" in problem.cause


@pytest.mark.parametrize("name", ["tp", "pp", "etp", "calib_size"])
def test_sizes_begin_at_one(name: str) -> None:
    assert named("quantize_fp8", args__hf_model_id="/m", args__ep=1, **{f"args__{name}": 0}) == [
        ("out_of_range", f"args.{name}")
    ]


@pytest.mark.parametrize(
    ("config", "values", "name", "key"),
    [
        ({}, {"tp": 16}, "heads_not_divisible", "args.tp"),
        ({"num_attention_heads": 32}, {"tp": 4}, "query_groups_not_divisible", "args.tp"),
        ({"num_attention_heads": 32, "num_key_value_heads": 2}, {"tp": 8}, None, None),
        ({"intermediate_size": 8190}, {"tp": 4, "heads": 1}, "ffn_not_divisible", "args.tp"),
        ({"vocab_size": 128001}, {"tp": 2}, "vocabulary_not_divisible", "args.tp"),
        ({}, {"pp": 8}, "layers_not_divisible", "args.pp"),
        ({}, {"pp": 4}, None, None),
        ({"num_hidden_layers": 2}, {"pp": 4}, "layers_not_divisible", "args.pp"),
        ({}, {"ep": 2}, "expert_parallel_without_experts", "args.ep"),
        (EXPERTS, {"ep": 8}, "experts_not_divisible", "args.ep"),
        (EXPERTS, {"ep": 4}, None, None),
        (EXPERTS, {"ep": 1, "etp": 4}, "expert_ffn_not_divisible", "args.etp"),
        (HYBRID, {"tp": 8}, None, None),
        ({**HYBRID, "n_groups": 4}, {"tp": 8}, "mamba_groups_not_divisible", "args.tp"),
        ({**HYBRID, "mamba_num_heads": 60, "n_groups": 8}, {"tp": 8}, "mamba_heads_not_divisible", "args.tp"),
    ],
)
def test_the_model_s_numbers(model: Make, config: Any, values: dict[str, int], name: str | None, key: str) -> None:
    if values.pop("heads", 0):
        config = {**config, "num_key_value_heads": 8, "num_attention_heads": 24}
    args = {f"args__{size}": value for size, value in {"tp": 1, "ep": 1, **values}.items()}
    found = told("quantize_fp8", args__hf_model_id=model(LLAMA, **config), torchrun__nnodes=2, **args)
    assert name is None or name in [problem.name for problem in found]
    assert bool(found) == bool(name), found
    assert all((problem.key, problem.can_force) == (key, True) for problem in found)


def test_a_vocabulary_is_filled_up_by_megatron_lm(model: Make) -> None:
    from recipes.models import facts_of

    facts = facts_of(model(vocab_size=128001))
    assert facts is not None
    two = Layout(nodes=1, processes=2, tp=2)
    assert [one.name for one in violations(two, facts)] == ["vocabulary_not_divisible"]
    assert list(violations(two, facts, padded=True)) == []
    spec = spec_for("mlm_quantize", args__load="/c", args__tp=2, torchrun__nproc_per_node=2)
    applied = [check.name for check in checks_of(layout) if check.is_for(spec)]
    assert "heads_not_divisible" in applied
    assert "vocabulary_not_divisible" not in applied


def test_what_is_not_known_is_not_judged_and_says_so() -> None:
    found = findings(checks_of(layout), "quantize_fp8", args__hf_model_id="nobody/knows", args__tp=8, args__ep=1)
    assert found.problems == ()
    assert {skipped.name: skipped.missing for skipped in found.skipped}["heads_not_divisible"] == ("model.heads",)
    assert not any("pp" in skipped.name or "layers" in skipped.name for skipped in found.skipped), "pp is 1"
    assert list(violations(Layout(nodes=1, processes=7, tp=7, pp=7), ModelFacts(source="nowhere"))) == []


def test_both_models_of_a_distillation_are_judged(model: Make) -> None:
    values = {"args__teacher_hf_path": model(num_attention_heads=20), "args__student_hf_path": model(name="student")}
    found = told("distill_mock", **values)
    causes = {problem.cause for problem in found}
    assert "the teacher's 20 attention heads do not divide by tp = 8" in causes
    assert "the student's 6 query groups neither divide by nor into tp = 8" in causes


@pytest.mark.parametrize(
    ("layers", "pp", "stages", "fits"),
    [
        (36, 8, (3, 3), True),
        (36, 8, (3, 4), False),
        (36, 8, (None, 1), True),
        (36, 2, (20, 16), True),
        (36, 2, (20, 15), False),
        (36, 2, (36, None), False),
        (36, 3, (18, 18), False),
        (36, 1, (36, 1), False),
        (4, 8, (None, None), False),
        (36, 4, (None, None), True),
    ],
)
def test_uneven_stages(layers: int, pp: int, stages: tuple[int | None, int | None], fits: bool) -> None:
    """As transformer_config of Megatron-Core 0.19 has it."""
    assert layers_fit(layers, pp, stages) is fits


def test_stages_that_are_offered_fit() -> None:
    offered = {(layers, pp): uneven_stages(layers, pp) for layers in range(3, 130) for pp in (2, 3, 4, 5, 8, 16)}
    for (layers, pp), ends in offered.items():
        assert ends is None or (layers_fit(layers, pp, ends) and max(ends) <= -(-layers // pp)), (layers, pp)
    assert offered[36, 8] == (3, 3)
    assert offered[52, 8] == (5, 5)
    assert offered[36, 2] is None, "two ends and nothing between them: there is nothing to even out"


def test_uneven_stages_are_offered_where_a_script_has_them(model: Make) -> None:
    values = {"args__hf_model_name_or_path": model(), "args__pp_size": 8, "torchrun__nproc_per_node": 8}
    (even,) = told("prune", **values)
    assert (even.name, even.key) == ("invalid_parallel_divisibility", "args.pp_size")
    assert even.remedy == "Try num_layers_in_first_pipeline_stage=3 num_layers_in_last_pipeline_stage=3."
    ends = "args__num_layers_in_first_pipeline_stage", "args__num_layers_in_last_pipeline_stage"
    assert named("prune", **values, **dict.fromkeys(ends, 3)) == []
    (uneven,) = told("prune", **values, **{ends[0]: 3})
    assert uneven.key == "args.num_layers_in_first_pipeline_stage"
    assert uneven.cause == "36 layers less 3 in the first stage leave 33 for 7 of pp = 8 stages"


def test_exporters_of_quantized_checkpoints_gather_no_shards() -> None:
    assert ("export_needs_tp1", "args.tp") in named("export", args__megatron_load_path="/c", args__tp=2)
    assert ("export_needs_tp1", "args.etp") in named("mlm_export", args__load="/c", args__etp=2)
    plain = named("export_distilled", args__megatron_path="/c", args__tp_size=2, torchrun__nproc_per_node=2)
    assert plain == [], "Megatron-Bridge's own exporter does"


def test_sizes_in_a_configuration_count() -> None:
    """The scripts of Megatron-Bridge's own recipes take sections, and words that go over them."""
    config = {"model": {"tensor_model_parallel_size": 3}, "train": {"global_batch_size": 64}}
    values = {"args__pretrained_checkpoint": "/c", "args__config": config}
    assert ("world_size_not_divisible", "args.config.model.tensor_model_parallel_size") in named("qat", **values)
    words = ["model.tensor_model_parallel_size=4", "model.context_parallel_size=1"]
    assert named("qat", **values, extra_args=words) == []
    words = ["model.tensor_model_parallel_size=0"]
    assert ("out_of_range", "args.config.model.tensor_model_parallel_size") in named("qat", **values, extra_args=words)


@pytest.mark.parametrize(
    ("recipe", "values", "key", "remedy"),
    [
        ("distill_mock", {"args__gbs": 9, "torchrun__nnodes": 2}, "args.gbs", "Try 8 or 10."),
        ("distill_mock", {"args__gbs": 1, "args__mbs": 4}, "args.gbs", "Try 4."),
        ("mlm_finetune", {"args__global_batch_size": 65}, "args.global_batch_size", "Try 64 or 72."),
        (
            "distill_llama",
            {"args__config": {"train": {"global_batch_size": 12}}},
            "args.config.train.global_batch_size",
            "Try 8 or 16.",
        ),
    ],
)
def test_batches_are_whole(recipe: str, values: dict[str, Any], key: str, remedy: str) -> None:
    if recipe == "mlm_finetune":
        values = {**values, "args__tp": 1, "args__pp": 1, "torchrun__nproc_per_node": 8}
    found = [problem for problem in told(recipe, **values) if problem.name == "batch_not_divisible"]
    assert [(problem.key, problem.remedy) for problem in found] == [(key, remedy)]


@pytest.mark.parametrize(
    ("values", "product"),
    [
        ({"args__tp_size": 1, "args__cp_size": 4, "args__seq_length": 516}, "2 x cp = 8"),
        ({"args__tp_size": 8, "args__seq_length": 516}, "tp = 8"),
        ({"args__tp_size": 2, "args__cp_size": 2, "args__seq_length": 512}, None),
    ],
)
def test_sequences_are_cut_into_whole_parts(values: dict[str, Any], product: str | None) -> None:
    found = [problem for problem in told("distill_mock", **values) if problem.name == "sequence_not_divisible"]
    assert [problem.key for problem in found] == (["args.seq_length"] if product else [])
    assert not product or (product in found[0].cause and found[0].remedy == "Try 520.")


def test_a_sequence_that_is_longer_than_the_model_s_positions(model: Make) -> None:
    student = model(num_key_value_heads=8)
    values = {"args__teacher_hf_path": student, "args__student_hf_path": student, "args__seq_length": 16384}
    (longer,) = told("distill_mock", **values)
    assert (longer.name, longer.severity) == ("sequence_longer_than_context", "warning")
    (refused,) = [
        problem
        for problem in told("mlm_quantize", args__load="/c", args__seq_length=10**7)
        if problem.name == "sequence_longer_than_context"
    ]
    assert (refused.key, refused.severity) == ("args.seq_length", "error"), "Megatron-LM asserts it"


def test_experts_are_trained_with_sequence_parallelism() -> None:
    values = {"args__model_card": "Qwen/Qwen3-30B-A3B", "args__load": "/c", "args__tp": 2}
    values |= {"torchrun__nproc_per_node": 2}
    names = [name for name, _ in named("mlm_finetune", **values, args__sequence_parallel=False)]
    assert "experts_need_sequence_parallel" in names
    assert "experts_need_sequence_parallel" not in [name for name, _ in named("mlm_finetune", **values)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["quantize_fp8", "args.hf_model_id=Qwen/Qwen3-30B-A3B", "args.tp=3", "args.pp=2", "executor.nodes=2"],
            "args.tp=3: 16 processes do not divide by tp x pp = 6.  Try tp=4 pp=2, or tp=8 pp=2.",
        ),
        (
            ["quantize_fp8", "args.hf_model_id=Qwen/Qwen3-30B-A3B", "args.ep=3", "torchrun.nproc_per_node=3"],
            "Problem experts_not_divisible   args.ep=3: 128 experts do not divide by ep = 3",
        ),
        (
            ["quantize_fp8", "args.hf_model_id=Qwen/Qwen3-8B", "args.ep=8"],
            "Problem expert_parallel_without_experts   args.ep=8: 0 experts cannot be spread over ep = 8  Try ep=1.",
        ),
        (
            ["prune", "args.pp_size=8", "torchrun.nproc_per_node=8"],
            "Try num_layers_in_first_pipeline_stage=3 num_layers_in_last_pipeline_stage=3.",
        ),
        (["quantize_fp8", "executor.gpus=4"], "Problem more_processes_than_gpus   torchrun.nproc_per_node=8"),
        (
            ["prune_fixed", "args.prune_export_config.hidden_size=8192"],
            "Problem pruned_size_out_of_reach   args.prune_export_config.hidden_size=8192: the model has 4096",
        ),
    ],
)
def test_on_the_command_line(nemo: Callable[..., Done], home: Path, words: list[str], said: str) -> None:
    slurm = [f"executor.{key}={value}" for key, value in PROFILE.items()]
    done = nemo("run", *words, "executor=slurm", *slurm)
    assert done.code == 2, done.out
    assert said in done.err
    assert [path for path in home.rglob("*") if path.is_file()] == []
