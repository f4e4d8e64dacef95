"""A search on a small random model: what wins is smaller or better than each format alone, and is really that."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optuna")

from scripts.args.best import BestArgs  # noqa: E402
from scripts.args.quantize import QuantizeArgs  # noqa: E402
from scripts.checkpoints import look  # noqa: E402
from scripts.engines.hf import search as searcher  # noqa: E402
from scripts.engines.hf import verify  # noqa: E402
from scripts.engines.hf.best import rungs  # noqa: E402
from scripts.engines.hf.best.bench import Bench  # noqa: E402
from scripts.formats import LEFT  # noqa: E402
from scripts.run.files import weight_bytes  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402
from scripts.run.record import Record  # noqa: E402
from scripts.run.session import Cancelled  # noqa: E402
from tests import hf_models  # noqa: E402

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_models.model_folder(tmp_path_factory.mktemp("model"))


def arguments(model: Path, out: Path, **values: Any) -> BestArgs:
    given: Any = {"modelopt_save_path": str(out / "mto"), "export_dir": str(out / "hf"), "device": "cpu", "prompts": ""}
    given |= {"calib_size": 8, "eval_size": 8, "calib_seq_length": 32, "formats": ["fp8", "fp8_blockwise", "int4_awq"]}
    given |= {"trials": 9, "calib_dataset": str(model / "text.jsonl"), "hf_model_id": str(model), **values}
    return BestArgs(**given)


def begun(folder: Path) -> Record:
    record = Record.submit(folder)
    record.update(state="running")
    return record


def search_of(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((record.dir / "report" / "report.json").read_text())["tried"]
    return found


def test_a_search_goes_on_after_a_kill_and_its_winner_is_what_was_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(model, tmp_path, target_size=0.62)
    record, measured, scores = begun(tmp_path / "run"), [0], Bench.scores

    def killed(self: Bench, *given: Any) -> Any:
        measured[0] += 1
        if measured[0] == 16:
            raise Cancelled
        return scores(self, *given)

    monkeypatch.setattr(Bench, "scores", killed)
    with pytest.raises(Cancelled):
        rungs.find_best(args, record)
    kept = json.loads((record.dir / "search" / "trials.json").read_text())["trials"]
    assert kept
    record.finish("cancelled")
    monkeypatch.setattr(Bench, "scores", scores)
    again = Record.reopen(record.dir)
    rungs.find_best(args, again)
    found = search_of(again)
    assert [{**row, "passes": 0} for row in found["trials"][: len(kept)]] == [{**row, "passes": 0} for row in kept]
    best = found["trials"][found["winner"] - 1]
    report = json.loads((again.dir / "report" / "report.json").read_text())
    assert best["passes"] and report["evaluation"]["kl_divergence"] == pytest.approx(best["kl"], rel=0.05)
    size = weight_bytes(tmp_path / "hf")
    assert size == pytest.approx(best["size"], rel=0.002) and size <= 0.62 * found["base_bytes"]
    assert (look(tmp_path / "hf").problems, look(tmp_path / "hf").doubts) == ((), ())
    assert again.values["verdict"]["verdict"] == "accept"
    assert "What was tried" in (again.dir / "report" / "index.html").read_text()
    own = [row for row in found["trials"] if row["stage"] == "auto_quantize"]
    assert own and all(row["asked"]["by"] == "auto_quantize" for row in own)
    assert all(min(losses) > 0 for losses in found["sensitivities"].values())
    assert found["sensitivities"]["int4_awq"] > found["sensitivities"]["fp8_blockwise"]
    assert {one["type"] for one in again.values["outputs"]} >= {"recipe", "checkpoint_hf", "eval_results"}


def test_where_none_passes_the_nearest_is_named_and_the_page_stays(model: Path, tmp_path: Path) -> None:
    record = begun(tmp_path / "run")
    with pytest.raises(JobError, match=r"nothing_passes: None of \d+ trials passes. The nearest is") as raised:
        rungs.find_best(
            arguments(model, tmp_path, max_kl=1e-9, formats=["fp8", "int4_awq"], leave_layers=False), record
        )
    assert "max_kl" in raised.value.cause
    assert search_of(record)["winner"] is None
    assert (record.dir / "report" / "index.html").is_file() and not (tmp_path / "hf").exists()


def test_layers_that_servers_fuse_have_one_format(model: Path, tmp_path: Path) -> None:
    args = hf_models.arguments(model, tmp_path, layer_formats={"int4_awq": ["*.q_proj"]})
    with pytest.raises(JobError, match="fused_layers_differ"):
        hf_models.attempt(begun(tmp_path / "a"), args)
    args = hf_models.arguments(model, tmp_path, layer_formats={"int4_awq": ["*.w_proj"]})
    assert isinstance(args, QuantizeArgs)
    with pytest.raises(JobError, match="unmatched_layers"):
        hf_models.attempt(begun(tmp_path / "b"), args)


def test_layers_that_are_left_as_they_are_have_names_too(model: Path, tmp_path: Path) -> None:
    formats = {"int4_awq": ["*.mlp.*"], "none": ["*.down_proj"]}
    args = hf_models.arguments(model, tmp_path, layer_formats=formats, modelopt_save_path=None)
    hf_models.attempt(begun(tmp_path / "a"), args)
    made = verify.Export(tmp_path / "hf").header
    names = ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
    assert [made[f"model.layers.0.{name}.weight"][0] for name in names] == ["F8_E4M3", "U8", "BF16"]
    args = hf_models.arguments(model, tmp_path / "b", layer_formats={"none": ["*.q_proj"]})
    with pytest.raises(JobError, match="fused_layers_differ"):
        hf_models.attempt(begun(tmp_path / "b"), args)


def test_keys_and_values_are_calibrated_whatever_the_layers_around_them_are(model: Path, tmp_path: Path) -> None:
    values: Any = {"export_kv_cache_quant": "fp8", "modelopt_save_path": None, "eval_size": 0}
    for name, formats in (("a", {}), ("b", {"none": ["*.0.self_attn*"]})):
        args = hf_models.arguments(model, tmp_path / name, layer_formats=formats, **values)
        hf_models.attempt(begun(tmp_path / name / "run"), args)
    whole, mixed = (verify.Export(tmp_path / name / "hf") for name in ("a", "b"))
    for part in ("k_proj.k_scale", "v_proj.v_scale"):
        scale = f"model.layers.0.self_attn.{part}"
        assert mixed.tensor(scale).item() == pytest.approx(whole.tensor(scale).item(), rel=0.05)


def test_experts_in_one_tensor_have_one_format_which_is_verified(tmp_path: Path) -> None:
    source = hf_models.model_folder(tmp_path / "model", "qwen3_moe")
    values: Any = {"modelopt_save_path": None, "eval_size": 0}
    args = hf_models.arguments(source, tmp_path / "a", layer_formats={"nvfp4": ["*.experts.*"]}, **values)
    hf_models.attempt(begun(tmp_path / "a" / "run"), args)
    assert look(tmp_path / "a" / "hf").quantization == "MIXED_PRECISION (fp8, nvfp4)"
    args = hf_models.arguments(source, tmp_path / "b", layer_formats={"none": ["*.gate_up_proj"]}, **values)
    with pytest.raises(JobError, match="fused_layers_differ"):
        hf_models.attempt(begun(tmp_path / "b" / "run"), args)


def test_where_gradients_do_not_go_the_search_goes_on_and_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no derivative")

    from modelopt.torch.quantization import model_calib

    monkeypatch.setattr(searcher, "_backward", fails)
    record = begun(tmp_path / "run")
    with pytest.raises(JobError, match="nothing_passes"):
        rungs.find_best(arguments(model, tmp_path, max_kl=1e-9, formats=["fp8"], trials=4), record)
    assert "no derivative" in search_of(record)["unscored"]
    assert "no derivative" in (record.dir / "report" / "index.html").read_text()
    assert {row["stage"] for row in search_of(record)["trials"]} == {"formats", "halved", "mixtures"}
    assert model_calib._ENABLE_FOLDING_PQS_TO_WEIGHTS, "what is tried after it is calibrated as before it"


def test_every_layer_may_stay_as_it_is(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []

    def stopped(search: Any, *_: Any) -> None:
        found.append(search.bench.scores([LEFT] * len(search.bench.units), 8, 2).kl_divergence)
        raise Cancelled

    monkeypatch.setattr(rungs, "_run", stopped)
    with pytest.raises(Cancelled):
        rungs.find_best(arguments(model, tmp_path, max_kl=0.1, formats=["fp8"], trials=4), begun(tmp_path / "run"))
    assert found == [0.0]
