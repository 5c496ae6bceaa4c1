"""Train and measure every arm with every seed. A run that is stopped goes on where it was.

    python -m benchmarks.resnet.run --cifar10 imagefolder:PATH

writes a checkpoint into ``out/resnet/ARM/SEED`` after each epoch and ``out/resnet/ARM/SEED.json`` as each
network is measured, then ``benchmarks/resnet/results/ARM.json`` of the seeds that plain and modular networks
have.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.campaign import (
    add_options,
    gather,
    record_of,
    rounded,
    run_jobs,
    take_committed,
    unfinished,
)
from benchmarks.findings.measure import train_arm
from modfast.data import load_dataset
from modfast.data.dataset import Dataset

from .arms import ARMS, SEEDS
from .measure import measure

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar10", default="cifar10", metavar="DATA", help="where CIFAR-10 is")
    add_options(parser, ARMS, SEEDS, Path("out/resnet"), device=False)
    options = parser.parse_args()
    if options.more:
        take_committed(RESULTS, options.out)
    jobs = unfinished(options.arms, options.seeds, options.out)
    if jobs:
        work = partial(_work, load_dataset(options.cifar10), options.out, options.threads)
        run_jobs(jobs, work, options.out, processes=options.processes, threads=options.threads)
    gather_common(options.out, RESULTS)


def gather_common(out: Path, results: Path) -> list[int]:
    """Write the records of the seeds that the plain and the modular arm have; of other arms what they have.

    Returns:
        The seeds of these two.
    """

    def seeds_of(name: str, among: Iterable[int]) -> list[int]:
        return [seed for seed in among if record_of(out, name, seed).exists()]

    seeds = seeds_of("modular", seeds_of("plain", SEEDS))
    for name in ARMS:
        if own := seeds_of(name, seeds):
            gather(out, results, [name], own)
    return seeds


def _work(dataset: Dataset, out: Path, threads: int, name: str, seed: int) -> dict[str, Any]:
    arm, folder = ARMS[name], record_of(out, name, seed).with_suffix("")
    # The processor's time, not the clock's: other work on the machine is no part of it. A training that was
    # stopped counts from its last start.
    began = time.process_time()
    run, _ = train_arm(arm, seed, dataset, "cpu", threads, folder)
    trained = time.process_time()
    record = measure(arm, seed, run.model, run.history, dataset)
    seconds = {"training": trained - began, "measuring": time.process_time() - trained}
    return rounded(record | {"seconds": seconds})


if __name__ == "__main__":
    main()
