"""The data sets: images, each of a class, from a folder, a download or scikit-learn."""

from .dataset import DataError, Dataset
from .load import SPECS, load_dataset

__all__ = ["SPECS", "DataError", "Dataset", "load_dataset"]
