"""What a loss needs for its pass over plain weights, kept from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from modfast.layers.layer import Layer
from modfast.partition import Partition


def is_transformed() -> bool:
    """Whether a tensor made now may stand for another, and could not be used later.

    So it is within transforms of ``torch.func``, and while fake tensors or a tracer are in use.
    """
    return torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0


def packed_labels(partitions: Sequence[Partition]) -> Tensor:
    """The labels of several partitions in one tensor, as ``accumulate_packed_enmeshment_grad_`` takes them.

    Returns:
        int32, 1-D: for each partition the number of clusters, the labels of its rows, those of its columns.
    """
    parts = (
        (torch.tensor([own.num_clusters], device="cpu"), own.row_labels, own.col_labels) for own in partitions
    )
    return torch.cat(list(chain.from_iterable(parts))).to(torch.int32)


class KeptLayers:
    """Layers whose weights are all plain parameters on the CPU, and their labels in one tensor.

    Nothing of a weight is kept but its shape and dtype: the weights are looked up at each call, and whatever
    makes one of them unusual in the meantime is found by :meth:`weights`.

    Attributes:
        row_labels: those of each layer.
        col_labels: those of each layer.
        counts: the numbers of clusters.
        labels: all of these, as :func:`packed_labels` gives them.
        dtype: that of the reduced loss.
    """

    __slots__ = (
        "_expected",
        "_labels",
        "_layers",
        "_partitions",
        "col_labels",
        "counts",
        "dtype",
        "labels",
        "row_labels",
    )

    def __init__(self, layers: Sequence[Layer], partitions: Sequence[Partition], weights: Sequence[Tensor]):
        self._layers, self._partitions = list(layers), list(partitions)
        self._expected = [
            (layer.module, layer.attribute, weight.shape, weight.dtype)
            for layer, weight in zip(layers, weights, strict=True)
        ]
        self._labels = [
            (labels, labels._version) for own in partitions for labels in (own.row_labels, own.col_labels)
        ]
        self.row_labels = [own.row_labels for own in partitions]
        self.col_labels = [own.col_labels for own in partitions]
        self.counts = [own.num_clusters for own in partitions]
        with torch.inference_mode(False):  # used again outside of it
            self.labels = packed_labels(partitions)
        any_double = any(weight.dtype == torch.float64 for weight in weights)
        self.dtype = torch.float64 if any_double else torch.float32

    @classmethod
    def of(
        cls, layers: Sequence[Layer], partitions: Sequence[Partition], weights: Sequence[Tensor]
    ) -> KeptLayers | None:
        """These layers, given the tensors that hold their weights; None if any is unusual."""
        for layer, own, weight in zip(layers, partitions, weights, strict=True):
            in_place = layer.place is None and not layer.stored_transposed and layer.parameter is weight
            if not in_place or not _is_usual(weight) or own.device != weight.device:
                return None
            if own.row_labels.is_inference() or own.col_labels.is_inference():
                return None  # a change of their numbers would not be seen
        return cls(layers, partitions, weights)

    def is_of(self, layers: Sequence[Layer], partitions: Sequence[Partition]) -> bool:
        """Whether these are the same layers with the same partitions, whose labels have not changed."""
        if self._layers != layers or self._partitions != partitions:  # compared by identity first
            return False
        return all(labels._version == version for labels, version in self._labels)

    def weights(self) -> list[Tensor] | None:
        """The layers' weights as they are now; None if any is not as it was."""
        found = []
        for module, attribute, shape, dtype in self._expected:
            weight: Any = module._parameters.get(attribute)  # absent if it is computed now
            if not _is_usual(weight) or weight.dtype is not dtype or weight.shape != shape:
                return None
            found.append(weight)
        return found


def _is_usual(weight: Any) -> bool:
    """Whether a parameter is one that the fused pass takes as it is, with a gradient of its own dtype."""
    if type(weight) is not Parameter or not weight.is_cpu or weight.layout is not torch.strided:
        return False
    if not weight.requires_grad or not weight.is_leaf:
        return False
    grad = weight.grad
    if grad is None:
        return getattr(weight, "grad_dtype", None) in (None, weight.dtype)
    return grad.dtype is weight.dtype and grad.is_cpu and grad.layout is torch.strided
