"""Batches of examples."""

from modfast.batches import each_batch as each_batch
from modfast.batches import inputs_of as inputs_of
from modfast.batches import num_examples as num_examples
from modfast.batches import targets_of as targets_of
