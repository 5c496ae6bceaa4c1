"""Devices that modfast has no kernels for: the same results there, by the formulas of the reference.

No such device is here. Another takes its place: ``standin.cpp`` registers a device with PyTorch, with and
without float64, that keeps its tensors to itself. The files ``checks_*.py`` run in processes that have it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from standin import build, can_be_built

from modfast.devices import forked_random, random_state, seed_generators, set_random_state, widest_float

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def library():
    if not can_be_built():
        pytest.skip("needs a C++ compiler")
    return build()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checks", "has_float64", "backend"),
    [
        ("checks_functions.py", True, "compiled"),
        ("checks_functions.py", False, "compiled"),
        ("checks_energy.py", True, "compiled"),
        ("checks_energy.py", False, "compiled"),
        ("checks_energy.py", False, "reference"),
        ("checks_commands.py", False, "compiled"),
    ],
)
def test_other_devices(library, checks, has_float64, backend):
    environment = os.environ | {
        "STANDIN_LIBRARY": str(library),
        "STANDIN_FLOAT64": str(int(has_float64)),
        "MODFAST_BACKEND": backend,
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        str(HERE / checks),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]


def test_the_widest_type_of_devices_that_are_not_here():
    assert widest_float(torch.device("mps")) == torch.float32
    for name in ("cpu", "meta", "cuda", "cuda:1", "xpu", "hpu:0"):
        assert widest_float(torch.device(name)) == torch.float64


def test_generators_get_their_states_back():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with forked_random([CPU, torch.device("meta")]):
        seed_generators(CPU, 5)
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(2), inside)
    # The CPU's generator is saved apart.
    assert random_state(CPU) is None
    set_random_state(CPU, None)
