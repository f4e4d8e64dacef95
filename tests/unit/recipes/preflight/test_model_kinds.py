"""What the hf engine cannot quantize is told by config.json, before anything is loaded or sent."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.preflight import formats, hf_engine
from scripts.checkpoints.causal import architectures, built_types, failure, unbuilt
from scripts.formats import FORMATS
from scripts.run.problems import Problem
from scripts.run.registry import carry_out, checks_of
from tests.jobs import job_of
from tests.unit.recipes.preflight.test_hardware_checks import told
from tests.unit.recipes.preflight.test_layout_checks import EXPERTS, LLAMA
from tests.unit.recipes.preflight.test_layout_checks import model as model

Make = Callable[..., str]


def found(
    model: str, recipe: str = "quantize_fp8", engine: str = "hf", kind: str = "slurm"
) -> list[tuple[str, str, str, bool]]:
    values = {"args__hf_model_id": model, "engine": engine, "kind": kind}
    told_of = [one for checks in (hf_engine, formats) for one in told(checks, recipe, **values)]
    names = {"missing_model", "missing_tokenizer"}  # the folders have no weights
    return [(one.name, one.severity, one.cause, one.can_force) for one in told_of if one.name not in names]


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder model (t5)"),
        ({"model_type": "qwen3_vl", "vision_config": {}}, "vision-language model (qwen3_vl)"),
        ({"model_type": "qwen2_audio", "audio_config": {}}, "vision-language model"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM does not predict"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "does not predict the next token"),
        ({"architectures": ["LlamaModel"], "tie_word_embeddings": False}, "has no language-model head"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "Conv1D"),
        ({"model_type": "dbrx", "architectures": ["DbrxForCausalLM"]}, "its experts are one matrix"),
        ({"model_type": "git", "vision_config": {}}, "no language model by itself (git): it describes images"),
        ({"model_type": "musicgen", "is_encoder_decoder": True}, "it predicts codes of sounds"),
        ({"model_type": "gemma4_assistant"}, "it drafts for another model"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "BertModel has no language-model head"),
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}, "has no language-model head"),
    ],
)
def test_models_of_another_kind_are_refused(config: dict[str, Any], cause: str, model: Make) -> None:
    ((name, severity, said, can_force),) = found(model(LLAMA, **config))
    assert (name, severity, can_force) == ("unsupported_model", "error", False)
    assert cause in said


def test_the_recipe_for_vision_language_models_is_named(model: Make) -> None:
    folder = model(LLAMA, model_type="qwen3_vl", vision_config={})
    (problem,) = (
        one for one in told(hf_engine, "quantize_fp8", args__hf_model_id=folder, engine="hf") if "vision" in one.cause
    )
    assert "quantize_vlm" in problem.remedy


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ["LlamaModel"], "tie_word_embeddings": True},
        {"model_type": "gemma3", "vision_config": {}, "architectures": ["Gemma3ForConditionalGeneration"]},
        {"model_type": "own", "vision_config": {}, "auto_map": {"AutoModelForCausalLM": "modeling.Own"}},
        {"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True},
    ],
)
def test_causal_language_models_are_let_through(config: dict[str, Any], model: Make) -> None:
    assert found(model(LLAMA, **config)) == []


@pytest.mark.parametrize(
    ("kind", "name", "cause", "remedy"),
    [
        ("lama", "unknown_model", "has no model_type lama", "Did you mean llama?"),
        ("zzzz", "unknown_model", "has no model_type zzzz", "A newer transformers may know it."),
        (None, "unknown_model", "says no model_type", "config.json"),
        ("distilbert", "unsupported_model", "builds no causal language model of distilbert", "causal"),
    ],
)
def test_types_that_transformers_does_not_build(
    kind: str | None, name: str, cause: str, remedy: str, model: Make
) -> None:
    folder = model(LLAMA, model_type=kind)
    ((said, severity, why, can_force),) = found(folder, kind="local")
    assert (said, severity, can_force) == (name, "error", True) and cause in why
    problems = told(hf_engine, "quantize_fp8", args__hf_model_id=folder, engine="hf")
    (problem,) = (one for one in problems if one.cause == why)
    assert remedy in problem.remedy
    assert problem.severity == "warning", "the container may have a newer one"


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"layer_types": ["full_attention", "ful_attention"]}, "layer_types has ful_attention"),
        ({"layer_types": ["banana"] * 2}, "layer_types has banana"),
        ({"text_config": {"layer_types": [3]}}, "layer_types has 3"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ""),
        ({"model_type": "nemotron_h", "layer_types": ["mlp", "moe", "linear_attention"]}, ""),
        ({"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"]}, ""),
        ({"layer_types": ["banana"], "auto_map": {"AutoModelForCausalLM": "a.B"}}, ""),
        ({"layer_types": "banana"}, ""),
    ],
)
def test_words_for_layers_are_those_of_transformers(changed: dict[str, Any], wrong: str) -> None:
    told_of = unbuilt({"model_type": "qwen3", **changed})
    assert told_of is None if not wrong else (told_of is not None and told_of[0] == "impossible_config")
    assert told_of is None or wrong in told_of[1]


def test_types_that_were_tried_are_built() -> None:
    known, causal = built_types()
    assert architectures()["tried"].keys() <= causal <= known | {"gpt-sw3"}


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "bitsandbytes"])
def test_what_transformers_cannot_unpack_is_refused(method: str, model: Make) -> None:
    ((name, severity, cause, can_force),) = found(model(LLAMA, quantization_config={"quant_method": method}))
    assert (name, severity, can_force) == ("already_quantized", "error", False)
    assert method in cause


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_what_transformers_unpacks_is_told(method: str, model: Make) -> None:
    ((name, severity, cause, _),) = found(model(LLAMA, quantization_config={"quant_method": method}))
    assert (name, severity) == ("already_quantized", "warning")
    assert "undone first" in cause


def test_the_script_engine_decides_for_itself(model: Make) -> None:
    assert found(model(LLAMA, model_type="gpt2"), engine="script") == []


@pytest.mark.parametrize("recipe", ["quantize_int4_awq", "quantize_w4a8_awq"])
def test_awq_of_experts_cannot_be_exported(recipe: str, model: Make) -> None:
    folder = model(EXPERTS, moe_intermediate_size=768)
    ((name, severity, cause, _),) = found(folder, recipe)
    assert (name, severity) == ("format_not_exportable", "warning"), "over there may be transformers 4"
    assert "experts that share one tensor" in cause
    (here,) = (one for one in problems_here(folder, recipe) if one.name == name)
    assert (here.severity, here.key) == ("error", "args.export_quant_cfg")


def problems_here(folder: str, recipe: str) -> list[Problem]:
    job = job_of(recipe, args__hf_model_id=folder, engine="hf")
    return list(carry_out(checks_of(hf_engine), job).problems)


def test_what_the_exporter_does_not_pack_is_told(model: Make) -> None:
    folder = model(LLAMA, model_type="falcon", architectures=["FalconForCausalLM"])
    assert ("format_not_exportable", "args.hf_model_id") in [
        (one.name, one.key) for one in problems_here(folder, "quantize_fp8")
    ]


def test_architectures_that_ended_badly_when_they_were_tried_are_told(model: Make) -> None:
    folder = model(LLAMA, model_type="aria_text", architectures=["AriaTextForCausalLM"])
    (told_of,) = (one for one in problems_here(folder, "quantize_fp8") if one.name == "format_not_exportable")
    assert (told_of.key, told_of.severity, told_of.can_force) == ("args.hf_model_id", "error", True)
    assert "a small aria_text in fp8 was tried with transformers 5" in told_of.cause
    assert "AriaExperts" in told_of.cause


def test_what_came_out_right_instead_is_named(model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"nvfp4": "right", "int8_sq": "right", "fp8": "wrong: missing_keys"}
    monkeypatch.setitem(architectures()["tried"], "own", said)
    folder = model(LLAMA, model_type="own", architectures=["OwnForCausalLM"])
    (told_of,) = (one for one in problems_here(folder, "quantize_fp8") if one.name == "format_not_exportable")
    assert told_of.remedy == "Use int8_sq or nvfp4, which came out right."
    assert [one for one in problems_here(folder, "quantize_nvfp4") if one.name == "format_not_exportable"] == []


@pytest.mark.parametrize("experts", [0, 4])
def test_what_is_wrong_with_experts_is_not_told_of_a_model_without(experts: int, model: Make) -> None:
    folder = model(LLAMA, model_type="granitemoehybrid", num_local_experts=experts)
    told_of = [one for one in problems_here(folder, "quantize_fp8") if "was tried with" in one.cause]
    assert len(told_of) == bool(experts)


def test_the_table_of_architectures() -> None:
    """Nothing that came out wrong, or broke off after the work, is let through without a word."""
    tried = architectures()["tried"]
    outcomes = [(kind, fmt, said) for kind, of in tried.items() for fmt, said in of.items()]
    assert len(tried) > 100
    for kind, fmt, said in outcomes:
        of_the_trial = said.startswith(("format_does_not_fit before", "unknown_model before"))
        assert bool(failure(kind, fmt, 8)[0]) is not (said == "right" or of_the_trial), (kind, fmt)
        assert all(failure(kind, fmt, 8)) or not any(failure(kind, fmt, 8)), (kind, fmt)
        assert fmt in FORMATS
    assert tried["llama"]["fp8"] == tried["nemotron_h"]["fp8"] == "right"
    assert failure("no_such_type", "fp8", None) == failure(None, "fp8", None) == ("", "")


@pytest.mark.parametrize(
    ("recipe", "values", "warned"),
    [
        ("quantize_int8_sq", {}, True),
        ("quantize_int8_sq", {"args__weight_only": True}, False),
        ("quantize_int8_sq", {"args__export_dir": None}, False),
        ("quantize_fp8", {}, False),
        ("quantize_int4_awq", {}, False),
    ],
)
def test_a_format_that_no_server_loads_is_told(recipe: str, values: dict[str, Any], warned: bool, model: Make) -> None:
    job = job_of(recipe, args__hf_model_id=model(LLAMA), engine="hf", **values)
    told = [one for one in carry_out(checks_of(hf_engine), job).problems if one.name == "unservable_checkpoint"]
    assert [one.severity for one in told] == ["warning"] * warned


def test_experts_are_let_through_in_fp8(model: Make) -> None:
    assert found(model(EXPERTS)) == []


def test_all_that_did_not_come_out_right_is_refused_when_it_is_submitted(tmp_path: Path) -> None:
    """Widths and missing libraries of the trial apart, every pair has a Problem of its own."""
    let_through = []
    for kind, outcomes in architectures()["tried"].items():
        bad = [fmt for fmt, said in outcomes.items() if failure(kind, fmt, 8)[0]]
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(EXPERTS | {"model_type": kind}))
        for fmt in bad:
            job = job_of("quantize_fp8", args__hf_model_id=str(folder), args__export_quant_cfg=fmt, engine="hf")
            names = {one.name for one in carry_out(checks_of(hf_engine), job).problems if one.severity == "error"}
            if not names & {"format_not_exportable", "unsupported_model"}:
                let_through.append((kind, fmt))
    assert let_through == []
