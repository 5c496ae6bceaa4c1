"""What single neurons do: which classes activate them, and whether a layer still uses them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .arguments import Integer, NoneOr, Number, OneOf, check
from .arrays import as_tensor, require_numbers, require_plain
from .devices import widest_float
from .labelled_batches import Batches, labelled_batches
from .layers.layer import Choices, Layer, match_layers, operation
from .layers.running import call_model, device_of, evaluating, moved, not_compiled
from .partition import Partition
from .shapes import FLOATS


def label_semanticity(
    model: nn.Module,
    data: Batches,
    layers: Choices,
    top: int = 50,
    batch_size: int = 1000,
    num_classes: int | None = None,
    positions: str | None = None,
) -> dict[str, Tensor]:
    """The share of all classes that occurs among each neuron's most activating inputs.

    Low values mean that a neuron answers to few classes: ``1 / classes`` is a neuron for one class. Compare
    with what chance gives, which is near 1 where ``top`` is several times the number of classes.

    A neuron's activation is its output before the nonlinearity; a convolution's channel has its maximum over
    positions. Above 0, ReLU keeps the order. Where fewer than ``top`` inputs switch a ReLU on, the others
    follow by their output before it, whereas after it they would all be equal.

    Args:
        model: any model; what it returns does not matter. It runs in evaluation mode, without what
            ``torch.compile`` made of it, and is left as it was.
        data: as for :func:`modfast.class_accuracy`; it is iterated once.
        layers: linear layers and convolutions: names, globs, modules, or functions of name and shape, as for
            :class:`modfast.EnmeshmentLoss`.
        top: how many inputs of each neuron count. With few inputs of each class, take fewer than there are.
        batch_size: how many inputs run at once, where ``data`` is a pair in memory. Memory is of the order of
            neurons x (``top`` + inputs of a batch).
        num_classes: what the share is of. By default the largest label + 1: name it if ``data`` may lack the
            last classes.
        positions: what a linear layer's neuron does with an input of several positions, ``(n, *positions,
            neurons)``, as in a transformer. None raises; ``"max"`` takes the maximum, as for a channel. Where
            the ``attention_mask`` of the inputs is 0, positions do not count.

    Returns:
        Canonical layer name to float64, ``(neurons,)``, on the CPU, in the model's order: the number of
        distinct classes among the ``top`` inputs / ``num_classes``. Of inputs with equal activations the
        earlier one comes first. NaN for a dead neuron, whose output is the same for all inputs, so that its
        order says nothing. The unit of each neuron of a network is in ``network.layers[name].row_units``.

    Raises:
        ValueError: a layer is unknown, no linear layer or convolution, TorchScript, does not run exactly once
            for a batch, or gives NaN, no real numbers, or outputs of another shape than ``(n, neurons)`` or
            a convolution's, or with ``positions`` ``(n, *positions, neurons)``; the ``attention_mask`` has
            another shape than the positions, or hides a whole input; there are fewer than ``top`` inputs;
            labels are out of range; an argument has another value than allowed.
        TypeError: ``model`` is no ``nn.Module``, or what :func:`modfast.class_accuracy` raises for ``data``.

    Source: "neuron label semanticity" in the public code of arXiv 2409.15747, which takes 50 of CIFAR-10's
    test images and the mean over the neurons of one layer.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> inputs, labels = torch.tensor([[3.0, 0.0], [2.0, 1.0], [1.0, 5.0]]), torch.tensor([1, 1, 0])
        >>> label_semanticity(model, (inputs, labels), "", top=2)
        {'': tensor([0.5000,    nan], dtype=torch.float64)}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check("top", top, Integer(1))
    check("batch_size", batch_size, Integer(1))
    check("num_classes", num_classes, NoneOr(Integer(1)))
    check("positions", positions, NoneOr(OneOf(("max",))))
    chosen = match_layers(model, layers)
    if not chosen:
        raise ValueError("layers must name at least one layer, got none")
    for layer in chosen:
        if not (layer.is_linear or layer.is_convolution):
            raise ValueError(
                f"layers: {layer.name!r} of a {type(layer.module).__name__} must be a linear layer or a "
                "convolution, whose outputs are those of its neurons"
            )
        if isinstance(layer.module, torch.jit.ScriptModule):
            raise ValueError(
                f"layers: {layer.name!r} must be no TorchScript, which hides the outputs of its layers: "
                "give the model that was scripted or traced"
            )
    device = device_of(model)
    most = [_MostActivating(top) for _ in chosen]
    inputs, largest = 0, -1
    for batch, labels in labelled_batches(data, int(batch_size)):
        if not len(labels):
            continue
        # The model has the caller's mode again while the caller's code makes the next batch.
        shown = _shown(batch) if positions else None
        with evaluating(model), not_compiled(), _recorded(chosen, positions is not None, shown) as outputs:
            call_model(model, moved(batch, device))
        _check_labels(labels, num_classes)
        for layer, of_layer, seen in zip(chosen, outputs, most, strict=True):
            seen.add(_activations(layer, of_layer, len(labels)), labels)
        inputs, largest = inputs + len(labels), max(largest, int(labels.max()))
    if inputs < top:
        raise ValueError(f"top must be at most the number of inputs, {inputs}, got {top}")
    classes = largest + 1 if num_classes is None else int(num_classes)
    return {layer.name: seen.shares(classes) for layer, seen in zip(chosen, most, strict=True)}


class _MostActivating:
    """The most activating inputs of each neuron so far: their activations and labels, ``(neurons, top)``."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._values = self._labels = self._first = self._is_alive = torch.empty(0, device="cpu")

    def add(self, activations: Tensor, labels: Tensor) -> None:
        """Take in a batch of activations, ``(n, neurons)``, and labels, ``(n,)``."""
        values = activations.T
        of_batch = labels.expand_as(values)
        if not len(self._first):
            self._first = values[:, :1]
            self._is_alive = (values != self._first).any(1)
        else:
            self._is_alive |= (values != self._first).any(1)
            values = torch.cat([self._values, values], dim=1)
            of_batch = torch.cat([self._labels, of_batch], dim=1)
        # The order of torch.topk is not specified for equal values; here the earlier input stays in front.
        ordered, places = values.sort(dim=1, descending=True, stable=True)
        self._values = ordered[:, : self._top].clone()
        self._labels = of_batch.gather(1, places[:, : self._top])

    def shares(self, classes: int) -> Tensor:
        """The share of classes among the most activating inputs; NaN for a dead neuron."""
        occurs = torch.zeros(len(self._labels), classes, dtype=torch.bool, device="cpu")
        occurs.scatter_(1, self._labels, True)
        share = occurs.sum(1).to(torch.float64) / classes
        return share.where(self._is_alive, torch.nan)


@contextmanager
def _recorded(layers: Sequence[Layer], positions: bool, shown: Tensor | None) -> Iterator[list[list[Tensor]]]:
    """Inside, the outputs of each layer are kept, one ``(n, neurons)`` for each of its runs.

    Args:
        layers: linear layers and convolutions.
        positions: whether a linear layer may have outputs at several positions.
        shown: which of these count, bool ``(n, length)``; None counts all.
    """
    outputs: list[list[Tensor]] = [[] for _ in layers]
    hooks = []
    try:
        for layer, of_layer in zip(layers, outputs, strict=True):

            def keep(
                module: nn.Module,
                inputs: object,
                output: object,
                layer: Layer = layer,
                kept: list[Tensor] = of_layer,
            ) -> None:
                kept.append(_of_neurons(layer, output, positions, shown))

            hooks.append(layer.module.register_forward_hook(keep))
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _shown(batch: object) -> Tensor | None:
    """Which positions of texts are no padding, if the inputs say so."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return None if mask is None else as_tensor("data: attention_mask", mask).cpu() != 0


def _over_positions(layer: Layer, output: Tensor, shown: Tensor | None) -> Tensor:
    """The maximum over the positions of a linear layer's output, ``(n, *positions, neurons)``."""
    if shown is not None:
        if output.shape[:-1] != shown.shape or not bool(shown.any(1).all()):
            raise ValueError(
                f"data: attention_mask must have shape {tuple(output.shape[:-1])}, that of the positions of "
                f"{layer.name!r}, and show one position of each input, got shape {tuple(shown.shape)}"
            )
        output = output.masked_fill(~shown.to(output.device)[..., None], -math.inf)
    return output.flatten(1, -2).amax(1)


def _of_neurons(layer: Layer, output: object, several: bool, shown: Tensor | None) -> Tensor:
    """A copy of a layer's output as ``(n, neurons)``, with the maximum over positions where it has some."""
    if not isinstance(output, Tensor):
        raise ValueError(f"layers: {layer.name!r} must give a tensor, got a {type(output).__name__}")
    if not output.is_floating_point():
        raise ValueError(
            f"layers: {layer.name!r} must give real numbers, which have an order, got {output.dtype}"
        )
    positions = len(operation(layer.module).kernel_size) if layer.is_convolution else 0
    if several and not positions and output.dim() > 2:
        output = _over_positions(layer, output, shown)
    if output.dim() != 2 + positions:
        kind = "(n, channels, *positions)" if positions else "(n, neurons)"
        hint = "" if several or positions or output.dim() < 3 else ': positions="max" allows several'
        raise ValueError(
            f"layers: {layer.name!r} must give outputs {kind}, got shape {tuple(output.shape)}{hint}"
        )
    if positions:
        output = output.flatten(2).amax(2)
    # A copy: the next module may write to the output, as ReLU does in place.
    return output.detach().cpu().to(torch.float64, copy=True)


def _activations(layer: Layer, outputs: list[Tensor], inputs: int) -> Tensor:
    """The only output of a layer for a batch, checked."""
    if len(outputs) != 1:
        raise ValueError(
            f"layers: {layer.name!r} must run once for a batch, so that a neuron has one output for an "
            f"input, got {len(outputs)} runs"
        )
    (activations,) = outputs
    if len(activations) != inputs:
        raise ValueError(
            f"layers: {layer.name!r} must give one output for an input, got {len(activations)} for {inputs}"
        )
    if activations.isnan().any():
        raise ValueError(f"layers: {layer.name!r} must give numbers, which have an order, got NaN")
    return activations


def _check_labels(labels: Tensor, num_classes: int | None) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        allowed = "be at least 0" if num_classes is None else f"lie in [0, {num_classes - 1}]"
        raise ValueError(f"data: labels must {allowed}, got {labels.unique().tolist()}")


class LiveUnits(NamedTuple):
    """Which rows, columns and clusters of a weight are in use; see :func:`live_units`.

    Attributes:
        rows: which rows are live: bool, ``(out,)``.
        columns: which columns are live: bool, ``(in,)``.
        effective_rows: how many equal rows would spread the squared weight as evenly; from 1 to ``out``.
        effective_columns: the same for columns.
        cluster_shares: the share of the whole squared weight that lies inside each cluster: float64,
            ``(k,)``. Its sum is the clusterability. None without a partition.
        effective_clusters: how many equal clusters would spread the weight inside clusters as evenly; from 1
            to ``k``, 0 if no cluster has any. None without a partition.
    """

    rows: Tensor
    columns: Tensor
    effective_rows: float
    effective_columns: float
    cluster_shares: Tensor | None
    effective_clusters: float | None

    def __repr__(self) -> str:
        sides = ", ".join(
            f"{int(live.sum()):,} of {len(live):,} {name} (effectively {effective:.1f})"
            for name, live, effective in (
                ("rows", self.rows, self.effective_rows),
                ("columns", self.columns, self.effective_columns),
            )
        )
        if self.cluster_shares is None:
            return f"LiveUnits({sides})"
        return f"LiveUnits({sides}, {self.effective_clusters:.2f} of {len(self.cluster_shares)} clusters)"


def live_units(weight: Tensor, partition: Partition | None = None, threshold: float = 0.01) -> LiveUnits:
    """Whether a weight still uses all of its rows, columns and clusters, or has collapsed.

    Clusterability alone cannot tell: a weight that lies in a single cluster has the largest there is, 1.
    ``effective_clusters`` near k says that no cluster was given up; near 1, that all weight went into one.

    With ``s`` the shares of the squared weight (of the rows, say; they sum to 1), an effective number is the
    exponential of the entropy of the shares, ``exp(-sum s log s)``: n for n equal shares, 1 where one has
    all. It needs no threshold and falls smoothly. ``rows`` and ``columns`` answer instead for each unit: take
    them to count or to prune dead ones.

    Args:
        weight: dense float32, float64, float16 or bfloat16, ``(out, in, *kernel)``; a kernel's positions
            belong to their row and column. It is summed in a copy, in float64 where
            the device has that.
        partition: fits ``(out, in)``. A row or column in no cluster counts as a row or column.
        threshold: a row is live if its share is at least ``threshold`` times that of the mean row,
            ``1 / out``; a column likewise.

    Returns:
        :class:`LiveUnits`, with tensors on the weight's device. In a weight of zeros nothing is live, and all
        effective numbers are 0.

    Raises:
        TypeError: ``weight`` is no tensor of such a dtype, or a ``DTensor``; ``partition`` is no
            :class:`Partition`.
        ValueError: ``weight`` is not dense, of another shape, without numbers, or has NaN or infinity;
            ``threshold`` is not above 0.

    Source: the effective number of Hill, "Diversity and evenness" (Ecology 54, 1973), of order 1.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> found = live_units(weight, Partition([0, 1, 1], [0, 1, 1], 2))
        >>> found.rows.tolist(), round(found.effective_rows, 3)
        ([True, True, False], 2.0)
        >>> found.cluster_shares.tolist(), round(found.effective_clusters, 3)
        ([0.5, 0.5], 2.0)
    """
    _check_weight(weight, partition)
    check("threshold", threshold, Number(0))
    energy = weight.detach().to(widest_float(weight.device))
    largest = energy.abs().max() if energy.numel() else energy.new_zeros(())
    if not largest.isfinite():
        raise ValueError("weight must be finite, got NaN or infinity")
    # Shares do not change with the scale, whereas the squares of the largest and smallest numbers would
    # become infinite or zero.
    energy = (energy / largest if largest > 0 else energy).square()
    energy = energy.reshape(*weight.shape[:2], math.prod(weight.shape[2:])).sum(2)
    rows, columns, total = energy.sum(1), energy.sum(0), energy.sum()
    inside = effective_clusters = None
    if partition is not None:
        placed = partition.to(weight.device)
        inside = torch.stack(
            [
                energy[placed.row_labels == cluster][:, placed.col_labels == cluster].sum()
                for cluster in range(partition.num_clusters)
            ]
        )
        effective_clusters = _effective_number(inside)
    return LiveUnits(
        rows=(rows > 0) & (rows * len(rows) >= threshold * total),
        columns=(columns > 0) & (columns * len(columns) >= threshold * total),
        effective_rows=_effective_number(rows),
        effective_columns=_effective_number(columns),
        cluster_shares=None if inside is None else _shares(inside, total),
        effective_clusters=effective_clusters,
    )


def _shares(parts: Tensor, total: Tensor) -> Tensor:
    return parts / total if total > 0 else parts


def _effective_number(parts: Tensor) -> float:
    """The exponential of the entropy of what is not negative; 0 if all of it is 0."""
    total = parts.sum()
    return float(torch.special.entr(parts / total).sum().exp()) if total > 0 else 0.0


def _check_weight(weight: object, partition: object) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, got {type(weight).__name__}")
    require_plain("weight", weight)
    if weight.dtype not in FLOATS:
        raise TypeError(f"weight must be float32, float64, float16 or bfloat16, got {weight.dtype}")
    if weight.layout != torch.strided:
        raise ValueError(f"weight must be dense, got layout {weight.layout}")
    require_numbers("weight", weight)
    if weight.dim() < 2:
        raise ValueError(f"weight must have shape (out, in, *kernel), got {tuple(weight.shape)}")
    if partition is None:
        return
    if not isinstance(partition, Partition):
        raise TypeError(f"partition must be None or a modfast.Partition, got {type(partition).__name__}")
    if weight.shape[:2] != partition.shape:
        raise ValueError(
            f"partition must fit the weight's (out, in), {tuple(weight.shape[:2])}, got {partition.shape}"
        )
