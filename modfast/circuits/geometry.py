"""Which places of a channel a convolution or a pooling reads: tables, for any number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NONE = -1
"""The entry of a table that reads no place, but what lies around the channel."""


def sources(
    shape: Sequence[int],
    outputs: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the place that each tap of a kernel reads for each output: int32 ``(taps, outputs)``.

    Args:
        shape: the size of a channel that is read, for each dimension. Places are numbered row by row.
        outputs: the size of a channel that is computed.
        kernel: the size of the kernel; its taps are numbered row by row, too.
        stride: from one output to the next.
        padding: how many places are added before the first; negative numbers skip places.
        dilation: from one tap to the next.

    Example:
        >>> sources([3], [3], [3], [1], [1], [1]).tolist()
        [[-1, 0, 1], [0, 1, 2], [1, 2, -1]]
    """
    ranges = []
    for count, step, before, size, gap in zip(outputs, stride, padding, kernel, dilation, strict=True):
        first = torch.arange(count, device="cpu") * step - before
        ranges.append(first + torch.arange(size, device="cpu")[:, None] * gap)
    return _joined(ranges, shape)


def adaptive_sources(shape: Sequence[int], outputs: Sequence[int]) -> Tensor:
    """Return what an adaptive pooling reads: int32 ``(places of the largest window, outputs)``.

    Example:
        >>> adaptive_sources([5], [2]).T.tolist()
        [[0, 1, 2], [2, 3, 4]]
    """
    ranges = []
    for size, count in zip(shape, outputs, strict=True):
        at = torch.arange(count, device="cpu")
        first, end = at * size // count, -((-(at + 1) * size) // count)
        taps = torch.arange(int((end - first).max()), device="cpu")[:, None]
        ranges.append(torch.where(taps < end - first, first + taps, NONE))
    return _joined(ranges, shape)


def _joined(ranges: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Combine the positions ``(taps, outputs)`` that are read along each dimension into places."""
    dimensions = len(shape)
    places = torch.zeros((1,) * 2 * dimensions, dtype=torch.int64, device="cpu")
    is_inside = torch.ones_like(places, dtype=torch.bool)
    for dimension, (positions, size) in enumerate(zip(ranges, shape, strict=True)):
        view = [1] * 2 * dimensions
        view[dimension], view[dimensions + dimension] = positions.shape
        positions = positions.reshape(view)
        places = places * size + positions
        is_inside = is_inside & (positions >= 0) & (positions < size)
    taps = math.prod(places.shape[:dimensions])
    return torch.where(is_inside, places, NONE).reshape(taps, -1).to(torch.int32)
