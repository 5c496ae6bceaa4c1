"""Where pickles of earlier releases look for data sets, and for the error of one that cannot be loaded."""

from .data.dataset import DataError as DataError
from .data.dataset import Dataset as Dataset
