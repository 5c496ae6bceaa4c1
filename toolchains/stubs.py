"""Stand-ins for PyTorch's libraries of other machines, to link against.

A library of ours calls nothing of PyTorch but C functions of its stable interface, which have the same names
on every machine. So the linker needs no PyTorch of the other machine, which is half a gigabyte; it needs a
list of those functions, and the PyTorch at hand has it. A function that is not in the list stops the link.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from toolchains.targets import Target, compiler

# Those of libtorch_cpu; the others are named by PyTorch's build helper, and hold nothing that we call.
EMPTY = ("c10", "torch")
FULL = "torch_cpu"


def stable_functions(torch_library: Path) -> list[str]:
    """Return the C functions of PyTorch's stable interface, as a ``libtorch_cpu.so`` exports them.

    Raises:
        SystemExit: the file has none, or ``nm``, a part of every C++ compiler for Linux, is missing.
    """
    try:
        command = ["nm", "--dynamic", "--defined-only", str(torch_library)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise SystemExit("the program nm is missing. Install binutils, or a C++ compiler") from error
    names = re.findall(r"^\w+ T ((?:aoti_torch|torch)_\w+)$", done.stdout, re.MULTILINE)
    if not names:
        raise SystemExit(f"{torch_library} has no function of the stable interface. {done.stderr}")
    return sorted(names)


def write_stubs(target: Target, functions: list[str], folder: Path) -> Path:
    """Write libraries that the linker takes for PyTorch's on a target; return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*EMPTY, FULL):
        kept = functions if name == FULL else []
        if target.name.startswith("linux"):
            _write_elf(target, name, kept, folder)
        elif target.name.startswith("macos"):
            _write_tbd(name, kept, folder)
        else:
            _write_import_library(target, name, kept, folder)
    return folder


def _write_elf(target: Target, name: str, functions: list[str], folder: Path) -> None:
    source = folder / f"{name}.c"
    source.write_text("".join(f"void {function}(void) {{}}\n" for function in functions), encoding="utf-8")
    library = folder / f"lib{name}.so"
    command = [str(compiler(target)), "-x", "c", "-shared", "-nostdlib", f"-Wl,-soname,{library.name}"]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)


def _write_tbd(name: str, functions: list[str], folder: Path) -> None:
    """Write Apple's text form of a library."""
    symbols = ", ".join(f"_{function}" for function in functions)
    exports = f"exports:\n  - targets: [ arm64-macos ]\n    symbols: [ {symbols} ]\n" if functions else ""
    (folder / f"lib{name}.tbd").write_text(
        "--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\n"
        f"install-name: '@rpath/lib{name}.dylib'\n{exports}...\n",
        encoding="utf-8",
    )


def _write_import_library(target: Target, name: str, functions: list[str], folder: Path) -> None:
    definitions = folder / f"{name}.def"
    lines = [f"LIBRARY {name}.dll", "EXPORTS", *functions]
    definitions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # The compiler's package has this program too.
    program = compiler(target).read_text(encoding="utf-8").split("exec ")[1].split(" c++ ")[0]
    made = ["-m", "i386:x86-64", "-d", str(definitions), "-l", str(folder / f"{name}.lib")]
    subprocess.run([*program.split(), "dlltool", *made, "-D", f"{name}.dll"], check=True)
