"""Layer by layer: the same tensors and scores as with the whole model, and a killed job goes on at its layer."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from scripts.args.quantize import QuantizeArgs  # noqa: E402
from scripts.engines.hf import layerwise, sharded, streamed, verify  # noqa: E402
from scripts.engines.hf.engine import quantize_checkpoint  # noqa: E402
from scripts.engines.hf.quantizers import build_config  # noqa: E402
from scripts.engines.hf.weights import Source, select  # noqa: E402
from scripts.formats import FORMATS  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402
from scripts.run.record import Record  # noqa: E402
from tests import architectures, hf_models  # noqa: E402

pytestmark = pytest.mark.integration

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "head_dim": 32,
    "loud": 2.0,
}


def source_of(folder: Path, family: str = "llama", **values: Any) -> Path:
    hf_models.build(family, **{**SMALL, **values}).save_pretrained(folder, max_shard_size="150KB")
    hf_models.tokenizer().save_pretrained(folder)
    rows = [{"text": f"Number {number} {'very ' * (number % 7)}odd."} for number in range(30)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(folder: Path, out: Path, **values: Any) -> QuantizeArgs:
    given: dict[str, Any] = {
        "calib_size": 20,
        "eval_size": 8,
        "modelopt_save_path": None,
        "layer_noise": "all",
        **values,
    }
    return hf_models.arguments(folder, out, **given)


def run(record: Record, args: QuantizeArgs) -> dict[str, Any]:
    with record.running():
        quantize_checkpoint(args, record)
    return dict(json.loads((record.dir / "report" / "report.json").read_text()))


def begun(place: Path) -> Record:
    return Record.submit(place, id="layers", recipe="quantize", versions={})


def bits(tensor: Any) -> tuple[Any, list[int], bytes]:
    return tensor.dtype, list(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("llama", {"export_quant_cfg": "nvfp4_local_hessian"}),
        ("llama", {"export_quant_cfg": "w4a8_mxfp4_fp8"}),
        ("llama", {"export_quant_cfg": "int8_sq"}),
        ("llama", {"export_quant_cfg": "w4a8_awq", "calib_batch_size": 3}),
        ("llama", {"export_quant_cfg": "nvfp4_gptq"}),
        ("qwen3", {"export_quant_cfg": "fp8", "dtype": "float32"}),
        ("qwen3", {"export_quant_cfg": "nvfp4_awq"}),
        ("qwen3", {"export_quant_cfg": "nvfp4_svdquant", "dtype": "float32"}),
        ("qwen3", {"export_quant_cfg": "INT8_DEFAULT_CFG", "eval_size": 0}),
        ("qwen3_moe", {"export_quant_cfg": "nvfp4", "force_all_expert_routing": True, "layer_noise": "none"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["export_quant_cfg"],
)
def test_equal_to_the_whole_model(tmp_path: Path, family: str, values: dict[str, Any]) -> None:
    block = FORMATS[values["export_quant_cfg"]].block[1] if values["export_quant_cfg"] in FORMATS else 1
    sizes = {"num_hidden_layers": 2, "hidden_size": max(64, block), "head_dim": max(64, block) // 2}
    sizes |= {"num_experts": 16, "moe_intermediate_size": 64} if family == "qwen3_moe" else {}
    folder = source_of(tmp_path / "model", family, tie_word_embeddings=family == "qwen3", **sizes)
    whole = run(begun(tmp_path / "one"), arguments(folder, tmp_path / "whole", **values))
    layers = run(record := begun(tmp_path / "two"), arguments(folder, tmp_path / "layers", memory="1GiB", **values))
    assert layers["layerwise"] and "layer by layer" in (tmp_path / "two" / "report" / "index.html").read_text().lower()
    assert layers["evaluation"] == whole["evaluation"]
    assert layers.get("unreached") == whole.get("unreached")
    noise = [{one["name"]: one["output_db"] for one in report["layers"]} for report in (layers, whole)]
    assert noise[0] == pytest.approx(noise[1], abs=5)  # of the whole model that of two short samples, which come first
    made, wanted = (Source(folder=tmp_path / name / "hf") for name in ("layers", "whole"))
    assert made.shapes.keys() == wanted.shapes.keys()
    assert [name for name in wanted.shapes if bits(made.tensor(name)) != bits(wanted.tensor(name))] == []
    for name in ("hf_quant_config.json", "config.json"):
        assert json.loads((made.folder / name).read_text()) == json.loads((wanted.folder / name).read_text())
    assert [each["type"] for each in record.values["outputs"]] == ["checkpoint_hf", "eval_results"]
    assert not (record.dir / layerwise.FOLDER).exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from scripts.engines.hf import layerwise
from tests.integration.scripts.engines.test_layerwise import arguments, begun, run

left, send = int(sys.argv[3]), layerwise._send

def count(walk, name, index):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    send(walk, name, index)

layerwise._send = count
folder, place = Path(sys.argv[1]), Path(sys.argv[2])
run(begun(place), arguments(folder, place, memory="1GiB", export_quant_cfg="nvfp4_awq"))
"""


def test_a_killed_job_goes_on_at_the_layer_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, place = source_of(tmp_path / "model"), tmp_path / "run"
    undisturbed, how = begun(tmp_path / "whole"), {"memory": "1GiB", "export_quant_cfg": "nvfp4_awq"}
    expected = run(undisturbed, arguments(folder, tmp_path / "whole", **how))
    words = [sys.executable, "-c", KILLED, str(folder), str(place), "11"]  # in the second pass of the last layer
    killed = subprocess.run(words, env={**os.environ, "PYTHONPATH": os.curdir}, check=False)
    assert killed.returncode == -signal.SIGKILL and not (place / "hf").exists()
    record = Record.reopen(place)
    found = run(record, arguments(folder, place, **how))
    assert "calibrated by an earlier attempt: 2 of 3 layers" in capsys.readouterr().out
    assert found["evaluation"] == expected["evaluation"] and found["layers"] == expected["layers"]
    assert record.values["outputs"][0]["digest"] == undisturbed.values["outputs"][0]["digest"]


@pytest.mark.parametrize("damaged", ["after-1.states", "walk.json", "model-00002-of-00004.safetensors"])
def test_what_was_damaged_is_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    folder, place = source_of(tmp_path / "model"), tmp_path / "run"
    args, record, scores = (
        arguments(folder, place, memory="1GiB", export_quant_cfg="fp8"),
        begun(place),
        layerwise._scores,
    )
    monkeypatch.setattr(layerwise, "_scores", lambda *_: verify.refuse("gate_failed", "x"))
    with pytest.raises(JobError, match="gate_failed"):
        run(record, args)
    record.finish("failed")
    file = place / layerwise.FOLDER / damaged
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    monkeypatch.setattr(layerwise, "_scores", scores)
    assert run(Record.reopen(place), args)["evaluation"]["tokens"] > 0
    said = capsys.readouterr().out
    assert "cannot be gone on from" in said and "calibrated by an earlier attempt" not in said


def refusal(folder: Path, place: Path, **values: Any) -> JobError:
    with pytest.raises(JobError) as error:
        run(begun(place / "run"), arguments(folder, place, **{"memory": "auto", **values}))
    assert not (place / "hf").exists()
    return error.value


def test_what_cannot_be_had_is_refused_by_name(tmp_path: Path) -> None:
    folder = source_of(tmp_path / "model")
    for number, (name, values) in enumerate(
        {
            "export_quant_cfg": {"export_quant_cfg": "mxfp6"},
            "awq_full is done": {"export_quant_cfg": "NVFP4_AWQ_FULL_CFG"},
            "export_kv_cache_quant": {"export_kv_cache_quant": "fp8"},
            "compress": {"compress": True},
        }.items()
    ):
        found = refusal(folder, tmp_path / str(number), **values)
        assert (found.name, name in found.cause) == ("layerwise_unsupported", True), found
    assert refusal(folder, tmp_path / "size", memory="16 apples").name == "wrong_value"
    assert "largest layer" in refusal(folder, tmp_path / "small", memory="1kB").cause
    experts = source_of(tmp_path / "moe", "qwen3_moe", moe_intermediate_size=64)
    for fmt, cause in (("nvfp4_local_hessian", "local Hessian spoils"), ("nvfp4_awq", "cannot write AWQ of experts")):
        assert cause in refusal(experts, tmp_path / fmt, export_quant_cfg=fmt).cause
    architectures.write_model("cohere", tmp_path / "cohere")
    assert "cohere was not tried" in refusal(tmp_path / "cohere", tmp_path / "type").cause


def test_weights_and_activations_that_are_no_numbers(tmp_path: Path) -> None:
    model = hf_models.build("llama", **SMALL)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    hf_models.save(model, tmp_path / "model")
    source_text = source_of(tmp_path / "text") / "text.jsonl"
    (tmp_path / "model" / "text.jsonl").write_bytes(source_text.read_bytes())
    found = refusal(tmp_path / "model", tmp_path / "out")
    assert found.name == "weights_not_finite" and "layers.1.mlp.up_proj" in found.cause


def opened(folder: Path) -> streamed.Streamed:
    source = Source(folder=folder)
    selection = select(source, build_config(QuantizeArgs()), False, calibrated=True)
    how: Any = {"dtype": torch.bfloat16, "device": torch.device("cpu"), "trust_remote_code": False}
    return streamed.open_streamed(source, selection, **how)


def test_experts_are_not_sharded(tmp_path: Path) -> None:
    experts = source_of(tmp_path / "moe", "qwen3_moe", moe_intermediate_size=64)
    with pytest.raises(JobError, match="fsdp_unsupported: experts that share one tensor"):
        sharded._refuse_others(opened(experts), build_config(QuantizeArgs()))


def test_nothing_of_a_layer_stays_in_memory(tmp_path: Path) -> None:
    model = opened(source_of(tmp_path / "model"))
    with model.loaded(1) as layer:
        assert not any(weight.is_meta for weight in layer.parameters())
    assert all(weight.is_meta for layer in model.layers for weight in layer.parameters())
    assert not any(weight.is_meta for name, weight in model.model.named_parameters() if ".layers." not in name)
