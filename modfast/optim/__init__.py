"""AdamW with the enmeshment loss inside its own pass over the weights, and weight-sparse training."""

from .adamw import AdamW

__all__ = ["AdamW"]
