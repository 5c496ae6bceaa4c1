"""Builds the compiled library. Everything else about the package stands in pyproject.toml."""

import re
from pathlib import Path

import pybind11
import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
VERSION_FILE = (ROOT / "modfast/version.py").read_text(encoding="utf-8")
VERSION = re.findall(r'^__version__ = "(.+)"$', VERSION_FILE, re.MULTILINE)[0]

# The oldest PyTorch whose stable ABI carries what we use: the binary serves it and all later ones.
OLDEST_TORCH = (2, 11)
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
    raise SystemExit(
        f"modfast needs PyTorch 2.11 or later, found {torch.__version__}. Run: pip install -U 'torch>=2.11'"
    )

library = CppExtension(
    "modfast._C",
    sources=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.cpp")),
    include_dirs=[pybind11.get_include()],
    define_macros=[
        ("TORCH_TARGET_VERSION", f"0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"),
        ("MODFAST_VERSION", f'"{VERSION}"'),
    ],
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        # Sums must round alike in every instruction set; see csrc/energy_lines.h.
        "-ffp-contract=off",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
    ],
    # No libtorch_python: the binding needs only the stable C functions of libtorch.
    py_limited_api=False,
)

setup(version=VERSION, ext_modules=[library], cmdclass={"build_ext": BuildExtension})
