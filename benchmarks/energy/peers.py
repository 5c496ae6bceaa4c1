"""The peers of the enmeshment loss, and the cases and calls to time: shared by bench_energy.py and table.py.

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

from benchmarks.common.device import copy_of
from modfast import EnmeshmentLoss, Partition

Peer: TypeAlias = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def published(weight: Tensor, row_labels: Tensor, col_labels: Tensor, k: int) -> Tensor:
    """Compute the loss as the published script does: fill a mask one cluster at a time, and select by it."""
    squares = weight**2
    mask = torch.zeros_like(squares, dtype=torch.bool)
    for cluster in range(k):
        rows = torch.nonzero(row_labels == cluster)
        cols = torch.nonzero(col_labels == cluster)
        mask[rows, cols.T] = True
    return 1.0 - squares[mask].sum() / squares.sum()


def eager(weight: Tensor, row_labels: Tensor, col_labels: Tensor, k: int) -> Tensor:
    """Compute the loss in the shortest way in PyTorch: multiply by a dense mask."""
    squares = weight**2
    mask = row_labels[:, None] == col_labels[None, :]
    return 1.0 - (squares * mask).sum() / squares.sum()


def one_hot(weight: Tensor, row_labels: Tensor, col_labels: Tensor, k: int) -> Tensor:
    """Compute the block energies by two matrix products, as they are defined."""
    R = one_hot_rows(row_labels, k).to(weight.dtype)
    C = one_hot_rows(col_labels, k).to(weight.dtype)
    energies = R.T @ weight**2 @ C
    return 1.0 - energies.trace() / energies.sum()


# Compiled anew for each shape, as for the fixed shapes of a real model. Without fullgraph, the parts that the
# compiler gives up on would silently be timed as the eager form.
compiled: Peer = torch.compile(eager, dynamic=False, fullgraph=True)

PEERS: dict[str, Peer] = {
    "compiled": compiled,
    "one-hot": one_hot,
    "eager": eager,
    "published": published,
}


class Case(NamedTuple):
    """The weights of a model and their number of clusters."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    clusters: int
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        kind = "" if self.dtype == torch.float32 else f", {str(self.dtype).removeprefix('torch.')}"
        return f"{self.name}, k {self.clusters}{kind}"

    @property
    def bytes_of_weights(self) -> int:
        return sum(rows * cols for rows, cols in self.shapes) * self.dtype.itemsize

    @property
    def bytes_moved(self) -> int:
        """The bytes that loss and gradient move: the weights read twice, the gradient read and written."""
        return 4 * self.bytes_of_weights


def matrix(rows: int, cols: int, clusters: int, dtype: torch.dtype = torch.float32) -> Case:
    return Case(f"{rows} x {cols}", ((rows, cols),), clusters, dtype)


CASES = [
    matrix(512, 512, 4),
    matrix(2048, 512, 4),
    matrix(3072, 768, 4),
    matrix(4096, 4096, 8),
    matrix(4096, 4096, 64),
    matrix(4096, 4096, 8, torch.bfloat16),
    matrix(4096, 4096, 8, torch.float16),
    Case("GPT-2 small, 24 matrices", ((768, 3072), (3072, 768)) * 12, 8),
    Case("200 layers of 64 x 64", ((64, 64),) * 200, 4),
]
if os.environ.get("BENCH_LARGE") == "1":
    CASES.append(matrix(16384, 4096, 16))

# In a real step the weights, gradients, optimiser state and activations of the whole model pass through
# the cache between two calls of the loss. So each call takes the next of several models, as many as fit this
# much memory together with their gradients: several times the cache of most processors.
ROTATED_BYTES = 512 * 2**20

OURS, OURS_AUTOGRAD, FLOOR = "modfast", "modfast, autograd", "floor"


def contestants(
    case: Case, rotated_bytes: int = ROTATED_BYTES, device: str = "cpu", by_copy: bool = False
) -> dict[str, Callable[[], object]]:
    """Return, by name, functions that compute the loss and add its gradient to an existing ``.grad``.

    Labels are random and unsorted. The peers take one matrix at a time, so they go through a model layer by
    layer. All contestants take turns at the same weights, so that none finds its own data in the cache. With
    by_copy, for a GPU, the floor is a copy on the device that moves as many bytes as modfast has to.
    """
    torch.compiler.reset()  # otherwise the compiler gives up after some sizes
    generator = torch.Generator().manual_seed(0)
    partitions = [
        Partition(
            *(torch.randint(case.clusters, (size,), generator=generator) for size in shape), case.clusters
        )
        for shape in case.shapes
    ]
    labels = [(layer.row_labels.to(device), layer.col_labels.to(device)) for layer in partitions]

    models = []
    for _ in range(max(1, rotated_bytes // (2 * case.bytes_of_weights))):
        model = nn.ModuleList(
            nn.Linear(cols, rows, bias=False, dtype=case.dtype, device=device) for rows, cols in case.shapes
        )
        weights = list(model.parameters())
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        by_layer = {str(index): partition for index, partition in enumerate(partitions)}
        models.append((weights, EnmeshmentLoss(model, by_layer, reduction="sum")))
    turns = cycle(models)

    def by_peer(peer: Peer) -> None:
        weights, _ = next(turns)
        losses = [
            peer(weight, *of_layer, case.clusters) for weight, of_layer in zip(weights, labels, strict=True)
        ]
        torch.stack(losses).sum().backward()

    def by_autograd() -> None:
        _, loss = next(turns)
        loss().backward()

    def in_place() -> None:
        _, loss = next(turns)
        loss.accumulate_grad_(1.0)

    def traffic() -> None:
        """Move what no method can avoid: read W; then read W, and read and write the gradient."""
        weights, _ = next(turns)
        for weight in weights:
            weight.detach().sum()
        for weight in weights:
            assert weight.grad is not None
            weight.grad.add_(weight.detach())

    peers = {name: partial(by_peer, peer) for name, peer in PEERS.items()}
    return {
        OURS: in_place,
        FLOOR: copy_of(case.bytes_moved, device) if by_copy else traffic,
        OURS_AUTOGRAD: by_autograd,
        **peers,
    }
