"""Finds the C++ compiler that setup.py builds with. Without one modfast is installed in plain Python."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import import_module
from pathlib import Path

# The oldest PyTorch whose stable ABI has what we use: the binary works with it and all later ones.
OLDEST_TORCH = (2, 11)

# For GCC and Clang.
CLANG_FLAGS = [
    "-std=c++17",
    "-O3",
    # Sums must round alike in every instruction set; see csrc/energy/lines.h.
    "-ffp-contract=off",
    # Nobody reads errno; with it no compiler takes several square roots at once.
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
# The same for clang-cl, which takes Microsoft's options; those after /clang: are its own. Nothing is exported
# from a library of Windows unless a source says so.
CLANG_CL_FLAGS = [
    "/std:c++17",
    "/O2",
    "/EHsc",
    "/clang:-O3",
    "/clang:-ffp-contract=off",
    "/clang:-fno-math-errno",
    "/W3",
]


def host_flags() -> list[str]:
    """Return the options of the C++ compiler on this system."""
    return CLANG_CL_FLAGS if sys.platform == "win32" else CLANG_FLAGS


def macros() -> list[tuple[str, str]]:
    """Return what each source may ask for: the oldest PyTorch to serve, and modfast's version."""
    text = (Path(__file__).parent / "modfast/version.py").read_text(encoding="utf-8")
    version = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)[0]
    return [
        ("TORCH_TARGET_VERSION", f"0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"),
        ("MODFAST_VERSION", f'"{version}"'),
    ]


def has_compiler() -> bool:
    """Return whether there is a C++ compiler, and have ``CXX`` name it where its name is not the usual one.

    ``CXX`` names the compiler. Without it, PyTorch's builder calls ``c++``. On Windows that is ``clang-cl``.

    Raises:
        SystemExit: ``CXX`` names a program that is not there. That is a mistake, and no wish to do without.
    """
    if named := os.environ.get("CXX"):
        # As setuptools reads it: a program, maybe with options, maybe after a cache such as "ccache".
        try:
            parts = shlex.split(named, posix=os.name == "posix")
        except ValueError:  # a quotation without its end
            parts = []
        if not parts or shutil.which(parts[0].strip('"')) is None:
            raise SystemExit(f"CXX must name a C++ compiler that is there, got {named!r}")
        return True
    if sys.platform == "win32":
        return _has_clang_cl()
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


def _has_clang_cl() -> bool:
    """Return whether there is clang-cl, and Visual Studio's headers and linker, and have ``CXX`` name it.

    Microsoft's own compiler has no vector types, which the inner loops are written in.
    """
    module = import_module("setuptools._distutils.ccompiler")
    microsofts = module.new_compiler(compiler="msvc")
    try:
        # It searches the registry and the folders of Visual Studio.
        microsofts.initialize()
    except import_module("setuptools.errors").PlatformError:
        return False
    # Visual Studio keeps both compilers: VC/Tools/MSVC/version/bin/HostX64/x64/cl.exe, VC/Tools/Llvm/x64/bin.
    cl = Path(microsofts.cc)
    theirs = cl.parents[5] / "Llvm" / "x64" / "bin" if len(cl.parents) > 5 else None
    llvm = Path(os.environ.get("PROGRAMFILES", "C:/Program Files")) / "LLVM" / "bin"
    for folder in (None, theirs, llvm):
        if shutil.which("clang-cl", path=None if folder is None else str(folder)):
            if folder is not None:
                os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
            os.environ["CXX"] = "clang-cl"
            return True
    return False
