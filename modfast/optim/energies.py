"""The energies of weights, kept from one step to the next, and found anew where others changed a weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from modfast.energy import sharded
from modfast.energy.operators import enmeshments_and_energies
from modfast.partition import Partition


class Row(NamedTuple):
    """A matrix of the loss, one row of the energies.

    Attributes:
        layer: the layer's index in the loss.
        watched: the index of the tensor that holds the matrix, among those that are watched.
        place: the index of the matrix in that tensor, if it is a stack.
        row_labels: the cluster of each row of the matrix as it is stored (of this process's piece).
        col_labels: that of each column.
        num_clusters: the number of clusters.
        group: the processes that hold the other pieces.
        partition: where the labels are from.
    """

    layer: int
    watched: int
    place: int | None
    row_labels: Tensor
    col_labels: Tensor
    num_clusters: int
    group: sharded.Group
    partition: Partition


class Energies:
    """Energies of matrices of the loss: float64, (rows, 2), inside clusters and across them.

    Those of a weight hold as long as its version and its memory are the same.
    """

    def __init__(self, rows: Sequence[Row], count: int, device: torch.device) -> None:
        self.rows = list(rows)
        self.values = torch.zeros((len(rows), 2), dtype=torch.float64, device=device)
        self.groups = [row.group for row in rows]
        self.is_shared = any(group.dims for group in self.groups)
        self._versions: list[int | None] = [None] * count
        self._storages: list[int | None] = [None] * count
        # A storage whose memory is given back keeps its number as long as there is a weak reference.
        self._references: list[StorageWeakRef | None] = [None] * count

    def refresh(self, watched: Sequence[Tensor]) -> None:
        """Find the energies of tensors that were changed since :meth:`remember`.

        Args:
            watched: the tensors that hold the matrices now.
        """
        versions, storages = _versions(watched), _storages(watched)
        if versions == self._versions and storages == self._storages and None not in versions:
            return
        changed = {
            place
            for place, (version, storage) in enumerate(zip(versions, storages, strict=True))
            if version is None or version != self._versions[place] or storage != self._storages[place]
        }
        stale = [place for place, row in enumerate(self.rows) if row.watched in changed]
        if stale:
            found = self._found([self.rows[place] for place in stale], watched)
            if len(stale) == len(self.rows):
                self.values.copy_(found)
            else:
                self.values[torch.tensor(stale, device=self.values.device)] = found
        for place in changed:
            self._references[place] = StorageWeakRef(watched[place].untyped_storage())
        self._versions, self._storages = versions, storages

    def remember(self, watched: Sequence[Tensor]) -> None:
        """Take note that the energies are those of tensors that only a step has changed since a refresh."""
        self._versions = _versions(watched)

    @staticmethod
    def _found(rows: Sequence[Row], watched: Sequence[Tensor]) -> Tensor:
        """The energies of some rows, by a pass over their weights."""
        whole = [watched[row.watched] for row in rows]
        matrices = [
            tensor if row.place is None else tensor[row.place]
            for row, tensor in zip(rows, whole, strict=True)
        ]
        for row, matrix in zip(rows, matrices, strict=True):
            if tuple(matrix.shape[:2]) != (len(row.row_labels), len(row.col_labels)):
                raise ValueError(
                    "enmeshment: a weight has another shape than its partition, "
                    f"{(len(row.row_labels), len(row.col_labels))} as it is stored, got {tuple(matrix.shape)}"
                )
        _, energies = enmeshments_and_energies(
            matrices,
            [row.row_labels for row in rows],
            [row.col_labels for row in rows],
            [row.num_clusters for row in rows],
        )
        groups = [row.group for row in rows]
        found: Tensor = energies
        return sharded.sum_all_over(found, groups) if any(group.dims for group in groups) else found


def _versions(tensors: Sequence[Tensor]) -> list[int | None]:
    """How often each tensor was changed in place; None for those of inference mode, which do not count it."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:
        return [None if tensor.is_inference() else tensor._version for tensor in tensors]


def _storages(tensors: Sequence[Tensor]) -> list[int | None]:
    """A number for the memory of each tensor."""
    return [tensor.untyped_storage()._cdata for tensor in tensors]
