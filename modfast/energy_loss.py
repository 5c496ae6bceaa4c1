"""The enmeshment loss of a model: one line to add to any training loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from . import reference, sharded
from .energy import clusterability, enmeshment
from .layers import Layer, linear_layers, match_layers, partitioned_layers
from .operators import (
    accumulate_enmeshment_grad_,
    add_enmeshment_grad_,
    enmeshments,
    enmeshments_and_energies,
)
from .partition import Partition

_REDUCTIONS = ("mean", "sum", "none")


class EnmeshmentLoss(nn.Module):
    """The share of squared weight that crosses cluster borders, over the chosen layers of a model.

    Args:
        module: the model. Its weights are looked up at each call, so it may be moved, sharded or
            changed afterwards. It does not become a child of the loss.
        partitions: the number of clusters (contiguous blocks for each layer, :meth:`Partition.blocks`), or
            a mapping from layer name (``"fc2"``) or parameter name (``"fc2.weight"``) to
            :class:`Partition`. A partition fits the weight as ``(out, in)``, however it is stored.
        layers: names of layers or parameters, or globs of them (``"*.mlp.c_fc"``). By default the
            mapping's layers, or, with a number of clusters, every ``nn.Linear``. Layers without a name of
            their own (a bare ``nn.Linear`` as the model) have the name ``""``.
        reduction: ``"mean"`` or ``"sum"`` over layers, or ``"none"`` for one value each.

    Raises:
        ValueError: an unknown layer, a shape that does not fit, no layer selected, a layer without a
            partition, one weight selected twice, or an unknown reduction.
        TypeError: ``module`` is no ``nn.Module``, or ``partitions`` neither a number nor a mapping.

    Understands ``nn.Linear``, convolutions (transposed ones too), ``transformers``' ``Conv1D``, and any
    parameter of two dimensions or more; ``DTensor`` parameters too, whose loss and gradient are those of the
    whole weight on every process (partitions are of the whole weight; all processes call together).
    Source: arXiv 2409.15747, where 0.7 times this is added to the cross-entropy.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> loss = EnmeshmentLoss(model, 4, layers=["0"])
        >>> cross_entropy = nn.functional.cross_entropy(model(torch.randn(2, 8)), torch.tensor([0, 3]))
        >>> (cross_entropy + 0.7 * loss()).backward()
        >>> sorted(loss.clusterability())
        ['0']
    """

    def __init__(
        self,
        module: nn.Module,
        partitions: int | Mapping[str, Partition],
        layers: Sequence[str] | str | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")
        if not isinstance(partitions, (int, Mapping)) or isinstance(partitions, bool):
            raise TypeError(
                f"partitions must be a number of clusters or a mapping of names to Partition, "
                f"got {type(partitions).__name__}"
            )
        by_name = isinstance(partitions, Mapping)
        given = dict(partitioned_layers(module, partitions)) if isinstance(partitions, Mapping) else {}
        if layers is not None:
            chosen = match_layers(module, layers)
        else:
            chosen = list(given) if by_name else linear_layers(module)
        if not chosen:
            raise ValueError(
                f"partitions: nothing selected by {partitions!r}"
                if by_name and layers is None
                else f"layers: nothing selected by {layers!r}; by default every nn.Linear is"
            )

        self.reduction = reduction
        # In a list, since a registered child would put the model's weights into this loss's parameters.
        self._layers: list[Layer] = chosen
        self._partitions: list[Partition] = []
        self._pieces: dict[int, tuple[object, sharded.Piece]] = {}
        seen: dict[object, str] = {}
        for layer in chosen:
            stored = layer.stored()
            if layer.identity in seen:
                raise ValueError(f"layers: {layer.name!r} and {seen[layer.identity]!r} are one tied weight")
            seen[layer.identity] = layer.name
            if isinstance(partitions, int):
                try:
                    partition = Partition.blocks(layer.oriented(stored).shape, partitions)
                except ValueError as error:
                    raise ValueError(f"partitions: layer {layer.name!r}: {error}") from error
            elif layer in given:
                partition = given[layer]
            else:
                raise ValueError(f"partitions: no partition for layer {layer.name!r}")
            # A model on the meta device is materialised later, on a device not known yet.
            self._partitions.append(partition if stored.is_meta else partition.to(stored.device))

    @property
    def partitions(self) -> dict[str, Partition]:
        """Each chosen layer's partition, by name."""
        return {
            layer.name: partition for layer, partition in zip(self._layers, self._partitions, strict=True)
        }

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Each chosen layer's weight as ``(out, in, *kernel)``, detached, by name."""
        return {layer.name: layer.oriented(layer.stored()).detach() for layer in self._layers}

    def _reduce(self, losses: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """In float64 if any weight is, else in float32, as for a single weight."""
        any_double = any(weight.dtype == torch.float64 for weight in weights)
        dtype = torch.float64 if any_double else torch.float32
        if self.reduction == "none":
            return losses.to(dtype)
        return losses.mean(dtype=dtype) if self.reduction == "mean" else losses.sum(dtype=dtype)

    def forward(self) -> Tensor:
        """The loss: a scalar, or with ``reduction="none"`` one value for each layer. Differentiable."""
        stored = [layer.stored() for layer in self._layers]
        parts, places = [], []
        for members in _groups(stored, range(len(stored))):
            if sharded.is_sharded(stored[members[0]]):
                parts.append(self._sharded(stored, members))
            else:
                labels = self._labels(stored[members[0]].device, members)
                parts.append(enmeshments([self._layers[i].oriented(stored[i]) for i in members], *labels))
            places += members
        return self._reduce(_in_order(parts, places), stored)

    def _labels(
        self, device: torch.device, members: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """The row labels, the column labels and the numbers of clusters of some layers, on a device."""
        chosen = [self._partitions[i] for i in members]
        placed = [each if each.device == device else each.to(device) for each in chosen]
        return (
            [each.row_labels for each in placed],
            [each.col_labels for each in placed],
            [each.num_clusters for each in placed],
        )

    def _piece(self, index: int, stored: Any) -> sharded.Piece:
        """What this process holds of a ``DTensor``, as (out, in); kept, since placements seldom change."""
        key = (stored.device_mesh, stored.placements, stored.device)
        if index not in self._pieces or self._pieces[index][0] != key:
            partition, transposed = self._partitions[index], self._layers[index].stored_transposed
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
            [self._partitions[i].num_clusters for i in members],
        )

    def _sharded(self, stored: Sequence[Tensor], members: Sequence[int]) -> Tensor:
        """The losses of some layers, each process having summed the energies of its own pieces."""
        pieces = [self._piece(i, stored[i]) for i in members]
        # Turned after it was cut: not every PyTorch keeps a DTensor's placements when it is turned.
        own = [self._layers[i].oriented(sharded.local(stored[i])) for i in members]
        groups = tuple(piece.group for piece in pieces)
        return enmeshments(own, *self._piece_labels(pieces, members), groups)

    def accumulate_grad_(self, scale: float) -> Tensor:
        """Add ``scale * dE/dW`` into each weight's ``.grad``, without autograd, and return the loss.

        One fused pass over all layers, in place of ``(scale * loss()).backward()``, with the same result
        up to rounding. A ``.grad`` that is absent is made; weights that do not require a gradient
        count in the loss and get none. With ``reduction="none"`` the gradient is that of the sum.

        Args:
            scale: the factor of the loss, lambda in the paper.

        Returns:
            The loss itself (not times ``scale``), as :meth:`forward` gives it, detached.

        Raises:
            TypeError: ``scale`` is no real number.
            RuntimeError: a chosen weight is computed (parametrised), so that it has no ``.grad``; or
                gradients share memory.

        Example:
            >>> model = nn.Linear(8, 8)
            >>> loss = EnmeshmentLoss(model, 2)
            >>> value = loss.accumulate_grad_(0.7)
            >>> model.weight.grad.shape
            torch.Size([8, 8])
        """
        given: object = scale
        if not isinstance(given, (float, int, Real, Tensor)):  # the usual first: Real takes longer to ask
            raise TypeError(f"scale must be a real number, got {type(given).__name__}")
        factor = float(given)
        if self.reduction == "mean":
            factor /= len(self._layers)
        with torch.enable_grad():  # without it a computed weight would pass for a frozen one
            stored = [layer.stored() for layer in self._layers]
        for layer, weight in zip(self._layers, stored, strict=True):
            if not weight.is_leaf:
                raise RuntimeError(
                    f"layer {layer.name!r} has a computed weight without .grad: "
                    "use (scale * loss()).backward()"
                )
        wanted = [index for index, weight in enumerate(stored) if weight.requires_grad]
        with torch.no_grad():
            parts, places = [], []
            for members in _groups(stored, wanted):
                parts.append(self._accumulate(members, [stored[i] for i in members], factor))
                places += members
            for index, weight in enumerate(stored):
                if not weight.requires_grad:
                    oriented = self._layers[index].oriented(weight)
                    parts.append(enmeshment(oriented, self._partitions[index]).to(torch.float64).reshape(1))
                    places.append(index)
            return self._reduce(_in_order(parts, places), stored)

    def _accumulate(self, members: Sequence[int], stored: Sequence[Tensor], factor: float) -> Tensor:
        """One pass over the weights of the layers ``members``, all of one group: float64, (members,)."""
        stored_grads = []
        for weight in stored:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            stored_grads.append(weight.grad)
        if sharded.is_sharded(stored[0]):
            losses = self._accumulate_sharded(members, stored, stored_grads, factor)
        else:
            layers = [self._layers[i] for i in members]
            weights = [layer.oriented(weight) for layer, weight in zip(layers, stored, strict=True)]
            grads = [layer.oriented(grad) for layer, grad in zip(layers, stored_grads, strict=True)]
            rows, cols, counts = self._labels(stored[0].device, members)
            losses = accumulate_enmeshment_grad_(weights, grads, rows, cols, counts, factor)
        torch.autograd.graph.increment_version(stored_grads)
        return losses

    def _accumulate_sharded(
        self, members: Sequence[int], stored: Sequence[Any], grads: Sequence[Any], factor: float
    ) -> Tensor:
        for index, weight, grad in zip(members, stored, grads, strict=True):
            if getattr(grad, "placements", None) != weight.placements:
                raise RuntimeError(
                    f"layer {self._layers[index].name!r} has a .grad that is not spread over processes as "
                    f"its weight is, by {weight.placements}"
                )
        layers = [self._layers[i] for i in members]
        pieces = [self._piece(index, weight) for index, weight in zip(members, stored, strict=True)]
        labels = self._piece_labels(pieces, members)
        own = [layer.oriented(weight.to_local()) for layer, weight in zip(layers, stored, strict=True)]
        own_grads = [layer.oriented(grad.to_local()) for layer, grad in zip(layers, grads, strict=True)]
        _, energies = enmeshments_and_energies(own, *labels)
        energies = sharded.sum_all_over(energies, [piece.group for piece in pieces])
        slopes = torch.full((len(own),), factor, dtype=torch.float64, device=energies.device)
        add_enmeshment_grad_(own, own_grads, energies, slopes, *labels)
        return reference.enmeshment_of_split(energies)

    @torch.no_grad()
    def clusterability(self) -> dict[str, float]:
        """Each chosen layer's clusterability ``1 - E``, by name."""
        return {
            layer.name: float(clusterability(layer.oriented(layer.stored()), partition))
            for layer, partition in zip(self._layers, self._partitions, strict=True)
        }

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        names = ", ".join(layer.name for layer in self._layers)
        return f"layers=[{names}], reduction={self.reduction!r}"


def _groups(weights: Sequence[Tensor], indices: Iterable[int]) -> list[list[int]]:
    """The weights that one pass can take together: those of a device, whole or spread over processes."""
    groups: dict[tuple[torch.device, bool], list[int]] = {}
    for index in indices:
        groups.setdefault((weights[index].device, sharded.is_sharded(weights[index])), []).append(index)
    return list(groups.values())


def _in_order(parts: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """The parts as one vector, whose elements were made for these places."""
    if len(parts) == 1:
        return parts[0]
    together = torch.cat([part.to(parts[0].device) for part in parts])
    return together[sorted(range(len(places)), key=places.__getitem__)]
