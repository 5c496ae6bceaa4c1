"""The machines that this one compiles for, by the C++ compiler of the package ``ziglang``.

It brings the headers and the C library of every one of them. The C++ library is linked into what it makes; of
PyTorch only C functions are called.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"

# The oldest C library of Linux that the wheels run with: that of PyTorch's own wheels.
GLIBC = (2, 28)


@dataclass(frozen=True)
class Target:
    """A machine to compile for.

    Attributes:
        name: what the commands call it.
        triple: what the compiler calls it.
        suffix: how the name of the compiled library ends there.
    """

    name: str
    triple: str
    suffix: str = ".so"


TARGETS = {
    target.name: target
    for target in (
        Target("linux-x86_64", f"x86_64-linux-gnu.{GLIBC[0]}.{GLIBC[1]}"),
        Target("linux-aarch64", f"aarch64-linux-gnu.{GLIBC[0]}.{GLIBC[1]}"),
        # Programs that need nothing of the machine, for an emulator without the other machine's files.
        Target("static-x86_64", "x86_64-linux-musl"),
        Target("static-aarch64", "aarch64-linux-musl"),
        Target("macos-arm64", "aarch64-macos.11.0"),
        Target("windows-x86_64", "x86_64-windows-gnu", ".pyd"),
    )
}


def compiler(target: Target) -> Path:
    """Write a script that is the C++ compiler for a target; return its path.

    Raises:
        SystemExit: the package ``ziglang`` is not installed.
    """
    if importlib.util.find_spec("ziglang") is None:
        raise SystemExit(f"the compiler is missing. Run: {sys.executable} -m pip install ziglang")
    script = BUILD / "compilers" / target.name
    command = [sys.executable, "-m", "ziglang", "c++", "-target", target.triple]
    text = f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'
    if not script.exists() or script.read_text(encoding="utf-8") != text:
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(text, encoding="utf-8")
        script.chmod(0o755)
    return script


def main() -> None:
    """Print the path of the compiler for the target that the command line names."""
    if len(sys.argv) != 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"usage: python -m toolchains.targets TARGET; TARGET is one of {', '.join(TARGETS)}")
    print(compiler(TARGETS[sys.argv[1]]))


if __name__ == "__main__":
    main()
