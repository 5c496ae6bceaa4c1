"""Tasks to train small networks on: modular addition, which is understood, and the next token of a text."""

from modfast.train.checkpoint import TrainingError

from .frequencies import logit_frequencies, neuron_frequencies
from .models import AdditionMLP, AdditionTransformer, Transformer
from .modular import ModularAddition, modular_addition
from .text import NextToken, next_token

__all__ = [
    "AdditionMLP",
    "AdditionTransformer",
    "ModularAddition",
    "NextToken",
    "TrainingError",
    "Transformer",
    "logit_frequencies",
    "modular_addition",
    "neuron_frequencies",
    "next_token",
]
