"""Checks that what an operator writes lies in memory of its own, as the compiled kernels make them.

Without them the specification would add a step twice where two gradients are one, and give no error.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .shapes import require


def check_writable(
    reads: Sequence[Tensor], writes: Sequence[Tensor], read_name: str, written_name: str
) -> None:
    """Check that no two written tensors, and no written and read one, share memory.

    Tensors without memory of their own (of a trace, a transform or the meta device) are passed over.
    What counts is the memory from a tensor's first element to its last one: two tensors whose elements
    alternate, such as the even and the odd columns of one matrix, count as sharing memory.

    Args:
        reads: tensors that the operator reads.
        writes: tensors that it writes.
        read_name: what messages call one of the first.
        written_name: what they call one of the others.

    Raises:
        RuntimeError: two tensors share memory, or elements of a written one do.

    Example:
        >>> check_writable([torch.ones(2)], [torch.zeros(4)[:2], torch.zeros(3)], "weight", "gradient")
        >>> check_writable([], [torch.zeros(1).expand(3)], "weight", "gradient")
        Traceback (most recent call last):
        RuntimeError: modfast: a gradient's elements must not share memory
    """
    if torch.compiler.is_compiling() or not all(map(_has_memory, (*reads, *writes))):
        return
    for tensor in writes:
        reached = 0
        for stride, size in sorted(
            (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
        ):
            require(stride > reached, f"a {written_name}'s elements must not share memory")
            reached += stride * (size - 1)
    written = sorted(extent for tensor in writes if (extent := _extent(tensor)) is not None)
    for (before, _, end), (device, begin, _) in pairwise(written):
        require(begin >= end or device != before, f"two {written_name}s must not share memory")
    for tensor in reads:
        extent = _extent(tensor)
        if extent is None:
            continue
        device, begin, end = extent
        require(
            all(where != device or low >= end or high <= begin for where, low, high in written),
            f"a {written_name} must not share memory with a {read_name}",
        )


def _has_memory(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not tensor.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _extent(tensor: Tensor) -> tuple[str, int, int] | None:
    """Where a tensor lies, from its first byte to behind its last; None without elements, or an address."""
    if tensor.numel() == 0 or tensor.data_ptr() == 0:
        return None
    last = sum(stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    begin = tensor.data_ptr()
    return str(tensor.device), begin, begin + (last + 1) * tensor.element_size()
