"""The graph of a network's units, put together from dense blocks: one for each two spaces that are joined."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modfast.without_kernels import has_kernels

if TYPE_CHECKING:
    from .batch_norms import BatchNorm
    from .units import NetworkLayer

# How many entries of the graph are laid out at once.
_AT_ONCE = 1 << 24


def check_options(affinity: str, index_dtype: torch.dtype) -> None:
    """Raises for an unknown affinity, or a dtype that is none of indices."""
    if index_dtype not in (torch.int64, torch.int32):
        raise ValueError(f"index_dtype must be torch.int64 or torch.int32, got {index_dtype}")
    if affinity not in ("abs", "square"):
        raise ValueError(f"affinity must be 'abs' or 'square', got {affinity!r}")


@functools.cache
def take_warnings() -> None:
    """Swallow the warnings that PyTorch gives once per process: CSR tensors are in beta and not checked."""
    # They are of no use to users, who did not choose how a graph is stored. Threads share the filters of
    # warnings, so the first graph must be made before any thread is started.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), device="cpu", check_invariants=False)


class Blocks:
    """Sums of the magnitudes of weights between units, by the spaces of both.

    Args:
        spaces: the range of each space; together they are all units.
        affinity: "abs" or "square".
    """

    def __init__(self, spaces: list[slice], affinity: str) -> None:
        self._spaces, self._affinity = spaces, affinity
        self._starts = torch.tensor([space.start for space in spaces], device="cpu")
        self._blocks: dict[tuple[int, int], Tensor] = {}  # by spaces, the smaller one first
        self._device: torch.device | None = None

    def add(self, layer: NetworkLayer, weight: Tensor, model: nn.Module) -> None:
        """Add the magnitudes of a weight, ``(out, in, *kernel)``, to the edges between its units.

        Args:
            layer: says which units these are.
            weight: without an autograd graph.
            model: the model that has the batch norms, without wrappers.

        Raises:
            ValueError: a magnitude is not finite, or the model no longer has the layer's batch norm.
        """
        if self._device is None:
            # Not every device has sparse matrices. Without kernels the graph is clustered on the CPU anyway.
            self._device = weight.device if has_kernels(weight.device) else torch.device("cpu")
        magnitudes = weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
        if self._affinity == "square":
            magnitudes = magnitudes.square()
        row_space, col_space = (self._space_of(units) for units in (layer.row_units, layer.col_units))
        shape = tuple(
            self._spaces[space].stop - self._spaces[space].start for space in (row_space, col_space)
        )
        rows = layer.row_units - self._starts[row_space]
        cols = layer.col_units - self._starts[col_space]
        if cols.dim() == 1:
            block = _summed(magnitudes, cols, shape[1])
        else:
            block = _spread(magnitudes.flatten(2).sum(2), cols, shape[1])
        if layer.norms is None:
            raise ValueError(
                f"layers must leave out {layer.name!r}, which is used several times, with different batch "
                "norms"
            )
        for norm in layer.norms:
            scale = _scale(norm, model, block, layer.name)
            block = block * (scale.square() if self._affinity == "square" else scale)[:, None]
        if not bool(block.isfinite().all()):
            raise ValueError(
                f"model: the weights of layer {layer.name!r} (with its batch norm) must be finite"
            )
        block = _summed(block.T, rows, shape[0]).T.to(self._device)
        if row_space == col_space:
            block = block + block.T
            block.fill_diagonal_(0.0)
        elif row_space > col_space:
            block = block.T
        key = (min(row_space, col_space), max(row_space, col_space))
        self._blocks[key] = self._blocks[key] + block if key in self._blocks else block

    def _space_of(self, units: Tensor) -> int:
        return int(torch.searchsorted(self._starts, units.flatten()[0], right=True)) - 1

    def graph(self, index_dtype: torch.dtype) -> Tensor:
        """Return the graph, ``torch.sparse_csr``, of all units.

        Raises:
            ValueError: there are more entries than ``index_dtype`` can count.
        """
        take_warnings()
        device = self._device if self._device is not None else torch.device("cpu")
        dtype = torch.float32
        for block in self._blocks.values():
            dtype = torch.promote_types(dtype, block.dtype)
        count = self._spaces[-1].stop if self._spaces else 0
        degrees = torch.zeros(count, dtype=torch.int64, device=device)
        joined = self._beside()
        for space, beside in zip(self._spaces, joined, strict=True):
            for _, block in beside:
                degrees[space] += block.count_nonzero(1)
        starts = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
        entries = int(starts[-1])
        if entries > torch.iinfo(index_dtype).max:
            raise ValueError(f"index_dtype must be torch.int64 for {entries} entries, got {index_dtype}")
        columns = torch.empty(entries, dtype=index_dtype, device=device)
        values = torch.empty(entries, dtype=dtype, device=device)
        filled = 0
        for space, beside in zip(self._spaces, joined, strict=True):
            if not beside:
                continue
            numbers = torch.cat(
                [
                    torch.arange(other.start, other.stop, dtype=index_dtype, device=device)
                    for other, _ in beside
                ]
            )
            at_once = max(1, _AT_ONCE // len(numbers))
            for first in range(0, space.stop - space.start, at_once):
                rows = torch.cat([block[first : first + at_once].to(dtype) for _, block in beside], dim=1)
                found = int(rows.count_nonzero())
                end = filled + found
                if found == rows.numel():  # the usual case, and much faster
                    columns[filled:end].view(rows.shape).copy_(numbers.expand_as(rows))
                    values[filled:end].view(rows.shape).copy_(rows)
                else:
                    is_edge = rows != 0
                    columns[filled:end] = numbers.expand_as(rows)[is_edge]
                    values[filled:end] = rows[is_edge]
                filled = end
        return torch.sparse_csr_tensor(
            starts.to(index_dtype), columns, values, (count, count), device=device, check_invariants=False
        )

    def _beside(self) -> list[list[tuple[slice, Tensor]]]:
        """For each space those that it is joined with, in order, and the block to each of them."""
        beside: list[list[tuple[slice, Tensor]]] = [[] for _ in self._spaces]
        # Those with smaller numbers come first, and in order, since keys begin with the smaller one.
        for (one, other), block in sorted(self._blocks.items(), key=lambda item: item[0]):
            if one != other:
                beside[other].append((self._spaces[one], block.T))
        for (one, other), block in sorted(self._blocks.items(), key=lambda item: item[0]):
            beside[one].append((self._spaces[other], block))
        return beside


def _scale(norm: BatchNorm, model: nn.Module, like: Tensor, name: str) -> Tensor:
    try:
        scale = norm.scale(model, like)
    except AttributeError as error:
        raise ValueError(
            f"model: a batch norm with {norm.weight or norm.variance!r} followed layer {name!r} when the "
            "network was read, and the model now has none: read it again"
        ) from error
    if len(scale) != len(like):
        raise ValueError(
            f"model: the batch norm that follows layer {name!r} must have {len(like)} channels, as when the "
            f"network was read, got {len(scale)}: read it again"
        )
    return scale


def _summed(magnitudes: Tensor, units: Tensor, count: int) -> Tensor:
    """Sum columns, and what lies behind them, over those of the same unit: ``(n, count)``."""
    positions = int(units[:1].eq(units).sum())
    own = torch.arange(count, device="cpu")
    if positions * count == len(units) and torch.equal(units, own.repeat_interleave(positions)):
        if magnitudes.dim() == 2 and positions == 1:
            return magnitudes
        # The positions of a kernel, and those of a flattened channel, are adjacent within their unit.
        return magnitudes.reshape(len(magnitudes), count, -1).sum(2)
    flat = magnitudes.reshape(len(magnitudes), len(units), -1).sum(2)
    # On the CPU, where the order of the sums is the same for each run.
    total = torch.zeros(len(flat), count, dtype=flat.dtype, device="cpu")
    return total.index_add_(1, units, flat.cpu()).to(flat.device)


def _spread(magnitudes: Tensor, units: Tensor, count: int) -> Tensor:
    """Put columns, of other units in each row, in their places: ``(n, count)``."""
    total = torch.zeros(len(magnitudes), count, dtype=magnitudes.dtype, device="cpu")
    return total.scatter_add_(1, units, magnitudes.cpu()).to(magnitudes.device)
