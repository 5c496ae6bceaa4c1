"""Compiles the whole library for macOS and Windows on Linux.

``python -m toolchains.cross macos-arm64 windows-x86_64`` writes it below ``build/cross``. That shows that
every source compiles there, and that the linker finds each function of PyTorch that the library calls. It
runs nothing: a wheel for such a machine is built and tested on one, by setup.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from build_compiler import CLANG_FLAGS, macros
from toolchains.stubs import stable_functions, write_stubs
from toolchains.targets import BUILD, ROOT, TARGETS, compiler
from toolchains.wheels import run, torch_folder

PORTABLE = ("macos-arm64", "windows-x86_64")


def cross_compile(name: str, torch: Path) -> Path:
    """Compile and link the library of the CPU's kernels for a target; return the path of the library.

    Args:
        name: the name of the target.
        torch: the folder of a PyTorch, whose headers are the same on every machine.

    Raises:
        SystemExit: a source does not compile, or the library does not link.
    """
    target = TARGETS[name]
    work = BUILD / "cross" / name
    stubs = write_stubs(target, stable_functions(torch / "lib/libtorch_cpu.so"), work / "stubs")
    headers = ["-I", str(ROOT / "csrc"), "-isystem", str(torch / "include")]
    defined = [f"-D{key}={value}" for key, value in macros()]
    sources = [path for path in sorted((ROOT / "csrc").rglob("*.cpp")) if not path.stem.endswith("_cuda")]
    objects = [work / f"{path.parent.name}-{path.stem}.o" for path in sources]

    def compile_one(source: Path, made: Path) -> None:
        options = [*CLANG_FLAGS, *headers, *defined, "-c", str(source), "-o", str(made)]
        run([str(compiler(target)), *options])

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        list(pool.map(compile_one, sources, objects))
    library = work / f"_C{target.suffix}"
    link = [
        str(compiler(target)),
        "-shared",
        *map(str, objects),
        f"-L{stubs}",
        "-ltorch_cpu",
        "-o",
        str(library),
    ]
    run(link)
    return library


def main() -> None:
    """Compile for the targets that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="+", choices=PORTABLE)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="has PyTorch")
    options = parser.parse_args()
    torch = torch_folder(Path(os.path.abspath(options.python)))
    for name in options.targets:
        print(f"{cross_compile(name, torch)}: compiled and linked, not run")


if __name__ == "__main__":
    main()
