"""Builds the compiled libraries, if there is a C++ compiler. Everything else is in pyproject.toml.

``MODFAST_CUDA`` says whether to build the library of CUDA kernels: 1, 0, or auto (if PyTorch has CUDA and a
toolkit is found). ``TORCH_CUDA_ARCH_LIST`` says for which GPUs, as in "8.0;9.0+PTX".
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from torch.utils import cpp_extension

# pip runs this file without its folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

from build_compiler import OLDEST_TORCH, has_compiler, host_flags, macros
from build_cuda import NVCC_FLAGS, Toolkit, architecture_flags, choose_architectures, choose_toolkit

ROOT = Path(__file__).parent
WINDOWS = sys.platform == "win32"
UNFOUND = (
    "there is no clang-cl with Visual Studio" if WINDOWS else "neither c++, g++ nor clang++ is on the PATH"
)
INCLUDE = [str(ROOT / "csrc")]  # includes name the folder: "energy/lines.h"
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
    raise SystemExit(
        f"modfast needs PyTorch 2.11 or later, found {torch.__version__}. Run: pip install -U 'torch>=2.11'"
    )

MACROS = macros()
VERSION = dict(MACROS)["MODFAST_VERSION"].strip('"')


def sources(pattern: str) -> set[str]:
    """Return the files below csrc/ that match a pattern."""
    return {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(pattern)}


def library(name: str, files: set[str], **options: Any) -> Extension:
    """Return a library that needs only the stable C functions of libtorch, and nothing of Python."""
    extension = cpp_extension.CppExtension(name, sorted(files), **options)
    extension.libraries = [needed for needed in extension.libraries if needed != "torch_python"]
    return extension


def cuda_library(toolkit: Toolkit) -> Extension:
    """Return the library of the kernels that run on a GPU, and their binding.

    It is no CUDAExtension, which would need the runtime of the toolkit at hand and the C++ interface of
    PyTorch. With the static runtime the library loads beside any runtime that PyTorch brings.
    """
    # Otherwise PyTorch assumes that the nvcc on the PATH lies in the toolkit's own folder.
    cpp_extension.CUDA_HOME = str(toolkit.home)
    architectures = choose_architectures(toolkit, os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    listed = ",".join(architectures)
    return library(
        "modfast._cuda",
        sources("*_cuda.cpp")
        | sources("*.cu")
        | sources("common/binding*.cpp")
        | sources("energy/binding.cpp")
        | sources("optim/binding.cpp"),
        include_dirs=[*INCLUDE, str(toolkit.include)],
        # With USE_CUDA the stable interface declares the function that returns PyTorch's current stream.
        define_macros=[*MACROS, ("USE_CUDA", None)],
        library_dirs=[str(toolkit.libraries)],
        # That function lives in libtorch_cuda, which every PyTorch with CUDA has loaded already.
        libraries=["torch_cuda", "cudart_static", "rt", "dl", "pthread"],
        extra_compile_args={
            "cxx": [*host_flags(), f'-DMODFAST_CUDA_ARCHITECTURES="{listed}"'],
            "nvcc": [
                *NVCC_FLAGS,
                *architecture_flags(architectures),
                # Compile for the architectures in parallel.
                f"--threads={os.environ.get('MAX_JOBS') or 0}",
            ],
        },
    )


class BuildLibraries(cpp_extension.BuildExtension):
    """Builds plain shared libraries, ``_C.so``, that no Python imports and that need none.

    Else setuptools would make extension modules of the Python that runs it: with its version in the name, and
    on Windows with a function of the module and Python's own library.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, no_python_abi_suffix=True)

    def get_export_symbols(self, extension: Extension) -> list[str]:
        """Return none: the sources say themselves what a library exports."""
        return []

    def get_libraries(self, extension: Extension) -> list[str]:
        """Return what to link with, without Python."""
        return list(extension.libraries)


class Wheel(bdist_wheel):  # type: ignore[misc]  # setuptools has no types
    """Builds a wheel that serves every Python of a platform, since the libraries know none."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of the wheel's name."""
        return ("py3", "none", super().get_tag()[2])


def choose_libraries() -> list[Extension]:
    """Return the libraries to build: none without a C++ compiler, so that modfast runs in plain PyTorch.

    Raises:
        SystemExit: the CUDA library is asked for, and cannot be built.
    """
    wanted = os.environ.get("MODFAST_CUDA") or "auto"
    if not has_compiler():
        if wanted == "1":
            raise SystemExit("MODFAST_CUDA is '1', but there is no C++ compiler")
        print(
            "modfast is built without its compiled library: no C++ compiler was found (CXX names none, and "
            f"{UNFOUND}). It will run in plain PyTorch, many times slower",
            file=sys.stderr,
        )
        return []
    libraries = [
        library(
            "modfast._C",
            sources("*.cpp") - sources("*_cuda.cpp"),
            include_dirs=list(INCLUDE),
            define_macros=MACROS,
            extra_compile_args=host_flags(),
        )
    ]
    if WINDOWS:
        if wanted == "1":
            raise SystemExit("MODFAST_CUDA is '1', but the CUDA kernels are not built on Windows")
        wanted = "0"
    toolkit = choose_toolkit(wanted, torch.version.cuda)
    return [*libraries, cuda_library(toolkit)] if toolkit else libraries


libraries = choose_libraries()
setup(version=VERSION, ext_modules=libraries, cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel})
