"""What a path holds, told without torch: pickles read inertly, headers, iterations, data, the command."""

import io
import json
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.checkpoints import Checkpoint, concrete_iteration, documents, look
from scripts.checkpoints.checkpoint import parameters, tensor
from scripts.checkpoints.pickles import (
    Call,
    Global,
    Pairs,
    PickleError,
    attributes_of,
    mapping_of,
    pairs_of,
    read_pickle,
)
from scripts.checkpoints.quantization import MIXED, UNKNOWN, Quantization, formats_in, modes_of, of_export, of_modes
from scripts.run.problems import JobError
from tests.conftest import Done, write_safetensors

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(content: bytes) -> object:
    return read_pickle(io.BytesIO(content))


def fails(path: Path, name: str = "unreadable_checkpoint") -> JobError:
    with pytest.raises(JobError) as caught:
        look(path)
    assert caught.value.name == name, caught.value
    return caught.value


# --- pickles


class Harmful:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_a_pickle_names_is_not_called(protocol: int, tmp_path: Path) -> None:
    target = tmp_path / "harmed"
    content = pickle.dumps({"a": Harmful(target)}, protocol)
    node = mapping_of(read(content))["a"]
    assert isinstance(node, Call)
    assert isinstance(node.function, Global)
    assert (node.function.name, node.args) == ("system", (f"touch {target}",))
    assert not target.exists()
    pickle.loads(content)
    assert target.exists(), "the pickle of this test does no harm, so the test shows nothing"


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch harmed'\ntR.",
        b"(S'touch harmed'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch harmed'\no.",
        b"\x80\x02cos\nsystem\nX\x0c\x00\x00\x00touch harmed\x85\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch harmed\x85}\x92.",
    ],
)
def test_no_way_of_calling_calls(program: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    node = read(program)
    assert isinstance(node, Call)
    assert str(node.function) == "os.system"
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_a_pickle_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "harmful_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    node = read(b"charmful_module\nname\n.")
    assert isinstance(node, Global)
    assert "harmful_module" not in sys.modules


def plain(node: object) -> Any:
    """The plain value that a node stands for; sets come back as lists."""
    if isinstance(node, Pairs):
        return {plain(key): plain(value) for key, value in node}
    if isinstance(node, list):
        return [plain(item) for item in node]
    return tuple(map(plain, node)) if isinstance(node, tuple) else node


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=300) | st.binary()
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner)
    ),
    max_leaves=30,
)


@given(value=values, protocol=st.sampled_from(PROTOCOLS))
@settings(deadline=None)
def test_plain_values_are_read_as_they_are(value: Any, protocol: int) -> None:
    node = read(pickle.dumps(value, protocol))
    if protocol >= 3:  # before, bytes were written as a call of codecs.encode
        assert plain(node) == value
    assert plain(read(pickletools.optimize(pickle.dumps(value, 4)))) == value


@given(value=values, data=st.data())
@settings(deadline=None, max_examples=300)
def test_damaged_pickles_are_refused_or_read(value: Any, data: st.DataObject) -> None:
    content = bytearray(pickle.dumps(value, data.draw(st.sampled_from(PROTOCOLS))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    try:
        read(bytes(content))
    except PickleError as error:
        assert len(str(error)) < 1000


def test_objects_and_their_parts() -> None:
    node = read(pickle.dumps(OrderedDict(a=1)))
    assert mapping_of(node) == {"a": 1}
    error = read(pickle.dumps(Problem(3), 4))
    assert attributes_of(error) == {"number": 3}
    assert pairs_of(7) == []


class Problem:
    def __init__(self, number: int) -> None:
        self.number = number


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"", "cut short"),
        (b"\x80\x04", "cut short"),
        (b".", "IndexError"),
        (b"\xfe.", "no instruction fe"),
        (b"h\x07.", "KeyError"),
        (b"Nt.", "IndexError"),
        (b"]NNs.", "no dictionary"),
        (b"}Na.", "no list"),
        (b"X\xff\xff\xff\x7fabc.", "expected"),
    ],
)
def test_programs_that_do_not_hold_together(program: bytes, reason: str) -> None:
    with pytest.raises(PickleError, match=reason):
        read(program)


def test_nesting_and_doubling_cost_no_more_than_their_length() -> None:
    deep = b"\x80\x04N" + b"\x85" * 500_000 + b"."
    doubled = b"\x80\x04)" + b"2\x86" * 200 + b"."
    keys = b"\x80\x04}" + b"N" + b"\x85" * 200_000 + b"Ns."
    calls = b"\x80\x04cos\nsystem\n\x94" + b"N" + b"\x85h\x00\x8c\x01a\x86R" * 50_000 + b"."
    began = time.process_time()
    for program in (deep, doubled, keys, calls, b"(" * 300_000 + b"t."):
        assert read(program) is not None
    assert time.process_time() - began < 10


def test_a_memo_index_allocates_nothing() -> None:
    assert read(b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.") is None


# --- tensors and quantization


def test_parameters_leave_out_what_is_none() -> None:
    listed = [
        tensor("a.weight", "bfloat16", [4, 8]),
        tensor("a.weight_quantizer._amax", "float32", [1]),
        tensor("a.input_quantizer._pre_quant_scale", "bfloat16", [8]),
        tensor("a._extra_state", "float32", [3]),
        tensor("positions", "int64", [100]),
        tensor("logit_scale", "float32", []),
    ]
    assert parameters(listed, quantized=False, by_modelopt=False) == 33
    packed = [*listed[:1], tensor("b.weight", "uint8", [4, 4]), tensor("b.weight_scale", "float8_e4m3fn", [4, 1])]
    assert parameters(packed, quantized=True, by_modelopt=True) == 32 + 32
    assert parameters(packed, quantized=True, by_modelopt=False) is None


@pytest.mark.parametrize("shape", [[-1], ["3"], [1 << 63], [1 << 61, 1 << 61], [1] * 65, [None]])
def test_shapes_that_no_tensor_has(shape: list[Any]) -> None:
    with pytest.raises(ValueError, match="w "):
        tensor("w", "float32", shape)


def export_of(algo: str | None, cache: str | None = None) -> Quantization:
    return of_export({}, {"quantization": {"quant_algo": algo, "kv_cache_quant_algo": cache}})


@pytest.mark.parametrize(
    ("algo", "name"),
    [
        ("FP8", "fp8"),
        ("NVFP4", "nvfp4"),
        ("W4A16_NVFP4", "w4a16_nvfp4"),
        ("W8A8_SQ_PER_CHANNEL", "int8_sq"),
        ("FP8_PB_WO", "fp8_blockwise"),
        ("fp8_pb_real", "fp8_blockwise"),
        ("W4A16_AWQ", "int4_awq"),
        ("W4A8_AWQ", "w4a8_awq"),
        ("NVFP4_AWQ", "nvfp4_awq"),
        ("NVFP4_SVD", "nvfp4_svdquant"),
        ("MXFP8", "mxfp8"),
        ("mxfp4", "mxfp4"),
        ("MIXED_PRECISION", "MIXED_PRECISION"),
        (None, None),
    ],
)
def test_words_of_exports(algo: str | None, name: str | None) -> None:
    assert export_of(algo).format == name
    assert of_export({"quantization_config": {"quant_method": "modelopt", "quant_algo": algo}}, None).format == name


def test_what_other_tools_say() -> None:
    def said(**words: Any) -> str | None:
        return of_export({"quantization_config": words}, None).format

    assert said(quant_method="gptq", bits=4) == "gptq"
    assert said(quant_method="fp8") == "fp8 (not ModelOpt's)"
    assert said(bits=4) == UNKNOWN
    assert of_export({}, None) == Quantization()
    assert export_of(None, "FP8") == Quantization(kv_cache="fp8", by_modelopt=True)
    for damaged in ({}, {"quantization": None}, {"quantization": {"quant_algo": 7}}):
        with pytest.raises(ValueError, match=r"quantization|name"):
            of_export({}, damaged)


FP8 = {"num_bits": (4, 3), "axis": None}
NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}, "axis": None}
INT4 = {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}}
OFF = {"enable": False}


def asked(*more: str, algorithm: Any = "max", **rules: Any) -> Quantization:
    """What a saved state amounts to, with `weight`, `input`, `kv` rules in the dictionaries of older releases."""
    patterns = {"weight": "*weight_quantizer", "input": "*input_quantizer", "kv": "*[kv]_bmm_quantizer"}
    config = {patterns.get(name, name): rule for name, rule in rules.items()}
    quantize = ("quantize", {"config": {"quant_cfg": {**config, "default": OFF}, "algorithm": algorithm}})
    state = {"modelopt_state_dict": [quantize, *((mode, {"config": {}}) for mode in more)], "modelopt_version": "0.37"}
    return of_modes(modes_of(mapping_of(read(pickle.dumps(state)))))


def test_states_of_older_releases() -> None:
    assert asked(weight=FP8, input=FP8).format == "fp8"
    assert asked(weight=FP8, input=OFF).format == "fp8"
    assert asked(weight=NVFP4, input=NVFP4).format == "nvfp4"
    assert asked(weight={"num_bits": 8, "axis": 0}, input={"num_bits": 8}, algorithm="smoothquant").format == "int8_sq"
    assert asked(weight={"num_bits": (4, 3), "block_sizes": {-1: 128, -2: 128}}, input=OFF).format == "fp8_blockwise"
    assert asked(weight=INT4, input=OFF, algorithm={"method": "awq_lite"}).format == "int4_awq"
    assert asked("awq_lite_calibrate", weight=[INT4, FP8], input=FP8).format == "w4a8_awq"


def test_what_is_near_a_format_is_not_taken_for_it() -> None:
    assert asked(weight=INT4, input=OFF).format == UNKNOWN  # without AWQ's scales
    assert asked(weight={"num_bits": 8, "axis": 0}, input={"num_bits": 8}).format == UNKNOWN
    assert asked(weight=FP8 | {"axis": 0}, input=FP8).format == UNKNOWN
    assert asked(weight=NVFP4, input=FP8).format == UNKNOWN
    assert asked(weight=NVFP4, input=FP8 | {"axis": 0}, algorithm="awq_lite").format == UNKNOWN
    assert asked(weight=FP8, input=FP8, **{"*mlp*weight_quantizer": NVFP4}).format == UNKNOWN
    assert asked(weight={"num_bits": "many"}, input=OFF).format == UNKNOWN
    assert asked(weight=INT4 | {"block_sizes": {-1: 16}}, input=OFF).format == UNKNOWN


def test_one_layout_by_several_calibrations() -> None:
    fours = NVFP4 | {"block_sizes": {-1: 16, "type": "static", "scale_bits": (4, 3), "four_over_six": True}}
    powers = {"num_bits": (2, 1), "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}}
    assert asked(weight=NVFP4, input=NVFP4, algorithm="awq_lite").format == "nvfp4_awq"
    assert asked(weight=NVFP4, input=NVFP4, algorithm={"method": "mse"}).format == "nvfp4_mse"
    assert asked(weight=fours, input=NVFP4, algorithm={"method": "mse"}).format == "nvfp4_four_over_six"
    assert asked(weight=NVFP4, input=OFF).format == "w4a16_nvfp4"
    assert asked(weight=INT4, input=OFF, algorithm={"method": "gptq"}).format == "int4_gptq"
    assert asked(weight=powers, input=powers).format == "mxfp4"
    assert asked(weight=powers, input=FP8).format == "w4a8_mxfp4_fp8"


def test_caches() -> None:
    assert asked(weight=FP8, input=FP8, kv=FP8 | {"use_constant_amax": True}).kv_cache == "fp8_cast"
    assert asked(weight=FP8, input=FP8, kv=FP8) == Quantization(format="fp8", kv_cache="fp8", by_modelopt=True)
    assert asked(kv=NVFP4) == Quantization(format=None, kv_cache="nvfp4", by_modelopt=True)
    assert asked(kv=NVFP4 | {"bias": {-2: None}}).kv_cache == "nvfp4_affine"
    rotated = {"*k_bmm_quantizer": NVFP4 | {"rotate": True}, "*v_bmm_quantizer": NVFP4}
    assert asked(**rotated).kv_cache == "nvfp4_rotate"
    assert asked(weight=FP8, input=FP8, kv=OFF).kv_cache is None


def test_what_is_not_understood_is_not_taken_for_unquantized() -> None:
    assert asked().format == UNKNOWN
    assert asked(**{"*weights": FP8}).format == UNKNOWN
    assert asked(input=FP8).format == UNKNOWN
    assert asked(kv=FP8, **{"*output_quantizer": FP8}).format == UNKNOWN
    assert asked(**{"*" * 5000 + "v_bmm_quantizer": FP8}) == Quantization(by_modelopt=True)
    for rules in (7, [], [7], [{"quantizer": "*weight_quantizer", "cfg": FP8}], {}):
        state = {"modelopt_state_dict": [("quantize", {"config": {"quant_cfg": rules}})]}
        assert of_modes(modes_of(mapping_of(read(pickle.dumps(state))))).format == UNKNOWN


def test_states_that_are_none() -> None:
    for damaged in ({}, {"modelopt_state_dict": 3}, {"modelopt_state_dict": [3]}, {"modelopt_state_dict": [(1, 2)]}):
        with pytest.raises(ValueError, match="ModelOpt"):
            modes_of(mapping_of(read(pickle.dumps(damaged))))
    assert of_modes([("mcore_minitron", {})]) == Quantization()
    assert of_modes([("auto_quantize", {})]).format == UNKNOWN


def test_a_search_is_told_by_the_formats_that_layers_got() -> None:
    def state(**quantizers: dict[str, Any]) -> Quantization:
        plain = {"_disabled": False, "_axis": None, "_block_sizes": None}
        states = {
            name.replace("__", "."): plain | {f"_{key}": value for key, value in facts.items()}
            for name, facts in quantizers.items()
        }
        every = {"config": {"quant_cfg": [{"quantizer_name": "*", "cfg": {"num_bits": 8}}]}, "metadata": {}}
        after = {"config": {}, "metadata": {"quantizer_state": states}}
        listed = {"modelopt_state_dict": [("auto_quantize", every), ("max_calibrate", after)]}
        return of_modes(modes_of(mapping_of(read(pickle.dumps(listed)))))

    fp8 = {"a__weight_quantizer": FP8, "a__input_quantizer": FP8}
    nvfp4 = {"b__weight_quantizer": NVFP4, "b__input_quantizer": NVFP4}
    left = {"head__weight_quantizer": {"disabled": True, "num_bits": 8}}
    assert state(**fp8, **left) == Quantization(format="fp8", by_modelopt=True)
    assert state(**fp8, **nvfp4, **left) == Quantization(format=f"{MIXED} (fp8, nvfp4)", by_modelopt=True)
    cached = state(**fp8, **{f"self_attn__{part}_bmm_quantizer": FP8 for part in "kv"})
    assert (cached.format, cached.kv_cache) == ("fp8", "fp8")
    assert state(**left).format == UNKNOWN
    layers = {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "NVFP4"}}
    found = of_export({}, {"quantization": {"quant_algo": MIXED, "quantized_layers": layers}})
    assert (found.format, found.algorithm) == (f"{MIXED} (fp8, nvfp4)", MIXED)
    assert [facts.name for facts in formats_in(found.format)] == ["fp8", "nvfp4"]
    assert [facts.name for facts in formats_in("fp8")] == ["fp8"] and formats_in(UNKNOWN) == formats_in(None) == []


# --- Hugging Face folders


def test_a_model(fake_model: Callable[..., Path]) -> None:
    folder = fake_model()
    found = look(folder)
    assert (found.kind, found.layout, found.format) == ("checkpoint_hf", "huggingface", "safetensors")
    assert found.parameters == 2 * 100 * 256 + 4 * 256 * 256
    assert found.dtypes == {"bfloat16": found.parameters}
    assert (found.architecture, found.quantization, found.problems) == ("llama", None, ())
    assert found.bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert (found.files, found.training_state, found.modelopt_state) == (3, False, False)
    (folder / "optimizer.pt").write_bytes(b"")
    assert look(folder).training_state


def indexed(folder: Path) -> Path:
    """A model of two shards and their index."""
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    shards = {"model-00001-of-00002.safetensors": "a.weight", "model-00002-of-00002.safetensors": "b.weight"}
    for file, name in shards.items():
        write_safetensors(folder / file, {name: [8, 4]})
    index = {"weight_map": {name: file for file, name in shards.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_by_their_index(tmp_path: Path) -> None:
    folder = indexed(tmp_path / "m")
    write_safetensors(folder / "consolidated.safetensors", {"a.weight": [8, 4], "b.weight": [8, 4]})
    assert look(folder).parameters == 64
    (folder / "model-00002-of-00002.safetensors").unlink()
    found = look(folder)
    assert found.parameters is None
    assert found.problems == ("model-00002-of-00002.safetensors is missing, which model.safetensors.index.json names",)
    (folder / "model-00002-of-00002.safetensors").touch()
    assert look(folder).problems == ("model-00002-of-00002.safetensors is empty",)
    write_safetensors(folder / "model-00002-of-00002.safetensors", {"c.weight": [8, 4]})
    assert "b.weight is in no shard" in look(folder).problems[0]
    (folder / "model.safetensors.index.json").unlink()
    assert look(folder).problems == ("model.safetensors.index.json is missing",)


def test_an_index_that_leads_elsewhere(tmp_path: Path) -> None:
    folder = indexed(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    assert "is missing" in look(folder).problems[0]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[" * 100_000),
        ("config.json", b"[]"),
        ("config.json", b'{"quantization_config": 3}'),
        ("hf_quant_config.json", b"\xff\xfe"),
        ("hf_quant_config.json", b"{}"),
        ("model.safetensors", b"\x01"),
        ("model.safetensors", struct.pack("<Q", 1 << 62) + b"{}"),
        ("model.safetensors", struct.pack("<Q", 2) + b"[]"),
        ("model.safetensors", struct.pack("<Q", 8) + b'{"a": 1}'),
        (
            "model.safetensors",
            struct.pack("<Q", 60) + b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0,0]}}'.ljust(60),
        ),
        ("model.safetensors.index.json", b'{"weight_map": []}'),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}'),
        ("modelopt_state.pth", b"PK\x03\x04"),
        ("modelopt_state.pth", pickle.dumps({})),
    ],
)
def test_damaged_files_are_errors(file: str, content: bytes, fake_model: Callable[..., Path]) -> None:
    folder = fake_model()
    (folder / file).write_bytes(content)
    error = fails(folder)
    assert file in error.cause


def test_a_shard_cut_short(fake_model: Callable[..., Path]) -> None:
    shard = fake_model() / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "cut short" in fails(shard.parent).cause


def test_scales_that_no_configuration_explains(fake_model: Callable[..., Path]) -> None:
    folder = fake_model()
    write_safetensors(folder / "model.safetensors", {"a.weight": [4, 4], "a.weight_scale": [1]})
    found = look(folder)
    assert (found.quantization, len(found.problems)) == (UNKNOWN, 1)


def test_quantizers_without_their_state(fake_model: Callable[..., Path]) -> None:
    folder = fake_model()
    write_safetensors(folder / "model.safetensors", {"a.weight": [4, 4], "a.weight_quantizer._amax": [1]})
    found = look(folder)
    assert (found.quantization, found.parameters, len(found.problems)) == (UNKNOWN, 16, 1)


def test_an_adapter(tmp_path: Path) -> None:
    """Written by hand as PEFT does: it is not among this project's dependencies."""
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen3-8B"}')
    names = ("base_model.model.q_proj.lora_A.weight", "base_model.model.q_proj.lora_B.weight")
    write_safetensors(tmp_path / "adapter_model.safetensors", {names[0]: [4, 64], names[1]: [64, 4]})
    found = look(tmp_path)
    assert (found.kind, found.layout, found.parameters) == ("checkpoint_lora", "peft", 512)
    assert found.base_model == "Qwen/Qwen3-8B"
    (tmp_path / "adapter_model.safetensors").unlink()
    assert look(tmp_path).problems == ("it has no weights",)


# --- iterations


def iterations(folder: Path, *numbers: int, latest: str | None = None) -> Path:
    for number in numbers:
        (folder / f"iter_{number:07}").mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    if latest is not None:
        (folder / "latest_checkpointed_iteration.txt").write_text(latest)
    return folder


def test_the_iteration_that_is_meant(tmp_path: Path) -> None:
    folder = iterations(tmp_path / "c", 5, 10, 200)
    assert concrete_iteration(folder).name == "iter_0000200"
    iterations(folder, latest="10\n")
    assert concrete_iteration(folder).name == "iter_0000010"
    assert concrete_iteration(folder / "iter_0000005") == folder / "iter_0000005"
    (folder / "release").mkdir()
    (folder / "release" / ".metadata").touch()
    iterations(folder, latest="release")
    assert concrete_iteration(folder).name == "release"


@pytest.mark.parametrize("word", ["300", "-1", "release", "", "../..", "iter_0000005", "\x00", "9" * 5000, "½"])
def test_a_tracker_that_names_what_is_not_there(word: str, tmp_path: Path) -> None:
    folder = iterations(tmp_path / "c", 5, latest=word)
    with pytest.raises(JobError, match="missing_iteration") as caught:
        concrete_iteration(folder)
    assert "iter_0000005" in caught.value.remedy


def test_no_iteration(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no_iteration"):
        concrete_iteration(tmp_path)
    with pytest.raises(JobError, match="missing_path"):
        concrete_iteration(tmp_path / "none")


def test_iterations_without_a_checkpoint_in_them(tmp_path: Path) -> None:
    assert ".metadata" in fails(iterations(tmp_path / "c", 5, latest="5")).cause
    fails(iterations(tmp_path / "d", latest="5"), "unknown_checkpoint")


# --- data


def binidx(prefix: Path, sequences: list[int], code: int = 4, width: int = 4) -> Path:
    """A pair as Megatron's builder lays it out: lengths, offsets, and the sequences at which documents begin."""
    offsets = [sum(sequences[:at]) * width for at in range(len(sequences))]
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, code, len(sequences), len(sequences) + 1)
    body = struct.pack(f"<{len(sequences)}i{len(sequences)}q", *sequences, *offsets)
    documents = struct.pack(f"<{len(sequences) + 1}q", *range(len(sequences) + 1))
    prefix.with_name(prefix.name + ".idx").write_bytes(header + body + documents)
    prefix.with_name(prefix.name + ".bin").write_bytes(bytes(sum(sequences) * width))
    return prefix


def test_tokenized_data(tmp_path: Path) -> None:
    prefix = binidx(tmp_path / "train.v1_text", [3, 5, 2])
    for path in (prefix, tmp_path / "train.v1_text.idx", tmp_path / "train.v1_text.bin", tmp_path):
        found = look(path)
        assert (found.kind, found.dtypes, found.files) == ("binidx", {"int32": 10}, 2)
    binidx(tmp_path / "short", [7], code=8, width=2)
    (tmp_path / "lonely.idx").touch()
    found = look(tmp_path)
    assert found.dtypes == {"int32": 10, "uint16": 7}
    assert found.problems == ("lonely.idx has no data beside it",)


@pytest.mark.parametrize("ending", [".idx", ".bin"])
def test_tokenized_data_cut_short(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{ending}"
    binidx(tmp_path / "a", [3, 5, 2])
    file.write_bytes(file.read_bytes()[:-1])
    assert "cut short" in fails(tmp_path / "a").cause
    file.write_bytes(b"")
    fails(tmp_path / "a")


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    assert look(tmp_path).kind == look(tmp_path / "a.jsonl").kind == "training_jsonl"
    (tmp_path / "a.jsonl").write_text("text")
    fails(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text("")
    fails(tmp_path)


# --- other paths


def test_a_run_directory_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for name in ("run.json", "metrics.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    assert "status" in fails(tmp_path, "unknown_checkpoint").remedy


def test_paths_that_hold_nothing_known(tmp_path: Path, fake_model: Callable[..., Path]) -> None:
    fake_model("model-a")
    assert "model-a" in fails(tmp_path, "unknown_checkpoint").remedy
    assert "model-a" in fails(tmp_path / "model-b", "missing_path").remedy
    assert "does not exist either" in fails(tmp_path / "no" / "where", "missing_path").remedy
    (tmp_path / "model.nemo").write_bytes(b"")
    assert "tar" in fails(tmp_path / "model.nemo", "unknown_checkpoint").remedy
    fails(tmp_path / "model-a" / "model.safetensors", "unknown_checkpoint")
    fails(Path("~nobody-of-this-name/x"), "missing_path")
    fails(tmp_path / "a\0b", "missing_path")


def test_pipes_do_not_block(fake_model: Callable[..., Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    fails(tmp_path / "pipe", "unknown_checkpoint")
    folder = fake_model()
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    assert "no regular file" in fails(folder).cause


def test_links(fake_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = fake_model()
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    (tmp_path / "link").symlink_to(snapshot)
    size = look(folder).bytes
    (snapshot / "self").symlink_to(snapshot)
    (snapshot / "root").symlink_to("/")
    found = look(tmp_path / "link")
    assert (found.bytes, found.files, found.problems) == (size, 3, ())
    (snapshot / "gone").symlink_to(tmp_path / "gone")
    assert "link to nothing" in look(snapshot).problems[0]
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    fails(tmp_path / "loop", "missing_path")


def test_zip_archives_that_are_no_tensors(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme", "x")
    assert "data.pkl" in fails(tmp_path / "a.pt").cause
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("b/data.pkl", pickle.dumps({}))
    fails(tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c/data.pkl", bytes(300 << 20))
    began = time.process_time()
    assert "too long" in fails(tmp_path / "c.pt").cause
    assert time.process_time() - began < 2


def test_fifty_thousand_tensors_take_a_second(tmp_path: Path) -> None:
    """On a quick core without coverage, that is; what looked at each tensor against all others would take minutes."""
    (tmp_path / "config.json").write_text("{}")
    listed = {}
    for shard in range(100):
        file = f"model-{shard:05}-of-00100.safetensors"
        write_safetensors(
            tmp_path / file, names := {f"layers.{shard}.experts.{at}.weight": [1, 1] for at in range(500)}
        )
        listed |= dict.fromkeys(names, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    took = []
    for _ in range(3):  # whatever else the machine does takes some of a processor's time too
        began = time.process_time()
        assert look(tmp_path).parameters == 50_000
        took.append(time.process_time() - began)
    assert min(took) < 3


# --- the command


def test_inspect_says_it_in_lines_and_as_json(nemo: Callable[..., Done], fake_model: Callable[..., Path]) -> None:
    folder = fake_model()
    done = nemo("inspect", str(folder))
    assert (done.code, done.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert lines["kind"] == "checkpoint_hf (huggingface, safetensors)"
    assert lines["parameters"] == f"{look(folder).parameters:,}"
    assert lines["quantization"] == "none"
    told = nemo("inspect", str(folder), "--json").json
    assert Checkpoint(**{**told, "path": folder, "iterations": (), "problems": (), "doubts": ()}) == look(folder)


@pytest.mark.parametrize("as_json", [False, True])
def test_inspect_s_exit_status(as_json: bool, nemo: Callable[..., Done], fake_model: Callable[..., Path]) -> None:
    folder = fake_model()
    more = ["--json"] if as_json else []
    done = nemo("inspect", str(folder / "none"), *more)
    assert done.code == 2
    assert done.err.startswith("Problem missing_path   PATH=")
    (folder / "config.json").write_text("{")
    broken = nemo("inspect", str(folder), *more)
    assert broken.code == 1
    assert broken.err.startswith("failed: unreadable_checkpoint:")
    assert "Traceback" not in done.err + broken.err
    if as_json:
        assert done.answer["problems"][0]["name"] == "missing_path"
        assert broken.answer["error"]["name"] == "unreadable_checkpoint"


def test_inspect_counts_tokens(nemo: Callable[..., Done], tmp_path: Path) -> None:
    lines = nemo("inspect", str(binidx(tmp_path / "data", [1000, 200]))).out.splitlines()
    assert [line.split(maxsplit=1) for line in lines[1:]] == [
        ["kind", "binidx"],
        ["tokens", "int32 1,200"],
        ["size", "4.9 kB in 2 files"],
    ]


def test_what_a_checkpoint_says_does_not_steer_the_terminal(
    nemo: Callable[..., Done], fake_model: Callable[..., Path]
) -> None:
    folder = fake_model()
    (folder / "config.json").write_text(json.dumps({"architectures": ["\x1b[2J\ud800\nkind"]}))
    done = nemo("inspect", str(folder))
    assert (done.code, done.err) == (0, "")
    assert r"architecture  \x1b[2J\ud800\nkind" in done.out.splitlines()
    assert nemo("inspect", str(folder), "--json").json["architecture"] == "\x1b[2J\ud800\nkind"
    assert nemo("inspect", str(folder / "\x1b[2J")).err.count("\x1b") == 0


def test_inspect_s_help_has_an_example(nemo: Callable[..., Done]) -> None:
    assert "Example: nemo experiment inspect" in nemo("inspect", "--help").out


def test_looking_needs_no_torch(fake_model: Callable[..., Path], tmp_path: Path) -> None:
    binidx(tmp_path / "data", [1])
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'modelopt', 'safetensors', 'numpy', 'nemo_run'):\n"
        "    sys.modules[name] = None  # an import of it fails\n"
        "from pathlib import Path\n"
        "from scripts.checkpoints import look\n"
        "print(*(look(Path(path)).kind for path in sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, str(fake_model()), str(tmp_path / "data")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["checkpoint_hf", "binidx"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": ' + "[" * 100_000, "no JSON: it is nested too deeply"),
        ('{"a":' + "[" * 500 + "]" * 500 + "}", "no JSON: it is nested too deeply"),
        ('{"a": ' + "9" * 6000 + "}", "no JSON: 9"),
        ("[]", "no JSON: it is no JSON object"),
    ],
)
def test_documents_are_read_with_the_limits_of_run_files(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(JobError, match=f"unreadable_checkpoint: .*{said}"):
        documents.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert documents.read_json(tmp_path / "config.json")["model_max_length"] > 10**29
