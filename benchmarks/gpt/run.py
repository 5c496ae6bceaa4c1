"""Train and measure every arm with every seed. A run that is stopped goes on where it was.

    python -m benchmarks.gpt.run

writes ``out/gpt/ARM/SEED.json`` and a checkpoint beside it as each network is done, then
``benchmarks/gpt/results/ARM.json`` with the seeds that are there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.common.campaign import (
    add_options,
    gather,
    record_of,
    run_jobs,
    take_committed,
    unfinished,
)
from modfast.tasks import NextToken

from .arms import ARMS, SEEDS, SIZE
from .data import python_sources
from .measure import measure

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, ARMS, SEEDS, Path("out/gpt"), device=False)
    parser.add_argument("--gather", action="store_true", help="train nothing: write what is there")
    options = parser.parse_args(arguments)
    if options.more:
        take_committed(RESULTS, options.out)
    if not options.gather:
        jobs = unfinished(options.arms, options.seeds, options.out)
        work = partial(_work, options.out)
        run_jobs(jobs, work, options.out, processes=options.processes, threads=options.threads)
    gather_all(options.out, RESULTS)


def gather_all(out: Path, results: Path) -> None:
    """Write the records of all arms and seeds that there are, not only of those that were run just now."""
    for name in ARMS:
        done = [seed for seed in SEEDS if record_of(out, name, seed).exists()]
        if done:
            gather(out, results, [name], done)


@cache
def _task() -> NextToken:
    return python_sources()


def _work(out: Path, name: str, seed: int) -> dict[str, Any]:
    return measure(ARMS[name], SIZE, seed, _task(), record_of(out, name, seed).with_suffix(".pt"))


if __name__ == "__main__":
    main()
