"""What a step may not do on a GPU: wait for it, or leave something out of a CUDA graph that is captured."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def is_captured(device: torch.device) -> bool:
    """Whether what is done on a device now is not done, but becomes part of a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def rows_at(tensor: Tensor, places: Iterable[int]) -> Tensor:
    """The rows of a tensor at some places, of which there is at least one.

    An index made of ``places`` would be copied from the host, which a GPU's host waits for, and which no
    CUDA graph takes.

    Example:
        >>> rows_at(torch.tensor([5, 6, 7]), [2, 0])
        tensor([7, 5])
    """
    rows = tensor.unbind(0)
    return torch.stack([rows[place] for place in places])
