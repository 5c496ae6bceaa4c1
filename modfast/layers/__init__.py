"""The weights of a model: their names, where each one comes from, and how to run the model with others."""

# Pickles of earlier releases look for it here.
from .partitioned import PartitionsByName as PartitionsByName
