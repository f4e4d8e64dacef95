"""Slurm, here or behind SSH."""

from executors.base import Kind
from executors.slurm.place import SlurmPlace
from executors.slurm.profile import SlurmProfile

KIND = Kind(profile=SlurmProfile, place=SlurmPlace)
