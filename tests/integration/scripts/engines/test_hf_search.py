"""A format of its own for each layer, on small models: what is chosen, written, verified, and gone on from."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from scripts.args.auto_quantize import SEARCHED, AutoQuantizeArgs  # noqa: E402
from scripts.checkpoints.quantization import MIXED  # noqa: E402
from scripts.engines.hf import kept, save, verify  # noqa: E402
from scripts.engines.hf.engine import quantize_checkpoint  # noqa: E402
from scripts.engines.hf.search import Search  # noqa: E402
from scripts.formats import FORMATS  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402
from scripts.run.record import Record  # noqa: E402
from tests.hf_models import model_folder  # noqa: E402

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


def searched(record: Record, model: Path, **values: Any) -> dict[str, Any]:
    """The report of an attempt."""
    out = record.dir / "out"
    given: dict[str, Any] = {"modelopt_save_path": str(out / "mto"), "export_dir": str(out / "hf"), "prompts": ""}
    given |= {"calib_size": 8, "eval_size": 2, "calib_seq_length": 32, "device": "cpu", "score_size": 4, **values}
    args = AutoQuantizeArgs(hf_model_id=str(model), calib_dataset=str(model / "text.jsonl"), **given)
    with record.running():
        quantize_checkpoint(args, record)
    report: dict[str, Any] = json.loads((record.dir / "report" / "report.json").read_text())
    return report


def begun(folder: Path) -> Record:
    Record.submit(folder)
    return Record.resume(folder)


def test_the_bits_that_are_counted_are_those_of_modelopt() -> None:
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.algorithms import QuantRecipe

    for name, bits in SEARCHED.items():
        assert QuantRecipe(getattr(mtq, FORMATS[name].config), name=name).compression * 16 == bits


def test_a_cache_that_is_cast_has_one_scale_for_all() -> None:
    cache = Search(args=AutoQuantizeArgs(formats=["fp8", "nvfp4"], export_kv_cache_quant="fp8_cast")).asked.cache
    assert cache and all(rule["cfg"]["use_constant_amax"] for rule in cache["quant_cfg"])


@pytest.mark.parametrize(
    ("formats", "bits", "method"),
    [(["nvfp4", "fp8"], 6.0, "gradient"), (["int4_awq", "fp8"], 6.0, "kl_div")],
)
def test_each_layer_has_the_format_that_was_chosen(
    model: Path, tmp_path: Path, formats: list[str], bits: float, method: str
) -> None:
    record = begun(tmp_path / "run")
    report = searched(record, model, formats=formats, effective_bits=bits, method=method)
    search = report["search"]
    assert search["effective_bits"]["reached"] <= bits == search["effective_bits"]["asked"]
    chosen = {name: row["format"] for row in search["layers"] for name in row["modules"] if row["scores"]}
    assert set(chosen.values()) == set(formats), "a mixture"
    said = json.loads((record.dir / "out" / "hf" / "hf_quant_config.json").read_text())["quantization"]
    assert said["quant_algo"] == MIXED
    layers = {name: facts["quant_algo"] for name, facts in said["quantized_layers"].items()}
    assert layers == {name: FORMATS[format_].quant_algo for name, format_ in chosen.items()}
    assert "lm_head" not in layers
    told = dict(report["verified"])
    assert told["weights dequantized"].startswith(f"{len(chosen)} layers") and "bit for bit" in told["reopened"]
    page = (record.dir / "report" / "index.html").read_text()
    assert "The format of each layer" in page and "asked for, at most" in page


def test_of_formats_of_equal_bits_each_layer_has_the_one_that_loses_less(model: Path, tmp_path: Path) -> None:
    search = searched(begun(tmp_path / "run"), model, formats=["fp8", "int8_sq"], effective_bits=8.0)["search"]
    rows = [row for row in search["layers"] if row["scores"]]
    assert all(len(set(row["scores"].values())) == 2 for row in rows), "each has its own score"
    assert all(row["format"] == min(row["scores"], key=row["scores"].get) for row in rows)


def test_a_layer_in_another_format_than_was_chosen_is_found(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = save.export_hf

    def swapped(of: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
        export(of, tokenizer, folder, dtype)
        file = folder / "hf_quant_config.json"
        said = json.loads(file.read_text())
        layers = said["quantization"]["quantized_layers"]
        name = next(one for one, facts in layers.items() if facts["quant_algo"] == "FP8")
        layers[name]["quant_algo"] = "NVFP4"
        file.write_text(json.dumps(said))

    monkeypatch.setattr(save, "export_hf", swapped)
    with pytest.raises(JobError) as caught:
        searched(begun(tmp_path / "run"), model, effective_bits=6.0, modelopt_save_path=None)
    assert caught.value.name == "export_wrong_config"


def test_a_search_that_was_cut_off_is_not_made_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {"formats": ["int4_awq", "fp8"], "effective_bits": 6.0}
    whole = searched(begun(tmp_path / "whole"), model, **values)
    record = begun(tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(
            verify, "verify_export", lambda *_, **__: (_ for _ in ()).throw(JobError("export_incomplete", "no."))
        )
        with pytest.raises(JobError):
            searched(record, model, **values)
    record.finish("failed")
    again = Record.reopen(record.dir)
    assert any((place / kept.FOLDER).is_dir() for place in again.earlier)
    report = searched(again, model, **values)
    assert report["search"] == whole["search"] and report["evaluation"] == whole["evaluation"]
    assert report["calibration"]["seconds"] != whole["calibration"]["seconds"]


def test_what_a_model_cannot_be_asked_is_refused_before_it_is_loaded(model: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        searched(begun(tmp_path / "one"), model, disabled_layers=["*.layer.0.*"])
    assert caught.value.name == "matches_nothing" and "model.layers.0" in caught.value.cause
