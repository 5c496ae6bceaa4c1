"""Training a modular network: one loop, its checkpoints, and several processes that share it."""

from .checkpoint import CHECKPOINT, TrainingError, read_checkpoint
from .config import Run, TrainConfig
from .loop import train

__all__ = ["CHECKPOINT", "Run", "TrainConfig", "TrainingError", "read_checkpoint", "train"]
