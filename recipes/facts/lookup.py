"""Where facts of a model come from: its config.json here, a cached snapshot of the hub, or configs/models."""

from recipes.facts.model import ModelFacts


def facts_of(model: str) -> ModelFacts | None:
    """The facts of a folder, hub name or built-in model; None when nothing is known of it. Never raises, never asks."""
    return None
