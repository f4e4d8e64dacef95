"""What is known of a model without loading it."""

from recipes.models.architecture import ModelFacts
from recipes.models.hub import facts_of

__all__ = ["ModelFacts", "facts_of"]
