"""What differs between devices of PyTorch: the widest floating type, and generators of random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import torch
from torch import Tensor

# Known without asking: meta tensors have no numbers, and MPS refuses float64.
_KNOWN = {"cpu": torch.float64, "cuda": torch.float64, "meta": torch.float64, "mps": torch.float32}

_FOUND: dict[tuple[str, int | None], torch.dtype] = {}


def widest_float(device: torch.device) -> torch.dtype:
    """Return the floating type in which sums are computed on a device: float64, or float32 where it has none.

    Example:
        >>> widest_float(torch.device("cpu")), widest_float(torch.device("mps"))
        (torch.float64, torch.float32)
    """
    known = _KNOWN.get(device.type)
    return _found(device.type, device.index) if known is None else known


def _found(kind: str, index: int | None) -> torch.dtype:
    place = (kind, index)
    if place not in _FOUND:
        answers: list[torch.dtype | None] = []
        # A thread of its own is in no transform of torch.func, no tracer and no mode that its starter is in.
        asking = Thread(
            target=lambda: answers.append(_asked(torch.device(kind if index is None else f"{kind}:{index}")))
        )
        asking.start()
        asking.join()
        if not answers or answers[0] is None:
            # There is no such device here: its tensors are fake, and any type has a shape.
            return torch.float64
        _FOUND[place] = answers[0]
    return _FOUND[place]


# torch.compile takes the answer, not the question, into its graph. The mark is what the decorator
# torch.compiler.assume_constant_result sets; that one would import the compiler, which takes seconds.
_found._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _asked(device: torch.device) -> torch.dtype | None:
    """Return the widest type that the device computes in; None if it does not even compute in float32."""
    return next((dtype for dtype in (torch.float64, torch.float32) if _computes(device, dtype)), None)


def _computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device adds two numbers as the type does; some take float32 for float64 and do not tell."""
    small = torch.finfo(dtype).eps
    try:
        total = float(torch.tensor([1.0, small], dtype=dtype, device=device).sum())
    except (RuntimeError, TypeError, AssertionError, ImportError):  # the last two: PyTorch lacks the device
        return False
    return total == 1.0 + small


def _module(device: torch.device) -> Any:
    """The module of PyTorch for a type of devices, such as ``torch.mps``; None if there is none."""
    return getattr(torch, device.type, None)


def random_state(device: torch.device) -> Tensor | None:
    """Return the state of a device's generator; None for the CPU, and for a device without one to save."""
    get = None if device.type == "cpu" else getattr(_module(device), "get_rng_state", None)
    state: Tensor | None = None if get is None else get(device)
    return state


def set_random_state(device: torch.device, state: Tensor | None) -> None:
    """Restore what :func:`random_state` returned for a device of the same type."""
    if state is not None:
        _module(device).set_rng_state(state, device)


@contextmanager
def forked_random(devices: Iterable[torch.device]) -> Iterator[None]:
    """Give the generators of the CPU and of these devices back the states that they had at the start."""
    of_cpu, states = torch.get_rng_state(), {device: random_state(device) for device in devices}
    try:
        yield
    finally:
        torch.set_rng_state(of_cpu)
        for device, state in states.items():
            set_random_state(device, state)


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the generators of the CPU and of a device, and no other device's."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        module = _module(device)
        # MPS has one device, and no function for all.
        seeder = getattr(module, "manual_seed_all", getattr(module, "manual_seed", None))
        if seeder is not None:
            seeder(seed)
