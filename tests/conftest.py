"""Settings and fixtures that all tests share."""

import os
import signal
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch
from gpu import EMULATED
from processes import Processes, run_python
from walked_models import make_model

from modfast.library import emulated_library

# Before any test replaces a function: what is imported meanwhile for the first time would keep it. A machine
# with a GPU may lack what the command line needs; the tests of the kernels do not need it.
with suppress(ImportError):
    import modfast.cli.commands  # noqa: F401

# Several workers, each with as many threads as there are cores, would spend most of their time waiting for
# each other. Tests of threads set their number themselves; the variable is for processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

# A shell makes what it runs in the background ignore Ctrl-C, and Python keeps that; some tests send Ctrl-C.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time, on a machine of any speed. A fixture is made once for all examples of a test.
# Without hypothesis only the tests that import it cannot run.
with suppress(ImportError):
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "modfast",
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("modfast")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available() or EMULATED:
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


if EMULATED:

    @pytest.fixture(autouse=True)
    def shuffled(request):
        """Let the blocks and threads of the emulated GPU run in an order that the test's name decides."""
        emulated_library.give("set_seed", zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def seeded():
    """Seed PyTorch, so that a test draws the same numbers alone and among others."""
    torch.manual_seed(0)


@pytest.fixture
def set_threads():
    """``torch.set_num_threads``, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(name="run_python")
def run_python_fixture():
    return run_python


@pytest.fixture
def pool_shut_down(monkeypatch):
    """An event that is set once a pool of threads is shut down and has dropped the jobs that wait."""
    is_shut_down, real = threading.Event(), ThreadPoolExecutor.shutdown

    def shutdown(self, wait=True, *, cancel_futures=False):
        real(self, wait=False, cancel_futures=cancel_futures)
        is_shut_down.set()
        real(self, wait=wait)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown)
    return is_shut_down


@pytest.fixture(scope="module")
def processes():
    """A function: ``processes(n)`` gives n processes for :meth:`Processes.run`, started once for a module."""
    started = {}

    def get(size):
        if size in started and not started[size].alive:
            started.pop(size).close()
        if size not in started:
            started[size] = Processes(size)
        return started[size]

    yield get
    for group in started.values():
        group.close()


@pytest.fixture
def problem():
    """A small network, inputs, and their classes; the circuits of class 1 keep some of the weights."""
    torch.manual_seed(3)
    return make_model([12, 8, 5]), torch.randn(40, 12), torch.arange(40) % 5
