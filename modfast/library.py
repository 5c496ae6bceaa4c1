"""Loads the compiled libraries, which register the operators ``torch.ops.modfast.*``.

One has the CPU kernels; the other has the GPU kernels, and is loaded if it was built and PyTorch has CUDA.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

OLDEST_TORCH = (2, 11)


def _import(name: str, kind: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"modfast's {kind} library cannot be loaded ({error}). "
            "In a checkout run: pip install --no-build-isolation -e . "
            "Elsewhere run: pip install --force-reinstall --no-deps modfast"
        ) from error


def _load() -> Any:
    release = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in torch.__version__.split(".")[:2])
    if release < OLDEST_TORCH:
        raise ImportError(
            f"modfast needs PyTorch 2.11 or later, found {torch.__version__}. "
            "Run: pip install -U 'torch>=2.11'"
        )
    _C = _import("modfast._C", "compiled")
    # A forced instruction set that this processor lacks is reported now, not at the first call.
    try:
        _C.instruction_set_in_use()
    except RuntimeError as error:
        raise ImportError(str(error)) from error
    return _C


def _load_cuda() -> Any | None:
    # The library needs functions that only a PyTorch with CUDA has; not every build contains it.
    if torch.version.cuda is None or find_spec("modfast._cuda") is None:
        return None
    return _import("modfast._cuda", "CUDA")


def _choose_backend() -> str:
    chosen = os.environ.get("MODFAST_BACKEND") or "compiled"
    if chosen not in ("compiled", "reference"):
        raise ImportError(f"MODFAST_BACKEND must be 'compiled' or 'reference', got {chosen!r}")
    return chosen


_library = _load()
_cuda_library = _load_cuda()
BACKEND = _choose_backend()


def backend() -> dict[str, Any]:
    """Return what this build contains, and what is in use.

    Returns:
        ``backend``: "compiled", or "reference" when ``MODFAST_BACKEND=reference`` is set; ``version``;
        ``cpu_compiled``, ``cpu_available``: instruction sets in this build, and those that this processor
        can run; ``cpu``: the one in use (``MODFAST_CPU`` forces it); ``cuda``: whether CUDA kernels are
        compiled in and loaded; ``cuda_architectures``: for which GPUs, as in "9.0", or "12.0+PTX" for that
        and all later ones; ``openmp``: whether PyTorch, whose threads the kernels share, runs them by
        OpenMP; ``threads``: how many are in use; ``torch``: PyTorch's version.

    Example:
        >>> backend()["version"]
        '0.1.0'
    """
    return {
        "backend": BACKEND,
        "version": _library.version,
        "cpu_compiled": _library.compiled_instruction_sets(),
        "cpu_available": _library.available_instruction_sets(),
        "cpu": _library.instruction_set_in_use(),
        "cuda": _cuda_library is not None,
        "cuda_architectures": list(_cuda_library.architectures) if _cuda_library else [],
        "openmp": torch.backends.openmp.is_available(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
