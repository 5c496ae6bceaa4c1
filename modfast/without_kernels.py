"""Devices that this build has no kernels for: operators run there by the formulas of ``modfast.reference``.

An operator gets its formula as the kernel that PyTorch takes where there is no other, so that a tensor's
device alone decides, also under autograd, ``torch.func`` and ``torch.compile``. What would wait for such a
device at every step, as the solvers of spectral clustering would, runs on the CPU instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .library import BACKEND, HAS_OPERATORS, kernel_devices
from .shapes import require


class Formula(NamedTuple):
    """What an operator does where it has no kernel.

    Attributes:
        compute: its specification in plain PyTorch, with the operator's arguments and results.
        check: its fake kernel, which raises for arguments that do not fit.
    """

    compute: Callable[..., Any]
    check: Callable[..., Any]


def has_kernels(device: torch.device) -> bool:
    """Whether this build has kernels for a device; tensors on the meta device need none."""
    return device.type == "meta" or device.type in kernel_devices()


def on_host(tensor: Tensor) -> Tensor:
    """Return the tensor itself if there are kernels for its device, else a differentiable copy on the CPU."""
    if has_kernels(tensor.device):
        return tensor
    warn_without_kernels(tensor.device)
    return tensor.cpu()


class MissingKernelsWarning(RuntimeWarning):
    """Warns that a GPU computes by plain PyTorch, though there are kernels for it that could be built."""


def warn_without_kernels(device: torch.device) -> None:
    """Warn, once a process, of an NVIDIA GPU that could have kernels. For other devices there are none."""
    if device.type != "cuda" or BACKEND == "reference" or _warned:
        return
    _warned.append(True)
    warnings.warn(
        "this build of modfast has no CUDA kernels: on a GPU plain PyTorch computes, which is slower, and "
        "clustering and circuits run on the CPU. To build the kernels you need a CUDA toolkit of the same "
        "major version as PyTorch's. In a clone of the repository run: "
        "MODFAST_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps --no-cache-dir .",
        MissingKernelsWarning,
        stacklevel=3,
    )


_warned: list[bool] = []


def register_formulas(formulas: Mapping[str, Formula]) -> torch.library.Library | None:
    """Make formulas the kernels of operators on all devices for which there are no others.

    Args:
        formulas: by the operator's name.

    Returns:
        What registers them, as long as it lives. None without the compiled library, which has the operators.
    """
    if not HAS_OPERATORS:
        return None
    registered = torch.library.Library("modfast", "IMPL")
    for name, formula in formulas.items():
        # Of all devices, and weaker than a kernel for one device.
        registered.impl(name, _kernel(formula), "CompositeExplicitAutograd")
    return registered


def _kernel(formula: Formula) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        tensors = list(_tensors(args))
        for tensor in tensors:
            require(
                tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested,
                f"tensors must be dense numbers, got {tensor.dtype}, {tensor.layout}",
            )
            require(
                tensor.device == tensors[0].device,
                f"tensors must be on one device, got {tensors[0].device} and {tensor.device}",
            )
        formula.check(*args)  # refuses empty lists, too
        warn_without_kernels(tensors[0].device)
        with torch.no_grad():  # a kernel records nothing for gradients
            return formula.compute(*args)

    return run


def _tensors(args: Iterable[Any]) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from _tensors(arg)
