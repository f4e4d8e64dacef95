"""Calibration: fewer passes, the same scales as one unpadded sample at a time."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from scripts.args.quantize import QuantizeArgs  # noqa: E402
from scripts.engines.hf import calibrate, experts, load, packing, quantizers  # noqa: E402
from scripts.engines.hf.samples import choose_samples  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402
from scripts.tiny.model import default_cache_root, ensure_tiny_model  # noqa: E402
from tests import hf_models  # noqa: E402

pytestmark = pytest.mark.integration

SAMPLES = hf_models.token_samples(10, 5, 60) + hf_models.token_samples(5, 60, 60, seed=3)
ONE_PERCENT = 0.01


def loud_padding(family: str) -> Any:
    """A model whose pad token's embedding stands out, so that a padding token in the statistics shows."""
    model = hf_models.build(family)
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 0] = 40.0
    return model


def one_at_a_time(model: Any) -> None:
    with torch.no_grad():
        for sample in SAMPLES:
            model(torch.tensor([sample]), use_cache=False)


def leaky(model: Any) -> None:
    """What batching by padding does, attention mask and all."""
    longest = max(map(len, SAMPLES))
    rows = torch.tensor([sample + [3] * (longest - len(sample)) for sample in SAMPLES])
    with torch.no_grad():
        model(rows, attention_mask=(rows != 3).long(), use_cache=False)


def scales(model: Any, fmt: str, loop: Callable[[Any], None], kv: Any = "none") -> dict[str, Any]:
    config = quantizers.build_config(QuantizeArgs(export_quant_cfg=fmt, export_kv_cache_quant=kv))
    own = quantizers.quantize(copy.deepcopy(model), config, loop)
    endings = ("_amax", "_pre_quant_scale", "_bias_value")
    found = {name: value.float() for name, value in own.named_buffers() if name.endswith(endings)}
    assert found
    return found


def difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    assert found.keys() == expected.keys()
    return max(float(((found[n] - v).abs() / v.abs().clamp(min=1e-12)).max()) for n, v in expected.items())


def our_loop(fmt: str, **changes: Any) -> Callable[[Any], None]:
    config = quantizers.build_config(QuantizeArgs(export_quant_cfg=fmt))
    values: dict[str, Any] = {"batch_size": 4, "max_tokens": 400, "advance": lambda done: None}
    return calibrate.calibration_loop(SAMPLES, algorithm=quantizers.algorithm_name(config), **{**values, **changes})


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("fmt", ["fp8", "int8_sq", "int4_awq"])
def test_scales_equal_and_padding_would_show(family: str, fmt: str) -> None:
    model = loud_padding(family)
    exact = scales(model, fmt, one_at_a_time)
    assert difference(scales(model, fmt, our_loop(fmt)), exact) <= ONE_PERCENT
    assert difference(scales(model, fmt, leaky), exact) > ONE_PERCENT


@pytest.mark.parametrize("kv", ["fp8", "fp8_affine", "nvfp4_affine"])
def test_cache_scales_equal(kv: str) -> None:
    model = hf_models.build("qwen3")
    exact = scales(model, "fp8", one_at_a_time, kv)
    assert difference(scales(model, "fp8", our_loop("fp8"), kv), exact) <= ONE_PERCENT


def test_experts_too() -> None:
    model = hf_models.build("qwen3_moe")
    assert difference(scales(model, "fp8", our_loop("fp8")), scales(model, "fp8", one_at_a_time)) <= ONE_PERCENT


def test_passes_are_few_and_every_sample_counts_once() -> None:
    done: list[int] = []
    scales(hf_models.build("qwen3"), "fp8", our_loop("fp8", advance=done.append))
    assert sum(done) == len(SAMPLES)
    assert len(done) <= 5
    done.clear()
    scales(hf_models.build("qwen3"), "int4_awq", our_loop("int4_awq", advance=done.append))
    assert sum(done) == 2 * len(SAMPLES)


def test_unknown_algorithms_get_one_sample_at_a_time_in_order() -> None:
    seen: list[int] = []
    model = hf_models.build("llama")
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    calibrate.calibration_loop(SAMPLES, batch_size=8, max_tokens=999, advance=lambda done: None, algorithm="gptq")(
        model
    )
    assert seen == [len(sample) for sample in SAMPLES]


def test_packed_rows_keep_samples_apart() -> None:
    model = hf_models.build("qwen3", dtype="float32")
    first, second = SAMPLES[0], SAMPLES[1]
    with torch.no_grad():
        packed = packing.run(model, model.model, [first, second], torch.device("cpu"))[0][0]
        alone = torch.cat([model.model(torch.tensor([s]), use_cache=False)[0][0] for s in (first, second)])
        mixed = model.model(torch.tensor([first + second]), use_cache=False)[0][0]
    assert torch.allclose(packed, alone, atol=1e-5)
    assert not torch.allclose(mixed, alone, atol=1e-3)
    assert model.config._attn_implementation == "sdpa"


def test_models_that_cannot_pack_are_told() -> None:
    device = torch.device("cpu")
    model = hf_models.build("qwen3")
    assert packing.can_pack(model, model.model, SAMPLES, device)

    def careless(**inputs: Any) -> Any:
        """A backbone whose attention does not go through Transformers' interface: it looks across samples."""
        switched = model.config._attn_implementation_internal
        model.config._attn_implementation_internal = "sdpa"
        try:
            return model.model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))
        finally:
            model.config._attn_implementation_internal = switched

    assert not packing.can_pack(model, careless, SAMPLES, device)
    model.config._attn_implementation = "eager"
    assert not packing.can_pack(model, model.model, SAMPLES, device)
    windowed = hf_models.build("mixtral", sliding_window=16)
    assert not packing.can_pack(windowed, windowed.model, SAMPLES, device)


def test_plan() -> None:
    lengths = [10, 60, 60, 5, 60, 30]
    groups = packing.plan(lengths, batch_size=2, max_tokens=100, mixed=True)
    assert groups == [[1], [2], [4, 5], [0, 3]]
    equal = packing.plan(lengths, batch_size=3, max_tokens=120, mixed=False)
    assert equal == [[1, 2], [4], [5], [0], [3]]
    assert packing.plan([500], batch_size=8, max_tokens=100, mixed=True) == [[0]]


def test_head_is_skipped_only_when_it_holds_nothing_to_calibrate() -> None:
    import modelopt.torch.quantization as mtq

    model: Any = hf_models.build("qwen3")
    config = quantizers.build_config(QuantizeArgs(export_quant_cfg="fp8"))
    quantized = quantizers.quantize(copy.deepcopy(model), copy.deepcopy(config), one_at_a_time)
    assert calibrate.forward_without_head(quantized) is quantized.model
    config["quant_cfg"].append({"quantizer_name": "*lm_head.input_quantizer", "cfg": {"num_bits": (4, 3)}})
    with_head: Any = mtq.quantize(copy.deepcopy(model), config, our_loop("fp8"))
    assert with_head.lm_head.input_quantizer.amax is not None
    assert calibrate.forward_without_head(with_head) is with_head


def test_weight_quantizers_work_again_afterwards() -> None:
    model = hf_models.build("qwen3")
    config = quantizers.build_config(QuantizeArgs(export_quant_cfg="fp8"))
    quantized: Any = quantizers.quantize(model, config, our_loop("fp8"))
    weight = quantized.model.layers[0].mlp.up_proj
    assert not torch.equal(weight.weight_quantizer(weight.weight), weight.weight)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hf_models.build("qwen3")
    samples = hf_models.token_samples(8, 64, 64)
    real = packing.run
    sizes: list[int] = []
    done: list[int] = []

    def run(model: Any, forward: Any, group: Any, device: Any) -> Any:
        sizes.append(len(group))
        if len(group) > 2:
            raise torch.cuda.OutOfMemoryError("too large")
        return real(model, forward, group, device)

    monkeypatch.setattr(packing, "run", run)
    calibrate.calibration_loop(samples, batch_size=8, max_tokens=4096, advance=done.append)(model)
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert sum(done) == len(samples)


def test_a_sample_that_does_not_fit_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("too large")

    monkeypatch.setattr(packing, "run", run)
    loop = calibrate.calibration_loop(SAMPLES[-2:], batch_size=2, max_tokens=4096, advance=lambda done: None)
    with pytest.raises(JobError, match="60 tokens does not fit"):
        loop(hf_models.build("qwen3"))


def test_a_trained_model_gets_the_scales_of_modelopts_own_loop() -> None:
    """ModelOpt's loop at its default batch of one has no padding; ours packs samples of many lengths."""
    from modelopt.torch.utils.dataset_utils import create_forward_loop

    folder = ensure_tiny_model("tiny:qwen3", default_cache_root())
    loaded = load.load_model(str(folder), dtype="bfloat16", device="cpu", trust_remote_code=False)
    samples = choose_samples(QuantizeArgs(calib_size=96), loaded.tokenizer).calibration
    assert len(set(map(len, samples))) > 20
    theirs = create_forward_loop(dataloader=[{"input_ids": torch.tensor([sample])} for sample in samples])
    ours = calibrate.calibration_loop(samples, batch_size=8, max_tokens=4096, advance=lambda count: None)
    assert difference(scales(loaded.model, "fp8", ours), scales(loaded.model, "fp8", theirs)) <= ONE_PERCENT


def test_every_token_goes_through_every_expert_and_those_without_one_are_told() -> None:
    """Against the inputs of each expert's second matrix, computed by hand."""
    samples, found, told = hf_models.token_samples(2, 3, 4), {}, {}
    for every in (False, True):
        model = hf_models.build("qwen3_moe", num_hidden_layers=1, num_experts=16)
        given: list[Any] = []
        layer = model.model.layers[0].mlp.experts
        layer.register_forward_pre_hook(lambda _, values, given=given: given.append(values[0].clone()))
        unreached: dict[str, list[int]] = {}
        how: Any = {"batch_size": 1, "max_tokens": 64, "advance": lambda _: None, "unreached": unreached}
        loop = calibrate.calibration_loop(samples, every_expert=every, **how)
        quantizers.quantize(model, quantizers.build_config(QuantizeArgs(export_quant_cfg="fp8")), loop)
        found[every], told[every] = layer.down_proj_input_quantizer.amax, unreached
    with torch.no_grad():
        inner = [tokens @ weight.T for tokens in given[: len(samples)] for weight in layer.gate_up_proj]
        largest = max((layer.act_fn(one.chunk(2, -1)[0]) * one.chunk(2, -1)[1]).abs().max() for one in inner)
    assert found[True] == largest > found[False]
    assert told[True] == told[False], "by the router, either way"
    (numbers,) = told[True].values()
    assert 2 <= len(numbers) <= 14 and f"{len(numbers)} experts were sent no token" in experts.told(told[True])[0]
    with pytest.raises(JobError, match="has no experts") as error:
        experts.refuse_none(hf_models.build())
    assert error.value.name == "no_experts"
