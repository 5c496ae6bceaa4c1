"""Training one network: plain or modular, from a checkpoint if there is one."""

from __future__ import annotations

import math
import string
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from modfast import EnmeshmentLoss, read_network
from modfast.network.units import Network
from modfast.optim import AdamW
from modfast.tasks import NextToken, TrainingError, Transformer
from modfast.train.checkpoint import read_state, write_state

from .arms import CLUSTERS, Arm, Size

_FORMAT = "modfast gpt benchmark 1"
_PARTS = ("identity", "step", "model", "optimizer", "snapshots", "seconds")
_SECONDS_BETWEEN = 20.0
_WARMUP = 100
_BETAS = (0.9, 0.98)
_PERIODS = (10, 32)
_LETTERS = torch.tensor([ord(letter) for letter in string.ascii_letters])


class Trained:
    """A trained network.

    Attributes:
        model: the network.
        network: its units.
        snapshots: step to weights.
        seconds: that training took, over all parts of an interrupted run.
    """

    def __init__(self, model: Transformer, snapshots: dict[int, dict[str, Tensor]], seconds: float) -> None:
        self.model, self.snapshots, self.seconds = model, snapshots, seconds
        self.network = network_of(model)


def network_of(model: Transformer) -> Network:
    """Return the units of a network, whatever its weights."""
    return read_network(model, torch.zeros(1, 8, dtype=torch.int64))


def new_model(task: NextToken, size: Size, seed: int) -> Transformer:
    """Return a network that is not trained yet.

    Its positions begin as waves, from which a head finds the place before within few hundred steps. From
    random positions, the default, it takes longer than these networks are trained.
    """
    model = task.model(width=size.width, heads=size.heads, layers=size.layers, seed=seed)
    length, width = model.positions.weight.shape
    exponents = torch.arange(width // 2) / (width // 2 - 1)
    angles = torch.arange(length)[:, None] * (math.pi / 2) * 200.0**-exponents
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    with torch.no_grad():
        model.positions.weight.copy_(waves * math.sqrt(2 / width))
    return model


def draw(task: NextToken, size: Size, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Return the windows of one step: code, and in some of them random letters that are repeated.

    Code alone does not teach so small a network to continue what it has seen before within these steps.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    inputs, targets = task.draw(size.batch_size, generator)
    places = torch.arange(inputs.shape[1] + 1)
    for window in range(size.repeated):
        period = int(torch.randint(*_PERIODS, (), generator=generator))
        letters = _LETTERS[torch.randperm(len(_LETTERS), generator=generator)[:period]]
        line = torch.cat([letters, torch.tensor([ord("\n")])])
        repeated = line[places % len(line)]
        inputs[window], targets[window] = repeated[:-1], repeated[1:]
    return inputs, targets


def train(arm: Arm, size: Size, seed: int, task: NextToken, checkpoint: Path | None) -> Trained:
    """Train one network.

    Args:
        arm: how.
        size: how large, how long.
        seed: of the initial weights and of what is drawn.
        task: the text.
        checkpoint: a file with the state of the run; None writes none. A run of the same arm, size, seed and
            text goes on from there, with the same result as if it had not stopped.

    Raises:
        TrainingError: the loss is not finite, or the checkpoint is of another run.
    """
    model = new_model(task, size, seed)
    optimizer = _optimizer(model, arm, size)
    identity = {"arm": asdict(arm), "size": asdict(size), "seed": seed, "text": task.fingerprint}
    step, snapshots, before = 0, dict[int, dict[str, Tensor]](), 0.0
    if checkpoint is not None and checkpoint.exists():
        state = read_state(checkpoint, _FORMAT, _PARTS)
        if state["identity"] != identity:
            raise TrainingError(f"{checkpoint} is of another run than {arm.name} with seed {seed}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, snapshots, before = state["step"], state["snapshots"], state["seconds"]
    began = saved = time.monotonic()

    def save() -> None:
        if checkpoint is not None:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            parts = (identity, step, model.state_dict(), optimizer.state_dict(), snapshots)
            state = dict(zip(_PARTS, (*parts, before + time.monotonic() - began), strict=True))
            write_state(checkpoint, {"format": _FORMAT, **state})

    model.train()
    while step < size.steps:
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(size, step)
        inputs, targets = draw(task, size, seed, step)
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        if not math.isfinite(loss.item()):
            raise TrainingError(f"the loss is {loss.item()} after step {step}")
        loss.backward()
        optimizer.step()
        if arm.snapshots and step in size.snapshots:
            snapshots[step] = {name: value.clone() for name, value in model.state_dict().items()}
        if time.monotonic() - saved > _SECONDS_BETWEEN or step == size.steps:
            save()
            saved = time.monotonic()
    return Trained(model, snapshots, before + time.monotonic() - began)


def learning_rate(size: Size, step: int) -> float:
    """Return the learning rate of a step: it rises to the highest, then falls to a tenth of it."""
    falling = 0.1 + 0.45 * (1 + math.cos(math.pi * step / size.steps))
    return size.learning_rate * min(step / _WARMUP, falling)


def _optimizer(model: Transformer, arm: Arm, size: Size) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {
        "lr": size.learning_rate,
        "betas": _BETAS,
        "weight_decay": size.weight_decay,
    }
    if arm.weight:
        network = network_of(model)
        loss = EnmeshmentLoss(model, network.partitions(CLUSTERS, layers=arm.layers(network)))
        settings |= {"enmeshment": loss, "enmeshment_weight": arm.weight}
    return AdamW(model.parameters(), **settings)
