"""The enmeshment loss of a model: one line to add to any training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .energy import accumulate_enmeshment_grad_, clusterability, enmeshment
from .partition import Partition

_REDUCTIONS = ("mean", "sum", "none")


class _Layer(NamedTuple):
    """A weight that is looked up each time, since FSDP, parametrisations and ``.to`` may replace it."""

    name: str
    module: nn.Module
    attribute: str
    stored_transposed: bool

    def stored(self) -> Tensor:
        weight: Tensor = getattr(self.module, self.attribute)
        return weight

    def oriented(self, stored: Tensor) -> Tensor:
        """The ``(out, in, *kernel)`` view of a tensor laid out as the stored weight."""
        return stored.transpose(0, 1) if self.stored_transposed else stored

    def names(self) -> tuple[str, str]:
        if self.attribute != "weight":
            return self.name, self.name
        return self.name, f"{self.name}.weight" if self.name else "weight"


def _is_stored_transposed(module: nn.Module) -> bool:
    """Whether a weight is kept as (in, out, ...): transposed convolutions and transformers' Conv1D."""
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return True
    # By name, so that transformers need not be installed.
    return any(
        kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
        for kind in type(module).__mro__
    )


def _candidates(model: nn.Module) -> list[_Layer]:
    """Every weight with at least two dimensions, by layer name; other parameters by parameter name."""
    layers = []
    for prefix, module in model.named_modules():
        # A parametrised weight is computed, not a parameter, yet it is what the layer multiplies by.
        attributes = dict.fromkeys([*module._parameters, *getattr(module, "parametrizations", {})])
        for attribute in attributes:
            if getattr(module, attribute) is None or getattr(module, attribute).dim() < 2:
                continue
            if attribute == "weight":
                name = prefix
            else:
                name = f"{prefix}.{attribute}" if prefix else attribute
            layers.append(
                _Layer(name, module, attribute, attribute == "weight" and _is_stored_transposed(module))
            )
    return layers


def _default(layers: Sequence[_Layer]) -> list[_Layer]:
    """Every nn.Linear, tied weights once."""
    seen: dict[int, _Layer] = {}
    for layer in layers:
        if isinstance(layer.module, nn.Linear) and layer.attribute == "weight":
            seen.setdefault(id(layer.stored()), layer)
    return list(seen.values())


def _select(layers: Sequence[_Layer], patterns: Sequence[str], argument: str) -> list[_Layer]:
    """The layers that any pattern matches, in the model's order."""
    chosen = set()
    for pattern in patterns:
        matched = [
            i for i, layer in enumerate(layers) if any(fnmatchcase(name, pattern) for name in layer.names())
        ]
        if not matched:
            known = ", ".join(repr(layer.name) for layer in layers) or "none"
            raise ValueError(
                f"{argument}: {pattern!r} matches no layer with a weight matrix; there are: {known}"
            )
        chosen.update(matched)
    return [layers[i] for i in sorted(chosen)]


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
        by_name = isinstance(partitions, Mapping)
        if not by_name and (isinstance(partitions, bool) or not isinstance(partitions, int)):
            raise TypeError(
                f"partitions must be a number of clusters or a mapping of names to Partition, "
                f"got {type(partitions).__name__}"
            )
        patterns = [layers] if isinstance(layers, str) else layers
        candidates = _candidates(module)
        given: dict[int, Partition] = {}
        if isinstance(partitions, Mapping):
            for name, partition in partitions.items():
                if not isinstance(partition, Partition):
                    raise TypeError(
                        f"partitions[{name!r}] must be a Partition, got {type(partition).__name__}"
                    )
                exact = [i for i, layer in enumerate(candidates) if name in layer.names()]
                if not exact:
                    known = ", ".join(repr(layer.name) for layer in candidates) or "none"
                    raise ValueError(
                        f"partitions: {name!r} is no layer with a weight matrix; there are: {known}"
                    )
                given[exact[0]] = partition
        if patterns is not None:
            chosen = _select(candidates, patterns, "layers")
        elif by_name:
            chosen = [candidates[i] for i in sorted(given)]
        else:
            chosen = _default(candidates)
        if not chosen:
            wanted = "partitions" if by_name else "layers"
            raise ValueError(
                f"{wanted}: nothing selected; the model has no nn.Linear, or the selection is empty"
            )

        self.reduction = reduction
        # Lists, not attributes of their own: a registered child would put the model's weights into
        # this loss's parameters and state_dict.
        self._layers: list[_Layer] = chosen
        self._partitions: list[Partition] = []
        seen: dict[int, str] = {}
        for layer in chosen:
            weight = layer.oriented(layer.stored())
            if id(layer.stored()) in seen:
                raise ValueError(
                    f"layers: {layer.name!r} and {seen[id(layer.stored())]!r} are one tied weight"
                )
            seen[id(layer.stored())] = layer.name
            if isinstance(partitions, int):
                try:
                    partition = Partition.blocks(weight.shape, partitions)
                except ValueError as error:
                    raise ValueError(f"partitions: layer {layer.name!r}: {error}") from error
            elif candidates.index(layer) in given:
                partition = given[candidates.index(layer)]
            else:
                raise ValueError(f"partitions: no partition for layer {layer.name!r}")
            if tuple(weight.shape[:2]) != partition.shape:
                raise ValueError(
                    f"partitions: layer {layer.name!r} has (out, in) {tuple(weight.shape[:2])}, "
                    f"its partition {partition.shape}"
                )
            self._partitions.append(partition.to(weight.device))

    @property
    def partitions(self) -> dict[str, Partition]:
        """Each chosen layer's partition, by name."""
        return {
            layer.name: partition for layer, partition in zip(self._layers, self._partitions, strict=True)
        }

    def _reduce(self, losses: Tensor) -> Tensor:
        if self.reduction == "none":
            return losses
        return losses.mean() if self.reduction == "mean" else losses.sum()

    def forward(self) -> Tensor:
        """The loss: a scalar, or with ``reduction="none"`` one value for each layer. Differentiable."""
        losses = [
            enmeshment(layer.oriented(layer.stored()), partition)
            for layer, partition in zip(self._layers, self._partitions, strict=True)
        ]
        dtype = losses[0].dtype if all(loss.dtype == losses[0].dtype for loss in losses) else torch.float64
        return self._reduce(torch.stack([loss.to(dtype) for loss in losses]))

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
        factor = float(scale)
        if self.reduction == "mean":
            factor /= len(self._layers)
        losses: list[Tensor | None] = [None] * len(self._layers)
        groups: dict[torch.device, list[int]] = {}
        for index, layer in enumerate(self._layers):
            stored = layer.stored()
            if not stored.is_leaf:
                raise RuntimeError(
                    f"layer {layer.name!r} has a computed weight without .grad: use (scale * loss()).backward()"
                )
            if stored.requires_grad:
                if stored.grad is None:
                    stored.grad = torch.zeros_like(stored)
                groups.setdefault(stored.device, []).append(index)
            else:
                losses[index] = enmeshment(layer.oriented(stored), self._partitions[index]).to(torch.float64)
        for device, members in groups.items():
            stored_weights = [self._layers[i].stored() for i in members]
            weights = [
                self._layers[i].oriented(w.detach()) for i, w in zip(members, stored_weights, strict=True)
            ]
            grads = [self._layers[i].oriented(_grad(w)) for i, w in zip(members, stored_weights, strict=True)]
            partitions = [self._partitions[i].to(device) for i in members]
            found = accumulate_enmeshment_grad_(
                weights,
                grads,
                [partition.row_labels for partition in partitions],
                [partition.col_labels for partition in partitions],
                [partition.num_clusters for partition in partitions],
                factor,
            )
            torch.autograd.graph.increment_version([_grad(w) for w in stored_weights])
            for position, index in enumerate(members):
                losses[index] = found[position]
        stacked = torch.stack([loss for loss in losses if loss is not None])
        all_double = all(layer.stored().dtype == torch.float64 for layer in self._layers)
        return self._reduce(stacked.to(torch.float64 if all_double else torch.float32))

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


def _grad(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad
