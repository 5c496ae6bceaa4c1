"""A device that stands in for all that modfast has no kernels for: MPS, XPU and whatever PyTorch adds.

``standin.cpp`` registers it with PyTorch. A process that has it keeps it to its end, and PyTorch takes it for
the machine's accelerator, so that only processes of their own load it.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import torch

HERE = Path(__file__).resolve().parent
NAME = "standin"
COMPILER = shlex.split(os.environ.get("CXX", "c++"))


def can_be_built():
    """Whether there is a C++ compiler."""
    return shutil.which(COMPILER[0]) is not None


def build():
    """Compile the device, if its source or PyTorch has changed, and return its library."""
    source = HERE / "standin.cpp"
    digest = hashlib.sha256(source.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = HERE.parents[1] / "build" / f"standin-{digest}.so"
    if library.exists():
        return library
    library.parent.mkdir(exist_ok=True)
    installed = Path(torch.__file__).parent
    headers = [installed / "include", installed / "include/torch/csrc/api/include"]
    made = library.with_suffix(f".{os.getpid()}")  # several processes may build at once
    subprocess.run(
        [
            *COMPILER,
            *("-std=c++20", "-O1", "-fPIC", "-shared"),
            *(option for path in headers for option in ("-isystem", str(path))),
            *(str(source), "-o", str(made)),
            *(f"-L{installed / 'lib'}", "-ltorch_cpu", "-lc10"),
        ],
        check=True,
    )
    os.replace(made, library)
    return library


def load(library, has_float64=True):
    """Make this process one that has the device, and return it."""
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend(NAME)
    module = ModuleType(NAME)
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.manual_seed_all = lambda seed: None
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()
    torch.ops.standin.set_float64(has_float64)
    return torch.device(NAME, 0)
