"""Checking the arguments of walks that find circuits, and running the walks side by side."""

from __future__ import annotations

import math
import operator
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from modfast.arrays import require_whole
from modfast.circuit import CRITERIA, Circuit
from modfast.layers.layer import Choices, linear_layers, listed_choices, match_layers
from modfast.library import BACKEND
from modfast.reference.circuits import PlainWalk
from modfast.without_kernels import has_kernels, warn_without_kernels

from .checkpoint import Checkpoint, fingerprint
from .linear_tail import Tail, read_tail
from .walk import Walk

METHODS = ("compiled", "reference")

# The maximum number of walks at a time on a GPU. Each takes one multiprocessor and a thread of the host.
_WALKS_ON_GPU = 64

_SECONDS_BETWEEN_PROGRESS = 0.1


class Job:
    """One walk with checked arguments."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        label: int,
        layers: Choices | None,
        criterion: str,
        tolerance: float,
        labels: Tensor | None,
        method: str,
        checkpoint: str | os.PathLike[str] | None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            raise ValueError("model must hold numbers, and has parameters or buffers on the meta device")
        check_inputs(inputs)
        if criterion not in CRITERIA:
            raise ValueError(f"criterion must be one of {CRITERIA}, got {criterion!r}")
        if method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {method!r}")
        if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)):
            raise TypeError(f"tolerance must be a number, got {tolerance!r}")
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ValueError(f"tolerance must be finite and at least 0, got {tolerance}")
        self.label = check_integer("label", label)
        is_label = torch.ones(len(inputs), dtype=torch.bool, device="cpu")
        if labels is not None:
            is_label = check_labels(inputs, labels) == self.label
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
        self._layers = None if layers is None else listed_choices(layers, "layers")
        self._criterion, self._tolerance = criterion, float(tolerance)
        self._method = "reference" if BACKEND == "reference" else method
        self._checkpoint = checkpoint

    @property
    def device(self) -> torch.device:
        """The device of the walk."""
        first = next(self._model.parameters(), None)
        if self._method == "compiled" and first is not None and first.device.type == "cuda":
            if has_kernels(first.device):
                return first.device
            warn_without_kernels(first.device)
        return torch.device("cpu")

    def read(self, progress: Progress) -> Tail | PlainWalk:
        """Run the model in the caller's thread, where it can be interrupted at any time."""
        # Not in inference mode, even if the caller is: a walk changes these tensors in another thread.
        with _running_the_model(), torch.inference_mode(False):
            if self._method == "reference":
                options = (self._names(), self._criterion, self._tolerance)
                walk = PlainWalk(self._model, self._inputs, self.label, self._is_label, *options)
                self._check_classes(walk.logits())
                _ = walk.before  # computed here, as it needs another forward pass
                return walk
            tail = read_tail(self._model, self._inputs, self._layers, before_batch=progress.tell)
        self._check_classes(tail.logits)
        require_walk_on(self.device, tail)
        self._warn_if_short(tail)
        return tail

    def run(self, read: Tail | PlainWalk, threads: int, progress: Progress) -> Circuit:
        """Walk from the first weight, or from the checkpoint, to the last weight."""
        walk: Walk | PlainWalk
        if isinstance(read, Tail):
            options = (self._criterion, self._tolerance)
            walk = Walk(read, self.label, self._is_label, *options, self.device, threads)
        else:
            walk = read
        if not math.isfinite(walk.before[0]):
            raise ValueError(f"model: its mean loss over inputs must be finite, got {walk.before[0]}")
        total = sum(mask.numel() for mask in walk.masks.values())
        digest = "" if self._checkpoint is None else self._fingerprint(walk.masks)
        checkpoint = Checkpoint(self._checkpoint, digest)
        restored = checkpoint.restore(walk)
        # Saved at once, so that a file that cannot be written raises before the work begins.
        checkpoint.save(walk, restored, now=True)
        progress.add(restored, total)
        # Saved again at the end of each layer, so that no finished layer is lost.
        ends = set(accumulate(mask.numel() for mask in reversed(walk.masks.values())))
        done = 0
        for count, decide in walk.steps():
            done += count
            if done <= restored:
                continue  # checkpoints are only written between steps
            decide()
            checkpoint.save(walk, done, now=done in ends)
            progress.add(count, total)
        return walk.circuit()

    def _warn_if_short(self, tail: Tail) -> None:
        """Warn if only the last of several linear layers is walked along, unless ``layers`` named it."""
        if self._layers is None and len(tail.layers) == 1 and len(linear_layers(self._model)) > 1:
            warnings.warn(
                f"only the last layer, {tail.layers[0].name!r}, is walked along: before it comes "
                f"{tail.obstacle or 'nothing that PyTorch records for gradients'}. "
                + (f"layers= may also name {', '.join(map(repr, tail.earlier))}. " if tail.earlier else "")
                + 'method="reference" walks along all linear layers, a forward pass for each weight',
                ShortTailWarning,
                stacklevel=5,
            )

    def _names(self) -> list[str]:
        """Return the names of the layers that the reference prunes."""
        if self._layers is None:
            layers, message = linear_layers(self._model), "model must have a linear layer, found none"
        else:
            layers, message = match_layers(self._model, self._layers), "layers must name a layer, got none"
        if not layers:
            raise ValueError(message)
        for layer in layers:
            if layer.attribute != "weight" or layer.place is not None:
                raise ValueError(f"layers: {layer.name!r} must be the weight of a layer of its own")
            if not layer.whole().detach().isfinite().all():
                raise ValueError(f"layers: the weight of {layer.name!r} must be finite")
        return [layer.name for layer in layers]

    def _check_classes(self, logits: Tensor) -> None:
        if logits.dim() != 2 or len(logits) != len(self._inputs) or logits.shape[1] < 2:
            raise ValueError(
                "model must give logits (n, classes) of at least two classes, "
                f"got shape {tuple(logits.shape)} for {len(self._inputs)} inputs"
            )
        if not 0 <= self.label < logits.shape[1]:
            raise ValueError(f"label must lie in [0, {logits.shape[1] - 1}], got {self.label}")

    def _fingerprint(self, masks: dict[str, Tensor]) -> str:
        tensors = {"inputs": self._inputs, "is_label": self._is_label}
        options = {"label": self.label, "layers": list(masks), "method": self._method}
        options |= {"criterion": self._criterion, "tolerance": self._tolerance}
        return fingerprint(self._model, tensors, options)


def require_walk_on(device: torch.device, tail: Tail) -> None:
    """Check that a device can walk along a tail.

    Raises:
        ValueError: it is a GPU, and the tail holds more than linear layers with activations between them.
    """
    if device.type == "cpu" and BACKEND != "emulated":
        return
    others = [layer.name for layer in tail.layers if not layer.is_plain]
    if others:
        raise ValueError(
            f"layers: a walk along convolutions and batch norms ({', '.join(map(repr, others))}) runs on the "
            f"CPU alone, and the model is on {device}: give model.cpu(), in a command --device cpu, or "
            "name later layers"
        )


class ShortTailWarning(UserWarning):
    """Warns that a circuit covers only the last layer, though the model has more linear layers."""


class _StoppedError(Exception):
    """Ends a walk because another walk has failed or the caller was interrupted."""


class Progress:
    """The progress of all walks together; after ``stopped`` is set, each walk ends at its next step."""

    def __init__(self, walks: int, tell: Callable[[int, int], None] | None) -> None:
        self._walks, self._report = walks, tell
        self._lock = threading.Lock()
        self._done = self._total = 0
        self.stopped = False

    def check(self) -> None:
        """End the walk that calls this, if all walks were stopped."""
        if self.stopped:
            raise _StoppedError

    def add(self, count: int, total: int) -> None:
        """Record that one walk of ``total`` weights has decided ``count`` more."""
        self.check()
        with self._lock:
            self._done += count
            self._total = total * self._walks

    def tell(self) -> None:
        """Report the progress to the caller; called in the caller's thread."""
        if self._report is not None and self._total:
            self._report(self._done, self._total)


def run_all(
    jobs: Sequence[Job],
    tell: Callable[[int, int], None] | None,
    on_circuit: Callable[[Circuit], None] | None,
) -> list[Circuit]:
    """Run walks side by side in threads of their own; the caller's thread handles Ctrl-C and callbacks."""
    if not jobs:
        return []
    device, threads = jobs[0].device, torch.get_num_threads()
    at_once = min(len(jobs), _WALKS_ON_GPU if device.type == "cuda" else threads)
    progress = Progress(len(jobs), tell)
    before = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def run(job: Job, read: Tail | PlainWalk) -> Circuit:
        if before is None:
            return job.run(read, max(1, threads // at_once), progress)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            return job.run(read, 1, progress)

    circuits: dict[Job, Circuit] = {}
    walking: dict[Future[Circuit], Job] = {}
    waiting = list(reversed(jobs))
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while waiting or walking:
                # Read the next model while others walk, but only as many as can walk.
                if waiting and len(walking) < at_once:
                    job = waiting.pop()
                    walking[pool.submit(run, job, job.read(progress))] = job
                at_end = len(walking) == at_once or not waiting
                ended, _ = wait(walking, _SECONDS_BETWEEN_PROGRESS if at_end else 0, FIRST_COMPLETED)
                progress.tell()
                for future in ended:
                    circuit = future.result()
                    circuits[walking.pop(future)] = circuit
                    if on_circuit is not None:
                        on_circuit(circuit)
        except BaseException:
            progress.stopped = True
            pool.shutdown(cancel_futures=True)
            raise
    return [circuits[job] for job in jobs]


@contextmanager
def _running_the_model() -> Iterator[None]:
    """Explain an error of the model as one of its copy in float64 on the CPU."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(f"model must run in float64 on the CPU, where its copy fails: {error}") from error


def check_integer(name: str, value: Any) -> int:
    """Return an integer, checked to fit into int64."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} must fit into 64 bits, got {number}")
    return number


def check_inputs(inputs: Tensor) -> None:
    """Check that inputs are a dense tensor ``(n, ...)`` that holds numbers."""
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor, got {type(inputs).__name__}")
    require_whole("inputs", inputs)
    if inputs.layout != torch.strided or inputs.is_meta:
        raise ValueError(f"inputs must be dense numbers, got {inputs.layout} on {inputs.device}")
    if inputs.dim() == 0:
        raise ValueError("inputs must have a first dimension (n, ...), got a single number")


def check_labels(inputs: Tensor, labels: Tensor) -> Tensor:
    """Check that there is one label for each input; return the labels on the CPU."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        what = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be a tensor of whole numbers, got {what}")
    require_whole("labels", labels)
    if labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"labels must have shape {tuple(inputs.shape[:1])}, one for each input, got {tuple(labels.shape)}"
        )
    if labels.layout != torch.strided or labels.is_meta:
        raise ValueError(f"labels must be dense numbers, got {labels.layout} on {labels.device}")
    return labels.detach().cpu()
