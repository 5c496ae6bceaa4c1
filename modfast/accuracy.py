"""Accuracy class by class, of a whole network and of its clusters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .layers import partitioned_layers
from .partition import Partition

Batches: TypeAlias = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]

_BATCH_SIZE = 1000
_MODES = ("only", "without")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; each submodule's own mode again afterwards.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluating(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _batches(data: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a loader, or of one pair of tensors."""
    if (
        isinstance(data, tuple)
        and len(data) == 2
        and isinstance(data[0], Tensor)
        and isinstance(data[1], Tensor)
    ):
        inputs, labels = data
        if len(inputs) != len(labels):
            raise ValueError(f"data has {len(inputs)} inputs and {len(labels)} labels")
        yield from zip(inputs.split(_BATCH_SIZE), labels.split(_BATCH_SIZE), strict=True)
    else:
        yield from data


def class_accuracy(model: nn.Module, data: Batches, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
    """The share of each class's inputs that the model classifies as that class.

    Args:
        model: gives logits ``(n, classes)``. Evaluated in evaluation mode, and left as it was.
        data: a pair of tensors ``(inputs, labels)``, or an iterable of such batches (a ``DataLoader``);
            labels are int64 in ``[0, classes)``.
        parameters: used in place of the model's own of these names, as by ``torch.func.functional_call``.

    Returns:
        float64, ``(classes,)``; NaN for a class without inputs.

    Raises:
        ValueError: there is no input, or a label is out of range.

    Example:
        >>> class_accuracy(nn.Identity(), (torch.eye(3), torch.tensor([0, 1, 1])))
        tensor([1.0000, 0.5000,    nan], dtype=torch.float64)
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    right: Tensor | None = None
    with evaluating(model):
        for inputs, labels in _batches(data):
            logits = torch.func.functional_call(model, dict(parameters or {}), (inputs.to(device),))
            classes = logits.shape[1]
            if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
                raise ValueError(
                    f"data: labels must lie in [0, {classes - 1}], got {labels.unique().tolist()}"
                )
            hits = labels[logits.argmax(dim=1).cpu() == labels.cpu()]
            counted = torch.stack([torch.bincount(each.cpu(), minlength=classes) for each in (hits, labels)])
            right = counted if right is None else right + counted
    if right is None:
        raise ValueError("data holds no batch")
    return right[0] / right[1].to(torch.float64)


def cluster_accuracy(
    model: nn.Module, data: Batches, partitions: Mapping[str, Partition], mode: str
) -> Tensor:
    """Class by class accuracy with one cluster alone, or with one cluster ablated.

    A neuron that is off reads as 0 in every layer of ``partitions``: its weights there, into it (with its
    bias) and out of it, are taken as zero. The model itself is not changed.

    Args:
        model: gives logits ``(n, classes)``.
        data: as for :func:`class_accuracy`.
        partitions: layer name to :class:`Partition`, all with the same number k of clusters; cluster c is
            on or off in all these layers together.
        mode: ``"only"``: all neurons but cluster c's are off, unassigned ones too. ``"without"``: just
            cluster c's are off.

    Returns:
        float64, ``(k, classes)``; NaN for a class without inputs.

    Raises:
        ValueError: an unknown mode or layer, a partition that does not fit, or different k.

    Source: arXiv 2409.15747, class-wise accuracy with clusters on and off.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.eye(2)
        >>> partition = Partition([0, 1], [0, 1], 2)
        >>> cluster_accuracy(model, (torch.eye(2), torch.tensor([0, 1])), {"": partition}, "only").shape
        torch.Size([2, 2])
    """
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {_MODES}, got {mode!r}")
    layers = partitioned_layers(model, partitions)
    counts = {partition.num_clusters for _, partition in layers}
    if len(counts) != 1:
        raise ValueError(f"partitions must have one number of clusters, got {sorted(counts)}")
    rows = []
    for cluster in range(counts.pop()):
        masked: dict[str, Tensor] = {}
        for layer, partition in layers:
            weight = layer.oriented(layer.stored())
            placed = partition.to(weight.device)
            keep_row, keep_col = (
                labels == cluster if mode == "only" else labels != cluster
                for labels in (placed.row_labels, placed.col_labels)
            )
            keep = (keep_row[:, None] & keep_col[None, :]).reshape(
                partition.shape + (1,) * (weight.dim() - 2)
            )
            # Selected, not multiplied: an infinite weight that is off must not become NaN.
            masked[layer.parameter_name] = layer.oriented(torch.where(keep, weight, 0.0))
            bias = getattr(layer.module, "bias", None)
            if layer.attribute == "weight" and isinstance(bias, Tensor):
                masked[layer.sibling("bias")] = torch.where(keep_row, bias, 0.0)
        rows.append(class_accuracy(model, data, masked))
    return torch.stack(rows)
