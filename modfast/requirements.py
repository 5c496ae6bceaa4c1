"""What modfast needs, checked without importing PyTorch: ``import modfast`` is quick, or fails at once."""

from __future__ import annotations

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

OLDEST_TORCH = (2, 11)
BACKENDS = ("compiled", "reference", "emulated")


def check_requirements() -> None:
    """Check PyTorch's version and the settings in the environment, without importing PyTorch.

    Raises:
        ImportError: PyTorch is missing or too old, or ``MODFAST_BACKEND`` names no backend.
    """
    check_torch(installed_torch())
    wanted_backend()


def installed_torch() -> str | None:
    """Return the version of PyTorch that is imported or would be, None if it does not tell it in its file.

    Raises:
        ImportError: there is no PyTorch.
    """
    # A thread that is still importing it has put it there without its version.
    imported = getattr(sys.modules.get("torch"), "__version__", None)
    if imported is not None:
        return str(imported)
    hidden = "torch" in sys.modules and sys.modules["torch"] is None
    spec = None if hidden else find_spec("torch")
    if spec is None or spec.origin is None:
        raise ImportError(
            "modfast needs PyTorch 2.11 or later, which is not installed. Run: pip install 'torch>=2.11'"
        )
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None  # packed in some other way; it is asked when it is imported
    found = re.search(r"^__version__ = ['\"](.+)['\"]", text, re.MULTILINE)
    return None if found is None else found[1]


def check_torch(version: str | None) -> None:
    """Check a version of PyTorch; None passes.

    Raises:
        ImportError: it is too old.

    Example:
        >>> check_torch("2.11.0+cpu")
        >>> check_torch("2.9.1")
        Traceback (most recent call last):
        ImportError: modfast needs PyTorch 2.11 or later, found 2.9.1. Run: pip install -U 'torch>=2.11'
    """
    if version is None:
        return
    release = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:2])
    if release < OLDEST_TORCH:
        raise ImportError(
            f"modfast needs PyTorch 2.11 or later, found {version}. Run: pip install -U 'torch>=2.11'"
        )


def wanted_backend() -> str | None:
    """Return the backend that ``MODFAST_BACKEND`` names, None if it is not set.

    Raises:
        ImportError: it names none.
    """
    wanted = os.environ.get("MODFAST_BACKEND") or None
    if wanted is not None and wanted not in BACKENDS:
        raise ImportError(f"MODFAST_BACKEND must be 'compiled', 'reference' or 'emulated', got {wanted!r}")
    return wanted
