"""From files: the same bytes as ModelOpt exports of the model in memory, and a killed job goes on where it was."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from scripts.args.quantize import QuantizeArgs  # noqa: E402
from scripts.engines.hf import from_files, quantizers, save, weights  # noqa: E402
from scripts.engines.hf.engine import quantize_checkpoint  # noqa: E402
from scripts.engines.hf.weights import Source  # noqa: E402
from scripts.run.problems import JobError  # noqa: E402
from scripts.run.record import Record  # noqa: E402
from tests import architectures, hf_models  # noqa: E402

pytestmark = pytest.mark.integration

FORMATS: list[dict[str, Any]] = [
    {"export_quant_cfg": "fp8_blockwise"},
    {"export_quant_cfg": "nvfp4", "weight_only": True},
    {"export_quant_cfg": "fp8", "weight_only": True},
    {"export_quant_cfg": "int8_sq", "weight_only": True},
    {"export_quant_cfg": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG"},
    {"export_quant_cfg": "mxfp8", "export_kv_cache_quant": "fp8_cast"},
    {"export_quant_cfg": "mxfp4"},
]


def source_of(folder: Path, family: str) -> Path:
    """A model in several files, so that layers that share a scale are in more than one."""
    model = hf_models.build(family, intermediate_size=768)
    model.save_pretrained(folder, max_shard_size="150KB")
    hf_models.tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def run(folder: Path, place: Path, **values: Any) -> Record:
    args = QuantizeArgs(hf_model_id=str(folder), from_files=True, export_dir=str(place / "hf"), **values)
    record = Record.submit(place, id="files", recipe="quantize", versions={})
    with record.running():
        quantize_checkpoint(args, record)
    return record


def exported(folder: Path, into: Path, **values: Any) -> Path:
    """As ModelOpt does it with the whole model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    config = quantizers.build_config(QuantizeArgs(**values))
    quantizers.quantize(model, config, lambda whole: whole(input_ids=torch.arange(32)[None]))
    save.export_hf(model, hf_models.tokenizer(), into, "bfloat16")
    return into


def bits(tensor: Any) -> tuple[Any, list[int], bytes]:
    return tensor.dtype, list(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("values", FORMATS, ids=lambda values: values["export_quant_cfg"])
def test_equal_to_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, values: dict[str, Any]
) -> None:
    if family == "qwen3_moe" and values["export_quant_cfg"].startswith("INT4"):
        pytest.skip("ModelOpt's exporter fails with experts in it")
    monkeypatch.setattr(weights, "AT_A_TIME", 1 << 14)  # a matrix is several parts
    folder = source_of(tmp_path / "model", family)
    record = run(folder, tmp_path / "run", **values)
    made, wanted = Source(folder=tmp_path / "run" / "hf"), Source(folder=exported(folder, tmp_path / "whole", **values))
    assert made.shapes.keys() == wanted.shapes.keys()
    assert [name for name in wanted.shapes if bits(made.tensor(name)) != bits(wanted.tensor(name))] == []
    for name in ("hf_quant_config.json", "config.json"):
        said, meant = (json.loads((one.folder / name).read_text()) for one in (made, wanted))
        key = "quantization" if "quantization" in meant else "quantization_config"
        assert said[key] == meant[key]
    assert record.values["outputs"][0]["type"] == "checkpoint_hf"
    assert not (tmp_path / "run" / from_files.FOLDER).exists()


@pytest.mark.parametrize("kind", ["cohere", "qwen2_moe", "phi"])
def test_layers_that_are_given_the_same_share_a_scale(tmp_path: Path, kind: str) -> None:
    """Whatever they are called: attention and MLP side by side, or the gate of a shared expert."""
    architectures.write_model(kind, tmp_path / "model")
    values: dict[str, Any] = {"export_quant_cfg": "nvfp4", "weight_only": True}
    run(tmp_path / "model", tmp_path / "run", **values)
    whole = exported(tmp_path / "model", tmp_path / "whole", **values)
    made, wanted = Source(folder=tmp_path / "run" / "hf"), Source(folder=whole)
    assert made.shapes.keys() == wanted.shapes.keys()
    assert [name for name in wanted.shapes if bits(made.tensor(name)) != bits(wanted.tensor(name))] == []


def test_experts_of_one_block_have_scales_of_their_own(tmp_path: Path) -> None:
    """Gate and up were given the larger of their two scales."""
    small = {"hidden_size": 128, "head_dim": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    hf_models.save(hf_models.build("qwen3_moe", intermediate_size=128, **small), tmp_path / "model")
    run(tmp_path / "model", tmp_path / "run", export_quant_cfg="fp8_blockwise")
    whole = exported(tmp_path / "model", tmp_path / "whole", export_quant_cfg="fp8_blockwise")
    made, wanted = Source(folder=tmp_path / "run" / "hf"), Source(folder=whole)
    assert [name for name in wanted.shapes if bits(made.tensor(name)) != bits(wanted.tensor(name))] == []


def test_a_layer_that_predicts_further_tokens_is_left_out(tmp_path: Path) -> None:
    """Its experts were taken for misshapen. Transformers does not load it, and no export of the whole model has it."""
    architectures.write_model("glm4_moe", tmp_path / "model")
    own = Source(folder=tmp_path / "model")
    more = {name.replace("layers.1.", "layers.46."): own.tensor(name) for name in own.shapes if "layers.1." in name}
    save_file(more, tmp_path / "model" / "more.safetensors", {"format": "pt"})
    values: dict[str, Any] = {"export_quant_cfg": "nvfp4", "weight_only": True}
    run(tmp_path / "model", tmp_path / "run", **values)
    (tmp_path / "model" / "more.safetensors").unlink()
    whole = exported(tmp_path / "model", tmp_path / "whole", **values)
    assert Source(folder=tmp_path / "run" / "hf").shapes == Source(folder=whole).shapes


def test_experts_that_files_hold_in_one_tensor_are_refused(tmp_path: Path) -> None:
    """They stayed as they were, beside a hf_quant_config.json that calls them quantized."""
    architectures.write_model("llama4_text", tmp_path / "model")
    with pytest.raises(JobError, match=r"experts\.\w+ holds all experts of a layer in one tensor") as caught:
        run(tmp_path / "model", tmp_path / "run", export_quant_cfg="nvfp4", weight_only=True)
    assert caught.value.name == "unsupported_model"
    assert not (tmp_path / "run" / "hf").exists()


def test_an_architecture_that_transformers_does_not_know(tmp_path: Path) -> None:
    """Its matrices are the same, and so are the scales that they get."""
    folder = source_of(tmp_path / "model", "llama")
    known = run(folder, tmp_path / "known", export_quant_cfg="nvfp4", weight_only=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "not_yet_known"}))
    unknown = run(folder, tmp_path / "unknown", export_quant_cfg="nvfp4", weight_only=True)
    one, other = (Source(folder=record.dir / "hf") for record in (known, unknown))
    assert [name for name in one.shapes if bits(one.tensor(name)) != bits(other.tensor(name))] == []
    said = [json.loads((made.folder / "hf_quant_config.json").read_text())["quantization"] for made in (one, other)]
    excluded = [set(one.pop("exclude_modules")) for one in said]
    assert said[0] == said[1] and excluded[0] - {"model.embed_tokens"} == excluded[1]  # it has no linear layer


KILLED = """
import os, signal, sys
from pathlib import Path
from scripts.engines.hf import from_files, shards
from tests.integration.scripts.engines.test_from_files import run

left, write = int(sys.argv[3]), shards.write_json

def count(path, value):
    global left
    write(path, value)
    if path.parent.name == from_files.FOLDER:
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

shards.write_json = count
run(Path(sys.argv[1]), Path(sys.argv[2]), export_quant_cfg="fp8_blockwise")
"""


def test_a_killed_job_goes_on_from_the_files_that_it_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = source_of(tmp_path / "model", "llama")
    undisturbed = run(folder, tmp_path / "whole", export_quant_cfg="fp8_blockwise")
    words = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "run"), "2"]
    killed = subprocess.run(words, env={**os.environ, "PYTHONPATH": os.curdir}, check=False)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "run" / "hf").exists()
    first = next((tmp_path / "run" / from_files.FOLDER).glob("*.safetensors"))
    record = Record.reopen(tmp_path / "run")
    args = QuantizeArgs(
        hf_model_id=str(folder),
        from_files=True,
        export_dir=str(tmp_path / "run" / "hf"),
        export_quant_cfg="fp8_blockwise",
    )
    with record.running():
        quantize_checkpoint(args, record)
    assert capsys.readouterr().out.count("made by an earlier attempt") == 2
    assert not first.exists()
    assert record.values["outputs"][0]["digest"] == undisturbed.values["outputs"][0]["digest"]


def test_several_processes_make_the_same(tmp_path: Path) -> None:
    """Also of layers whose scale is shared with others in another's file."""
    folder = source_of(tmp_path / "model", "llama")
    one = run(folder, tmp_path / "one", export_quant_cfg="nvfp4", weight_only=True)
    two = run(folder, tmp_path / "two", export_quant_cfg="nvfp4", weight_only=True, processes=2)
    assert two.values["outputs"][0]["digest"] == one.values["outputs"][0]["digest"]
    assert len(list((tmp_path / "two" / "logs").glob("worker*.log"))) == 2
    assert not (tmp_path / "one" / "logs").exists()


@pytest.mark.parametrize("values", [{"export_quant_cfg": "fp8"}, {"export_quant_cfg": "int4_awq"}])
def test_what_is_calibrated_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="calibrates on text") as error:
        run(source_of(tmp_path / "model", "llama"), tmp_path / "run", **values)
    assert error.value.name == "needs_calibration" and not (tmp_path / "run" / "hf").exists()


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    model = hf_models.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    hf_models.save(model, tmp_path / "model")
    with pytest.raises(JobError, match=r"layers\.1\.mlp\.up_proj") as error:
        run(tmp_path / "model", tmp_path / "run", export_quant_cfg="fp8_blockwise")
    assert error.value.name == "weights_not_finite" and not (tmp_path / "run" / "hf").exists()
