"""Training a model for a task: AdamW, drawn batches, a checkpoint from which a killed run goes on."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from modfast.arguments import check_callback
from modfast.devices import forked_random, seed_generators, widest_float
from modfast.energy.loss import EnmeshmentLoss
from modfast.layers.running import device_of, evaluating, logits_of
from modfast.train.checkpoint import TrainingError, read_state, write_state

from .settings import Settings, make_optimizer

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs, int64 ``(n, length)``, and targets: int64 ``(n,)``, or ``(n, length)`` for one at each place."""

Record: TypeAlias = dict[str, float]

_FORMAT = "modfast task checkpoint 1"
_PARTS = ("identity", "before", "step", "loss", "model", "optimizer", "history")
_DIGESTS = ("task", "enmeshment loss")
"""What of a run's identity is a digest, which says nothing to a reader."""

# A run that is killed loses the work of at most this many seconds.
_SECONDS_BETWEEN = 10.0


class Task(Protocol):
    """What there is to learn."""

    @property
    def test_batches(self) -> list[Batch]:
        """What is held out."""

    @property
    def fingerprint(self) -> str:
        """A digest of everything that training depends on."""

    def draw(self, batch_size: int | None, generator: torch.Generator) -> Batch:
        """Return examples to train on: so many, or all of them."""


def train_task(
    task: Task,
    model: nn.Module,
    settings: Settings,
    checkpoint: str | os.PathLike[str] | None,
    progress: Callable[[int, int], None] | None,
    enmeshment: EnmeshmentLoss | None = None,
) -> list[Record]:
    """Train a model in place, on its own device.

    Each step seeds PyTorch's generators with the run's seed and the step's number, so that a resumed run
    draws what an uninterrupted one does; the caller's random state is put back.

    Args:
        task: what to learn.
        model: returns logits ``(n, classes)`` or ``(n, length, classes)``.
        settings: how.
        checkpoint: a file with the state of the run; None writes none.
        progress: called with the number of steps done and of all.
        enmeshment: the loss that ``settings.enmeshment_weight`` weights; both are given, or neither.

    Returns:
        A record for each ``evaluate_every`` steps, and one for the last step.

    Raises:
        TypeError: ``model`` is no ``nn.Module`` or returns no logits, ``enmeshment`` is no loss.
        ValueError: the model has no parameters that learn, or they lack a trained weight of ``enmeshment``.
        TrainingError: the loss is not finite; or the checkpoint is damaged, of another run or of more steps.
        OSError: the checkpoint cannot be read or written.
    """
    check_callback("progress", progress)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learning:
        raise ValueError("model must have parameters that learn, got none")
    device = device_of(model)
    run = _Run(task, model, make_optimizer(learning, settings, enmeshment), settings, enmeshment)
    if checkpoint is not None and os.path.exists(checkpoint):
        run.load(checkpoint)
    modes = [(module, module.training) for module in model.modules()]
    saved = time.monotonic()
    try:
        with forked_random([device]):
            if run.step == settings.steps and [record["step"] for record in run.history[-1:]] != [run.step]:
                run.record()  # it was stopped there as at one step of many
            for step in range(run.step + 1, settings.steps + 1):
                model.train()
                run.advance(step, device)
                now = time.monotonic()
                if checkpoint is not None and (step == settings.steps or now - saved > _SECONDS_BETWEEN):
                    run.save(checkpoint)
                    saved = now
                if progress is not None:
                    progress(step, settings.steps)
    finally:
        for module, mode in modes:
            module.training = mode
    return run.history


class _Run:
    """A run: what it trains, and how far it has come."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        enmeshment: EnmeshmentLoss | None,
    ) -> None:
        self.task, self.model, self.optimizer, self.settings = task, model, optimizer, settings
        self.enmeshment = enmeshment
        self.step = 0
        self.history: list[Record] = []
        self.loss = torch.tensor(math.nan, device="cpu")
        self.before = _digest(model)

    def advance(self, step: int, device: torch.device) -> None:
        """Make a step; at some of them measure the model."""
        seed = (self.settings.seed * 1_000_003 + step) % 2**63
        seed_generators(device, seed)
        generator = torch.Generator("cpu").manual_seed(seed)
        inputs, targets = self.task.draw(self.settings.batch_size, generator)
        self.optimizer.zero_grad()
        loss = _loss(self.model(inputs.to(device)), targets.to(device))
        loss.backward()
        self.optimizer.step()
        self.step, self.loss = step, loss.detach()
        if step % self.settings.evaluate_every == 0 or step == self.settings.steps:
            self.record()

    def record(self) -> None:
        """Measure the model after this step.

        Raises:
            TrainingError: a loss is not finite.
        """
        entropy, accuracy = evaluate(self.model, self.task.test_batches)
        record = {
            "step": self.step,
            "loss": self.loss.item(),
            "test_loss": entropy,
            "test_accuracy": accuracy,
        }
        if self.enmeshment is not None:
            with torch.no_grad():
                record["enmeshment"] = self.enmeshment().sum().item()
        for name, value in record.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {name} is {value} after step {self.step}: a smaller learning_rate "
                    f"(now {self.settings.learning_rate}) may help"
                )
        self.history.append(record)

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the interrupted one."""
        settings = asdict(self.settings)
        del settings["steps"]
        loss = self.enmeshment
        clusters = None if loss is None else f"{loss.reduction} {_digest(loss)}"
        return {**settings, "task": self.task.fingerprint, "enmeshment loss": clusters}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that training needs to continue, whole or not at all."""
        state = {
            "format": _FORMAT,
            "identity": self.identity(),
            "before": self.before,
            "step": self.step,
            "loss": self.loss.item(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }
        write_state(path, state)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Restore the state in a checkpoint.

        Raises:
            TrainingError: it is damaged, of another run or of more steps.
        """
        name = os.fspath(path)
        state = read_state(path, _FORMAT, _PARTS)
        saved, wanted = state["identity"], self.identity()
        differing = [
            f"{key} {saved.get(key)!r}, not {wanted[key]!r}"
            for key in wanted
            if saved.get(key) != wanted[key] and key not in _DIGESTS
        ]
        # Checkpoints of earlier releases name no enmeshment loss: there was none.
        differing += [f"another {key}" for key in _DIGESTS if saved.get(key) != wanted[key]]
        if differing:
            raise TrainingError(f"{name} is of a run with {'; '.join(differing)}")
        if state["step"] > self.settings.steps:
            raise TrainingError(
                f"steps must be at least {state['step']} to continue {name}, which was trained for so many, "
                f"got {self.settings.steps}"
            )
        if self.before not in (state["before"], _digest_of(state["model"].items())):
            raise TrainingError(
                f"{name} is of a model that began with other weights: make it with the same seed and sizes"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.before = state["step"], state["before"]
        self.loss = torch.tensor(state["loss"], dtype=torch.float64, device="cpu")
        # The last step has a record even where an uninterrupted run of more steps would not make one.
        self.history = [
            record
            for record in state["history"]
            if record["step"] % self.settings.evaluate_every == 0 or record["step"] == self.settings.steps
        ]


def evaluate(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    """Return the mean cross-entropy, in nats, and the share of right answers, over all targets.

    The model runs in evaluation mode and is left as it was.
    """
    device = device_of(model)
    entropy, right, count = 0.0, 0, 0
    with evaluating(model):
        for inputs, targets in batches:
            logits, answers = logits_of(model(inputs.to(device))), targets.to(device)
            entropy += _loss(logits, answers).item() * targets.numel()
            right += int((logits.argmax(-1) == answers).sum())
            count += targets.numel()
    return entropy / count, right / count


def _loss(output: Any, targets: Tensor) -> Tensor:
    logits = logits_of(output)
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"model must return logits of shape {(*targets.shape, 'classes')}, got {tuple(logits.shape)}"
        )
    # In float32 a loss near zero is nothing but rounding, which weight decay then makes training jump by.
    if widest_float(logits.device) != torch.float64:
        logits, targets = logits.cpu(), targets.cpu()
    return cross_entropy(logits.double().flatten(0, -2), targets.flatten())


def _digest(model: nn.Module) -> str:
    return _digest_of(model.state_dict().items())


def _digest_of(tensors: Iterable[tuple[str, Any]]) -> str:
    """A digest of a state_dict's tensors; what a module adds of other kinds does not count."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        if isinstance(tensor, Tensor):
            plain = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {plain.dtype} {tuple(plain.shape)} ".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_parts(parts: Mapping[str, Any]) -> str:
    """A digest of named values, for :attr:`Task.fingerprint`; a tensor counts with its numbers.

    Example:
        >>> digest_of_parts({"p": 7}) == digest_of_parts({"p": 11})
        False
    """
    digest = hashlib.sha256()
    for name, value in parts.items():
        digest.update(f"{name} ".encode())
        digest.update(value.numpy().data if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()
