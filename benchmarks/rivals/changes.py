"""What rivals to the enmeshment loss change while a network is trained: a penalty in the loss, or a mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.optimizer import register_optimizer_step_pre_hook

from modfast import Partition, laplacian_eigenvalues
from modfast.layers.layer import find_layers

Penalty: TypeAlias = Callable[[nn.Module], Tensor]
"""What is added to the loss, as a function of a model's weights."""


@contextmanager
def penalised(model: nn.Module, penalty: Penalty) -> Iterator[None]:
    """Add a penalty to the loss of every step that an optimiser takes inside.

    Args:
        model: what the optimiser trains.
        penalty: differentiable; its gradient is added before each step.
    """

    def add(*_: Any) -> None:
        with torch.enable_grad():
            penalty(model).backward()

    handle = register_optimizer_step_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def masked(model: nn.Module, partitions: dict[str, Partition]) -> Iterator[None]:
    """Leave only the weights inside clusters, from the first step on: hard blocks.

    Afterwards the layers have plain weights again, with zeros outside their clusters.

    Args:
        model: what is trained.
        partitions: layer name to clusters.
    """
    for name, partition in partitions.items():
        inside = partition.row_labels[:, None] == partition.col_labels
        prune.custom_from_mask(model.get_submodule(name), "weight", inside)
    try:
        yield
    finally:
        for name in partitions:
            prune.remove(model.get_submodule(name), "weight")


def eigenvalue_loss(weight: float, k: int, layers: Sequence[str]) -> Penalty:
    """Return ``weight`` times the sum of the ``k`` smallest eigenvalues of the layers' Laplacian.

    Their sum bounds every normalised cut into k clusters from below; no clusters are given beforehand. As a
    regulariser: arXiv 2103.03386.
    """

    def penalty(model: nn.Module) -> Tensor:
        weights = [_weight(model, name) for name in layers]
        # The solver's tolerance is 1e-3: a step of training needs no more, and it takes a third of the time.
        return weight * laplacian_eigenvalues(weights, k, tol=1e-3).sum()

    return penalty


def distance_cost(
    weight: float, layers: Sequence[str], *, factor: float = 2.0, least: float = 0.5
) -> Penalty:
    """Return BIMT's cost: for each layer the mean of ``|W|`` times the length of the connection.

    A layer's rows, and its columns, lie evenly spaced between 0 and 1 in their order; the length is
    ``factor`` times the distance along that line, plus ``least`` between layers. The two values are those of
    the public code of arXiv 2305.08746 (modular addition, MNIST). Only the cost is here: BIMT's swaps of
    neurons are left out.
    """
    lengths: dict[tuple[int, ...], Tensor] = {}

    def penalty(model: nn.Module) -> Tensor:
        costs = []
        for name in layers:
            values = _weight(model, name)
            if values.shape not in lengths:
                rows, columns = (_places(size, values) for size in values.shape)
                lengths[values.shape] = factor * (rows[:, None] - columns).abs() + least
            costs.append((values.abs() * lengths[values.shape]).mean())
        return weight * torch.stack(costs).sum()

    return penalty


def _weight(model: nn.Module, name: str) -> Tensor:
    (found,) = (layer for layer in find_layers(model) if layer.name == name)
    return found.weight()


def _places(size: int, like: Tensor) -> Tensor:
    return (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) / size
