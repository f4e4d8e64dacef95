"""What a path holds, told by looking: `look` for what it is, `concrete_iteration` for the folder of one iteration."""

from scripts.checkpoints.checkpoint import Checkpoint
from scripts.checkpoints.detect import look
from scripts.checkpoints.megatron import concrete_iteration

__all__ = ["Checkpoint", "concrete_iteration", "look"]
