"""The machine: its device, threads and hardware, and the command line of this program."""

from __future__ import annotations

import contextlib
import platform
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .library import backend
from .version import __version__


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA if it is available and this build has kernels for it, else CPU.

    On a device without kernels ``modfast.reference`` computes.

    Raises:
        ValueError: there is no such device, or it has no numbers.
    """
    serves_cuda = backend()["cuda"] or backend()["backend"] == "reference"
    if name == "auto":
        return torch.device("cuda" if serves_cuda and torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"device must be 'auto' or one that is here, got {name!r} ({error})") from error
    if device.type == "meta":
        raise ValueError(f"device must be 'auto' or one that computes, got {name!r}")
    return device


@contextlib.contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Set the number of PyTorch's threads on the CPU within the context; None leaves it unchanged."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def environment() -> dict[str, Any]:
    """Versions and hardware that a result depends on, ready for JSON.

    Returns:
        ``modfast``, ``python``, ``torch``, ``numpy`` (versions),
        ``platform``, ``processor``, ``threads`` (of PyTorch's own pool, at the time of the call) and
        ``devices`` (names of the CUDA devices, an empty list without any).

    Example:
        >>> sorted(environment())
        ['devices', 'modfast', 'numpy', 'platform', 'processor', 'python', 'threads', 'torch']
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "modfast": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(index) for index in range(count)],
    }


def _processor() -> str:
    # On Linux platform.processor() knows the architecture at best; the kernel knows the model.
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def command_line() -> str:
    """The command that started this program, as it can be typed again.

    For a program started by ``python -m``, ``sys.argv`` holds the path of a file, which is no command.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return shlex.join(sys.argv)
    return shlex.join(["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])
