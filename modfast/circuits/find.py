"""Circuits: which weights of a network a class needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

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
    """The weights that one class needs, by the published greedy walk.

    The linear layers are walked from the last to the first, and each layer's weights row after row. A weight
    is set to zero, and stays zero if the mean loss over the inputs is then at most that of the whole model
    plus the tolerance; else it is put back. What is left is the circuit.

    Everything is computed in float64 from the values of the weights, whatever their dtype, in evaluation
    mode, on the model's device (on the CPU if that is neither a CPU nor a CUDA device). The model itself is
    never changed. Losses that differ by less than ``1e-12 (1 + loss)`` are equal, and a weight whose zero
    leaves the loss equal to what is allowed stays zero; one without any effect always does. From what the
    first of these layers reads, the result is the same, bit for bit, for any number of threads and on any
    processor; what comes before is computed by PyTorch, which rounds as the processor likes.

    Args:
        model: gives logits ``(n, classes)``, at least two classes. Its last part must be linear layers, with
            biases or not, with elementwise activations between them (ReLU, leaky ReLU, GELU, SiLU, tanh,
            sigmoid, identity; dropout and flattening do nothing here); what comes before is run once. Biases
            are kept.
        inputs: ``(n, ...)``, dense, at least one of the class.
        label: the class.
        layers: names or globs of the layers to prune; by default all of that last part.
        criterion: ``"loss"``: the mean cross-entropy of the class's inputs. ``"loss_and_accuracy"``: and the
            share of them that is classified as the class must not fall. ``"balanced"``: the mean loss of "the
            class or another" over all inputs, ``-log p`` for those of the class and ``-log(1 - p)`` for
            others, where p is the class's probability.
        tolerance: by how much the loss may rise, in nats; 0 or more.
        labels: int64 ``(n,)``, the class of each input; without it all are of the class. ``"balanced"`` needs
            it, with inputs of other classes; they weigh as many as they are, so give about as many. For other
            criteria the other classes' inputs are left out.
        method: ``"compiled"``, or ``"reference"``: a forward pass of the whole model for each weight, which
            works for any model whose pruned weights are parameters, and takes thousands of times as long.
        checkpoint: a file that holds how far the walk is, written after each layer and every ten seconds. If
            it exists, the walk goes on from there; it stays when the walk has ended.
        progress: called with the numbers of weights decided so far and in all;
            :func:`modfast.progress.progress_bar` makes one that shows the time left.

    Raises:
        ValueError: an argument is out of range; a weight, an input or the model's loss is not finite; the
            model's last part is not as described (the message names the layer); it fails in float64 on the
            CPU, where that part is read; or ``checkpoint`` is damaged or of another walk.
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
    """The circuit of each class, several at a time, each found on its own inputs among many.

    Args:
        model: as for :func:`find_circuit`.
        inputs: ``(n, ...)``.
        labels: int64 ``(n,)``, the class of each.
        classes: which classes, by default all that occur in ``labels``.
        layers: as for :func:`find_circuit`.
        criterion: as there. For ``"balanced"``, as many inputs are drawn from the other classes as are
            of the class (all of them, if they are fewer).
        tolerance: as there.
        seed: of that draw.
        method: as there.
        checkpoint: a folder for how far each walk is.
        progress: called with the numbers of weights decided so far and in all, of all walks together.
        on_circuit: called with each circuit as it is found, in any order, in the thread of the caller.

    Returns:
        The circuits in the order of ``classes``.

    Raises:
        ValueError, TypeError: as :func:`find_circuit` does; no input is of one of the classes.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> circuits = find_circuits(model, torch.rand(30, 4), torch.arange(30) % 3)
        >>> [circuit.label for circuit in circuits]
        [0, 1, 2]
    """
    check_inputs(inputs)
    labels = check_labels(inputs, labels)
    listed = None if layers is None else listed_choices(layers, "layers")
    occurring = sorted(set(labels.tolist()))
    wanted = [check_integer("classes", each) for each in (occurring if classes is None else classes)]
    jobs = []
    for label in wanted:
        chosen = _draw(labels, label, criterion, check_integer("seed", seed))
        path = None if checkpoint is None else _walk_path(checkpoint, label)
        given = (listed, criterion, tolerance, labels[chosen], method, path)
        jobs.append(Job(model, inputs[chosen.to(inputs.device)], label, *given))
    return run_all(jobs, progress, on_circuit)


def _walk_path(folder: str | os.PathLike[str], label: int) -> os.PathLike[str]:
    """The file of a class's walk; in a folder with a manifest the manifest names it."""
    name = walk_file(label)
    return folder.file(name) if isinstance(folder, RunFolder) else Path(folder) / name


def _draw(labels: Tensor, label: int, criterion: str, seed: int) -> Tensor:
    """Which inputs a class's circuit is found on."""
    own = (labels == label).nonzero().flatten()
    if criterion != "balanced":
        return own
    others = (labels != label).nonzero().flatten()
    generator = torch.Generator("cpu").manual_seed(seed + label)
    drawn = torch.randperm(len(others), generator=generator, device="cpu")[: len(own)]
    return torch.cat([own, others[drawn]]).sort().values
