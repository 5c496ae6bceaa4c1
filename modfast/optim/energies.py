"""The energies of weights, kept from one step to the next, and found anew where others changed a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from modfast.devices import widest_float
from modfast.energy import sharded

from .device import is_captured
from .operators import labelled_energies

_Place: TypeAlias = tuple[int, int, tuple[int, ...]]
_NUMBER: Callable[[Any], int] = attrgetter("_cdata")
_OFFSET: Callable[[Tensor], Any] = Tensor.storage_offset


class Row(NamedTuple):
    """A matrix of the loss, one row of the energies.

    Attributes:
        layer: the layer's index in the loss.
        watched: the index of the tensor that holds the matrix, among those that are watched.
        place: the index of the matrix in that tensor, if it is a stack.
        first_label: the place of its first label among those of its call.
        shape: (out, in) as it is stored, of this process's piece.
        group: the processes that hold the other pieces.
    """

    layer: int
    watched: int
    place: int | None
    first_label: int
    shape: tuple[int, int]
    group: sharded.Group


class Energies:
    """Energies of matrices of the loss, inside clusters and across them: (rows, 2), of the widest float.

    Those of a weight hold as long as its version and its memory are the same. A pass that becomes part of a
    CUDA graph has found nothing yet: until the next pass outside of one, no version counts as known.
    """

    def __init__(self, rows: Sequence[Row], labels: Tensor, count: int) -> None:
        self.rows = list(rows)
        wide = widest_float(labels.device)
        self.values = torch.zeros((len(rows), 2), dtype=wide, device=labels.device)
        self._labels = labels
        self.groups = [row.group for row in rows]
        self.is_shared = any(group.dims for group in self.groups)
        self._versions: list[int | None] = [None] * count
        self._is_known = True  # the last pass was made
        self._storages: list[_Place | None] = [None] * count
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
                values = self.values.unbind(0)
                for place, energy in zip(stale, found, strict=True):
                    values[place].copy_(energy)
        for place in changed:
            self._references[place] = StorageWeakRef(watched[place].untyped_storage())
        self._versions, self._storages = versions, storages
        self._is_known = not (stale and is_captured(self.values.device))
        if not self._is_known:
            self._versions = [None] * len(watched)

    def remember(self, watched: Sequence[Tensor]) -> None:
        """Take note that the energies are those of tensors that only a step has changed since a refresh."""
        if self._is_known:
            self._versions = _versions(watched)

    def forget(self, indices: Iterable[int]) -> None:
        """Others have changed these of the watched tensors, and no version says so."""
        for index in indices:
            self._versions[index] = None

    def _found(self, rows: Sequence[Row], watched: Sequence[Tensor]) -> Tensor:
        """The energies of some rows, by a pass over their weights."""
        matrices = []
        for row in rows:
            tensor = watched[row.watched]
            matrix = tensor if row.place is None else tensor[row.place]
            if tuple(matrix.shape[:2]) != row.shape:
                raise ValueError(
                    f"enmeshment: a weight has another shape than its partition, {row.shape} as it is "
                    f"stored, got {tuple(matrix.shape)}"
                )
            matrices.append(matrix)
        found: Tensor = labelled_energies(matrices, self._labels, [row.first_label for row in rows])
        groups = [row.group for row in rows]
        return sharded.sum_all_over(found, groups) if any(group.dims for group in groups) else found


def _versions(tensors: Sequence[Tensor]) -> list[int | None]:
    """How often each tensor was changed in place; None for those of inference mode, which do not count it."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:
        return [None if tensor.is_inference() else tensor._version for tensor in tensors]


def _storages(tensors: Sequence[Tensor]) -> list[_Place | None]:
    """A number for the memory of each tensor, and where its elements are in it."""
    # Faster than a loop in Python: it runs at each step.
    numbers = map(_NUMBER, map(Tensor.untyped_storage, tensors))
    return list(zip(numbers, map(_OFFSET, tensors), map(Tensor.stride, tensors), strict=True))
