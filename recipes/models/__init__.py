"""What is known of a model without loading it."""

from recipes.models.lookup import facts_of
from recipes.models.model import ModelFacts

__all__ = ["ModelFacts", "facts_of"]
