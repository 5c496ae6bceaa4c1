"""What the enmeshment loss is timed against, and how it is timed: shared by bench_energy.py and table.py.

A peer is a plain function ``(weight, row_labels, col_labels, k) -> loss``, for labels in ``[0, k)``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot as one_hot_rows

from modfast import EnmeshmentLoss, Partition

Peer: TypeAlias = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def published(weight: Tensor, row_labels: Tensor, col_labels: Tensor, k: int) -> Tensor:
    """The published script's way: the mask is filled one cluster at a time and then selects."""
    squares = weight**2
    mask = torch.zeros_like(squares, dtype=torch.bool)
    for cluster in range(k):
        rows = torch.nonzero(row_labels == cluster)
        cols = torch.nonzero(col_labels == cluster)
        mask[rows, cols.T] = True
    return 1.0 - squares[mask].sum() / squares.sum()


def eager(weight: Tensor, row_labels: Tensor, col_labels: Tensor, k: int) -> Tensor:
    """The short way in PyTorch: a dense mask multiplies."""
    squares = weight**2
    mask = row_labels[:, None] == col_labels[None, :]
    return 1.0 - (squares * mask).sum() / squares.sum()


def one_hot(weight: Tensor, row_labels: Tensor, col_labels: Tensor, k: int) -> Tensor:
    """The block energies by two products of matrices, as their definition reads."""
    R = one_hot_rows(row_labels, k).to(weight.dtype)
    C = one_hot_rows(col_labels, k).to(weight.dtype)
    energies = R.T @ weight**2 @ C
    return 1.0 - energies.trace() / energies.sum()


# Compiled anew for each shape, as it is for the fixed shapes of a real model. Without fullgraph, whatever
# the compiler gives up on would quietly be timed as the eager form.
compiled: Peer = torch.compile(eager, dynamic=False, fullgraph=True)

PEERS: dict[str, Peer] = {
    "compiled": compiled,
    "one-hot": one_hot,
    "eager": eager,
    "published": published,
}


def floor(weight: Tensor, grad: Tensor) -> None:
    """The traffic that no method can avoid: read W; then read W, and read and write the gradient."""
    weight.sum()
    grad.add_(weight)


class Size(NamedTuple):
    """A weight's shape and its number of clusters."""

    rows: int
    cols: int
    clusters: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.cols}, k {self.clusters}"


SIZES = [Size(512, 512, 4), Size(2048, 512, 4), Size(3072, 768, 4), Size(4096, 4096, 8)]
if os.environ.get("BENCH_LARGE") == "1":
    SIZES.append(Size(16384, 4096, 16))

# In a real step the weights, gradients, optimiser state and activations of the whole model pass through
# the cache between two calls of the loss. So each call takes the next of a row of weights, as many as
# fill this much memory together with their gradients: several times the cache of most processors.
ROTATED_BYTES = 512 * 2**20

OURS, OURS_AUTOGRAD, FLOOR = "modfast", "modfast, autograd", "floor"


def contestants(size: Size, rotated_bytes: int = ROTATED_BYTES) -> dict[str, Callable[[], object]]:
    """For each name a function that computes the loss and adds its gradient to an existing ``.grad``.

    Weights are float32. Labels are random and unsorted. All contestants take turns at the same weights,
    so that none finds in the cache what it has left there itself.
    """
    torch.compiler.reset()  # else the compiler would give up after a number of sizes
    generator = torch.Generator().manual_seed(0)
    row_labels = torch.randint(size.clusters, (size.rows,), generator=generator)
    col_labels = torch.randint(size.clusters, (size.cols,), generator=generator)
    partition = Partition(row_labels, col_labels, size.clusters)

    bytes_each = 2 * 4 * size.rows * size.cols
    pairs = []
    for _ in range(max(1, -(-rotated_bytes // bytes_each))):
        layer = nn.Linear(size.cols, size.rows, bias=False)
        layer.weight.grad = torch.zeros_like(layer.weight)
        pairs.append((layer.weight, EnmeshmentLoss(layer, {"weight": partition})))
    turns = cycle(pairs)

    def by_peer(peer: Peer) -> None:
        weight, _ = next(turns)
        peer(weight, row_labels, col_labels, size.clusters).backward()

    def by_autograd() -> None:
        _, loss = next(turns)
        loss().backward()

    def in_place() -> None:
        _, loss = next(turns)
        loss.accumulate_grad_(1.0)

    def by_floor() -> None:
        weight, _ = next(turns)
        assert weight.grad is not None
        floor(weight.detach(), weight.grad)

    peers = {name: partial(by_peer, peer) for name, peer in PEERS.items()}
    return {OURS: in_place, FLOOR: by_floor, OURS_AUTOGRAD: by_autograd, **peers}
