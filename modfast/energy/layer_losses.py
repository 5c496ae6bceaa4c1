"""The losses of layers, and their gradients, in as few passes as there can be.

Weights on one device go together, those that are spread over processes (``DTensor``) too. The gradients of
computed weights come from autograd.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

import modfast.reference as reference
from modfast.arrays import is_sharded
from modfast.devices import widest_float
from modfast.layers.autograd_graph import leaves_of
from modfast.layers.layer import Layer
from modfast.partition import Partition

from . import sharded
from .functional import enmeshment
from .gradients import grad_of
from .operators import (
    accumulate_enmeshment_grad_,
    add_enmeshment_grad_,
    enmeshments,
    enmeshments_and_energies,
)


class LayerLosses:
    """Computes the enmeshment of layers, given the tensors that hold their weights.

    Args:
        layers: the layers.
        partitions: the partition of each, of its weight as (out, in).
    """

    def __init__(self, layers: Sequence[Layer], partitions: Sequence[Partition]) -> None:
        self.layers, self.partitions = layers, partitions
        self._pieces: dict[int, tuple[object, sharded.Piece]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pieces": {}}  # they name groups of processes, which cannot be copied

    def losses(self, stored: Sequence[Tensor], indices: Sequence[int]) -> Tensor:
        """The losses of some layers in their order, float64, given the tensors that hold all weights."""
        parts, places = [], []
        for members in _groups(stored, indices):
            if is_sharded(stored[members[0]]):
                parts.append(self._sharded(stored, members))
            else:
                labels = self._labels(stored[members[0]].device, members)
                parts.append(enmeshments([self.layers[i].oriented(stored[i]) for i in members], *labels))
            places += members
        return _in_order(parts, places)

    def _labels(
        self, device: torch.device, members: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """The row labels, the column labels and the numbers of clusters of some layers, on a device."""
        chosen = [self.partitions[i] for i in members]
        placed = [own if own.device == device else own.to(device) for own in chosen]
        return (
            [own.row_labels for own in placed],
            [own.col_labels for own in placed],
            [own.num_clusters for own in placed],
        )

    def piece(self, index: int, stored: Any) -> sharded.Piece:
        """What this process holds of a ``DTensor``, as (out, in); cached, since placements seldom change."""
        if self.layers[index].place is not None:
            raise TypeError(
                f"layer {self.layers[index].name!r} is one of a stack that is spread over processes "
                "(DTensor), which is not supported: take the enmeshment of its full_tensor()"
            )
        key = (stored.device_mesh, stored.placements, stored.device)
        if index not in self._pieces or self._pieces[index][0] != key:
            partition, transposed = self.partitions[index], self.layers[index].stored_transposed
            with torch.inference_mode(False):  # cached, and used again where gradients are recorded
                piece = sharded.piece_of(stored, partition.transpose() if transposed else partition)
            if transposed:
                piece = sharded.Piece(piece.col_labels, piece.row_labels, piece.group)
            self._pieces[index] = (key, piece)
        return self._pieces[index][1]

    def _piece_labels(
        self, pieces: Sequence[sharded.Piece], members: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor], list[int]]:
        return (
            [piece.row_labels for piece in pieces],
            [piece.col_labels for piece in pieces],
            [self.partitions[i].num_clusters for i in members],
        )

    def _sharded(self, stored: Sequence[Tensor], members: Sequence[int]) -> Tensor:
        """The losses of some layers, from the energies that each process sums over its own pieces."""
        pieces = [self.piece(i, stored[i]) for i in members]
        # The piece is transposed, not the DTensor: not every PyTorch keeps a DTensor's placements then.
        own = [self.layers[i].oriented(sharded.local(stored[i])) for i in members]
        groups = tuple(piece.group for piece in pieces)
        return enmeshments(own, *self._piece_labels(pieces, members), groups)

    def accumulate(self, stored: Sequence[Tensor], factor: float) -> Tensor:
        """Add ``factor`` times each gradient into ``.grad``; return the losses in their order: float64."""
        wanted: list[int] = []
        computed: list[int] = []
        frozen: list[int] = []
        for index, weight in enumerate(stored):
            kind = frozen if not weight.requires_grad else wanted if weight.is_leaf else computed
            kind.append(index)
        parts, places = [], []
        if computed:
            parts.append(self.accumulate_computed(computed, stored, factor))
            places += computed
        with torch.no_grad():
            for members in _groups(stored, wanted):
                parts.append(self._accumulate_leaves(members, [stored[i] for i in members], factor))
                places += members
            for index in frozen:
                oriented = self.layers[index].oriented(stored[index])
                value = enmeshment(oriented, self.partitions[index])
                parts.append(value.to(widest_float(value.device)).reshape(1))
                places.append(index)
            return _in_order(parts, places)

    def accumulate_computed(
        self, members: Sequence[int], stored: Sequence[Tensor], factor: float | Tensor
    ) -> Tensor:
        """Accumulate gradients of computed weights by autograd; return their losses: float64, (members,)."""
        with torch.enable_grad():
            losses = self.losses(stored, members)
        leaves = leaves_of(losses)
        # Not by backward(), which would run the hooks of DistributedDataParallel out of turn.
        grads = torch.autograd.grad(losses, leaves, torch.ones_like(losses) * factor, allow_unused=True)
        with torch.no_grad():
            for leaf, grad in zip(leaves, grads, strict=True):
                if grad is not None:
                    grad_of(leaf).add_(grad)
        return losses.detach()

    def _accumulate_leaves(self, members: Sequence[int], stored: Sequence[Tensor], factor: float) -> Tensor:
        """Accumulate gradients of one group of layers in one pass; return losses: float64, (members,)."""
        grads = [grad_of(weight) for weight in stored]
        weights, targets = list(stored), list(grads)
        for place, (weight, grad) in enumerate(zip(stored, grads, strict=True)):
            if grad.dtype != weight.dtype:  # ``grad_dtype`` is set: computed in a dtype that holds both
                dtype = torch.promote_types(weight.dtype, grad.dtype)
                weights[place] = weight.to(dtype)
                targets[place] = grad if grad.dtype == dtype else torch.zeros_like(grad, dtype=dtype)
        if is_sharded(stored[0]):
            losses = self._accumulate_sharded(members, weights, targets, factor)
        else:
            layers = [self.layers[i] for i in members]
            rows, cols, counts = self._labels(stored[0].device, members)
            losses = accumulate_enmeshment_grad_(
                [layer.oriented(weight) for layer, weight in zip(layers, weights, strict=True)],
                [layer.oriented(target) for layer, target in zip(layers, targets, strict=True)],
                rows,
                cols,
                counts,
                factor,
            )
        for grad, target in zip(grads, targets, strict=True):
            if target is not grad:
                grad.add_(target)
        torch.autograd.graph.increment_version(grads)
        return losses

    def _accumulate_sharded(
        self, members: Sequence[int], stored: Sequence[Any], grads: Sequence[Any], factor: float
    ) -> Tensor:
        for index, weight, grad in zip(members, stored, grads, strict=True):
            if getattr(grad, "placements", None) != weight.placements:
                raise RuntimeError(
                    f"layer {self.layers[index].name!r} has a .grad that is not spread over processes as "
                    f"its weight is, by {weight.placements}"
                )
        layers = [self.layers[i] for i in members]
        pieces = [self.piece(index, weight) for index, weight in zip(members, stored, strict=True)]
        labels = self._piece_labels(pieces, members)
        own = [layer.oriented(weight.to_local()) for layer, weight in zip(layers, stored, strict=True)]
        own_grads = [layer.oriented(grad.to_local()) for layer, grad in zip(layers, grads, strict=True)]
        _, energies = enmeshments_and_energies(own, *labels)
        energies = sharded.sum_all_over(energies, [piece.group for piece in pieces])
        slopes = torch.full((len(own),), factor, dtype=energies.dtype, device=energies.device)
        add_enmeshment_grad_(own, own_grads, energies, slopes, *labels)
        return reference.enmeshment_of_split(energies)


def _groups(weights: Sequence[Tensor], indices: Iterable[int]) -> list[list[int]]:
    """Group the weights that one pass can take: on one device, all whole or all spread over processes."""
    groups: dict[tuple[torch.device, bool], list[int]] = {}
    for index in indices:
        groups.setdefault((weights[index].device, is_sharded(weights[index])), []).append(index)
    return list(groups.values())


def _in_order(parts: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """Join the parts to one vector, in which each element stands at its place."""
    if len(parts) == 1:
        return parts[0]
    # On a device that has float64, if there is one.
    home = next((part for part in parts if part.dtype == torch.float64), parts[0])
    together = torch.cat([part.to(home.device).to(home.dtype) for part in parts])
    return together[sorted(range(len(places)), key=places.__getitem__)]
