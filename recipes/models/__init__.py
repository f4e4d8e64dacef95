"""What is known of a model without loading it."""

from recipes.models.architecture import ModelFacts
from recipes.models.hub import facts_of
from scripts.checkpoints.hub_cache import commit_of, is_hub_name

__all__ = ["ModelFacts", "commit_of", "facts_of", "is_hub_name"]
