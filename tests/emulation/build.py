"""Builds the library of the emulated device: the CUDA kernels, compiled for the CPU, and their bindings.

``python tests/emulation/build.py`` writes ``modfast/_emulated.so``, for ``MODFAST_BACKEND=emulated``. With
``--sanitize`` it builds with the address and undefined-behaviour sanitizers, without the checks of shared
memory that take the compiler's calls for the thread sanitizer. Only what has changed is compiled again.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
EMULATION = Path(__file__).resolve().parent
LIBRARY = ROOT / "modfast" / "_emulated.so"
COMPILER = shlex.split(os.environ.get("CXX", "g++"))

COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]

# What nvcc defines, so that kernels take the device's branches; and guards stay beside their variables.
KERNELS = [
    "-D__CUDACC__",
    "-D__CUDA_ARCH__=900",
    "-fno-toplevel-reorder",
    "-Wno-unknown-pragmas",
    "-include",
    "cuda_runtime_api.h",
]
# The compiler calls a function at each access to memory; memory.cpp has these functions.
CHECKED = ["-O2", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def includes(sources: Path) -> list[str]:
    """Return the options that say where headers are; the stand-ins for CUDA's come first."""
    ours = [f"-I{EMULATION / 'include'}", f"-I{sources}", f"-I{EMULATION}"]
    return [*ours, *(option for path in cpp_extension.include_paths() for option in ("-isystem", path))]


def commands(objects: Path, sanitize: bool, changed: Path | None = None) -> dict[Path, list[str]]:
    """Return for each object file the command that makes it, the kernels' first."""
    sources = ROOT / "csrc"
    optimised = ["-O1", "-g", *SANITIZERS] if sanitize else ["-O2"]
    bindings = [
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        "-DUSE_CUDA",
        "-Wno-unused-parameter",
    ]
    result: dict[Path, list[str]] = {}

    def compile_(source: Path, options: Sequence[str]) -> None:
        folder = source.parent if source == changed else objects
        made = folder / f"{source.parent.name}-{source.name}.o"
        kept = [*COMPILER, *COMMON, *options, *includes(sources)]
        result[made] = [*kept, "-MMD", "-c", str(source), "-o", str(made)]

    # First, since the linker takes an inline function from the first object that has it.
    for source in sorted(sources.rglob("*.cu")):
        taken = changed if changed is not None and changed.name == source.name else source
        compile_(taken, [*(optimised if sanitize else CHECKED), *KERNELS, "-x", "c++"])
    for source in sorted(sources.rglob("ops*_cuda.cpp")):
        compile_(source, [*optimised, *bindings])
    for name in (
        "common/binding.cpp",
        "common/binding_layout.cpp",
        "energy/binding.cpp",
        "optim/binding.cpp",
    ):
        compile_(sources / name, [*optimised, *bindings])
    for source in sorted(EMULATION.glob("*.cpp")):
        compile_(source, optimised)
    return result


def build_program(source: Path, program: Path, sanitize: bool = False) -> Path:
    """Build a program from one file of kernels and the emulated device, without PyTorch; return its path."""
    optimised = ["-O1", "-g", *SANITIZERS] if sanitize else ["-O2"]
    kernels = program.with_suffix(".o")
    checked = optimised if sanitize else CHECKED
    # In two steps, since linking with the option would bring the thread sanitizer itself.
    first = [*COMPILER, *COMMON, *checked, *KERNELS, *includes(ROOT / "csrc"), "-x", "c++"]
    run([*first, "-c", str(source), "-o", str(kernels)])
    device = [str(path) for path in sorted(EMULATION.glob("*.cpp")) if path.name != "device.cpp"]
    run(
        [
            *COMPILER,
            *COMMON,
            *optimised,
            *includes(ROOT / "csrc"),
            str(kernels),
            *device,
            "-ldl",
            "-o",
            str(program),
        ]
    )
    return program


def is_current(made: Path, command: Sequence[str]) -> bool:
    """Return whether a file is newer than all that it was made of, and was made by this command."""
    told = made.with_suffix(".command")
    if not made.exists() or not told.exists() or told.read_text(encoding="utf-8") != shlex.join(command):
        return False
    inputs = made.with_suffix(".d").read_text(encoding="utf-8").replace("\\\n", " ").split(":", 1)[1].split()
    newest = made.stat().st_mtime
    return all(Path(name).exists() and Path(name).stat().st_mtime <= newest for name in inputs)


def build(library: Path = LIBRARY, *, sanitize: bool = False, changed: Path | None = None) -> Path:
    """Build the library of the kernels in ``csrc`` and their bindings; return its path.

    Args:
        library: the file to write.
        sanitize: build with the address and undefined-behaviour sanitizers.
        changed: a file of kernels that takes the place of the one in ``csrc`` of that name.

    Raises:
        SystemExit: the compiler reports an error, which is printed.
    """
    objects = ROOT / "build" / ("emulated-sanitized" if sanitize else "emulated")
    objects.mkdir(parents=True, exist_ok=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    # Two builds at once would write the same object files.
    with (objects / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build_alone(library, objects, sanitize, changed)


def _build_alone(library: Path, objects: Path, sanitize: bool, changed: Path | None) -> Path:
    plan = commands(objects, sanitize, changed)
    stale = [made for made, command in plan.items() if not is_current(made, command)]

    def make(made: Path) -> None:
        made.unlink(missing_ok=True)
        run(plan[made])
        made.with_suffix(".command").write_text(shlex.join(plan[made]), encoding="utf-8")

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        list(pool.map(make, stale))
    if (
        not stale
        and library.exists()
        and library.stat().st_mtime >= max(made.stat().st_mtime for made in plan)
    ):
        return library
    links = [f"-L{path}" for path in cpp_extension.library_paths()]
    # A new file, renamed: a process that has loaded the old one keeps it.
    unfinished = library.with_name(f"{library.name}.{os.getpid()}")
    run(
        [
            *COMPILER,
            "-shared",
            *(SANITIZERS if sanitize else []),
            *map(str, plan),
            *links,
            "-ltorch",
            "-ltorch_cpu",
            "-lc10",
            "-ldl",
            "-o",
            str(unfinished),
        ]
    )
    unfinished.replace(library)
    return library


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.stderr:
        print(done.stderr, file=sys.stderr)
    if done.returncode != 0:
        raise SystemExit(f"failed: {shlex.join(command)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sanitize", action="store_true", help="build build/emulated-sanitized/_emulated.so")
    options = parser.parse_args()
    if options.sanitize:
        print(build(ROOT / "build/emulated-sanitized" / LIBRARY.name, sanitize=True))
    else:
        print(build())


if __name__ == "__main__":
    main()
