"""What is known of a model without loading it."""

from recipes.facts.lookup import facts_of
from recipes.facts.model import ModelFacts

__all__ = ["ModelFacts", "facts_of"]
