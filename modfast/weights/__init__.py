"""The weights of a model in files: runs, a ``state_dict``, safetensors, folders of transformers."""

from .read import Weights, find_checkpoint, read_weights

__all__ = ["Weights", "find_checkpoint", "read_weights"]
