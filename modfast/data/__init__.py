"""Data sets of images with classes, from a folder, a download or scikit-learn."""

from .dataset import DataError, Dataset
from .load import SPECS, load_dataset

__all__ = ["SPECS", "DataError", "Dataset", "load_dataset"]
