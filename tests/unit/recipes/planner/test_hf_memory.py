"""The terms of the hf engine's memory; test_predictions.py compares their sum with measured peaks."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recipes.models import ModelFacts, facts_of
from recipes.models.weights import of_facts
from recipes.planner import hf_memory
from recipes.planner.gpus import gpu_of
from recipes.planner.hf_memory import SOURCES, Device, Memory, predict, predict_for
from scripts.args.quantize import QuantizeArgs
from scripts.engines.hf import evaluate, packing, reference, workers
from scripts.formats import FORMATS
from tests.jobs import job_of

BF16 = 2
WEIGHTS = 8_190_735_360 * BF16  # of Qwen3-8B


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def known(name: str = "Qwen/Qwen3-8B") -> ModelFacts:
    facts = facts_of(name)
    assert facts is not None
    return facts


def sizes_of(facts: ModelFacts, **values: Any) -> hf_memory.Sizes:
    model = of_facts(facts)
    assert model is not None
    args = QuantizeArgs(**{"modelopt_save_path": "/x/mto", "export_dir": "/x/hf", **values})
    return hf_memory.Sizes(args=args, model=model, facts=facts, host=True)


def predicted(facts: ModelFacts | None = None, device: Device = "host", ranks: int = 1, **values: Any) -> Memory:
    sizes = sizes_of(facts or known(), **values)
    assert isinstance(sizes.args, QuantizeArgs)
    return predict_for(sizes.args, sizes.model, sizes.facts, device, "cpu", ranks=ranks)


def test_limits_are_those_of_the_engine() -> None:
    assert hf_memory.MAX_TOKENS == packing.MAX_TOKENS
    assert hf_memory.LOGITS == evaluate.LOGITS
    assert inspect.signature(reference.reference).parameters["limit"].default == hf_memory.REFERENCES


def test_what_was_exported_is_let_go_before_anything_is_reopened() -> None:
    found = predicted()
    assert found.peak_phase == "export"
    assert found.parts["weights"] == WEIGHTS, "they are mapped as long as any of them is in use"
    assert found.parts["packed weights"] < 0.6 * WEIGHTS
    assert found.total == sum(found.parts.values())
    assert set(found.sources) == set(found.parts) <= set(SOURCES)
    gpu = predicted(device="GPU")
    assert gpu.total < 1.2 * WEIGHTS, "no second model beside the first"


def test_a_second_model_is_what_is_reopened() -> None:
    table = 151936 * 4096 * BF16
    sizes = sizes_of(known())
    assert sizes.reopened == WEIGHTS - table, "a forward pass reads a few rows of the table"
    tied = sizes_of(replace(known(), tied_embeddings=True))
    assert tied.reopened == tied.weights, "the output layer reads all of it"
    assert sizes_of(known(), compress=True).reopened < 0.7 * sizes.reopened


def test_without_outputs_nothing_is_packed() -> None:
    found = predicted(modelopt_save_path=None, export_dir=None)
    assert not {"reopened", "packed weights", "reference"} & set(found.parts)
    assert found.total < predicted().total
    assert "packed weights" not in predicted(export_dir=None).parts
    compressed = predicted(export_dir=None, compress=True)
    assert "packed weights" in compressed.parts and compressed.peak_phase == "compress"


def test_batches_and_lengths_grow_what_is_alive_until_the_limit() -> None:
    values = {"modelopt_save_path": None, "export_dir": None, "eval_size": 0}

    def activations(**more: Any) -> int:
        return predicted(**values, calib_seq_length=1024, **more).parts.get("activations", 0)

    small, large = activations(calib_batch_size=4), activations(calib_batch_size=8)
    assert 0 < small < large
    assert large == 2 * small
    assert activations(calib_batch_size=16) == activations(calib_batch_size=64), "16384 tokens at most"
    lone = predicted(**values | {"calib_seq_length": 32768}, calib_batch_size=1).parts["activations"]
    assert lone == 4 * large, "but one sample at least"


def test_logits_grow_with_the_length_of_a_sample() -> None:
    values = {"modelopt_save_path": None, "export_dir": None}
    found = predicted(**values, calib_seq_length=8192)
    assert found.peak_phase == "score before"
    assert found.parts["logits"] == 12 * 8192 * 151936
    assert "hidden states" in found.parts
    assert "logits" not in predicted(**values, calib_seq_length=8192, eval_size=0).parts


def test_another_precision_maps_the_source_as_well() -> None:
    found = predicted(dtype="float32", modelopt_save_path=None, export_dir=None, eval_size=0)
    assert found.parts["weights"] == 2 * WEIGHTS
    assert (found.peak_phase, found.parts["source"]) == ("load", WEIGHTS)
    sizes = sizes_of(known(), dtype="float32")
    model = sizes.model
    assert sizes.weights_left == model.others * 4, "weights that were converted are freed when they are packed"
    mapped = sizes_of(known())
    assert mapped.weights_left == WEIGHTS


def test_layer_by_layer_mapped_weights_do_not_count() -> None:
    model, layers = of_facts(known()), known().layers
    assert model is not None and layers is not None
    found = predicted(memory="auto")
    assert "layer" not in found.parts and found.total < WEIGHTS / 4
    copied = predicted(memory="auto", dtype="float32").parts["layer"]
    assert copied == (model.packed // layers + model.others) * 4
    assert predicted(memory="auto", device="GPU").parts["layer"] == copied // 2
    layer = predicted(memory="auto", export_quant_cfg="int4_awq").parts["layer"]
    assert layer == model.packed // layers * BF16, "AWQ changes what is mapped"
    assert predicted(memory="auto", export_quant_cfg="int4_gptq").parts["hessians"] > 3 * 12288**2 * 4
    less = predicted(memory="auto", calib_batch_size=32, calib_seq_length=512, eval_size=0)
    assert less.peak_phase == "calibrate" and less.parts["activations"] > 0


def test_sharded_layers_are_shared_by_the_ranks_but_for_those_that_are_gathered() -> None:
    model, layers = of_facts(known()), known().layers
    assert model is not None and layers is not None
    two, eight = (predicted(fsdp=True, device="GPU", ranks=ranks) for ranks in (2, 8))
    assert two.parts["weights"] - eight.parts["weights"] == model.packed * 3 // 8 * 2
    assert eight.parts["weights"] == model.packed * 2 // 8 + model.others * 2
    assert eight.parts["layer"] == 3 * (model.packed // layers) * 2
    assert predicted(fsdp=True, ranks=8).parts["weights"] == model.packed * 2 // 8, "others are mapped"


def test_layer_by_layer_the_experts_of_one_layer_are_copied() -> None:
    experts = known("Qwen/Qwen3-30B-A3B")
    found = predicted(experts, memory="auto", calib_batch_size=1, layer_noise="none")
    assert found.peak_phase == "load" and found.parts["experts"] == found.parts["joined"] == 128 * 3 * 768 * 2048 * BF16


def test_small_weights_stay_with_the_allocator() -> None:
    small = replace(known("Qwen/Qwen3-0.6B"), hidden_size=512, ffn_hidden_size=1024, vocab_size=1024)
    kept = predicted(small, export_quant_cfg="fp8").parts["allocator"]
    assert kept > 0
    assert predicted(small, export_quant_cfg="w4a8_awq").parts["allocator"] > 2 * kept
    blockwise = predicted(small, export_quant_cfg="fp8_blockwise").parts["allocator"]
    assert blockwise > predicted(small, export_quant_cfg="fp8_blockwise", compress=True).parts["allocator"] == kept
    assert "allocator" not in predicted(replace(known(), query_groups=32)).parts, "every weight is mapped"
    searching = {"modelopt_save_path": None, "export_dir": None}
    assert (
        predicted(small, **searching, export_quant_cfg="int4_awq").total
        > predicted(small, **searching, export_quant_cfg="fp8").total
    )


def test_experts_are_copied_into_one_tensor_which_is_not_compared() -> None:
    facts = known("Qwen/Qwen3-30B-A3B")
    assert predicted(facts).parts["experts"] == 48 * 128 * 3 * 768 * 2048 * BF16
    assert "experts" not in predicted(facts, device="GPU").parts
    assert "experts" not in predicted().parts
    attention = 2048 * (32 + 4 + 4 + 32) * 128
    assert predicted(facts).parts["reference"] == pytest.approx(3 * attention * 4, rel=0.01)


def test_a_gpu_has_neither_libraries_nor_copies_to_compare_with() -> None:
    found = predicted(device="GPU")
    assert not {"libraries", "reference", "hidden states", "allocator"} & set(found.parts)
    assert found.parts["weights"] == WEIGHTS


@pytest.mark.parametrize("format_", [*FORMATS, "MXFP8_DEFAULT_CFG"])
def test_every_format_has_a_prediction(format_: str) -> None:
    assert predicted(export_quant_cfg=format_).total > WEIGHTS


def test_a_job_is_predicted_where_its_model_is_known() -> None:
    found = predict(job_of("quantize_fp8", engine="hf", args__hf_model_id="tiny:qwen3"))
    assert found is not None
    assert found.device == "host"
    assert predict(job_of("quantize_fp8", engine="hf", args__hf_model_id="no/such")) is None
    assert predict(job_of("quantize_fp8", engine="script", args__hf_model_id="Qwen/Qwen3-8B")) is None
    spec = job_of("quantize_fp8", engine="hf", args__hf_model_id="tiny:qwen3", args__device="cuda")
    on_gpu = predict(spec)
    assert on_gpu is not None
    assert on_gpu.device == "GPU"


def test_auto_is_a_gpu_only_where_the_place_has_one() -> None:
    spec = job_of("quantize_fp8", engine="hf", args__hf_model_id="tiny:qwen3")
    assumed = gpu_of(spec.place, "h100-80gb")
    assert assumed is not None
    for gpu, device in ((assumed, "host"), (replace(assumed, certain=True), "GPU"), (None, "host")):
        found = predict(replace(spec, gpu=gpu))
        assert found is not None
        assert found.device == device


def test_libraries_are_those_of_the_torch_that_the_job_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(release: str) -> int:
        monkeypatch.setattr(hf_memory.metadata, "version", lambda _: release)
        found = predict(job_of("quantize_fp8", "local", engine="hf", args__hf_model_id="Qwen/Qwen3-8B"))
        assert found is not None
        return found.parts["libraries"]

    assert said("2.13.0+cpu") < said("2.13.0") == said("2.13.0+cu130")


def test_each_process_of_files_has_its_libraries_and_its_work() -> None:
    one = predicted(from_files=True, export_quant_cfg="fp8_blockwise")
    four = predicted(from_files=True, export_quant_cfg="fp8_blockwise", processes=4)
    assert "workers" not in one.parts and four.parts["workers"] == 4 * workers.LIBRARIES
    assert four.parts["work"] == 4 * one.parts["work"] and four.parts["libraries"] == one.parts["libraries"]
    assert set(four.sources) == set(four.parts)
