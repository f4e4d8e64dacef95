"""The hf engine on a CUDA GPU. Run by hand: pytest -m gpu tests/gpu."""

from pathlib import Path
from typing import Any, Literal

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU", allow_module_level=True)

from scripts.args.quantize import QuantizeArgs  # noqa: E402
from scripts.engines.hf import calibrate, nvfp4, quantizers, reference, save, verify  # noqa: E402
from scripts.engines.hf.engine import quantize_checkpoint  # noqa: E402
from scripts.formats import FORMATS  # noqa: E402
from scripts.run.record import Record, observe  # noqa: E402
from tests import hf_models  # noqa: E402

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", [(128, 256), (3, 5, 64), (4096, 4096)])
def test_cpu_nvfp4_equals_modelopts_kernel(dtype: str, shape: tuple[int, ...]) -> None:
    """Blocks within the range of E4M3 scales; below it ModelOpt's kernel and its packing differ from each other."""
    import modelopt.torch.quantization.tensor_quant as quant

    torch.manual_seed(0)
    values = torch.randn(shape).to(getattr(torch, dtype))
    amax = values.abs().amax()
    kernel = quant.dynamic_block_quantize_op(values.to(CUDA), 16, amax.to(CUDA), 4, 2, 8, 4).cpu()
    assert torch.equal(nvfp4.fake_quantize(values, 16, amax), kernel)


@pytest.mark.parametrize("fmt", FORMATS)
def test_round_trip(fmt: str, tmp_path: Path) -> None:
    samples = hf_models.token_samples(16, 20, 512)
    config = quantizers.build_config(QuantizeArgs(export_quant_cfg=fmt))
    loop = calibrate.calibration_loop(
        samples,
        batch_size=8,
        max_tokens=4096,
        advance=lambda done: None,
        algorithm=quantizers.algorithm_name(config),
    )
    model = quantizers.quantize(hf_models.build("qwen3").to(CUDA), config, loop)
    expected = reference.reference(model)
    probe = torch.tensor([samples[0]])
    with torch.no_grad():
        logits = model(input_ids=probe.to(CUDA), use_cache=False).logits
    save.save_restorable(model, hf_models.tokenizer(), tmp_path / "mto")

    def reopen(folder: Path) -> Any:
        return verify.open_restorable(folder, dtype="bfloat16", device=CUDA)

    assert verify.verify_restorable(tmp_path / "mto", logits, probe, reopen)
    save.export_hf(model, hf_models.tokenizer(), tmp_path / "hf", "bfloat16")
    assert verify.verify_export(tmp_path / "hf", FORMATS[fmt], expected, kv_cache="none")


def test_a_later_attempt_goes_on_from_what_was_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hf_models.save(hf_models.build("qwen3"), tmp_path / "model")

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("exporter")

    with monkeypatch.context() as during:
        during.setattr(save, "export_hf", fail)
        with pytest.raises(KeyError):
            run_engine(model, "fp8", tmp_path, "cuda", export_kv_cache_quant="fp8")
    ended = Record(tmp_path / "run", observe(tmp_path / "run"))
    ended.finish("failed")
    monkeypatch.setattr(calibrate, "calibration_loop", fail)
    record = run_engine(model, "fp8", tmp_path, "cuda", Record.reopen(ended.dir), export_kv_cache_quant="fp8")
    assert record.values["state"] == "succeeded"


@pytest.fixture(scope="module")
def billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 1.04 billion parameters on disk."""
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 23, "num_attention_heads": 32}
    model = hf_models.build("llama", num_key_value_heads=8, **sizes)
    assert sum(weight.numel() for weight in model.parameters()) > 1_000_000_000
    return hf_models.save(model, tmp_path_factory.mktemp("billion"))


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_whole_engine_on_a_billion_parameters(fmt: str, billion: Path, tmp_path: Path) -> None:
    record = run_engine(billion, fmt, tmp_path, "cuda")
    print(fmt, record.values["timings"], record.values["peak_memory"])
    assert {output["type"] for output in record.values["outputs"]} >= {"checkpoint_hf", "checkpoint_modelopt"}
    weights = 2 * 1_040_000_000
    assert weights < record.values["peak_memory"]["cuda_bytes"] < 6 * weights


def run_engine(
    model: Path, fmt: str, folder: Path, device: Literal["cpu", "cuda"], record: Record | None = None, **values: Any
) -> Record:
    """One quantization in this process, with evaluation, export and verification."""
    (folder / "text.txt").write_text("\n".join(f"Sentence number {n} of {n * n} has words." for n in range(200)))
    record = record or Record.submit(folder / "run", id="engine")
    args = QuantizeArgs(
        hf_model_id=str(model),
        export_quant_cfg=fmt,
        calib_dataset=str(folder / "text.txt"),
        calib_size=128,
        device=device,
        export_dir=str(folder / "hf"),
        modelopt_save_path=str(folder / "modelopt"),
        **values,
    )
    with record.running():
        quantize_checkpoint(args, record)
        record.finish("succeeded")
    return record
