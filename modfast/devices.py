"""What a device can compute: the widest floating type that it has."""

from __future__ import annotations

from threading import Thread

import torch

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
        asking = Thread(target=lambda: answers.append(_asked(torch.device(kind, index))))
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
    except (RuntimeError, TypeError, AssertionError):  # AssertionError: PyTorch was built without the device
        return False
    return total == 1.0 + small
