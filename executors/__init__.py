"""Executor profiles and the NeMo-Run executors they become; one module per kind."""

from executors.local import LocalProfile, local
from executors.profiles import load_profile, profile_names

__all__ = ["LocalProfile", "load_profile", "local", "profile_names"]
