"""The device whose kernels the tests with the mark ``cuda`` call: a GPU, or one that is emulated on the CPU.

With ``MODFAST_BACKEND=emulated`` operators on CPU tensors run the GPU's kernels, compiled for the CPU; see
tests/emulation. Then the "device" is the CPU, and the CPU's own kernels run inside of ``cpu_kernels``. That
cannot show speed, the memory model, or blocks and streams that really run at once; see emulation.h.
"""

import pytest
import torch
from torch.overrides import TorchFunctionMode

import modfast
from modfast.library import cpu_kernels as cpu_kernels

EMULATED = modfast.backend()["backend"] == "emulated"
DEVICE = torch.device("cpu" if EMULATED else "cuda")

# What PyTorch itself does on a GPU: streams, graphs, memory.
needs_a_real_gpu = pytest.mark.skipif(EMULATED, reason="is about a GPU itself, which is emulated here")

# What only the kernels for the CPU do: they check the values of labels and indices, for which a GPU has
# to wait, and keep memory for their caller.
needs_cpu_kernels = pytest.mark.skipif(EMULATED, reason="is about the CPU's kernels")


def to_device(*tensors):
    """Copies on the device; None stays."""
    copies = [None if each is None else each.to(DEVICE, copy=True) for each in tensors]
    return copies[0] if len(copies) == 1 else copies


def like_on_device(tensor):
    """A copy on the device with the very strides, gaps and expansions included."""
    storage = tensor.untyped_storage()
    storage = storage.clone() if EMULATED else storage.cuda()
    copy = torch.empty(0, dtype=tensor.dtype, device=DEVICE).set_(storage)
    return copy.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class HostCopies(TorchFunctionMode):
    """Notes the longest side of what the code under it brings to the host.

    It sees each call that asks for that, so it works on an emulated device too, where nothing moves. There it
    also sees what was on the host before.
    """

    ASKS = frozenset(["cpu", "numpy", "tolist", "item", "__float__", "__int__", "__bool__", "__index__"])

    def __init__(self):
        super().__init__()
        self.longest = 0

    @staticmethod
    def is_host(argument):
        # Emulated, a tensor that goes to its device goes to the CPU as well, but not by that name.
        if EMULATED and not isinstance(argument, str):
            return False
        return str(argument) == "cpu"

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        to_host = name == "to" and any(map(self.is_host, (*args[1:], *kwargs.values())))
        if (name in self.ASKS or to_host) and isinstance(args[0], torch.Tensor):
            self.longest = max(self.longest, *args[0].shape, 1)
        return func(*args, **kwargs)
