"""Models whose initial weights depend on a seed alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from modfast.arguments import SEED, check

Model = TypeVar("Model", bound=nn.Module)


def seeded_model(make: Callable[[], Model], seed: int, device: str | torch.device) -> Model:
    """Make a float32 model, whatever PyTorch's default device, default dtype and random state.

    Args:
        make: makes it.
        seed: of the initial weights. They are drawn on the CPU, so that they are the same on any device.
        device: where the model is put.

    Raises:
        ValueError: ``seed`` is no seed.

    Example:
        >>> one, other = (seeded_model(lambda: nn.Linear(2, 2), 0, "cpu") for _ in range(2))
        >>> torch.equal(one.weight, other.weight)
        True
    """
    check("seed", seed, SEED)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng([]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            model = make()
    finally:
        torch.set_default_dtype(before)
    return model.to(device)
