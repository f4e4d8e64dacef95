"""Faults after the calibration: what it found is kept, and the next attempt ends as one that nothing disturbed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from scripts.args.quantize import QuantizeArgs  # noqa: E402
from scripts.engines.hf import calibrate, kept, save, verify  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402
from scripts.run.record import Record  # noqa: E402
from scripts.run.session import Cancelled  # noqa: E402
from tests.hf_models import arguments, attempt, model_folder  # noqa: E402

pytestmark = pytest.mark.integration


def fails(record: Record, args: QuantizeArgs, error: type[BaseException]) -> Record:
    """An attempt that ends badly, and the record of the next."""
    with pytest.raises(error):
        attempt(record, args)
    record.finish("failed")
    return Record.reopen(record.dir)


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def half_saved(_model: Any, _tokenizer: Any, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"half")
    raise JobError("not_written", "No space left on device.")


FAULTS = {
    "disk full": (save, "save_restorable", half_saved),
    "exporter": (save, "export_hf", raising(JobError("export_failed", "no."))),
    "killed": (save, "export_hf", raising(Cancelled())),
    "verification": (verify, "verify_export", raising(JobError("export_incomplete", "no."))),
    "defect": (verify, "verify_restorable", raising(KeyError("x"))),
}
CASES = [
    ("disk full", "qwen3", {"export_quant_cfg": "fp8", "export_kv_cache_quant": "fp8_affine"}),
    ("defect", "qwen3", {"export_quant_cfg": "int8_sq"}),
    ("killed", "qwen3", {"export_quant_cfg": "w4a8_awq"}),
    ("verification", "qwen3_moe", {"export_quant_cfg": "fp8"}),
    ("exporter", "qwen3", {"export_quant_cfg": "nvfp4", "modelopt_save_path": None}),
]


@pytest.mark.parametrize(
    ("fault", "family", "values"), CASES, ids=lambda case: next(iter(case.values())) if isinstance(case, dict) else case
)
def test_the_next_attempt_goes_on_from_what_was_calibrated(
    fault: str, family: str, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_folder(tmp_path / "model", family)
    undisturbed = attempt(Record.submit(tmp_path / "one"), arguments(model, tmp_path / "a", **values))
    args = arguments(model, tmp_path / "b", **values)
    if not args.modelopt_save_path:
        undisturbed["digests"] = undisturbed["digests"][-1:]
    with monkeypatch.context() as during:
        during.setattr(*FAULTS[fault])
        record = fails(Record.submit(tmp_path / "two"), args, BaseException)
    left = tmp_path / "two" / "attempts" / "1" / kept.FOLDER
    assert sum(file.stat().st_size for file in left.iterdir()) < 500_000
    monkeypatch.setattr(calibrate, "calibration_loop", raising(AssertionError("calibrated again")))
    found = attempt(record, args)
    for figures in (found, undisturbed):
        figures["calibration"] = {key: value for key, value in figures["calibration"].items() if "second" not in key}
    assert {key: found[key] for key in found if found[key] != undisturbed[key]} == {}
    assert not list(tmp_path.rglob(kept.FOLDER)), "of no more use"


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and a run whose export failed."""
    folder = tmp_path_factory.mktemp("broken")
    args = arguments(model_folder(folder / "model"), folder / "out", modelopt_save_path=None)
    with pytest.MonkeyPatch.context() as during:
        during.setattr(*FAULTS["exporter"])
        fails(Record.submit(folder / "run"), args, JobError)
    return folder


def other_samples(_: Path) -> dict[str, Any]:
    return {"calib_size": 5}


def other_type(_: Path) -> dict[str, Any]:
    return {"dtype": "float32"}


def other_format(_: Path) -> dict[str, Any]:
    return {"export_quant_cfg": "int8_sq"}


def half_a_file(left: Path) -> dict[str, Any]:
    (left / "quantizers.safetensors").write_bytes((left / "quantizers.safetensors").read_bytes()[:-8])
    return {}


def another_state(left: Path) -> dict[str, Any]:
    (left / "modelopt_state.pth").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    return {}


def no_facts(left: Path) -> dict[str, Any]:
    (left / "calibration.json").write_text("{}")
    return {}


CHANGES = {
    other_samples: "is of other values (samples): calibrating anew",
    other_type: "is of other values (dtype): calibrating anew",
    other_format: "is of other values (format): calibrating anew",
    half_a_file: "cannot be gone on from: quantizers.safetensors is not as it was written",
    another_state: "cannot be gone on from: modelopt_state.pth is not as it was written",
    no_facts: "cannot be gone on from: of is missing",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_does_not_fit_is_told_and_calibrated_anew(
    change: Callable[[Path], dict[str, Any]], broken_off: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(broken_off / "run", tmp_path / "run")
    values = change(tmp_path / "run" / "attempts" / "1" / kept.FOLDER)
    given = arguments(broken_off / "model", tmp_path, **{"modelopt_save_path": None} | values)
    record = Record(tmp_path / "run", Record.resume(tmp_path / "run").values)
    attempt(record, given)
    assert CHANGES[change] in capsys.readouterr().out


def test_what_cannot_be_kept_is_told_and_stops_nothing(
    broken_off: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kept, "write_json", raising(OSError(28, "No space left on device")))
    args = arguments(broken_off / "model", tmp_path, modelopt_save_path=None)
    assert attempt(Record.submit(tmp_path / "run"), args)["digests"]
    assert "what was calibrated is not kept: [Errno 28] No space left" in capsys.readouterr().out


def test_attempts_elsewhere_have_directories_beside_each_other(tmp_path: Path) -> None:
    record = Record(tmp_path / "fp8_1-ab-r4", {"attempts": [{}, {}]})
    names = ["fp8_1-ab-r4/attempts/2", "fp8_1-ab-r4/attempts/1", "fp8_1-ab-r3", "fp8_1-ab-r2", "fp8_1-ab"]
    assert record.earlier == [tmp_path / name for name in names]
    assert Record(tmp_path / "x-r99999999", {}).earlier == []
