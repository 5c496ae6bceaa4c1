"""The weights of a model in files: a run of modfast, a ``state_dict``, safetensors, a folder of transformers."""

from .read import Weights, find_checkpoint, read_weights

__all__ = ["Weights", "find_checkpoint", "read_weights"]
