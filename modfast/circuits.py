"""Circuits: which weights of a network a class needs."""

from __future__ import annotations

import math
import operator
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .circuit import CRITERIA, Circuit
from .circuit_checkpoint import Checkpoint, fingerprint, walk_file
from .circuit_walk import Walk
from .layers import linear_layers, match_layers
from .library import BACKEND
from .reference.circuits import PlainWalk
from .tail import read_tail

METHODS = ("compiled", "reference")

# Each walk on a GPU keeps one of its multiprocessors busy, and a thread of the host.
_WALKS_ON_GPU = 64

_SECONDS_BETWEEN_PROGRESS = 0.1

_READING = threading.Lock()


def find_circuit(
    model: nn.Module,
    inputs: Tensor,
    label: int,
    *,
    layers: Sequence[str] | str | None = None,
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
    leaves the loss equal to what is allowed stays zero; one without any effect always does. The result is the
    same, bit for bit, for any number of threads and on any processor.

    Args:
        model: gives logits ``(n, classes)``, at least two classes. Its last part must be linear layers, with
            biases or not, with elementwise activations between them (ReLU, leaky ReLU, GELU, SiLU, tanh,
            sigmoid, identity; dropout and flattening do nothing here); what comes before is run once. Biases
            are kept.
        inputs: ``(n, ...)``, at least one of the class.
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
            works for any model, and takes thousands of times as long.
        checkpoint: a file that holds how far the walk is, written every few seconds. If it exists, the walk
            goes on from there; it stays when the walk has ended.
        progress: called with the numbers of weights decided so far and in all;
            :func:`modfast.progress.progress_bar` makes one that shows the time left.

    Raises:
        ValueError: an argument is out of range; a weight, an input or the model's loss is not finite; the
            model's last part is not as described (the message names the layer); or ``checkpoint`` is damaged
            or of another walk.
        TypeError: an argument has another type.

    Source: arXiv 2409.15747, effective circuit size.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> circuit = find_circuit(model, torch.rand(20, 4), label=1)
        >>> circuit.loss_after <= circuit.loss_before + 1e-9
        True
        >>> list(circuit.sizes)
        ['0', '2']
    """
    job = _Job(model, inputs, label, layers, criterion, tolerance, labels, method, checkpoint)
    (circuit,) = _run_all([job], progress, None)
    return circuit


def find_circuits(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    classes: Iterable[int] | None = None,
    layers: Sequence[str] | str | None = None,
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
    labels = _check_labels(inputs, labels)
    wanted = (
        sorted(set(labels.tolist())) if classes is None else [_integer("classes", each) for each in classes]
    )
    jobs = []
    for label in wanted:
        chosen = _draw(labels, label, criterion, _integer("seed", seed))
        path = None if checkpoint is None else Path(checkpoint) / walk_file(label)
        given = (layers, criterion, tolerance, labels[chosen], method, path)
        jobs.append(_Job(model, inputs[chosen.to(inputs.device)], label, *given))
    return _run_all(jobs, progress, on_circuit)


def _draw(labels: Tensor, label: int, criterion: str, seed: int) -> Tensor:
    """Which inputs a class's circuit is found on."""
    own = (labels == label).nonzero().flatten()
    if criterion != "balanced":
        return own
    others = (labels != label).nonzero().flatten()
    generator = torch.Generator().manual_seed(seed + label)
    drawn = torch.randperm(len(others), generator=generator, device="cpu")[: len(own)]
    return torch.cat([own, others[drawn]]).sort().values


class _Job:
    """One walk, its arguments checked."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        label: int,
        layers: Sequence[str] | str | None,
        criterion: str,
        tolerance: float,
        labels: Tensor | None,
        method: str,
        checkpoint: str | os.PathLike[str] | None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(inputs, Tensor):
            raise TypeError(f"inputs must be a tensor, got {type(inputs).__name__}")
        if criterion not in CRITERIA:
            raise ValueError(f"criterion must be one of {CRITERIA}, got {criterion!r}")
        if method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {method!r}")
        if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)):
            raise TypeError(f"tolerance must be a number, got {tolerance!r}")
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ValueError(f"tolerance must be finite and at least 0, got {tolerance}")
        if inputs.dim() == 0:
            raise ValueError("inputs must have a first dimension (n, ...), got a single number")
        self.label = _integer("label", label)
        is_label = torch.ones(len(inputs), dtype=torch.bool, device="cpu")
        if labels is not None:
            is_label = _check_labels(inputs, labels) == self.label
        if not is_label.any():
            raise ValueError(
                f"inputs must hold at least one of class {self.label}, got none of {len(inputs)}"
            )
        if criterion == "balanced" and is_label.all():
            raise ValueError(
                'labels must name inputs of other classes for criterion "balanced", '
                + ("got None" if labels is None else f"all are of class {self.label}")
            )
        if criterion != "balanced" and not is_label.all():
            inputs, is_label = inputs[is_label.to(inputs.device)], is_label[is_label]
        self._model, self._inputs, self._is_label = model, inputs, is_label
        self._layers, self._criterion, self._tolerance = layers, criterion, float(tolerance)
        self._method = "reference" if BACKEND == "reference" else method
        self._checkpoint = checkpoint

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        first = next(self._model.parameters(), None)
        if self._method == "compiled" and first is not None and first.device.type == "cuda":
            return first.device
        return torch.device("cpu")

    def run(self, threads: int, progress: _Progress) -> Circuit:
        """Walk from the first weight, or from where the checkpoint is, to the last."""
        walk = self._start(threads)
        if not math.isfinite(walk.before[0]):
            raise ValueError(f"model: its mean loss over inputs must be finite, got {walk.before[0]}")
        total = sum(mask.numel() for mask in walk.masks.values())
        kept = Checkpoint(self._checkpoint, "" if self._checkpoint is None else self._fingerprint(walk.masks))
        restored = kept.restore(walk)
        progress.add(restored, total)
        done = 0
        for count, decide in walk.steps():
            done += count
            if done <= restored:
                continue  # a step is never cut in two
            decide()
            progress.add(count, total)
            kept.save(walk, done, now=False)
        kept.save(walk, done, now=True)
        return walk.circuit()

    def _start(self, threads: int) -> Walk | PlainWalk:
        options = (self._criterion, self._tolerance)
        if self._method == "compiled":
            # One after the other, each with all threads: PyTorch's of several would wait for each other.
            with _READING:
                tail = read_tail(self._model, self._inputs, self._layers)
            self._check_classes(tail.logits)
            return Walk(tail, self.label, self._is_label, *options, self.device, threads)
        found = (
            linear_layers(self._model) if self._layers is None else match_layers(self._model, self._layers)
        )
        if not found:
            raise ValueError("model must have a linear layer, found none")
        for layer in found:
            if layer.attribute != "weight" or not layer.stored().isfinite().all():
                raise ValueError(f"layers: {layer.name!r} must have a weight, and a finite one")
        names = [layer.name for layer in found]
        walk = PlainWalk(self._model, self._inputs, self.label, self._is_label, names, *options)
        self._check_classes(walk.logits())
        return walk

    def _check_classes(self, logits: Any) -> None:
        if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
            what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model must give logits (n, classes) of at least two classes, got {what}")
        if not 0 <= self.label < logits.shape[1]:
            raise ValueError(f"label must lie in [0, {logits.shape[1] - 1}], got {self.label}")

    def _fingerprint(self, masks: dict[str, Tensor]) -> str:
        tensors = {"inputs": self._inputs, "is_label": self._is_label}
        options = {"label": self.label, "layers": list(masks), "method": self._method}
        options |= {"criterion": self._criterion, "tolerance": self._tolerance}
        return fingerprint(self._model, tensors, options)


class _StoppedError(Exception):
    """Another walk has failed, or the caller was interrupted."""


class _Progress:
    """How far all walks together are; they end at their next step once they are stopped."""

    def __init__(self, walks: int, tell: Callable[[int, int], None] | None) -> None:
        self._walks, self._tell = walks, tell
        self._lock = threading.Lock()
        self._done = self._total = 0
        self.stopped = False

    def add(self, count: int, total: int) -> None:
        """One walk of so many weights has decided so many more."""
        if self.stopped:
            raise _StoppedError
        with self._lock:
            self._done += count
            self._total = total * self._walks

    def tell(self) -> None:
        """Tell the caller, in whose thread this is called."""
        if self._tell is not None and self._total:
            self._tell(self._done, self._total)


def _run_all(
    jobs: Sequence[_Job],
    tell: Callable[[int, int], None] | None,
    on_circuit: Callable[[Circuit], None] | None,
) -> list[Circuit]:
    """Run walks side by side, in threads of their own: this one stays free for Ctrl-C and for the caller."""
    if not jobs:
        return []
    device, threads = jobs[0].device, torch.get_num_threads()
    at_once = min(len(jobs), _WALKS_ON_GPU if device.type == "cuda" else threads)
    progress = _Progress(len(jobs), tell)
    before = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def run(job: _Job) -> Circuit:
        if before is None:
            return job.run(max(1, threads // at_once), progress)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            return job.run(1, progress)

    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(run, job) for job in jobs]
        waiting: set[Future[Circuit]] = set(futures)
        try:
            while waiting:
                ended, waiting = wait(waiting, _SECONDS_BETWEEN_PROGRESS, FIRST_COMPLETED)
                progress.tell()
                for future in ended:
                    circuit = future.result()
                    if on_circuit is not None:
                        on_circuit(circuit)
        except BaseException:
            progress.stopped = True
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None


def _check_labels(inputs: Tensor, labels: Tensor) -> Tensor:
    """The labels on the CPU, one for each input."""
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor, got {type(inputs).__name__}")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        what = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be a tensor of whole numbers, got {what}")
    if labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"labels must have shape {tuple(inputs.shape[:1])}, one for each input, got {tuple(labels.shape)}"
        )
    return labels.detach().cpu()
