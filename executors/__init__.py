"""Executor profiles, the places they stand for, and the NeMo-Run executors they become; one module or folder per kind.

with run.Experiment("mine") as experiment:
    experiment.add(recipe, executor=executor_of("slurm", account="me", nodes=2), name="mine")
"""

from executors.kinds import executor_of, place_of
from executors.profiles.load import find_profile, load_profile, profile_names

__all__ = ["executor_of", "find_profile", "load_profile", "place_of", "profile_names"]
