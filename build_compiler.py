"""Finds the C++ compiler that setup.py builds with. Without one modfast is installed in plain Python."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import import_module


def has_compiler() -> bool:
    """Return whether there is a C++ compiler, and have ``CXX`` name it where its name is not the usual one.

    ``CXX`` names the compiler. Without it, PyTorch's builder calls ``c++``, on Windows Microsoft's compiler.

    Raises:
        SystemExit: ``CXX`` names a program that is not there. That is a mistake, and no wish to do without.
    """
    if named := os.environ.get("CXX"):
        # As setuptools reads it: a program, maybe with options, maybe after a cache such as "ccache".
        if shutil.which(shlex.split(named, posix=os.name == "posix")[0].strip('"')) is None:
            raise SystemExit(f"CXX must name a C++ compiler that is there, got {named!r}")
        return True
    if sys.platform == "win32":
        return _has_microsofts()
    usual = (sysconfig.get_config_var("CXX") or "g++").split()[0]
    for name in ("c++", usual, "g++", "clang++"):
        path = shutil.which(name)
        if path is None or (sys.platform == "darwin" and _is_stub(path)):
            continue
        if name != "c++":
            os.environ["CXX"] = path
        return True
    return False


def _is_stub(path: str) -> bool:
    """Return whether a compiler is the one of a Mac that only offers to install the developer tools."""
    if not path.startswith("/usr/bin/"):
        return False
    return subprocess.run(["/usr/bin/xcode-select", "-p"], capture_output=True, check=False).returncode != 0


def _has_microsofts() -> bool:
    if shutil.which("cl"):
        return True
    try:
        # It searches the registry and the folders of Visual Studio.
        import_module("setuptools._distutils.ccompiler").new_compiler(compiler="msvc").initialize()
    except import_module("setuptools.errors").PlatformError:
        return False
    return True
