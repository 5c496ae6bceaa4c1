"""Loads the compiled library, which registers the operators ``torch.ops.modfast.*``."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import torch

OLDEST_TORCH = (2, 11)


def _load() -> Any:
    release = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in torch.__version__.split(".")[:2])
    if release < OLDEST_TORCH:
        raise ImportError(
            f"modfast needs PyTorch 2.11 or later, found {torch.__version__}. "
            "Run: pip install -U 'torch>=2.11'"
        )
    try:
        _C = import_module("modfast._C")
    except ImportError as error:
        raise ImportError(
            f"modfast's compiled library cannot be loaded ({error}). "
            "In a checkout run: pip install --no-build-isolation -e . "
            "Elsewhere run: pip install --force-reinstall --no-deps modfast"
        ) from error
    # A forced instruction set that this processor lacks is better said now than at the first call.
    try:
        _C.instruction_set_in_use()
    except RuntimeError as error:
        raise ImportError(str(error)) from error
    return _C


def _choose_backend() -> str:
    chosen = os.environ.get("MODFAST_BACKEND") or "compiled"
    if chosen not in ("compiled", "reference"):
        raise ImportError(f"MODFAST_BACKEND must be 'compiled' or 'reference', got {chosen!r}")
    return chosen


_library = _load()
BACKEND = _choose_backend()


def backend() -> dict[str, Any]:
    """What is compiled in, and what is in use.

    Returns:
        ``backend``: "compiled", or "reference" when ``MODFAST_BACKEND=reference`` is set; ``version``;
        ``cpu_compiled``, ``cpu_available``: instruction sets in this build, and those that this processor
        can run; ``cpu``: the one in use (``MODFAST_CPU`` forces it); ``cuda``: whether CUDA kernels are
        compiled in; ``cuda_architectures``: for which; ``openmp``: whether PyTorch, whose threads the
        kernels share, runs them by OpenMP; ``threads``: how many are in use; ``torch``: PyTorch's version.

    Example:
        >>> backend()["version"]
        '0.1.0'
    """
    architectures = list(_library.cuda_architectures)
    return {
        "backend": BACKEND,
        "version": _library.version,
        "cpu_compiled": _library.compiled_instruction_sets(),
        "cpu_available": _library.available_instruction_sets(),
        "cpu": _library.instruction_set_in_use(),
        "cuda": bool(architectures),
        "cuda_architectures": architectures,
        "openmp": torch.backends.openmp.is_available(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
