"""Servers of a checkpoint: their words, what they can load, and what passes for an answer."""

import json
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.args import constraints
from scripts.args.serve import ServeArgs, ServerName
from scripts.checkpoints.huggingface import exported_algorithm
from scripts.formats import FORMATS
from scripts.run.problems import JobError, Problem
from scripts.run.registry import OnNode, carry_out, checks_of
from scripts.serving import checks
from scripts.serving.flaws import flaw_of
from scripts.serving.servers import SERVERS, able, command_line, find_program
from tests.conftest import write_safetensors


def told(args: ServeArgs) -> list[Problem]:
    """What the checks say of its values, whatever this Python lacks."""
    other = ("harness_not_installed", "server_not_installed", "megatron_core_missing", "missing_value")
    found = carry_out(checks_of(constraints, checks), OnNode(resolved=args)).problems
    return [one for one in found if one.name not in other]


HOSTILE = '/models/it\'s a, ="b"; $(c) --quantization x'


def export(folder: Path, algorithm: str | None, *, sidecar: bool = True) -> Path:
    """A folder that looks like an export of that algorithm to whoever reads its JSON and its headers."""
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64}
    if algorithm:
        config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": algorithm}
    if algorithm and sidecar:
        said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}}
        (folder / "hf_quant_config.json").write_text(json.dumps(said))
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": [16, 64]})
    return folder


@pytest.mark.parametrize(
    ("server", "method", "expected"),
    [
        (
            "vllm",
            "modelopt_fp4",
            "serve MODEL --host 127.0.0.1 --port 8123 --tensor-parallel-size 2 --quantization modelopt_fp4"
            " --max-model-len 4096 --trust-remote-code",
        ),
        (
            "trtllm",
            "",
            "MODEL --host 127.0.0.1 --port 8123 --tp_size 2 --backend pytorch --max_seq_len 4096 --trust_remote_code",
        ),
        (
            "sglang",
            "modelopt_fp8",
            "--model-path MODEL --host 127.0.0.1 --port 8123 --tp-size 2 --quantization modelopt_fp8"
            " --context-length 4096 --trust-remote-code",
        ),
    ],
)
def test_each_server_gets_its_own_words_and_the_path_as_it_is(server: ServerName, method: str, expected: str) -> None:
    args = ServeArgs(server=server, tensor_parallel_size=2, max_length=4096, trust_remote_code=True)
    facts = SERVERS[server]
    words = command_line(facts, ["program", *facts.command], args, model=HOSTILE, method=method, port=8123)
    assert words == ["program", *(HOSTILE if word == "MODEL" else word for word in expected.split())]


def test_a_server_is_told_nothing_that_was_not_asked_for() -> None:
    words = command_line(SERVERS["vllm"], ["vllm", "serve"], ServeArgs(), model="/m", method=None, port=1)
    assert words == ["vllm", "serve", "/m", "--host", "127.0.0.1", "--port", "1", "--tensor-parallel-size", "1"]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("algorithm", ["FP8", "NVFP4"])
def test_every_server_loads_the_two_formats_of_the_deployment_guides(server: ServerName, algorithm: str) -> None:
    assert server in able(algorithm)


#: Other calibrations of what is NVFP4 once it is exported.
SEARCHED = ("nvfp4_mse", "nvfp4_four_over_six", "nvfp4_local_hessian", "nvfp4_awq_clip", "nvfp4_gptq")


def test_every_format_is_either_servable_or_known_not_to_be() -> None:
    found = {name: able(facts.quant_algo.upper()) for name, facts in FORMATS.items()}
    assert found == {
        "fp8": ["vllm", "trtllm", "sglang"],
        "nvfp4": ["vllm", "trtllm", "sglang"],
        "int8_sq": [],
        "fp8_blockwise": ["vllm", "trtllm"],
        "int4_awq": ["trtllm"],
        "w4a8_awq": ["trtllm"],
        **{key: ["vllm", "trtllm", "sglang"] for key in SEARCHED},
        **{key: ["vllm"] for key in ["w4a16_nvfp4", "mxfp8"]},
        **{key: ["trtllm"] for key in ["w4a8_nvfp4_fp8", "int4_gptq"]},
        **{key: [] for key in ["nvfp4_awq", "nvfp4_svdquant", "mxfp4", "w4a8_mxfp4_fp8", "mxfp6", "mxint8"]},
    }


def test_an_unservable_format_names_who_can(tmp_path: Path) -> None:
    folder = export(tmp_path / "m", "W4A16_AWQ")
    with pytest.raises(JobError, match=r"unservable_checkpoint: SGLang cannot load W4A16_AWQ.*TensorRT-LLM can"):
        checks.check_checkpoint(ServeArgs(server="sglang"), str(folder))
    with pytest.raises(JobError, match="No server that is known here"):
        checks.check_checkpoint(ServeArgs(), str(export(tmp_path / "i", "W8A8_SQ_PER_CHANNEL")))


@pytest.mark.parametrize(
    ("algorithm", "asked", "told"),
    [
        ("FP8", "auto", "modelopt"),
        ("NVFP4", "auto", "modelopt_fp4"),
        ("fp8_pb_wo", "auto", "modelopt"),
        (None, "auto", None),
        ("FP8", "none", None),
        ("FP8", "modelopt_mixed", "modelopt_mixed"),
    ],
)
def test_what_the_server_is_told_of_the_format(
    tmp_path: Path, algorithm: str | None, asked: str, told: str | None
) -> None:
    folder = export(tmp_path / "m", algorithm)
    assert checks.check_checkpoint(ServeArgs(quantization=asked), str(folder)).method == told


def test_a_checkpoint_that_no_server_reads_is_refused(tmp_path: Path) -> None:
    adapter = tmp_path / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    write_safetensors(adapter / "adapter_model.safetensors", {"base_model.a.lora_A.weight": [4, 8]})
    with pytest.raises(JobError, match=r"unservable_checkpoint: .* is a checkpoint_lora"):
        checks.check_checkpoint(ServeArgs(), str(adapter))
    with pytest.raises(JobError, match="missing_path"):
        checks.check_checkpoint(ServeArgs(), str(tmp_path / "absent"))


def test_a_hub_name_is_left_to_the_server() -> None:
    served = checks.check_checkpoint(ServeArgs(quantization="modelopt"), "nvidia/Llama-3.1-8B-Instruct-FP8")
    assert (served.model, served.method) == ("nvidia/Llama-3.1-8B-Instruct-FP8", "modelopt")


@pytest.mark.parametrize(
    ("capabilities", "gpus", "error"),
    [("8.0\n", 1, "format_needs_newer_gpu"), ("8.9\n", 1, None), ("9.0\n9.0\n", 4, "too_few_gpus"), ("", 8, None)],
)
def test_fp8_needs_a_gpu_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: str, gpus: int, error: str | None
) -> None:
    # The driver's tool, which this machine need not have.
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{capabilities}'\n[ -n '{capabilities.strip()}' ]\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    served = checks.Served(model="/m", algorithm="FP8", quantization="fp8", method="modelopt")
    args = ServeArgs(tensor_parallel_size=gpus)
    if error is None:
        checks.check_gpus(args, served)
    else:
        with pytest.raises(JobError, match=error):
            checks.check_gpus(args, served)


def test_a_port_that_somebody_listens_on_is_refused() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(JobError, match=f"port_in_use: args.port={port}"):
            checks.choose_port(port)
    assert checks.choose_port(port) == port
    assert checks.choose_port(None) > 0


def test_a_program_that_is_not_here_names_its_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for server in SERVERS.values():
        with pytest.raises(JobError, match=f"server_not_installed: .*{server.title}"):
            find_program(server, None)
    with pytest.raises(JobError, match=r"server_not_installed: .*absent is not a file"):
        find_program(SERVERS["vllm"], str(tmp_path / "absent"))
    own = tmp_path / "my vllm"
    own.touch()
    assert find_program(SERVERS["vllm"], str(own)) == [str(own), "serve"]
    assert find_program(SERVERS["sglang"], str(own)) == [sys.executable, str(own)]


@pytest.mark.parametrize(
    ("args", "key"),
    [
        (ServeArgs(), "args.checkpoint"),
        (ServeArgs(checkpoint="/m", prompts="||"), "args.prompts"),
        (ServeArgs(checkpoint="/m", tensor_parallel_size=0), "args.tensor_parallel_size"),
        (ServeArgs(checkpoint="/m", max_tokens=0), "args.max_tokens"),
        (ServeArgs(checkpoint="/m", port=65536), "args.port"),
    ],
)
def test_values_that_cannot_be_are_told_apart(args: ServeArgs, key: str) -> None:
    assert [problem.key for problem in told(args)] == [key]


def test_values_that_can_be_have_no_problem() -> None:
    assert not told(ServeArgs(checkpoint="/m", port=8000))


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_nothing_is_no_answer(text: str) -> None:
    assert flaw_of(text) == "empty"


@given(piece=st.text(min_size=1, max_size=16).filter(lambda text: text.strip() == text), times=st.integers(8, 40))
def test_one_piece_over_and_over_is_no_answer(piece: str, times: int) -> None:
    assert flaw_of(piece * times + piece[: len(piece) // 2]) == "one piece of text, repeated"


@pytest.mark.parametrize(
    "text",
    [
        " trained as a nurse, and then as a cook.",
        "Yes.",
        "no no no, that is not it",
        "!!!!",
        "1, 2, 3, 4, 5, 6, 7, 8, 9",
    ],
)
def test_text_is_an_answer(text: str) -> None:
    assert flaw_of(text) is None


@pytest.mark.parametrize("sidecar", [True, False])
def test_the_algorithm_of_an_export_is_read_from_either_file(tmp_path: Path, sidecar: bool) -> None:
    assert exported_algorithm(export(tmp_path / "m", "nvfp4", sidecar=sidecar)) == "NVFP4"


def test_only_a_modelopt_export_has_an_algorithm(tmp_path: Path) -> None:
    plain, other = export(tmp_path / "plain", None), export(tmp_path / "other", None)
    (other / "config.json").write_text('{"quantization_config": {"quant_method": "gptq", "bits": 4}}')
    assert exported_algorithm(plain) is exported_algorithm(other) is None
    (plain / "hf_quant_config.json").write_text('{"quantiz')
    with pytest.raises(JobError, match="unreadable_checkpoint"):
        exported_algorithm(plain)
