"""Labelled inputs in the forms in which users have them: in memory, or batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Number
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .arrays import as_tensor, require_numbers, to_int64
from .layers.running import is_several, split_batch

Batches: TypeAlias = Any
"""Labelled inputs: a pair of tensors, or an iterable of batches; see :func:`modfast.class_accuracy`."""

_BATCH_SIZE = 1000


def labelled_batches(data: Batches, batch_size: int = _BATCH_SIZE) -> Iterator[tuple[Any, Tensor]]:
    """The batches of a loader, or of inputs and labels that lie in memory.

    Args:
        data: as for :func:`modfast.class_accuracy`.
        batch_size: of inputs that lie in memory; a loader has made its batches.

    Yields:
        Inputs, as a model is called with them, and labels: int64 ``(n,)``, on the CPU.

    Raises:
        TypeError: ``data`` is of another kind, or labels are no integers.
        ValueError: labels are not 1-D, or there are not as many as inputs.
    """
    if isinstance(data, Mapping):
        yield from _in_memory(*split_batch(data, "data"), batch_size)
    elif isinstance(data, tuple) and len(data) == 2 and _can_be_labels(data[1]):
        yield from _in_memory(*data, batch_size)
    elif isinstance(data, Iterable):
        for batch in data:
            inputs, labels = split_batch(batch, "data")
            yield inputs, _labels(labels)
    else:
        raise TypeError(
            "data must be a pair (inputs, labels), a mapping with the key 'labels', or an iterable of these, "
            f"got {type(data).__name__}"
        )


def _can_be_labels(values: object) -> bool:
    """Whether the second item of a pair can be the labels of the first; else both are batches."""
    if isinstance(values, Tensor) or hasattr(values, "__array__"):
        return True
    return isinstance(values, Sequence) and all(
        isinstance(value, Number) or (isinstance(value, Tensor) and value.dim() == 0) for value in values
    )


def _in_memory(inputs: Any, labels: Any, batch_size: int) -> Iterator[tuple[Any, Tensor]]:
    """Batches of labels with the same rows of one input tensor, or of several."""
    targets = _labels(labels)
    parts: Mapping[Any, Any]
    if isinstance(inputs, Mapping):
        parts = inputs
    else:
        parts = dict(enumerate(inputs if is_several(inputs) else [inputs]))
    if not parts:
        raise ValueError(f"data has no inputs and {len(targets)} labels")
    for part in parts.values():
        if not isinstance(part, Tensor):
            raise TypeError(
                f"data must have its inputs as tensors where they lie in memory, got {type(part).__name__}"
            )
        if part.shape[:1] != targets.shape:
            raise ValueError(f"data has {len(part) if part.dim() else 'no'} inputs and {len(targets)} labels")
    for start in range(0, len(targets), batch_size):
        rows = slice(start, start + batch_size)
        batch = {name: part[rows] for name, part in parts.items()}
        if isinstance(inputs, Mapping):
            batch_inputs: Any = batch
        else:
            batch_inputs = tuple(batch.values()) if is_several(inputs) else batch[0]
        yield batch_inputs, targets[rows]


def _labels(values: Any) -> Tensor:
    labels = as_tensor("data: labels", values)
    require_numbers("data: labels", labels)
    if labels.dim() != 1 or labels.layout != torch.strided:
        raise ValueError(
            "data: labels must have shape (n,), one class for each input, "
            f"got shape {tuple(labels.shape)}, {labels.layout}"
        )
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not integers and labels.numel() > 0:  # an empty list has no dtype of its own
        raise TypeError(f"data: labels must be integers, got {labels.dtype}")
    return to_int64("data: labels", labels.cpu())
