"""Which optimiser trains a model, and how the enmeshment loss reaches its step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modfast.energy.loss import EnmeshmentLoss
from modfast.library import kernel_devices
from modfast.optim import AdamW
from modfast.shapes import FLOATS

from .config import TrainConfig


def make_optimizer(model: nn.Module, loss: EnmeshmentLoss, config: TrainConfig) -> torch.optim.Optimizer:
    """Return Adam over a model's parameters, by one of two implementations with the same steps.

    Args:
        model: on its device.
        loss: the loss whose layers are regularised.
        config: says which (``optimizer``), and how many weights stay (``keep``).

    Raises:
        ValueError: ``optimizer`` is ``"fused"`` or ``keep`` is given, and a parameter has a type that is not
            taken.
    """
    reason = _why_not(model)
    kinds = {parameter.device.type for parameter in model.parameters()}
    # On other devices PyTorch's own is the faster one, but it cannot keep a share of the weights.
    is_other = config.keep is None and not kinds <= {"cpu", *kernel_devices()}
    if config.optimizer == "adam" or (config.optimizer == "auto" and (is_other or reason is not None)):
        if config.keep is not None:
            raise ValueError(
                f"keep must be None: there is no fused optimizer for {reason}, got {config.keep}"
            )
        # Fused makes one pass over the parameters; the default's dozen take a tenth of a step on two cores.
        fused = True if kinds <= {"cpu", "cuda"} else None  # not every other device has it
        return torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=fused)
    if reason is not None:
        raise ValueError(f"optimizer must be 'adam' or 'auto' for {reason}, got {config.optimizer!r}")
    # Without weight decay AdamW is Adam.
    return AdamW(
        model.parameters(), config.learning_rate, weight_decay=0.0, enmeshment=loss, keep=config.keep
    )


def _why_not(model: nn.Module) -> str | None:
    """What the fused optimiser does not take, in words; None if it serves the model."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype not in FLOATS:
            return f"the parameter {name!r} of {parameter.dtype}"
    return None


def set_loss(optimizer: torch.optim.Optimizer, loss: EnmeshmentLoss) -> None:
    """Give the optimiser the loss that regularises from now on."""
    if isinstance(optimizer, AdamW):
        optimizer.enmeshment = loss


def set_keep(optimizer: torch.optim.Optimizer, share: float | None) -> None:
    """Say which share of the regularised weights stays after the step that comes next; None for all."""
    if isinstance(optimizer, AdamW):
        optimizer.keep = share


def add_loss(optimizer: torch.optim.Optimizer, loss: EnmeshmentLoss, weight: float) -> Tensor | float:
    """Add the gradient of ``weight`` times the loss to the step that comes next.

    Call it before each step, after all other gradients are there.

    Returns:
        ``weight`` times the loss of the weights as they are.
    """
    if isinstance(optimizer, AdamW):
        optimizer.enmeshment_weight = weight
        if not weight:
            return 0.0
        value = optimizer.enmeshment_value
        assert value is not None
        return weight * value
    return weight * loss.accumulate_grad_(weight) if weight else 0.0
