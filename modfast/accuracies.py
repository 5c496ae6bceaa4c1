"""Accuracy class by class, of a whole network and of its clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from .labelled_batches import Batches, labelled_batches
from .layers.bias import bias_of
from .layers.layer import Layer
from .layers.partitioned import partitioned_layers
from .layers.replaced import replaced_parameters, replaced_weights, require_own_parameters
from .layers.running import call_model, device_of, evaluating, logits_of, moved
from .layers.weight import source_of
from .partition import Partition

_MODES = ("only", "without")


def class_accuracy(model: nn.Module, data: Batches, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
    """The share of each class's inputs that the model classifies as that class.

    Args:
        model: gives logits ``(n, classes)``, as a tensor or as an object with ``.logits`` (transformers).
            It runs in evaluation mode and is left as it was, its buffers too.
        data: ``(inputs, labels)``, or an iterable of such batches (a ``DataLoader``, a generator). Inputs are
            a tensor, a tuple of positional arguments, or a mapping of keyword arguments; a mapping with the
            key ``"labels"`` is a batch as well. Labels are integers in ``[0, classes)``, ``(n,)``: a tensor,
            an array or a list. A model that writes to its inputs writes to copies.
        parameters: used in place of the model's own parameters or buffers of these names, as by
            ``torch.func.functional_call``; the names may omit the parts that wrappers add.

    Returns:
        float64, ``(classes,)``; NaN for a class without inputs.

    Raises:
        ValueError: there is no input, labels have another shape or are out of range, or the logits have
            another shape; a name of ``parameters`` is unknown.
        TypeError: a batch is of another kind, labels are no integers, or the model returns no logits;
            ``parameters`` are given and FSDP keeps those of the model.

    Example:
        >>> class_accuracy(nn.Identity(), (torch.eye(3), torch.tensor([0, 1, 1])))
        tensor([1.0000, 0.5000,    nan], dtype=torch.float64)
    """
    replacements = dict(parameters or {})

    def whole() -> AbstractContextManager[None]:
        return replaced_parameters(model, replacements, "parameters") if replacements else nullcontext()

    (accuracy,) = _accuracies(model, data, [whole])
    return accuracy


def cluster_accuracy(
    model: nn.Module, data: Batches, partitions: Mapping[str, Partition], mode: str
) -> Tensor:
    """Accuracy on each class with one cluster alone, or with one cluster ablated.

    Switching a neuron off takes its weights as zero in every layer of ``partitions``: those into it, with its
    bias (``in_proj_bias`` for ``in_proj_weight`` and the like), and those out of it. The model itself is not
    changed. The weight of a layer is what its forward pass multiplies by, also where it is computed; see
    :class:`EnmeshmentLoss`.

    Weights are replaced where modules hold them, as attributes. A forward pass that reaches a parameter in
    another way, as through a list of its own, goes on with the model's own numbers.

    Args:
        model: as for :func:`class_accuracy`.
        data: as for :func:`class_accuracy`. It is iterated once.
        partitions: layer name to :class:`Partition`, all with the same number k of clusters; cluster c is
            on or off in all these layers together.
        mode: ``"only"`` shows what a cluster can do alone: all neurons but cluster c's are off, unassigned
            ones too. ``"without"`` shows what the network needs it for: just cluster c's are off.

    Returns:
        float64, ``(k, classes)``; NaN for a class without inputs.

    Raises:
        ValueError: an unknown mode or layer, a partition that does not fit, different k, a weight whose
            bias is not known, or what :func:`class_accuracy` raises.
        TypeError: a layer's weight is spread over processes (``DTensor``), or FSDP keeps the model's
            parameters.

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
    require_own_parameters(model)
    layers = partitioned_layers(model, partitions)
    counts = {partition.num_clusters for _, partition in layers}
    if len(counts) != 1:
        raise ValueError(f"partitions must have one number of clusters, got {sorted(counts)}")
    for layer, _ in layers:
        layer.whole()
        bias_of(layer)

    def with_cluster(cluster: int) -> Callable[[], AbstractContextManager[None]]:
        return lambda: _masked(model, layers, cluster, mode)

    return torch.stack(_accuracies(model, data, [with_cluster(cluster) for cluster in range(counts.pop())]))


@contextmanager
def _masked(
    model: nn.Module, layers: Sequence[tuple[Layer, Partition]], cluster: int, mode: str
) -> Iterator[None]:
    """Inside, the neurons that are off have weights and biases of zero."""
    weights: dict[Layer, Tensor] = {}
    biases: dict[tuple[nn.Module, str], Tensor] = {}
    with ExitStack() as stack:
        for layer, partition in layers:
            weight = layer.weight()
            placed = partition.to(weight.device)
            keep_row, keep_col = (
                labels == cluster if mode == "only" else labels != cluster
                for labels in (placed.row_labels, placed.col_labels)
            )
            keep = (keep_row[:, None] & keep_col[None, :]).reshape(
                partition.shape + (1,) * (weight.dim() - 2)
            )
            # Selected, not multiplied: an infinite weight that is off must not become NaN.
            weights[layer] = torch.where(keep, weight, 0.0)
            bias = bias_of(layer)
            if bias is not None:
                key = (bias.source.module, bias.source.attribute)
                stored = biases[key] if key in biases else bias.source.tensor()
                biases[key] = bias.replaced_in(stored, keep_row)
        for (module, attribute), tensor in biases.items():
            stack.enter_context(source_of(module, attribute).replaced(tensor))
        stack.enter_context(replaced_weights(model, weights))
        yield


def _accuracies(
    model: nn.Module, data: Batches, variants: Sequence[Callable[[], AbstractContextManager[None]]]
) -> list[Tensor]:
    """The accuracy on each class for each variant of a model, in one iteration over the data.

    Args:
        model: as for :func:`class_accuracy`.
        data: as for :func:`class_accuracy`; it may allow a single iteration only.
        variants: each makes a context within which the model is one variant.
    """
    device = device_of(model)
    counts: list[Tensor] = []
    for inputs, labels in labelled_batches(data):
        on_device = moved(inputs, device)
        # The model has the caller's mode again while the caller's code makes the next batch.
        with evaluating(model):
            for place, variant in enumerate(variants):
                with variant():
                    counted = _count(logits_of(call_model(model, on_device)), labels)
                if len(counts) == place:
                    counts.append(counted)
                else:
                    counts[place] += counted
    if not counts:
        raise ValueError("data holds no batch")
    return [hits / inputs.to(torch.float64) for hits, inputs in counts]


def _count(logits: Tensor, labels: Tensor) -> Tensor:
    """How many inputs of each class are classified correctly, and how many there are: ``(2, classes)``."""
    if logits.dim() != 2 or len(logits) != len(labels):
        raise ValueError(
            f"model must give logits (n, classes), got shape {tuple(logits.shape)} for {len(labels)} labels"
        )
    classes = logits.shape[1]
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise ValueError(f"data: labels must lie in [0, {classes - 1}], got {labels.unique().tolist()}")
    hits = labels[logits.argmax(dim=1).cpu() == labels]
    return torch.stack([torch.bincount(members, minlength=classes) for members in (hits, labels)])
