"""Times what a user waits for before anything happens: importing modfast, and the command line's help.

``python -m benchmarks.startup`` starts fresh interpreters, each program in turn, all of them several times,
so that a machine that is busy for a while delays all alike. It prints medians of the time on the clock and of
the processor's time, which other programs hardly change; and what modfast adds to PyTorch, or to Python.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

# What is run, and what it is compared with.
PROGRAMS = {
    "python alone": ("pass", None),
    "import torch": ("import torch", None),
    "import modfast": ("import modfast", "python alone"),
    "import torch, modfast": ("import torch, modfast", "import torch"),
    "from modfast import EnmeshmentLoss": ("from modfast import EnmeshmentLoss", "import torch"),
    "from modfast import *": ("from modfast import *", "import torch"),
    "modfast --help": ("import modfast.cli; modfast.cli.main(['--help'])", "python alone"),
    "modfast train --help": ("import modfast.cli; modfast.cli.main(['train', '--help'])", "python alone"),
}


def seconds(code: str) -> tuple[float, float]:
    """Return how long an interpreter takes to run the code, and how long it keeps a processor busy."""
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    taken, after = time.perf_counter() - start, os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return taken, busy


def measure(repeats: int) -> dict[str, tuple[float, float]]:
    """Return the medians of each program."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for round_ in range(repeats + 1):
        for name, (code, _) in PROGRAMS.items():
            taken = seconds(code)
            if round_:  # the first round reads files from the disk
                times[name].append(taken)
    return {
        name: (statistics.median(taken), statistics.median(busy))
        for name, pairs in times.items()
        for taken, busy in [tuple(zip(*pairs, strict=True))]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="default: %(default)s")
    medians = measure(parser.parse_args().repeats)
    print(f"{'program':<38}{'seconds':>8}{'busy':>8}  more than")
    for name, (_, other) in PROGRAMS.items():
        taken, busy = medians[name]
        print(f"{name:<38}{taken:>8.2f}{busy:>8.2f}", end="")
        if other is None:
            print()
        else:
            print(f"  {taken - medians[other][0]:+.2f}, busy {busy - medians[other][1]:+.2f}: {other}")


if __name__ == "__main__":
    main()
