"""Time small calls of the loss while another process keeps a core busy. See docs/speed/energy.md.

PyTorch's parallel loops end when all of their threads have come. One that shares its core with another
process comes a slice of the scheduler late, which is longer than a hundred small calls.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from benchmarks.common.pages import as_markdown, at_least
from benchmarks.energy.peers import FLOOR, OURS, OURS_AUTOGRAD, contestants, matrix

SIZES = (64, 256, 512)
CONTESTANTS = (OURS, OURS_AUTOGRAD, FLOOR)
BUSY = "while True: pass"


@contextmanager
def busy_loop(core: int | None) -> Iterator[None]:
    """Keep a core busy: this one, or with None one that the scheduler chooses."""
    process = subprocess.Popen([sys.executable, "-S", "-c", BUSY])
    try:
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def milliseconds(call: Callable[[], object], seconds: float) -> list[float]:
    """The times of single calls, as many as fit the seconds."""
    for _ in range(3):
        call()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=at_least(1), default=2)
    parser.add_argument("--seconds", type=at_least(1), default=3, help="for each figure")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    core = max(os.sched_getaffinity(0))
    rows = []
    for size in SIZES:
        calls = contestants(matrix(size, size, 4), rotated_bytes=0)
        for name in CONTESTANTS:
            row = [f"{size} x {size}", name]
            quiet = milliseconds(calls[name], options.seconds)
            row += [f"{statistics.median(quiet):.3f}", f"{statistics.mean(quiet):.3f}"]
            for place in (core, None):
                with busy_loop(place):
                    times = milliseconds(calls[name], options.seconds)
                row += [f"{statistics.median(times):.3f}", f"{statistics.mean(times):.3f}"]
            rows.append(row)
            print(" ".join(row), file=sys.stderr)
    columns = [
        f"{when}, {what} ms"
        for when in ("quiet", f"core {core} busy", "any core busy")
        for what in ("median", "mean")
    ]
    print(f"{options.threads} threads, {os.cpu_count()} cores\n")
    print(as_markdown(["weight", "call", *columns], rows))


if __name__ == "__main__":
    main()
