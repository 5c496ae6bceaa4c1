"""Train and measure every arm with every seed. A run that is stopped goes on where it was.

    python -m benchmarks.addition.run

writes ``out/addition/ARM/SEED.json`` and the trained weights beside it as each network is done, then
``benchmarks/addition/results/ARM.json`` with the seeds that all arms have.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.campaign import (
    add_options,
    check_records,
    gather,
    record_of,
    run_jobs,
    take_committed,
    unfinished,
)

from .arms import ARMS, SEEDS
from .measure import measure, settings_of

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, ARMS, SEEDS, Path("out/addition"), device=False)
    options = parser.parse_args()
    if options.more:
        take_committed(RESULTS, options.out)
    check_records(options.out, ARMS, {*SEEDS, *options.seeds}, _expected)
    jobs = unfinished(options.arms, options.seeds, options.out)
    work = partial(_work, options.out)
    run_jobs(jobs, work, options.out, processes=options.processes, threads=options.threads)
    done = [seed for seed in SEEDS if all(record_of(options.out, arm, seed).exists() for arm in ARMS)]
    if done:
        gather(options.out, RESULTS, ARMS, done)


def _expected(name: str) -> dict[str, Any]:
    return {"arm": name, "settings": settings_of(ARMS[name])}


def _work(out: Path, name: str, seed: int) -> dict[str, Any]:
    return measure(ARMS[name], seed, record_of(out, name, seed).with_suffix(".pt"))


if __name__ == "__main__":
    main()
