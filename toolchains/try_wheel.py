"""Runs the kernels' tests against the modfast that is installed, as those who test a wheel do.

``python -m toolchains.try_wheel`` needs only pytest and NumPy. A file of tests that needs a package which is
missing is left out, and it is said; if none is left, that is an error.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.common.needs import main as needs

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("energy", "spectral", "circuits", "optim")


def main() -> int:
    """Return pytest's exit status."""
    found = find_spec("modfast")
    if found is None or found.origin is None:
        raise SystemExit(f"{sys.executable} has no modfast")
    if Path(found.origin).resolve().is_relative_to(ROOT):
        raise SystemExit(f"this would test the checkout, {found.origin}, and not an installed wheel")
    files = sorted(path for room in ROOMS for path in (ROOT / "tests" / room).glob("test_*.py"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        failed = needs(["--runnable", *map(str, files)])
    if failed:
        raise SystemExit("no file of tests can run")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not cuda", "-p", "no:cacheprovider"]
    return subprocess.run([*command, *printed.getvalue().split()], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
