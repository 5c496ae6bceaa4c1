"""The enmeshment loss of a model: one line to add to any training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from .energy import (
    accumulate_enmeshment_grad_,
    clusterability,
    energies_with_unassigned,
    enmeshment,
)
from .layers import Layer, linear_layers, match_layers, partitioned_layers
from .partition import Partition
from .reference import enmeshment_of_energies

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
    parameter of two dimensions or more. Source: arXiv 2409.15747, where 0.7 times this is added to
    the cross-entropy.

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

    def _reduce(self, losses: Tensor) -> Tensor:
        if self.reduction == "none":
            return losses
        return losses.mean() if self.reduction == "mean" else losses.sum()

    def forward(self) -> Tensor:
        """The loss: a scalar, or with ``reduction="none"`` one value for each layer. Differentiable."""
        weights = [layer.oriented(layer.stored()) for layer in self._layers]
        # Layers with one number of clusters share the arithmetic on their block energies.
        groups: dict[int, list[int]] = {}
        for index, partition in enumerate(self._partitions):
            groups.setdefault(partition.num_clusters, []).append(index)
        parts = [
            enmeshment_of_energies(
                torch.stack([energies_with_unassigned(weights[i], self._partitions[i]) for i in members])
            )
            for members in groups.values()
        ]
        losses = _in_order(parts, [index for members in groups.values() for index in members])
        return self._reduce(losses.to(_result_dtype(weights)))

    @torch.no_grad()
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
        if not isinstance(given, (Real, Tensor)):
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
        # One pass for all weights of a device; almost always that is one pass for all.
        groups: dict[torch.device, list[int]] = {}
        for index, weight in enumerate(stored):
            if weight.requires_grad:
                groups.setdefault(weight.device, []).append(index)
        parts = [
            self._accumulate(members, [stored[i] for i in members], factor) for members in groups.values()
        ]
        places = [index for members in groups.values() for index in members]
        for index, weight in enumerate(stored):
            if not weight.requires_grad:
                oriented = self._layers[index].oriented(weight)
                parts.append(enmeshment(oriented, self._partitions[index]).to(torch.float64).reshape(1))
                places.append(index)
        return self._reduce(_in_order(parts, places).to(_result_dtype(stored)))

    def _accumulate(self, members: Sequence[int], stored: Sequence[Tensor], factor: float) -> Tensor:
        """One pass over the weights of the layers ``members``, all on one device: float64, (members,)."""
        device = stored[0].device
        grads = []
        for weight in stored:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            grads.append(weight.grad)
        layers = [self._layers[i] for i in members]
        partitions = [self._partitions[i] for i in members]
        partitions = [each if each.device == device else each.to(device) for each in partitions]
        losses: Tensor = accumulate_enmeshment_grad_(
            [layer.oriented(weight) for layer, weight in zip(layers, stored, strict=True)],
            [layer.oriented(grad) for layer, grad in zip(layers, grads, strict=True)],
            [partition.row_labels for partition in partitions],
            [partition.col_labels for partition in partitions],
            [partition.num_clusters for partition in partitions],
            factor,
        )
        torch.autograd.graph.increment_version(grads)
        return losses

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


def _in_order(parts: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """The parts as one vector, whose elements were made for these places."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(list(parts))[sorted(range(len(places)), key=places.__getitem__)]


def _result_dtype(weights: Sequence[Tensor]) -> torch.dtype:
    """Float64 if any weight is, else float32, as for a single weight."""
    any_double = any(weight.dtype == torch.float64 for weight in weights)
    return torch.float64 if any_double else torch.float32
