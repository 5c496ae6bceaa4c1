"""Compile the CUDA sources as setup.py does, and read what the compiler says of each kernel."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

from build_cuda import NVCC_FLAGS, Toolkit, architecture_flags

ROOT = Path(__file__).parents[2]


class Resources(NamedTuple):
    """What one kernel takes on one architecture."""

    kernel: str  # as in the source, with its template's arguments
    source: str  # below csrc/
    architecture: str  # as PyTorch writes it, "9.0"
    threads: int  # of a block, at most: what the kernel's launch bounds say
    registers: int  # of a thread
    spill_stores: int  # bytes of a thread
    spill_loads: int
    stack: int  # bytes of a thread, the spilled ones included
    barriers: int
    shared: int  # bytes of a block, without those that a launch adds


class CompilerError(Exception):
    """The compiler failed or said something that is not understood."""


def sources() -> list[Path]:
    """Return all CUDA sources."""
    return sorted((ROOT / "csrc").glob("*/*.cu"))


def kernels_of(text: str) -> set[str]:
    """Return the names of the kernels that a file defines, without their template's arguments.

    >>> sorted(kernels_of("__global__ void __launch_bounds__(a * b) one(int i) {} __global__ void two() {}"))
    ['one', 'two']
    """
    bounds = r"(?:__launch_bounds__\([^)]*\)\s*)?"
    return set(re.findall(rf"__global__\s+void\s+{bounds}(\w+)\s*\(", text))


def all_kernels() -> set[str]:
    """Return the names of all kernels in csrc/, those in headers included."""
    files = (path for path in (ROOT / "csrc").glob("*/*") if path.suffix in (".cu", ".h", ".cuh", ".inl"))
    return set().union(*(kernels_of(path.read_text(encoding="utf-8")) for path in files))


def short_name(demangled: str) -> str:
    """Return a kernel's name without its return type, namespaces and parameters.

    >>> short_name("void modfast::(anonymous namespace)::scale<8, (modfast::Kind)1>(modfast::Batch<8>, long)")
    'scale<8, (Kind)1>'
    """
    text = demangled.replace("(anonymous namespace)::", "").replace("modfast::", "").removeprefix("void ")
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return text[:place]
    return text


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Return the short name of each mangled name, by c++filt."""
    mangled = list(names)
    lines = _run("c++filt", *mangled).splitlines() if mangled else []
    return {name: short_name(line) for name, line in zip(mangled, lines, strict=True)}


_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:, used (\d+) barriers)?(?:.*?, (\d+) bytes smem)?")


def read_report(report: str) -> dict[str, tuple[int, ...]]:
    """Return stack, spill stores, spill loads, registers, barriers and shared memory by mangled name.

    Args:
        report: what ``ptxas -v`` wrote. For each kernel it has a line with its name, one with the stack frame
            and one with the registers; other functions have no line of the first kind.
    """
    entry = None
    spills: tuple[int, ...] = ()
    found = {}
    for line in report.splitlines():
        if match := _ENTRY.search(line):
            entry, spills = match[1], ()
        elif entry and not spills and (match := _SPILLS.search(line)):
            spills = tuple(map(int, match.groups()))
        elif entry and (match := _USED.search(line)):
            if not spills:
                raise CompilerError(f"no line about the stack of {entry}")
            found[entry] = (*spills, *(int(number or 0) for number in match.groups()))
            entry = None
    return found


def read_threads(ptx: str) -> dict[str, int]:
    """Return the threads of a block, at most, of each kernel of a PTX file that states them."""
    threads = {}
    for entry in re.split(r"^(?=(?:\.visible |\.weak )?\.entry )", ptx, flags=re.MULTILINE)[1:]:
        name = re.search(r"\.entry (\w+)", entry)
        bound = re.search(r"^\.maxntid (\d+)(?:, (\d+))?(?:, (\d+))?", entry, re.MULTILINE)
        if name and bound:
            threads[name[1]] = int(bound[1]) * int(bound[2] or 1) * int(bound[3] or 1)
    return threads


def compile_source(toolkit: Toolkit, source: Path, architecture: str) -> list[Resources]:
    """Compile one source for one architecture, and return the resources of its kernels.

    Raises:
        CompilerError: the compiler failed, or a kernel has no launch bounds.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = _run(
            str(toolkit.home / "bin/nvcc"),
            *COMMON_NVCC_FLAGS,
            *NVCC_FLAGS,
            *architecture_flags([architecture]),
            f"-I{ROOT / 'csrc'}",
            "--resource-usage",
            # Keeps the PTX, in which the launch bounds stand.
            "--keep",
            f"--keep-dir={folder}",
            "-cubin",
            f"-o={folder}/kernels.cubin",
            str(source),
        )
        (ptx,) = Path(folder).glob("*.ptx")
        threads = read_threads(ptx.read_text())
    used = read_report(report)
    names = demangle(used)
    unbounded = [names[entry] for entry in used if entry not in threads]
    if unbounded:
        raise CompilerError(f"kernels without __launch_bounds__ in {source}: {', '.join(unbounded)}")
    return [
        Resources(
            names[entry],
            str(source.relative_to(source.parents[1])),
            architecture,
            threads[entry],
            registers,
            stores,
            loads,
            stack,
            barriers,
            shared,
        )
        for entry, (stack, stores, loads, registers, barriers, shared) in used.items()
    ]


def compile_all(toolkit: Toolkit, files: Iterable[Path], architectures: Iterable[str]) -> list[Resources]:
    """Compile sources for several architectures, as many at a time as MAX_JOBS says, by default as cores."""
    each = [(source, architecture) for source in files for architecture in architectures]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        parts = pool.map(lambda job: compile_source(toolkit, *job), each)
        return sorted(resources for part in parts for resources in part)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise CompilerError(f"{command[0]} does not run: {error.strerror}") from error
    if done.returncode:
        raise CompilerError(f"{command[0]} failed:\n{done.stdout}")
    return done.stdout
