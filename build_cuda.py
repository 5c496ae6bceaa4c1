"""Finds what setup.py builds the CUDA library with: a CUDA toolkit, and the GPUs to compile for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# Where toolkits are usually installed: /usr/local/cuda, /usr/local/cuda-13.0, ...
USUAL = Path("/usr/local")

# One for each generation of GPUs: a program for x.y runs on every x.z, z >= y, and PTX on all later ones.
DEFAULT_ARCHITECTURES = ("7.5", "8.0", "9.0", "10.0", "12.0")

# The options of the compiler for every kernel; architecture_flags() has those that say for which GPUs.
NVCC_FLAGS = (
    "-std=c++17",
    "-O3",
    # As on the CPU, a product and a sum are rounded one after the other.
    "-fmad=false",
    "-Xcompiler=-ffp-contract=off,-fvisibility=hidden,-Wall,-Wextra",
)


class Toolkit(NamedTuple):
    """A CUDA toolkit, as its compiler describes it."""

    home: Path
    release: str
    include: Path
    libraries: Path
    architectures: tuple[str, ...]


class NoToolkitError(Exception):
    """The CUDA library cannot be built; the message says why."""


def choose_toolkit(setting: str, torch_cuda: str | None) -> Toolkit | None:
    """Return the toolkit to build the CUDA library with, or None to build without that library.

    Args:
        setting: the value of ``MODFAST_CUDA``: "1" builds the library, "0" does not, "auto" builds it if
            that is possible, and else prints why not.
        torch_cuda: the release of CUDA that PyTorch was built with, None for a PyTorch without CUDA.

    Raises:
        SystemExit: the setting is another one, or is "1" and the library cannot be built.
    """
    if setting not in ("0", "1", "auto"):
        raise SystemExit(f"MODFAST_CUDA must be '0', '1' or 'auto', got {setting!r}")
    if setting == "0":
        return None
    try:
        if torch_cuda is None:
            raise NoToolkitError("this PyTorch was built without CUDA")
        return find_toolkit(torch_cuda)
    except NoToolkitError as error:
        if setting == "1":
            raise SystemExit(f"MODFAST_CUDA is '1', but {error}") from error
        print(f"modfast is built without its CUDA library: {error}", file=sys.stderr)
        return None


def find_toolkit(torch_cuda: str) -> Toolkit:
    """Return the first toolkit of PyTorch's major release of CUDA; PyTorch builds with no other.

    ``CUDA_HOME`` or ``CUDA_PATH`` names the toolkit. Without them, the ``nvcc`` on the ``PATH`` is tried,
    then ``/usr/local/cuda``, then ``/usr/local/cuda-*``, the newest first.

    Raises:
        NoToolkitError: there is none; the message names all places that were tried.
    """
    major = torch_cuda.split(".")[0]
    looked_at = []
    for nvcc in _compilers():
        try:
            toolkit = read_toolkit(nvcc)
        except NoToolkitError as error:
            looked_at.append(str(error))
            continue
        if toolkit.release.split(".")[0] == major:
            return toolkit
        looked_at.append(f"{nvcc} is of CUDA {toolkit.release}")
    raise NoToolkitError(
        f"no toolkit of CUDA {major}, PyTorch's, was found ({'; '.join(looked_at)}). Looked at CUDA_HOME and "
        f"CUDA_PATH, or without them at nvcc on the PATH, {USUAL}/cuda and {USUAL}/cuda-*. "
        "Set CUDA_HOME to the folder that holds bin/nvcc"
    )


def _compilers() -> list[Path]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            return [Path(home, "bin/nvcc")]
    on_path = shutil.which("nvcc")
    releases = sorted(
        USUAL.glob("cuda-*"), key=lambda home: [int(n) for n in re.findall(r"\d+", home.name)], reverse=True
    )
    usual = [home / "bin/nvcc" for home in (USUAL / "cuda", *releases)]
    return [Path(on_path), *usual] if on_path else usual


def read_toolkit(nvcc: Path) -> Toolkit:
    """Return the toolkit of a compiler.

    The compiler itself is asked where its toolkit lies: ``nvcc`` on the ``PATH`` may be a script that
    starts another, and not every toolkit has its headers and libraries in the same folders.

    Raises:
        NoToolkitError: the compiler does not run, does not say where its toolkit is, or lacks the static
            runtime library.
    """
    plan = _run(nvcc, "--dryrun", "-x", "cu", "-E", os.devnull)
    home = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    release = re.search(r"__CUDACC_VER_MAJOR__=(\d+) .*__CUDACC_VER_MINOR__=(\d+)", plan)
    include = re.search(r'^#\$ INCLUDES=.*?"-I(.+?)"', plan, re.MULTILINE)
    if not (home and release and include):
        raise NoToolkitError(f"{nvcc} does not tell where its toolkit is")
    for folder in re.findall(r'"-L(.+?)"', plan):
        if Path(folder, "libcudart_static.a").is_file():
            break
    else:
        raise NoToolkitError(f"{nvcc} has no libcudart_static.a")
    numbers = re.findall(r"^compute_(\d+)(\d)$", _run(nvcc, "--list-gpu-arch"), re.MULTILINE)
    return Toolkit(
        home=Path(home[1]).resolve(),
        release=f"{release[1]}.{release[2]}",
        include=Path(include[1]).resolve(),
        libraries=Path(folder).resolve(),
        architectures=tuple(f"{major}.{minor}" for major, minor in numbers),
    )


def _run(nvcc: Path, *options: str) -> str:
    try:
        done = subprocess.run(
            [nvcc, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"exit status {error.returncode}"
        raise NoToolkitError(f"{nvcc} does not run: {reason}") from error
    return done.stdout


def choose_architectures(toolkit: Toolkit, setting: str) -> list[str]:
    """Return the architectures to compile for, as PyTorch writes them: "9.0", "12.0+PTX".

    Args:
        toolkit: the toolkit to compile with.
        setting: the value of ``TORCH_CUDA_ARCH_LIST``: architectures, separated by spaces or semicolons. An
            empty value takes one of each generation of GPUs, with PTX for later ones.

    Raises:
        SystemExit: the setting is anything else, or names an architecture that the toolkit does not support.
    """
    chosen = list(dict.fromkeys(re.split(r"[;\s]+", setting.strip("; \t\n"))))
    if chosen == [""]:
        known = [name for name in DEFAULT_ARCHITECTURES if name in toolkit.architectures]
        if not known:
            raise SystemExit(
                f"the toolkit in {toolkit.home} supports none of the architectures "
                f"{', '.join(DEFAULT_ARCHITECTURES)}: set TORCH_CUDA_ARCH_LIST"
            )
        return [*known[:-1], f"{known[-1]}+PTX"]
    for name in chosen:
        parts = re.fullmatch(r"(\d+\.\d)[af]?(\+PTX)?", name)
        if not parts:
            raise SystemExit(
                "TORCH_CUDA_ARCH_LIST must list numbers of architectures, as in '8.0;9.0+PTX' "
                f"(modfast knows no names), got {name!r} in {setting!r}"
            )
        if parts[1] not in toolkit.architectures:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST asks for {name!r}; the compiler of CUDA {toolkit.release} in "
                f"{toolkit.home} serves {', '.join(toolkit.architectures)}"
            )
    return chosen


def architecture_flags(architectures: Iterable[str]) -> list[str]:
    """Return nvcc's options for these architectures: a program for each, and PTX for those with "+PTX"."""
    flags = []
    for name in architectures:
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags
