"""Times the scripts of examples/, in seconds of a processor, which other programs hardly change.

``python -m benchmarks.examples.seconds`` runs each script in an interpreter of its own, with one thread, in
an empty folder, and prints a table; ``--json FILE`` keeps it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common.pages import what_times_depend_on
from modfast.files import write_json

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


def busy(command: list[str]) -> float:
    """Return how long a command keeps a processor busy.

    Args:
        command: a program and its arguments. Its output is not shown.

    Raises:
        subprocess.CalledProcessError: it failed; its output is shown then.
    """
    with tempfile.TemporaryDirectory() as folder:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        before = os.times()
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
        after = os.times()
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        done.check_returncode()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="the median counts; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    options = parser.parse_args()
    programs = {"import torch": ["-c", "import torch"]} | {path.stem: [str(path)] for path in SCRIPTS}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for round_ in range(options.repeats):
        for name, arguments in programs.items():
            print(f"{name}, {round_ + 1} of {options.repeats}", file=sys.stderr)
            times[name].append(busy([sys.executable, *arguments]))
    medians = {name: round(statistics.median(each), 2) for name, each in times.items()}
    for name, seconds in medians.items():
        print(f"{name:<34}{seconds:6.1f} s")
    if options.json:
        write_json(options.json, {**what_times_depend_on(), "seconds": medians})


if __name__ == "__main__":
    main()
