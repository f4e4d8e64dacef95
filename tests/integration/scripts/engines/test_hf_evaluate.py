"""Scores against a naive computation on full logits, and per-layer noise."""

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from scripts.args.quantize import QuantizeArgs  # noqa: E402
from scripts.engines.hf import calibrate, evaluate, quantizers, sqnr  # noqa: E402
from scripts.engines.hf.nvfp4 import cpu_kernels  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402
from tests import hf_models  # noqa: E402

pytestmark = pytest.mark.integration

CALIBRATION = hf_models.token_samples(6, 20, 40)
HELD_OUT = hf_models.token_samples(5, 10, 50, seed=99)
PASSES: dict[str, Any] = {"batch_size": 4, "max_tokens": 512, "advance": lambda done: None}


def quantize(model: Any, **values: Any) -> Any:
    config = quantizers.build_config(QuantizeArgs(**values))
    loop = calibrate.calibration_loop(CALIBRATION, algorithm=quantizers.algorithm_name(config), **PASSES)
    return quantizers.quantize(model, config, loop)


def remember(model: Any, *, head_changes: bool = False, **passes: Any) -> evaluate.Base:
    states = evaluate.last_states(model, HELD_OUT, **{**PASSES, **passes})
    return evaluate.remember(model, HELD_OUT, states, head_changes=head_changes)


def naive(base: Any, quantized: Any) -> dict[str, float]:
    before, after, targets = [], [], []
    for sample in HELD_OUT:
        with torch.no_grad(), cpu_kernels():
            rows = torch.tensor([sample])
            before.append(base(rows).logits[0, :-1].double().log_softmax(-1))
            after.append(quantized(rows).logits[0, :-1].double().log_softmax(-1))
        targets.append(torch.tensor(sample[1:]))
    p, q, wanted = torch.cat(before), torch.cat(after), torch.cat(targets)
    rows = torch.arange(len(wanted))
    return {
        "tokens": len(wanted),
        "perplexity_base": float((-p[rows, wanted].mean()).exp()),
        "perplexity_quantized": float((-q[rows, wanted].mean()).exp()),
        "kl_divergence": float((p.exp() * (p - q)).sum(-1).mean()),
        "top1_agreement": float((p.argmax(-1) == q.argmax(-1)).double().mean()),
    }


@pytest.mark.parametrize("fmt", ["fp8", "nvfp4", "int8_sq", "int4_awq"])
def test_scores_equal_a_naive_computation(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "LOGITS", 7 * hf_models.VOCAB)  # several chunks per sample
    model = hf_models.build("qwen3", dtype="float32")
    original = copy.deepcopy(model)
    base = remember(model)
    found = evaluate.score(quantize(model, export_quant_cfg=fmt), base, **PASSES)
    expected = naive(original, model)
    for key, value in expected.items():
        assert getattr(found, key) == pytest.approx(value, rel=1e-4, abs=1e-6), key
    assert found.kl_divergence > 0


def test_identical_models_agree() -> None:
    done: list[int] = []
    model = hf_models.build("llama")
    base = remember(model, advance=done.append)
    found = evaluate.score(model, base, **PASSES)
    assert found.kl_divergence == 0.0
    assert found.top1_agreement == 1.0
    assert found.perplexity_quantized == found.perplexity_base
    assert found.tokens == sum(len(sample) - 1 for sample in HELD_OUT)
    assert sum(done) == len(HELD_OUT)


def test_a_rewritten_head_is_noticed() -> None:
    model = hf_models.build("llama")
    base = remember(model)
    copied = remember(model, head_changes=True)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    with pytest.raises(JobError, match="head_changed"):
        evaluate.score(model, base, **PASSES)
    assert evaluate.score(model, copied, **PASSES).kl_divergence > 0


def test_logits_that_are_not_the_heads_are_refused() -> None:
    model = hf_models.build("llama")
    inner = model.lm_head.forward
    model.lm_head.forward = lambda hidden: inner(hidden) * 3.0
    with pytest.raises(JobError, match="evaluation_unsupported"):
        remember(model)


def noise(**values: Any) -> dict[str, sqnr.LayerNoise]:
    return sqnr.layer_noise(quantize(hf_models.build("qwen3"), **values), HELD_OUT[0])


def test_noise_orders_formats_as_their_bits_do() -> None:
    eight, four = noise(export_quant_cfg="fp8"), noise(export_quant_cfg="nvfp4")
    assert list(eight) == list(four)
    assert len(eight) == 14
    for name, layer in eight.items():
        assert None not in (layer.weight_db, layer.input_db, layer.output_db)
        assert layer.weight_db > four[name].weight_db + 5  # type: ignore[operator]
        assert layer.output_db > four[name].output_db + 5  # type: ignore[operator]


@pytest.mark.parametrize("fmt", ["int8_sq", "int4_awq"])
def test_smoothed_weights_are_compared_with_the_original_ones(fmt: str) -> None:
    model = hf_models.build("qwen3")
    original = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    quantize(model, export_quant_cfg=fmt)
    for name, layer in sqnr.layer_noise(model, HELD_OUT[0]).items():
        module = model.get_submodule(name)
        weight = original[f"{name}.weight"].float()
        scale = module.input_quantizer.pre_quant_scale.float()
        with torch.no_grad():
            effective = module.weight_quantizer(module.weight).float() * scale
        expected = 10 * torch.log10(weight.square().sum() / (effective - weight).square().sum())
        # Half a decibel: the smoothed weights were rounded to bfloat16 once.
        assert layer.weight_db == pytest.approx(float(expected), abs=0.5)
        assert (layer.input_db is None) == (fmt == "int4_awq")


def test_noise_of_a_broken_scale_shows() -> None:
    model = quantize(hf_models.build("qwen3"), export_quant_cfg="fp8")
    layer = "model.layers.1.mlp.up_proj"
    before = sqnr.layer_noise(model, HELD_OUT[0])[layer]
    model.get_submodule(layer).weight_quantizer._amax.div_(8)
    after = sqnr.layer_noise(model, HELD_OUT[0])[layer]
    assert after.weight_db < before.weight_db - 10  # type: ignore[operator]
    assert after.output_db < before.output_db - 10  # type: ignore[operator]
    assert after.input_db == before.input_db


def test_sampled_noise_is_of_four_layers_and_costs_no_pass_of_its_own() -> None:
    model = quantize(hf_models.build("llama", num_hidden_layers=8), export_quant_cfg="fp8")
    passes: list[Any] = []
    model.base_model.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad(), sqnr.watched(model, "sampled") as found:
        model(input_ids=torch.tensor([HELD_OUT[0]]))
        model(input_ids=torch.tensor([HELD_OUT[1]]))
    assert len(passes) == 2
    assert {name.split(".")[2] for name in found} == {"0", "2", "5", "7"}
    every = sqnr.layer_noise(model, HELD_OUT[0], "all")
    assert len(every) == 2 * len(found) == 56
    assert {name: every[name] for name in found} == found, "of the first pass"
    assert sqnr.layer_noise(model, HELD_OUT[0], "none") == {}


def test_noise_names_experts() -> None:
    found = sqnr.layer_noise(quantize(hf_models.build("mixtral"), export_quant_cfg="fp8"), HELD_OUT[0])
    experts = [name for name in found if ".experts." in name]
    assert len(experts) == 16
    assert all(found[name].weight_db for name in experts)
