"""Where the memory of a Megatron rank goes: parameters as Megatron-Core builds them, the rest as its sources count."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recipes import RECIPES
from recipes.models import ModelFacts, facts_of
from recipes.planner.activations import Spread, kept
from recipes.planner.layout import Layout
from recipes.planner.megatron_memory import (
    SOURCES,
    RankMemory,
    anatomy,
    largest,
    layers_of_stages,
    memory_of,
    rank_memory,
)
from recipes.planner.workload import Workload, workload_of
from scripts.args.configuration import configured
from tests.jobs import job_of

ONE = Layout(nodes=1, processes=1)
PROFILES = """
slurm: {account: a, image: "nvcr.io/nvidia/nemo:26.06", job_dir: /lustre/me, gpu: h100-80gb}
many: {extends: slurm, nodes: 8}
"""


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    (tmp_path / "executors.yaml").write_text(PROFILES)
    return tmp_path / "executors.yaml"


@pytest.fixture
def job(profiles: Path) -> Any:
    def make(recipe: str, executor: str = "slurm", **values: Any) -> Any:
        return job_of(recipe, executor, profiles, **{"engine": "script", **values})

    return make


def small(*, experts: int = 0, tied: bool = False, **changes: Any) -> ModelFacts:
    """A Qwen3 or Qwen3-MoE of six narrow layers."""
    facts = ModelFacts(
        source="test",
        blocks=(("attention", "experts" if experts else "mlp"),) * 6,
        hidden_size=64,
        ffn_hidden_size=160,
        heads=8,
        query_groups=4,
        head_dim=16,
        vocab_size=512,
        tied_embeddings=tied,
        experts=experts,
        experts_per_token=2 if experts else 0,
        expert_ffn_size=48,
        shared_expert_ffn_size=0,
        gated_mlp=True,
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        qk_norm="head",
        attention_sinks=False,
        expert_bias=False,
        expert_latent_size=0,
        router_bias=False,
        shared_expert_gate=False,
        block_norms=2,
        norm_bias=False,
    )
    return replace(facts, **changes)


def known(name: str) -> ModelFacts:
    facts = facts_of(name)
    assert facts is not None
    return facts


def parts(work: Workload, layout: Layout = ONE) -> dict[str, int]:
    memory = rank_memory(work, layout)
    assert memory is not None
    return dict(memory.parts)


def spread(processes: int = 1, **sizes: int) -> Layout:
    return Layout(nodes=1, processes=processes, **sizes)


def training(model: ModelFacts | None = None, **values: Any) -> Workload:
    return Workload(kind="training", model=model or small(), **{"tokens": 32, "global_batch": 16, **values})


def calibration(model: ModelFacts | None = None, **values: Any) -> Workload:
    return Workload(kind="calibration", model=model or small(), **{"tokens": 32, **values})


@pytest.mark.parametrize(
    ("facts", "layout", "first", "counted"),
    [
        (small(), spread(2, tp=2), None, [199680]),
        (small(tied=True), spread(2, pp=2), None, [199136, 199200]),
        (small(), spread(4, tp=2, pp=2), None, [99808, 99872]),
        (small(), spread(2, pp=2), 2, [143680, 254656]),
        (small(), spread(8, tp=8), None, [50688]),
        (small(experts=8, tied=True), spread(1), None, [626688]),
        (small(experts=8), spread(2, ep=2), None, [438272]),
        (small(experts=8), spread(4, tp=2, ep=2, etp=2), None, [221184]),
        (small(experts=8, tied=True), spread(8, tp=2, pp=2, ep=2), None, [165856, 165920]),
    ],
)
def test_a_rank_holds_what_megatron_core_gives_it(
    facts: ModelFacts, layout: Layout, first: int | None, counted: list[int]
) -> None:
    """Counted in GPTModel of Megatron-Core 0.16.1 on as many gloo ranks: one number for each pipeline stage."""
    model = anatomy(facts, quantized=False)
    stages = model.stages(layout.pp, (first, None))
    assert stages is not None
    assert [model.held(stage, layout).total for stage in stages] == counted


@pytest.mark.parametrize(
    "name",
    ["Qwen/Qwen3-8B", "Qwen/Qwen3-235B-A22B", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16", "openai/gpt-oss-20b"],
)
def test_stages_together_hold_the_model(name: str) -> None:
    facts = known(name)
    model, parameters = anatomy(facts, quantized=False), facts.architecture.parameters
    assert parameters is not None
    stages = model.stages(2)
    assert stages is not None
    assert sum(model.held(stage, spread(2, pp=2)).total for stage in stages) == parameters.total
    assert parts(calibration(facts))["weights"] == 2 * parameters.total


def test_an_image_encoder_is_on_the_first_stage() -> None:
    facts = known("Qwen/Qwen3-VL-8B-Instruct")
    assert facts.vision is not None and facts.vision.parameters
    model = anatomy(facts, quantized=False)
    blind = anatomy(replace(facts, vision=None), quantized=False)
    layout = spread(2, pp=2)
    seen, unseen = ([one.held(stage, layout).total for stage in one.stages(2) or ()] for one in (model, blind))
    assert [with_it - without for with_it, without in zip(seen, unseen, strict=True)] == [facts.vision.parameters, 0]


@pytest.mark.parametrize(
    ("layers", "pp", "given", "sizes"),
    [
        (36, 2, (None, None), (18, 18)),
        (36, 8, (3, 3), (3, 5, 5, 5, 5, 5, 5, 3)),
        (7, 2, (3, 4), (3, 4)),
        (7, 2, (3, None), (3, 4)),
        (7, 2, (None, 3), (4, 3)),
        (36, 8, (None, None), None),
        (7, 2, (3, 3), None),
        (4, 1, (4, None), (4,)),
    ],
)
def test_layers_of_stages(layers: int, pp: int, given: Any, sizes: tuple[int, ...] | None) -> None:
    assert layers_of_stages(layers, pp, given) == sizes


def test_training_takes_18_bytes_a_parameter_and_spread_over_copies_6_and_12() -> None:
    """Megatron Core's guide, "Distributed Optimizer": bf16 parameters, float32 gradients."""
    total = small().architecture.parameters.total  # type: ignore[union-attr]

    def a_parameter(layout: Layout, **values: Any) -> float:
        found = parts(training(**values), layout)
        return (found["weights"] + found["gradients"] + found["optimizer"]) / total

    assert a_parameter(ONE) == 18
    assert a_parameter(spread(4)) == 6 + 12 / 4
    assert a_parameter(spread(4, cp=2)) == 6 + 12 / 4  # what sees another part of the sequence is a copy too
    assert a_parameter(spread(4), distributed_optimizer=False) == 18


def test_experts_have_copies_of_their_own() -> None:
    facts = small(experts=8)
    layers = facts.architecture.parameters
    assert layers is not None
    found = parts(training(facts), spread(4, ep=2))
    assert found["optimizer"] == 12 * ((layers.total - layers.of("experts")) / 4 + layers.of("experts") / 2 / 2)


def test_a_layer_keeps_what_korthikanti_counts_without_dropout() -> None:
    """Their Table 2: s b h (10 + 24/t), with sequence parallelism 34/t, of which 2 are masks of dropout."""
    facts = small(ffn_hidden_size=256, query_groups=8, head_dim=8, gated_mlp=False, qk_norm="none", heads=8)
    sums = 4 * 8  # FlashAttention's, one for each head

    def layer(tp: int, parallel: bool = False) -> float:
        spread = Spread(tp=tp, sequence_parallel=parallel)
        return sum(kept(facts, part, quantized=False).on_rank(spread) for part in ("attention", "mlp")) - sums / tp

    assert [layer(tp) for tp in (1, 2, 8)] == [64 * (8 + 24 / tp) for tp in (1, 2, 8)]
    assert layer(4, parallel=True) == 64 * 32 / 4


def test_what_parts_of_a_layer_keep() -> None:
    """By hand: a norm's input and output (256 bytes) in each; then what its kernels keep."""
    facts = small(experts=8, mamba_heads=4, mamba_head_dim=16, mamba_groups=2, mamba_state=8, mamba_conv=4)
    mlp = kept(facts, "mlp", quantized=False)
    attention = kept(facts, "attention", quantized=False)
    experts = kept(facts, "experts", quantized=False)
    mamba = kept(facts, "mamba", quantized=False)
    assert (mlp.whole, mlp.split) == (256, 2 * 3 * 160)
    # Query, key, value, result; query and key before their norms; a float32 sum for each head.
    assert (attention.whole, attention.split) == (256, 2 * (128 + 64 + 64 + 128 + 128 + 64) + 4 * 8)
    assert (experts.whole, experts.routed) == (256 + 2 * 4 * 8, 2 * (64 + 3 * 48))
    assert (mamba.whole, mamba.split) == (256, 2 * (2 * 64 + 2 * 2 * 8 + 4 + 2 * 64))
    shared = kept(replace(facts, shared_expert_ffn_size=32), "experts", quantized=False)
    assert shared.split - experts.split == 2 * 3 * 32


def test_fake_quantization_keeps_the_input_of_every_linear_layer_twice() -> None:
    facts = small(experts=8)

    def added(part: Any) -> tuple[float, float, float]:
        plain, copied = (kept(facts, part, quantized=quantized) for quantized in (False, True))
        return copied.whole - plain.whole, copied.split - plain.split, copied.routed - plain.routed

    assert added("mlp") == (128, 320, 0)
    assert added("attention") == (128, 256, 0)
    assert added("experts") == (128, 0, 2 * (64 + 48))


def test_latent_attention_keeps_and_caches_its_latents() -> None:
    facts = known("deepseek-ai/DeepSeek-V3")
    latent = facts.latent
    assert latent is not None and latent.q_lora_rank
    attention = kept(facts, "attention", quantized=False)
    assert attention.whole == 2 * (2 * (facts.hidden_size or 0) + 2 * (latent.kv_lora_rank + latent.q_lora_rank))
    generation = Workload(kind="generation", model=facts, tokens=100, new_tokens=28)
    cache = parts(generation)["key/value cache"]
    assert cache == 2 * 61 * 128 * (latent.kv_lora_rank + latent.qk_rope_head_dim)


def test_activations_of_a_training_grow_with_layers_batch_and_samples_in_flight() -> None:
    def activations(layout: Layout = ONE, **values: Any) -> int:
        return parts(training(**values), layout)["activations"]

    one = activations()
    assert activations(batch=3) == 3 * one
    assert activations(model=small(blocks=(("attention", "mlp"),) * 3)) * 2 == one
    assert activations(spread(2, cp=2)) * 2 == one
    # Half of the layers, two samples in flight on the first stage, which is the fullest.
    assert activations(spread(2, pp=2)) == one
    assert activations(spread(2, pp=2), global_batch=1) * 2 == one
    assert activations(recompute=1) < activations(recompute=3) < one
    hidden, layer = 32 * 2 * 64, one // 6
    assert activations(recompute=1) == 6 * hidden + layer
    assert activations(recompute=4) == 2 * hidden + 4 * layer
    split = activations(spread(2, tp=2))
    assert activations(spread(2, tp=2), sequence_parallel=True) == one // 2 < split < one


def test_the_fullest_stage_is_shown() -> None:
    deep = small(blocks=(("attention", "mlp"),) * 8)
    first = rank_memory(training(deep, tokens=4096), spread(2, pp=2))
    last = rank_memory(calibration(replace(deep, vocab_size=100000, tied_embeddings=True), tokens=64), spread(2, pp=2))
    assert first is not None and first.stage == "stage 1 of 2: embedding, layers 1-4"
    assert last is not None and last.stage == "stage 2 of 2: head, layers 5-8"
    whole = rank_memory(calibration(deep), ONE)
    assert whole is not None and whole.stage == "stage 1 of 1: embedding, head, layers 1-8"


def test_a_teacher_is_held_beside_the_student_and_its_logits_with_the_loss() -> None:
    teacher = small(blocks=(("attention", "mlp"),) * 12)
    alone, taught = parts(training()), parts(training(teacher=teacher))
    assert taught["teacher"] == 2 * teacher.architecture.parameters.total  # type: ignore[union-attr]
    assert taught["teacher's activations"] > 0
    assert alone["loss"] == 6 * 32 * 512
    assert taught["loss"] == 36 * 32 * 512
    assert taught["optimizer"] == alone["optimizer"]
    halves = parts(training(teacher=teacher), spread(2, tp=2))
    assert halves["loss"] * 2 == taught["loss"]
    assert taught["teacher"] > halves["teacher"] > taught["teacher"] // 2  # norms are on both


def test_a_stage_without_head_has_no_loss() -> None:
    deep = small(blocks=(("attention", "mlp"),) * 64)
    memory = rank_memory(training(deep, tokens=4096), spread(2, pp=2))
    assert memory is not None and memory.stage.startswith("stage 1") and "loss" not in memory.parts


def test_weights_that_are_trained_quantized_have_copies_that_wait() -> None:
    facts = small(experts=8)
    plain, quantized = parts(training(facts)), parts(training(facts, fake_quantized=True))
    assert "quantized weights" not in plain
    linear = 6 * (64 * 256 + 128 * 64 + 8 * 3 * 64 * 48)
    assert quantized["quantized weights"] == 2 * linear
    assert quantized["activations"] > plain["activations"]
    # Half of the layers on the first stage, with copies for each of its two samples in flight.
    cut = rank_memory(training(small(experts=8), tokens=4096, fake_quantized=True), spread(2, pp=2))
    assert cut is not None and cut.stage.startswith("stage 1 of 2")
    assert cut.parts["quantized weights"] == 2 * linear


def test_calibration_takes_a_layer_the_logits_and_copies_of_the_largest_weight() -> None:
    found = parts(calibration(fake_quantized=True))
    tokens = 32
    # Attention has more than the MLP: its norm, the copied input, queries to sums, the copied result, the output.
    assert found["activations"] == tokens * (256 + 128 + 2 * 576 + 32 + 256 + 128)
    assert found["attention mask"] == tokens**2
    assert found["logits"] == 2 * 2 * tokens * 512
    assert found["quantized weights"] == 2 * 64 * 2 * 160
    assert "quantized weights" not in parts(calibration())
    assert parts(calibration(fake_quantized=True, searched=True))["quantized weights"] == 2 * found["quantized weights"]
    assert parts(calibration(batch=4))["attention mask"] == 4 * tokens**2
    assert "attention mask" not in parts(calibration(), spread(2, cp=2))
    assert parts(calibration(), spread(4, tp=4))["logits"] == 2 * tokens * 512 * 2.25


def test_a_stage_without_head_gets_the_logits_once() -> None:
    deep = small(blocks=(("attention", "mlp"),) * 40)
    memory = rank_memory(calibration(deep, stages=(38, 2)), spread(2, pp=2))
    assert memory is not None and memory.stage.startswith("stage 1 of 2: embedding, layers 1-38")
    assert memory.parts["logits"] == 2 * 32 * 512


def test_copies_of_experts_are_there_all_at_once() -> None:
    facts = small(experts=64)
    found = parts(calibration(facts, fake_quantized=True))
    assert found["quantized weights"] == 2 * 64 * 64 * 2 * 48
    spread_out = parts(calibration(facts, fake_quantized=True), spread(4, ep=4))
    assert spread_out["quantized weights"] * 4 == found["quantized weights"]


@pytest.mark.parametrize(
    ("name", "part", "elements"),
    [
        ("Qwen/Qwen3-8B", "mlp", 4096 * 2 * 12288),
        ("nvidia/Nemotron-H-8B-Base-8K", "mlp", 4096 * 21504),
        ("deepseek-ai/DeepSeek-V3", "attention", 128 * 128 * 7168),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16", "mamba", 2688 * (2 * 64 * 64 + 2 * 8 * 128 + 64)),
    ],
)
def test_the_largest_weight_of_a_part(name: str, part: Any, elements: int) -> None:
    assert largest(known(name).architecture.of(part)) == elements


def test_experts_are_never_visited_evenly_where_they_are_spread() -> None:
    facts = small(experts=8, expert_ffn_size=480)
    alone, spread_out = (parts(calibration(facts), layout)["activations"] for layout in (ONE, spread(2, ep=2)))
    every = parts(calibration(facts, every_expert=True), spread(2, ep=2))["activations"]
    routed = 32 * 2 * 2 * (64 + 3 * 480 + 64)
    assert spread_out - alone == routed / 2
    assert every - alone == 3 * routed  # eight instead of two


def test_sequence_parallelism_gives_each_rank_a_part_of_the_routed_tokens() -> None:
    facts = small(experts=8, expert_ffn_size=480)
    whole = parts(training(facts))["activations"]
    assert parts(training(facts, sequence_parallel=True), spread(2, tp=2, ep=1))["activations"] == whole / 2
    both = parts(training(facts, sequence_parallel=True), spread(2, tp=2, etp=2))["activations"]
    assert both == whole / 2


def test_importance_scores_are_float32() -> None:
    scoring = Workload(kind="scoring", model=small(), tokens=32)
    found = parts(scoring)
    assert found["importance scores"] == 2 * 4 * 32 * 160
    assert found["weights"] == parts(calibration())["weights"]


def test_generation_caches_keys_and_values_of_attention_layers() -> None:
    facts = known("nvidia/Nemotron-H-8B-Base-8K")
    work = Workload(kind="generation", model=facts, tokens=100, new_tokens=28, batch=2)
    width = 2 * (facts.query_groups or 0) * (facts.head_dim or 0)
    assert parts(work)["key/value cache"] == 2 * 256 * width * (facts.count_of("attention") or 0)


def test_a_transfer_has_one_tensor_on_the_way() -> None:
    work = Workload(kind="transfer", model=small(), tokens=0)
    assert parts(work) == {
        "weights": 2 * small().architecture.parameters.total,  # type: ignore[union-attr]
        "tensors on the way": 2 * 2 * 512 * 64,
        "context": 1 << 30,
    }


def test_unknown_facts_are_named_and_nothing_is_made_up() -> None:
    work = training(small(vocab_size=None), teacher=small(heads=None))
    memory = rank_memory(work, ONE)
    assert memory == RankMemory(stage="", parts={}, unknown=("model.vocab_size", "teacher.heads"))
    assert memory.total == 0


def test_a_layout_that_does_not_divide_has_no_memory() -> None:
    assert rank_memory(calibration(), spread(3, tp=2)) is None
    assert rank_memory(calibration(), spread(4, pp=4)) is None
    assert rank_memory(training(teacher=small(blocks=(("attention", "mlp"),) * 5)), spread(2, pp=2)) is None


def test_parts_come_in_one_order_each_with_its_source(job: Any) -> None:
    for recipe in ("quantize_fp8", "distill", "prune", "generate", "export"):
        memory = memory_of(job(recipe))
        assert memory is not None
        assert list(memory.parts) == [part for part in SOURCES if part in memory.parts]
        assert list(memory.sources) == list(memory.parts)
        assert memory.total == sum(memory.parts.values())


def test_every_shipped_recipe_whose_ranks_use_gpus_has_a_prediction(job: Any) -> None:
    """But vLLM's, which takes what it is given, and what needs no GPU."""
    without = set()
    for name in (name for name in RECIPES if RECIPES[name].family.args.SCRIPTS):
        if memory_of(job(name)) is None:
            without.add(name)
    assert without == {"generate_vllm", "prepare_data", "prepare_data_chat", "prepare_data_tiny"}


def test_what_is_done_on_the_cpu_needs_no_gpu(job: Any) -> None:
    assert memory_of(job("hf_to_megatron")) is not None
    assert memory_of(job("hf_to_megatron", args__device="cpu")) is None
    assert memory_of(job("merge_lora", args__cpu=True)) is None


def test_the_hf_engine_and_unknown_models_are_not_spoken_of(job: Any) -> None:
    assert memory_of(job("quantize_fp8", engine="hf")) is None
    assert memory_of(job("quantize_fp8", args__hf_model_id="nobody/knows")) is None


def test_a_job_is_read_from_its_arguments(job: Any) -> None:
    work = workload_of(job("quantize_int4_awq", args__calib_seq_length=777, args__calib_batch_size=3))
    assert work is not None
    assert (work.kind, work.tokens, work.batch, work.searched) == ("calibration", 777, 3, True)
    work = workload_of(job("prune_uneven", args__seq_length=99))
    assert work is not None and (work.tokens, work.stages) == (99, (3, 3))
    work = workload_of(job("distill", args__recompute_granularity="full", args__recompute_num_layers=4))
    assert work is not None and work.teacher is not None
    assert (work.recompute, work.global_batch, work.samples) == (4, 768, 768 * 15000)
    assert (work.teacher.layers, work.model.hidden_size) == (36, 2560)
    work = workload_of(job("generate", args__prompts="a|bbb|cc", args__osl=5))
    assert work is not None and (work.tokens, work.samples, work.new_tokens) == (3, 3, 5)
    work = workload_of(job("mlm_quantize", args__calib_max_sequence_length=64, args__calib_batch_size=2))
    assert work is not None and (work.tokens, work.batch, work.fake_quantized) == (64, 2, True)


def test_megatron_lm_spreads_its_optimizer_only_where_it_is_told(job: Any) -> None:
    plain = memory_of(job("mlm_finetune", torchrun__nproc_per_node=8))
    told = memory_of(job("mlm_finetune", torchrun__nproc_per_node=8, extra_args=["--use-distributed-optimizer"]))
    assert plain is not None and told is not None
    assert plain.parts["optimizer"] == 8 * told.parts["optimizer"]


def test_a_configuration_says_what_arguments_do_not(job: Any) -> None:
    spec = job("qat", extra_args=["model.pipeline_model_parallel_size=2", "train.micro_batch_size=2"])
    layout, work = spec.layout, workload_of(spec)
    assert (layout.tp, layout.pp, layout.cp, layout.dp) == (4, 2, 1, 1)
    assert work is not None
    assert (work.batch, work.global_batch, work.tokens, work.fake_quantized) == (2, 64, 8192, True)
    assert job("qat", args__hf_path=None).layout.cp == 2
    distilled = workload_of(job("distill_llama"))
    assert distilled is not None and distilled.teacher is not None
    assert (distilled.model.layers, distilled.teacher.layers, distilled.fake_quantized) == (16, 28, False)


@pytest.mark.parametrize(
    ("config", "words", "default", "value"),
    [
        ({}, [], 7, 7),
        ({"train": {"size": 3}}, [], 7, 3),
        ({"train": {"size": 3}}, ["train.size=5"], 7, 5),
        ({"train": {"size": 3}}, ["train.size=x"], 7, 7),
        ({"train": {"size": "3"}}, [], 7, 7),
        ({"train": {"size": True}}, [], 7, 7),
        ({"train": 3}, [], 7, 7),
        ({}, ["train.size=true"], False, True),
        ({}, ["train.size=False"], True, False),
        ({}, ["train.size=maybe"], True, True),
        ({}, ["train.size=full"], "", "full"),
        ({}, ["train.size", "train.sizes=4"], 7, 7),
    ],
)
def test_a_dotted_key(config: Any, words: list[str], default: Any, value: Any) -> None:
    assert configured(config, words, "train.size", default) == value
