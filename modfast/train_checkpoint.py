"""Where pickles of earlier releases look for the error that ends training."""

from .train.checkpoint import TrainingError as TrainingError
