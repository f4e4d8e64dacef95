"""Values only: recipes by algorithm, executor profiles, models, GPUs, releases and what failures look like."""

from pathlib import Path

#: Where the shipped files lie.
CONFIGS = Path(__file__).resolve().parent
