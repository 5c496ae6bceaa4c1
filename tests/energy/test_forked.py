"""A process that is forked while other threads are in the kernels can use them itself."""

import os
import signal
import sys
import threading

import pytest
import torch

import modfast
from modfast.energy.operators import enmeshments_and_energies

FORKS = 60
# From a megabyte on the memory of gradients is kept; another size has to let go of that of the one before.
SIZES = (600, 1536, 2100)


def gradients():
    """Of weights of several sizes, by the operator alone: a forked process cannot use autograd's threads."""
    for size in SIZES:
        weight, partition = torch.ones(size, size), modfast.Partition.blocks((size, size), 2)
        labels = [partition.row_labels], [partition.col_labels], [2]
        _, energies = enmeshments_and_energies([weight], *labels)
        (grad,) = torch.ops.modfast.enmeshment_grad([weight], energies, torch.ones(1).double(), *labels)
        assert grad.shape == weight.shape


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(modfast.backend()["backend"] != "compiled", reason="is about memory of the CPU's kernels")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_fork_while_other_threads_take_memory(set_threads):
    set_threads(1)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            gradients()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(FORKS):
            child = os.fork()
            if child == 0:
                try:
                    signal.alarm(120)  # ends a child that waits for ever, which is the fault looked for
                    gradients()
                    os._exit(0)
                finally:
                    sys.stderr.flush()
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
