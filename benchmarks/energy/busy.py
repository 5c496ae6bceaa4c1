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
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.pages import as_markdown, at_least, versions, what_times_depend_on
from benchmarks.energy.peers import FLOOR, OURS, OURS_AUTOGRAD, contestants, matrix
from modfast.files import write_json

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


def summary(times: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "mean": statistics.mean(times)}


def markdown(report: dict[str, Any]) -> str:
    """Return what a page shows of a report."""
    machine = report["environment"]
    columns = [
        f"{when}, {what} ms"
        for when in ("quiet", f"core {report['core']} busy", "any core busy")
        for what in ("median", "mean")
    ]
    rows = [
        [
            each["weight"],
            each["call"],
            *(f"{time:.3f}" for times in each["milliseconds"].values() for time in times.values()),
        ]
        for each in report["results"]
    ]
    return (
        f"{report['date']}: {machine['processor']}, {report['cores']} cores, threads {machine['threads']}; "
        f"{versions(report)}\n\n{as_markdown(['weight', 'call', *columns], rows)}\n\n"
        "The autograd path's late calls are those of PyTorch's own addition to `.grad`.\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=at_least(1), default=2)
    parser.add_argument("--seconds", type=at_least(1), default=3, help="for each figure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    core = max(os.sched_getaffinity(0))
    report: dict[str, Any] = {
        **what_times_depend_on(),
        "cores": os.cpu_count(),
        "core": core,
        "results": [],
    }
    for size in SIZES:
        calls = contestants(matrix(size, size, 4), rotated_bytes=0)
        for name in CONTESTANTS:
            times = {"quiet": summary(milliseconds(calls[name], options.seconds))}
            for when, place in (("core busy", core), ("any core busy", None)):
                with busy_loop(place):
                    times[when] = summary(milliseconds(calls[name], options.seconds))
            report["results"].append({"weight": f"{size} x {size}", "call": name, "milliseconds": times})
            print(size, name, times, file=sys.stderr)
    print(markdown(report))
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    main()
