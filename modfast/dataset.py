"""The module in which pickles of earlier releases look for data sets."""

from .data.dataset import Dataset as Dataset
