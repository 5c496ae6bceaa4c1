"""Batches of examples in the forms in which users have them, and running a model on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .layers.running import is_several, with_leaves

Batches: TypeAlias = Any
"""An iterable of batches (a list, a ``DataLoader``), or one batch: a tensor, a mapping, a pair of tensors."""


def each_batch(batches: Batches, argument: str) -> Iterator[Any]:
    """The batches one by one.

    Args:
        batches: an iterable of batches. A tensor, a mapping, and a tuple of two whose second is a tensor are
            one batch.
        argument: its name, for messages.

    Raises:
        TypeError: it is no iterable.
        ValueError: it holds no batch, or one without examples.

    Example:
        >>> [tuple(batch.shape) for batch in each_batch(torch.zeros(3, 2), "batches")]
        [(3, 2)]
    """
    if is_one_batch(batches):
        batches = [batches]
    if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes)):
        raise TypeError(f"{argument} must be an iterable of batches, got {type(batches).__name__}")
    none = True
    for batch in batches:
        none = False
        if num_examples(inputs_of(batch), argument) == 0:
            raise ValueError(f"{argument} must hold batches of at least one example, got an empty one")
        yield batch
    if none:
        raise ValueError(f"{argument} must hold at least one batch, got none")


def is_one_batch(batches: Batches) -> bool:
    """Whether it is a batch itself: a tensor, a mapping, or a tuple of two whose second is a tensor."""
    pair = isinstance(batches, tuple) and len(batches) == 2 and isinstance(batches[1], Tensor)
    return pair or isinstance(batches, (Tensor, Mapping))


def inputs_of(batch: Any) -> Any:
    """What the model is called with: the first of a pair ``(inputs, targets)``, else the batch itself."""
    plain = is_several(batch) and not hasattr(batch, "_fields")
    return batch[0] if plain and len(batch) == 2 else batch


def targets_of(batch: Any) -> Any:
    """The second of a pair ``(inputs, targets)``; the ``labels`` of a mapping; else None."""
    if isinstance(batch, Mapping):
        return batch.get("labels")
    return batch[1] if inputs_of(batch) is not batch else None


def num_examples(inputs: Any, argument: str) -> int:
    """The size of the first dimension of the first tensor in inputs of any form.

    Raises:
        TypeError: there is no tensor with a dimension.
    """
    sizes: list[int] = []

    def note(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() > 0:
            sizes.append(len(value))
        return value

    with_leaves(inputs, note)
    if not sizes:
        raise TypeError(
            f"{argument} must hold tensors whose first dimension counts examples, got {type(inputs).__name__}"
        )
    return sizes[0]


def outside_inference(batch: Any) -> Any:
    """The batch with ordinary tensors in place of those made in inference mode, which autograd refuses."""

    def ordinary(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) and value.is_inference() else value

    with torch.inference_mode(False):
        return with_leaves(batch, ordinary)
