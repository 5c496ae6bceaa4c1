"""Loads the compiled libraries, which register the operators ``torch.ops.modfast.*``.

One has the CPU kernels. An installation without a C++ compiler lacks it; plain PyTorch, the reference, then
computes everything. The other has the GPU kernels, and is loaded if it was built and PyTorch has CUDA.
A third is for tests only: the GPU kernels, compiled for the CPU, take the place of the CPU kernels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from .binary import SUFFIX, Binary
from .requirements import check_torch, wanted_backend
from .version import __version__

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


FOLDER = Path(__file__).parent
LIBRARY = FOLDER / f"_C{SUFFIX}"


def _choose_backend(is_built: bool) -> str:
    wanted = wanted_backend() or ("compiled" if is_built else None)
    if wanted is not None:
        return wanted
    warnings.warn(
        "modfast has no compiled library here, as after an installation without a C++ compiler. It computes "
        "the same in plain PyTorch (the reference backend), many times slower. For the fast one install a "
        "C++ compiler (for example: apt install g++) and then modfast again. In a clone of the repository "
        "run: pip install --force-reinstall --no-deps --no-cache-dir . "
        "To stay with plain PyTorch and not be warned, set MODFAST_BACKEND=reference.",
        RuntimeWarning,
        stacklevel=2,
    )
    return "reference"


def _load(is_built: bool) -> Binary | None:
    if not is_built and BACKEND == "reference":
        return None
    library = Binary(LIBRARY, "compiled")
    found = library.text("version")
    if found != __version__:
        raise library.not_loaded(f"{LIBRARY} is of modfast {found}, and the package is {__version__}")
    # A forced instruction set that this processor lacks is reported now, not at the first call.
    if not library.text("instruction_set_in_use"):
        raise ImportError(library.text("instruction_set_error"))
    return library


def _load_cuda() -> Binary | None:
    path = FOLDER / f"_cuda{SUFFIX}"
    # The library needs functions that only a PyTorch with CUDA has; not every build contains it.
    if _library is None or torch.version.cuda is None or not path.exists():
        return None
    return Binary(path, "CUDA")


def _load_emulated() -> tuple[Binary, torch.library.Library]:
    """Load the GPU kernels that the tests compile for the CPU; operators on CPU tensors then run by them."""
    chosen = os.environ.get("MODFAST_EMULATED_LIBRARY")
    path = Path(chosen) if chosen else FOLDER / f"_emulated{SUFFIX}"
    if not path.is_file():
        raise ImportError(
            f"MODFAST_EMULATED_LIBRARY must be the path of a compiled library, got {chosen!r}"
            if chosen
            else "MODFAST_BACKEND is 'emulated', but its library is not built. "
            "In a checkout run: python tests/emulation/build.py"
        )
    library = Binary(path, "emulated")
    overrides = torch.library.Library("modfast", "IMPL")  # while it lives
    for full in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"):
        if full.startswith("modfast::"):
            overrides.impl(full, _instead_of_cpu_kernel(full), "CPU", allow_override=True)
    return library, overrides


def _instead_of_cpu_kernel(full: str) -> Callable[..., Any]:
    operator = getattr(torch.ops.modfast, full.removeprefix("modfast::")).default
    cpu, cuda = (
        torch._C.DispatchKeySet(key) for key in (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA)
    )
    kernel = torch.library.get_kernel(full, "CPU")

    def run(*args: Any, **kwargs: Any) -> Any:
        if _cpu_kernels_wanted:
            return kernel.call_boxed(cpu, *args, **kwargs)
        return operator.redispatch(cuda, *args, **kwargs)

    return run


@contextmanager
def cpu_kernels() -> Iterator[None]:
    """Run operators on CPU tensors by the CPU kernels, even if emulated ones have taken their place."""
    _cpu_kernels_wanted.append(True)
    try:
        yield
    finally:
        _cpu_kernels_wanted.pop()


check_torch(torch.__version__)
# A link that leads nowhere is a library, too: one that does not load.
_is_built = os.path.lexists(LIBRARY)
BACKEND = _choose_backend(_is_built)
_library = _load(_is_built)
# Without the library no operator is registered, and the reference computes everything.
HAS_OPERATORS = _library is not None
_cpu_kernels_wanted: list[bool] = []
emulated_library, _overrides = _load_emulated() if BACKEND == "emulated" else (None, None)
# The two have kernels for the same device.
_cuda_library = None if BACKEND == "emulated" else _load_cuda()


def kernel_devices() -> list[str]:
    """The types of devices that this build has kernels for, those in use."""
    if BACKEND == "reference":
        return []
    return ["cpu"] if _cuda_library is None else ["cpu", "cuda"]


def fake_kernel(name: str) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Return a decorator that registers a function as an operator's fake kernel, if there are operators.

    Raises:
        ImportError: the library has no such operator, as after a change of its sources without a new build.
    """
    if _library is None:
        return lambda function: function
    if not hasattr(torch.ops.modfast, name):
        raise _library.not_loaded(f"{LIBRARY} has no operator {name!r}: it was built from other sources")
    register: Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]
    register = torch.library.register_fake(f"modfast::{name}")
    return register


def backend() -> dict[str, Any]:
    """Return what this build contains, and what is in use.

    Returns:
        ``backend``: "compiled"; or "reference" (plain PyTorch) or "emulated" (the GPU kernels, compiled for
        the CPU by the tests) if the environment variable ``MODFAST_BACKEND`` says so; "reference" also if
        modfast was installed without a C++ compiler; ``version``; ``cpu_compiled``, ``cpu_available``:
        instruction sets in this build, and those that this processor can run, none without the compiled
        library; ``cpu``: the one in use (``MODFAST_CPU`` forces it), or None; ``cuda``: whether CUDA kernels
        are compiled in and loaded; ``cuda_architectures``: for which GPUs, as in "9.0", or "12.0+PTX" for
        that and all later ones; ``kernels``: the types of devices with kernels, "cpu" and "cuda" (on all
        others ``modfast.reference`` computes); ``openmp``: whether PyTorch, whose threads the kernels share,
        runs them by OpenMP; ``threads``: how many are in use; ``torch``: PyTorch's version.

    Example:
        >>> backend()["version"]
        '0.1.0'
    """
    return {
        "backend": BACKEND,
        "version": _library.text("version") if _library else __version__,
        "cpu_compiled": _library.texts("compiled_instruction_sets") if _library else [],
        "cpu_available": _library.texts("available_instruction_sets") if _library else [],
        "cpu": _library.text("instruction_set_in_use") if _library else None,
        "cuda": _cuda_library is not None,
        "cuda_architectures": _cuda_library.texts("cuda_architectures") if _cuda_library else [],
        "kernels": kernel_devices(),
        "openmp": torch.backends.openmp.is_available(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
