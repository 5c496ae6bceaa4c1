"""Train and measure every arm with every seed. A run that is stopped goes on where it was.

    python -m benchmarks.findings.run --cifar10 imagefolder:PATH

writes ``out/findings/ARM/SEED.json`` as each network is done, then ``benchmarks/findings/results/ARM.json``
of every arm that is complete.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.campaign import (
    add_options,
    gather,
    run_jobs,
    take_committed,
    unfinished,
)
from modfast.data import load_dataset
from modfast.data.dataset import Dataset

from .arms import ARMS, SEEDS
from .measure import measure

RESULTS = Path(__file__).parent / "results"
# In nats, by class: a little more than the loss of the first plain networks, so that most networks are below.
ALLOWED = {
    "cifar10": [1.6, 1.3, 2.1, 2.1, 1.7, 1.7, 1.3, 1.5, 1.3, 1.6],
    "mnist": [0.3] * 10,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar10", default="cifar10", metavar="DATA", help="where CIFAR-10 is")
    parser.add_argument(
        "--mnist", default="mnist", metavar="DATA", help="where MNIST is; digits if there is none"
    )
    add_options(parser, ARMS, SEEDS, Path("out/findings"))
    options = parser.parse_args()
    if options.more:
        take_committed(RESULTS, options.out)
    jobs = unfinished(options.arms, options.seeds, options.out)
    # Those that take longest first, so that none of them is left for the end.
    jobs.sort(key=lambda job: ARMS[job[0]].circuits_from is None)
    datasets = {kind: load_dataset(getattr(options, kind)) for kind in {ARMS[name].data for name, _ in jobs}}
    work = partial(_work, datasets, options.device, options.threads)
    run_jobs(jobs, work, options.out, processes=options.processes, threads=options.threads)
    gather(options.out, RESULTS, ARMS, options.seeds)


def _work(datasets: dict[str, Dataset], device: str, threads: int, name: str, seed: int) -> dict[str, Any]:
    arm = ARMS[name]
    return measure(arm, seed, datasets[arm.data], device, threads, ALLOWED.get(arm.data))


if __name__ == "__main__":
    main()
