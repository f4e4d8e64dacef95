"""The hf engine on several ranks of torchrun, over gloo: what one process finds, and ends that tell their cause."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from scripts.engines.hf.weights import Source  # noqa: E402
from scripts.run.record import read_record  # noqa: E402
from tests.hf_models import SHOWN, model_folder  # noqa: E402
from tests.testbed.ranks import run_cases  # noqa: E402

pytestmark = pytest.mark.integration
#: A process alone and ranks, with text of many lengths in few passes each; of three samples the fourth rank has none.
FP8 = {"family": "qwen3", "export_quant_cfg": "fp8", "export_kv_cache_quant": "fp8", "calib_batch_size": 2}
NVFP4 = {
    **{"family": "qwen3_moe", "export_quant_cfg": "nvfp4", "modelopt_save_path": None},
    **{"calib_batch_size": 1, "calib_size": 3},
}
#: Of three passes to calibrate, and one to score, the second rank has the fewer.
LAYERS: dict[str, Any] = {
    **{"family": "qwen3", "export_quant_cfg": "nvfp4", "modelopt_save_path": None},
    **{"calib_batch_size": 2, "calib_size": 5, "eval_size": 2},
}
CASES = {"fp8-1": (1, FP8), "fp8-2": (2, FP8), "nvfp4-1": (1, NVFP4), "nvfp4-4": (4, NVFP4), "layers-1": (1, LAYERS)}
FAILING = {"killed": (2, FP8), "failed": (2, FP8), "killed-fsdp": (2, LAYERS | {"fsdp": True})}
SHARDED = {"layers-2": (2, LAYERS | {"fsdp": True})}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directories of all cases, by their names."""
    folder = tmp_path_factory.mktemp("ranks")
    for family in ("qwen3", "qwen3_moe"):
        model_folder(folder / family, family)
    cases = []
    for name, (ranks, values) in (CASES | FAILING | SHARDED).items():
        model = folder / values["family"]
        made = {"modelopt_save_path": str(folder / f"{name}.mto"), "export_dir": str(folder / f"{name}.hf")}
        text = {"hf_model_id": str(model), "calib_dataset": str(model / "text.jsonl"), "calib_seq_length": 96}
        few: dict[str, Any] = {"calib_size": 8, "eval_size": 3, "prompts": "", "device": "cpu", "layer_noise": "all"}
        args = {**few, **made, **text, **{key: value for key, value in values.items() if key != "family"}}
        case = {"run_dir": str(folder / name), "ranks": ranks, "args": args}
        cases.append(case | ({"fails": name.partition("-")[0]} if name in FAILING else {}))
    run_cases(cases)
    return folder


@pytest.mark.parametrize(("one", "several"), [("fp8-1", "fp8-2"), ("nvfp4-1", "nvfp4-4")])
def test_ranks_find_what_one_process_finds_to_the_last_bit(runs: Path, one: str, several: str) -> None:
    alone, shared = (read_record(runs / name) for name in (one, several))
    assert (alone["state"], shared["state"]) == ("succeeded", "succeeded"), shared.get("error")
    for made in zip(alone["outputs"][:-1], shared["outputs"][:-1], strict=True):
        assert made[0]["digest"] == made[1]["digest"], made
    reports = [json.loads((runs / name / "report" / "report.json").read_text()) for name in (one, several)]
    for report in reports:
        report["calibration"] = {key: value for key, value in report["calibration"].items() if "second" not in key}
    assert reports[0]["evaluation"]["tokens"] > 0
    assert {key: reports[1][key] for key in SHOWN} == {key: reports[0][key] for key in SHOWN}
    assert len(list((runs / several / "logs").glob("rank*.log"))) == CASES[several][0]


def test_of_sharded_layers_the_export_and_the_scores_are_the_whole_models(runs: Path) -> None:
    one, two = (json.loads((runs / name / "report" / "report.json").read_text()) for name in ("layers-1", "layers-2"))
    assert {key: two[key] for key in ("evaluation", "layers")} == {key: one[key] for key in ("evaluation", "layers")}
    whole, shared = (Source(folder=runs / f"{name}.hf") for name in ("layers-1", "layers-2"))
    assert whole.shapes == shared.shapes
    for name in whole.shapes:
        alone, of_ranks = (each.tensor(name) for each in (whole, shared))
        assert alone.dtype == of_ranks.dtype, name
        assert torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (alone, of_ranks))), name


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("killed", "rank_killed", "Rank 1, process"),
        ("killed-fsdp", "rank_killed", "Rank 1, process"),
        ("failed", "out_of_memory", "rank1: A single sample"),
    ],
)
def test_a_rank_that_fails_ends_the_run_with_its_cause(runs: Path, name: str, error: str, words: str) -> None:
    record = read_record(runs / name)
    assert (record["state"], record["error"]["name"]) == ("failed", error), record["error"]
    assert words in record["error"]["message"]
    assert not list(runs.glob(f"{name}.hf*")) and not list((runs / name / "ranks").glob("0.*"))
