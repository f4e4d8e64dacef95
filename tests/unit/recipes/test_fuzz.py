"""Random jobs and damaged files: never a traceback, never an accepted job whose ranks do not divide."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import CONFIGS
from executors import load_profile
from recipes import RECIPES
from recipes.experiment.examine import Examined, examine
from recipes.experiment.stage import Options, Stage
from recipes.models import facts_of
from recipes.planner.plan import plan_of
from recipes.values import field_types, load_yaml, merge, set_value
from scripts.run.problems import ProblemsError

#: 4 x 100 jobs and 3 x 80 files in each run of the tests, and FUZZ times as many where that variable says so:
#: `FUZZ=24 make unit` after a change of the checks. Inputs differ from run to run; a failure prints how to repeat it.
JOBS, FILES = (count * int(os.environ.get("FUZZ", "1")) for count in (100, 80))
RELAXED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
#: What a wrong layout may be called; jobs with other errors as well count too.
LAYOUT = {"world_size_not_divisible", "invalid_parallel_divisibility", "heads_not_divisible", "out_of_range"}
SIZES = {"tp", "pp", "cp", "ep", "etp", "tp_size", "pp_size", "cp_size", "ep_size", "etp_size"}
MODELS = [
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen3-235B-A22B",
    "meta-llama/Llama-3.2-1B-Instruct",
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16",
    "deepseek-ai/DeepSeek-R1",
    "nobody/knows-it",
    "/nowhere",
    "tiny:qwen3",
    "",
]
IMAGES = ["nvcr.io/nvidia/nemo:25.11", "nvcr.io/nvidia/nemo:26.02", "nvcr.io/nvidia/nemo:26.06", "mine:latest"]
GPUS = ["h100-80gb", "a100-40gb", "b200", "v100-16gb", "nonsense"]
small = st.sampled_from([1, 1, 1, 2, 2, 3, 4, 4, 5, 8, 8, 16, 0, -1])
text = st.sampled_from(MODELS) | st.text(max_size=12)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[str, dict[str, str], dict[str, str]]:
    """A recipe, some of its values, and those of a place."""
    name = draw(st.sampled_from(sorted(RECIPES)))
    keys = [key for key in field_types(RECIPES[name].build()) if key.startswith("args.")]
    sizes = [key for key in keys if key.removeprefix("args.") in SIZES]
    values = {key: str(draw(small)) for key in draw(st.lists(st.sampled_from(sizes or keys), max_size=4))}
    for key in draw(st.lists(st.sampled_from(keys), max_size=3)):
        values[key] = str(draw(small | st.integers() | st.booleans() | st.floats() | st.none() | text))
    values["torchrun.nproc_per_node"] = str(draw(small))
    values["torchrun.nnodes"] = str(draw(small))
    place = {"image": draw(st.sampled_from(IMAGES)), "gpu": draw(st.sampled_from(GPUS))}
    place |= draw(st.fixed_dictionaries({}, optional={"nodes": small.map(str), "gpus": small.map(str)}))
    return name, values, place


def looked_at(name: str, values: dict[str, str], place: dict[str, str], executor: str) -> Examined:
    """What `plan` finds. A value that does not fit is a Problem before anything is looked at."""
    partial = RECIPES[name].build()
    problems = [problem for key, value in values.items() for problem in set_value(partial, key, value)]
    options = Options(online=False, overrides=place)
    examined = examine([Stage(name="one", partial=partial)], executor, options)
    if examined.jobs:
        plan = plan_of(examined, problems)
        assert str(plan)
        json.dumps(plan.as_data())
    return Examined(jobs=examined.jobs, problems=(*problems, *examined.problems))


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "home"))
    return


@pytest.mark.timeout(1800)  # a quarter of the jobs takes minutes where coverage is measured
@pytest.mark.parametrize("part", range(4))  # spread over the test processes
@settings(max_examples=JOBS, deadline=None, suppress_health_check=RELAXED, database=None)
@given(job=jobs())
def test_ranks_that_do_not_divide_are_never_accepted(part: int, job: Any) -> None:
    name, values, place = job
    examined = looked_at(name, values, place, ("slurm", "docker", "slurm", "local")[part])
    for spec in examined.jobs:
        if spec.engine != "script" or not spec.ranked:
            continue
        world = spec.nodes * spec.processes
        tp, pp, cp, ep, etp = (size_of(spec.args, size) for size in ("tp", "pp", "cp", "ep", "etp"))
        wrong = min(tp, pp, cp, ep, etp) < 1 or world % (tp * pp * cp) or world % (etp * ep * pp)
        uneven = any(facts.heads and tp > 0 and facts.heads % tp for facts in spec.models.values())
        assert not (wrong or uneven) or {problem.name for problem in examined.errors} & LAYOUT, (values, place)


def size_of(args: Any, size: str) -> int:
    """A size by either of its names; what an algorithm has no such size for is 1."""
    given = (getattr(args, name, None) for name in (size, f"{size}_size"))
    return next((value for value in given if value is not None), 1)


@st.composite
def damaged(draw: st.DrawFn, whole: str) -> bytes:
    """A file that somebody cut short, edited with a slipped hand, or that a full disk left behind."""
    data = bytearray(whole.encode())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        upto = min(len(data), at + draw(st.integers(0, 30)))
        data[at:upto] = draw(st.sampled_from(SLIPS) | st.binary(max_size=8))
    return bytes(data[: draw(st.sampled_from([len(data)] * 4 + [len(data) // 2, 0]))])


SLIPS = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e999",
    b"9" * 400,
    b": ",
    b"\t",
    b"- ",
    b"\xff",
    b'"',
    b"true",
    b"*a",
    b"!!x",
]


@settings(max_examples=FILES, deadline=None, suppress_health_check=RELAXED, database=None)
@given(data=st.data())
def test_a_damaged_algorithm_file_is_a_problem_and_no_traceback(data: Any, tmp_path: Path) -> None:
    shipped = data.draw(st.sampled_from(sorted((CONFIGS / "quantize").glob("*.yaml"))))
    path = tmp_path / "mine.yaml"
    path.write_bytes(data.draw(damaged(shipped.read_text(encoding="utf-8"))))
    partial = RECIPES["quantize_fp8"].build()
    try:
        problems = merge(partial, load_yaml(path))
    except ProblemsError as error:
        problems = list(error.problems)
    assert all(str(problem) for problem in problems)
    examine([Stage(name="one", partial=partial)], "slurm", Options(online=False))


@settings(max_examples=FILES, deadline=None, suppress_health_check=RELAXED, database=None)
@given(data=st.data())
def test_a_damaged_profile_file_is_a_problem_and_no_traceback(data: Any, tmp_path: Path) -> None:
    kind = data.draw(st.sampled_from(["slurm", "docker", "lepton", "local"]))
    shipped = (CONFIGS / "executors" / f"{kind}.yaml").read_text(encoding="utf-8")
    whole = "mine:\n" + "".join(f"  {line}\n" for line in shipped.splitlines())
    path = tmp_path / "executors.yaml"
    path.write_bytes(data.draw(damaged(whole)))
    _, problems = load_profile("mine", {}, files=path)
    assert all(str(problem) for problem in problems)
    options = Options(online=False, profiles=path)
    examine([Stage(name="one", partial=RECIPES["probe"].build())], "mine", options)


CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_hidden_layers": 48,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "mlp_only_layers": [],
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 40960,
}


@settings(max_examples=FILES, deadline=None, suppress_health_check=RELAXED, database=None)
@given(data=st.data())
def test_a_damaged_config_json_is_a_problem_or_an_unknown_fact(data: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(data.draw(damaged(json.dumps(CONFIG, indent=1))))
    facts_of(str(folder))
    partial = RECIPES["quantize_fp8"].build()
    partial.args.hf_model_id = str(folder)
    partial.script.release = "0.4"
    assert str(plan_of(examine([Stage(name="one", partial=partial)], "local", Options(online=False))))
