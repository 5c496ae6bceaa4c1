"""Finding circuits: the weights of a network that a class needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from modfast.arguments import check_callback
from modfast.circuit import Circuit
from modfast.layers.layer import listed_choices
from modfast.run_folder import RunFolder

from .checkpoint import walk_file
from .jobs import Job, check_inputs, check_integer, check_labels, run_all


def find_circuit(
    model: nn.Module,
    inputs: Tensor,
    label: int,
    *,
    layers: Iterable[str] | str | None = None,
    criterion: str = "loss",
    tolerance: float = 0.0,
    labels: Tensor | None = None,
    method: str = "compiled",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Circuit:
    """Find the weights that one class needs, by the published greedy walk.

    The walk visits the layers from the last to the first, and each layer's weights row by row. It sets
    a weight to zero. If the mean loss over the inputs is then at most that of the whole model plus the
    tolerance, the weight stays zero; else it is restored. The weights that remain are the circuit.

    The walk computes in float64 from the values of the weights, whatever their dtype, in evaluation mode, on
    the model's device (on the CPU if that is neither a CPU nor a CUDA device). The model itself is never
    changed. Losses that differ by less than ``1e-12 (1 + loss)`` are equal: a weight whose removal leaves the
    loss equal to the highest allowed stays zero, and a weight without any effect always does. Given the input
    of the first of these layers, the result is the same, bit for bit, for any number of threads and on any
    processor; PyTorch computes that input, and rounds differently on different processors.

    Args:
        model: returns logits ``(n, classes)``, at least two classes. It must end in linear layers, with or
            without biases, with elementwise activations between them (ReLU, leaky ReLU, GELU, SiLU, tanh,
            sigmoid, identity; dropout and flattening have no effect here); or, if ``layers`` names them, in
            linear layers and convolutions. The layers before them are run once. Biases are kept.
        inputs: ``(n, ...)``, dense, at least one of the class.
        label: the class.
        layers: names or globs of the layers to prune; by default all linear layers that the model ends in
            with at most an activation between two of them, as in the published measure. The other layers keep
            all their weights. Named layers may also be convolutions (of one to three dimensions, with any
            stride, dilation and groups, padded by zeros or not), and between named layers and the logits may
            lie convolutions, batch norms (with their running statistics; their parameters are kept), several
            activations, and poolings: maximum, mean, adaptive, where all windows of a mean have one size.
            ``"*"`` walks along everything. A model on a GPU must be moved to the CPU for that. A weight of a
            convolution takes longer than one of a linear layer, the more so the more layers come after it;
            to compare with published circuits, leave ``layers`` out.
        criterion: which loss the circuit must keep. ``"loss"``: the mean cross-entropy of the class's inputs;
            use it to compare with published circuits. A circuit that always answers the class passes it.
            ``"loss_and_accuracy"``: also, the share of these inputs that is classified as the class must not
            fall. ``"balanced"``: the mean loss of "the class or another" over all inputs, ``-log p`` for
            those of the class and ``-log(1 - p)`` for others, where p is the class's probability; use it for
            a circuit that recognises the class.
        tolerance: by how much the loss may rise, in nats; 0 or more. A larger one allows smaller circuits.
        labels: int64 ``(n,)``, the class of each input; without it all are of the class. ``"balanced"`` needs
            it, with inputs of other classes. Every input counts the same, so give about as many of other
            classes as of the class. The other criteria ignore inputs of other classes.
        method: ``"compiled"`` unless the model does not end as described. Then use ``"reference"``, which
            runs a forward pass of the whole model for each weight: it works for any model whose pruned
            weights are parameters, and takes thousands of times as long.
        checkpoint: a file with the state of the walk, written after each layer and every ten seconds. If it
            exists, the walk goes on from there. It is not removed at the end.
        progress: called with the number of weights decided so far and the number of all;
            :func:`modfast.progress.progress_bar` returns a function that shows the time left.

    Raises:
        ValueError: an argument is out of range; a weight, an input or the model's loss is not finite; the
            model does not end as described (the message names the layer); the model fails in float64 on the
            CPU, where its last layers are read; or ``checkpoint`` is damaged or of another walk.
        TypeError: an argument has another type, or the model returns no tensor.
        OSError: ``checkpoint`` cannot be read or written.

    Source: arXiv 2409.15747, effective circuit size.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> circuit = find_circuit(model, torch.rand(20, 4), label=1)
        >>> circuit.loss_after <= circuit.loss_before + 1e-9
        True
        >>> list(circuit.sizes)
        ['0', '2']
    """
    check_callback("progress", progress)
    job = Job(model, inputs, label, layers, criterion, tolerance, labels, method, checkpoint)
    (circuit,) = run_all([job], progress, None)
    return circuit


def find_circuits(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    classes: Iterable[int] | None = None,
    layers: Iterable[str] | str | None = None,
    criterion: str = "loss",
    tolerance: float = 0.0,
    seed: int = 0,
    method: str = "compiled",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_circuit: Callable[[Circuit], None] | None = None,
) -> list[Circuit]:
    """Find the circuit of each class on that class's inputs, several circuits at a time.

    Args:
        model: as for :func:`find_circuit`.
        inputs: ``(n, ...)``.
        labels: int64 ``(n,)``, the class of each input.
        classes: the classes; by default all that occur in ``labels``.
        layers: as for :func:`find_circuit`.
        criterion: as for :func:`find_circuit`. For ``"balanced"``, as many inputs are drawn from the other
            classes as are of the class (all of them, if there are fewer).
        tolerance: as for :func:`find_circuit`.
        seed: seeds that draw.
        method: as for :func:`find_circuit`.
        checkpoint: a folder for the files with the state of each walk.
        progress: called with the number of weights decided so far and the number of all, over all walks.
        on_circuit: called with each circuit when it is found, in any order, in the caller's thread.

    Returns:
        The circuits in the order of ``classes``.

    Raises:
        ValueError, TypeError: as for :func:`find_circuit`; or a class has no input.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> circuits = find_circuits(model, torch.rand(30, 4), torch.arange(30) % 3)
        >>> [circuit.label for circuit in circuits]
        [0, 1, 2]
    """
    check_callback("progress", progress)
    check_callback("on_circuit", on_circuit)
    check_inputs(inputs)
    labels = check_labels(inputs, labels)
    listed = None if layers is None else listed_choices(layers, "layers")
    occurring = sorted(set(labels.tolist()))
    wanted = [check_integer("classes", label) for label in (occurring if classes is None else classes)]
    jobs = []
    for label in wanted:
        drawn = _draw(labels, label, criterion, check_integer("seed", seed))
        path = None if checkpoint is None else _walk_path(checkpoint, label)
        options = (listed, criterion, tolerance, labels[drawn], method, path)
        jobs.append(Job(model, inputs[drawn.to(inputs.device)], label, *options))
    return run_all(jobs, progress, on_circuit)


def _walk_path(folder: str | os.PathLike[str], label: int) -> os.PathLike[str]:
    """Return the file of a class's walk; if the folder has a manifest, enter the file in it."""
    name = walk_file(label)
    return folder.file(name) if isinstance(folder, RunFolder) else Path(folder) / name


def _draw(labels: Tensor, label: int, criterion: str, seed: int) -> Tensor:
    """Return the indices of the inputs for a class's circuit."""
    own = (labels == label).nonzero().flatten()
    if criterion != "balanced":
        return own
    others = (labels != label).nonzero().flatten()
    generator = torch.Generator("cpu").manual_seed(seed + label)
    drawn = torch.randperm(len(others), generator=generator, device="cpu")[: len(own)]
    return torch.cat([own, others[drawn]]).sort().values
