"""Executor profiles, the NeMo-Run executors they become, and the places they stand for; one module per kind.

with run.Experiment("mine") as experiment:
    experiment.add(recipe, executor=executors.slurm.place(account="me", nodes=2), name="mine")
"""

from executors.docker.place import docker
from executors.docker.profile import DockerProfile
from executors.lepton.place import LeptonProfile, lepton
from executors.local import LocalProfile, local
from executors.profiles.load import load_profile, place_of, profile_names
from executors.slurm.place import SlurmProfile, slurm

__all__ = [
    "DockerProfile",
    "LeptonProfile",
    "LocalProfile",
    "SlurmProfile",
    "docker",
    "lepton",
    "load_profile",
    "local",
    "place_of",
    "profile_names",
    "slurm",
]
