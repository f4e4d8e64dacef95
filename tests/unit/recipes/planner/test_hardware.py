"""GPUs by name: what a profile, a node shape or a recipe says."""

from pathlib import Path
from typing import Any

import pytest

from executors import load_profile, place_of
from recipes import RECIPES, ProblemsError, prepare, probe
from recipes.planner.gpus import gpu_of, gpus, gpus_per_node
from recipes.values import load_yaml, merge


def place(kind: str, **values: str) -> Any:
    return place_of(load_profile(kind, values)[0])


def gpu(stated: str | None = None, kind: str = "slurm", **values: str) -> Any:
    return gpu_of(place(kind, **values), stated)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("h100-80gb", "h100-80gb"),
        ("H100", "h100-80gb"),
        ("NVIDIA-H100-80GB-HBM3", "h100-80gb"),
        ("a100_80gb", "a100-80gb"),
        ("L40S", "l40s"),
        ("a100", None),  # of 40 or of 80 GB
        ("h1000", None),
    ],
)
def test_a_gpu_is_known_by_what_people_and_drivers_call_it(name: str, known: str | None) -> None:
    found = gpu(gpu=name)
    assert (found and found.name) == known


def test_what_the_profile_says_comes_before_what_the_recipe_is_made_for() -> None:
    found, stated = gpu("b200", gpu="h200"), gpu("b200")
    assert (found.name, found.known_by, found.certain) == ("h200", "executor.gpu", True)
    assert (stated.name, stated.certain) == ("b200", False)
    assert gpu() is None


def test_a_node_shape_names_its_gpus() -> None:
    h100s = place("lepton", resource_shape="gpu.8xh100-80gb")
    found = gpu_of(h100s, None)
    assert found is not None
    assert (found.name, found.known_by, gpus_per_node(h100s)) == ("h100-80gb", "executor.resource_shape", 8)
    assert gpus_per_node(place("lepton", resource_shape="cpu.large")) is None
    assert gpus_per_node(place("docker", gpus="-1")) is None, "all of them: nobody counted"
    assert gpus_per_node(place("slurm", gpus="4")) == 4


def test_a_gpu_that_nobody_knows_is_a_problem_with_the_nearest_name() -> None:
    with pytest.raises(ProblemsError) as caught:
        prepare(probe(), "slurm", {"gpu": "h100-80g"})
    (problem,) = caught.value.problems
    assert (problem.name, problem.key) == ("unknown_gpu", "executor.gpu")
    assert problem.remedy.startswith("Did you mean h100-80gb?")


@pytest.mark.parametrize("line", ["hardware: h100", "hardware: {gpus: h100}", "hardware: {gpu: 7}", "hardware: []"])
def test_a_file_s_hardware_is_checked(tmp_path: Path, line: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{line}\n")
    (problem,) = merge(RECIPES["quantize"].build(), load_yaml(file))
    assert (problem.name, problem.key) == ("wrong_value", "hardware")
    file.write_text("hardware: {gpu: b2000}\n")
    (problem,) = merge(RECIPES["quantize"].build(), load_yaml(file))
    assert (problem.name, problem.key, problem.value) == ("unknown_gpu", "hardware.gpu", "b2000")


def test_every_recipe_is_made_for_a_gpu_of_the_table() -> None:
    stated = {recipe.hardware for recipe in RECIPES.values()} - {None}
    assert stated and stated <= set(gpus())
