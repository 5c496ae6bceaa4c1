"""What all tests share."""

import os
import subprocess
import sys

import pytest
import torch
from processes import Processes

# Several workers, each with as many threads as there are cores, would spend most of their time waiting for
# each other. Tests of threads set their number themselves; the variable is for processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture
def set_threads():
    """``torch.set_num_threads``, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def run_python():
    """Run code in a fresh interpreter, with none of this one's settings of modfast but those given."""

    def run(code, **environment):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MODFAST_")}
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**inherited, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def processes():
    """``processes(n)`` are n processes for :meth:`Processes.run`, started once for all tests.

    Tests that use it are marked ``xdist_group("processes")``, so that not every pytest worker starts its own.
    """
    started = {}

    def get(size):
        if size not in started or not started[size].alive:
            started[size] = Processes(size)
        return started[size]

    yield get
    for each in started.values():
        each.close()
