"""Measure the peak memory of clustering a graph, the graph included. Linux only.

The measurement needs a process of its own: ``peak_of`` starts one, which clusters a small graph to load all
libraries, makes the graph, lets the kernel forget the peak so far (5 to ``/proc/self/clear_refs``),
clusters the graph and reads the new peak (``VmHWM`` in ``/proc/self/status``).
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import torch

from benchmarks.spectral.cases import GraphCase, block_model, bytes_of
from benchmarks.spectral.peers import graph_contestants

_ROOT = Path(__file__).parents[2]


class Memory(TypedDict):
    """Memory in bytes."""

    graph: int
    peak: int  # the graph and what was allocated beside it


def available() -> bool:
    return sys.platform == "linux"


def peak_of(case: GraphCase, contestant: str, threads: int) -> Memory:
    """Measure the peak in a fresh process.

    Raises:
        RuntimeError: the process failed; the message holds what it wrote.
    """
    command = [sys.executable, "-m", "benchmarks.spectral.peak_memory", *map(str, case), contestant]
    done = subprocess.run([*command, str(threads)], capture_output=True, text=True, cwd=_ROOT)
    if done.returncode:
        raise RuntimeError(f"the peak of {contestant} with {case} was not measured:\n{done.stderr}")
    memory: Memory = json.loads(done.stdout)
    return memory


def _peak_since() -> int:
    line = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert line
    return 1024 * int(line[1])


def _measure(case: GraphCase, contestant: str) -> Memory:
    small, _ = block_model(GraphCase(1000, case.clusters))
    graph_contestants(small, case.clusters)[contestant]()
    adjacency, _ = block_model(case)
    cluster = graph_contestants(adjacency, case.clusters, scikit_learn_nodes=case.nodes)[contestant]
    gc.collect()
    # Freed memory that the process keeps would hide as much of what it allocates from here on.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_since()
    cluster()
    graph = bytes_of(adjacency)
    return {"graph": graph, "peak": graph + _peak_since() - before}


if __name__ == "__main__":
    from threadpoolctl import threadpool_limits

    *sizes, name, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with threadpool_limits(int(threads)):
        print(json.dumps(_measure(GraphCase(*map(int, sizes)), name)))
