"""Train and measure every rival with every seed. A run that is stopped goes on where it was.

    python -m benchmarks.rivals.run --cifar10 imagefolder:PATH

writes ``out/rivals/ARM/SEED.json`` and the trained weights beside it as each network is done, then
``benchmarks/rivals/results/ARM.json`` with the seeds of every arm that are done.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.campaign import (
    add_options,
    check_records,
    gather,
    record_of,
    rounded,
    run_jobs,
    take_committed,
    unfinished,
)
from benchmarks.findings.measure import measure_run, train_arm
from benchmarks.findings.run import ALLOWED
from modfast.data import load_dataset
from modfast.data.dataset import Dataset
from modfast.files import atomic_write
from modfast.train import Run

from .arms import ARMS, SEEDS
from .units import unit_measures

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar10", default="cifar10", metavar="DATA", help="where CIFAR-10 is")
    add_options(parser, ARMS, SEEDS, Path("out/rivals"))
    options = parser.parse_args()
    if options.more:
        take_committed(RESULTS, options.out)
    dataset = load_dataset(options.cifar10)
    check_records(options.out, ARMS, {*SEEDS, *options.seeds}, partial(_expected, dataset.fingerprint()))
    jobs = unfinished(options.arms, options.seeds, options.out)
    work = partial(_work, dataset, options.out, options.device, options.threads)
    run_jobs(jobs, work, options.out, processes=options.processes, threads=options.threads)
    for name in ARMS:
        # Arms may have different seeds: each is compared over those that it shares with plain training.
        done = [seed for seed in SEEDS if record_of(options.out, name, seed).exists()]
        if done:
            gather(options.out, RESULTS, [name], done)


def _expected(data: str, name: str) -> dict[str, Any]:
    """What a record of this arm holds, whatever machine made it.

    That of a penalty or a mask is not in its settings: an arm that changes it needs another name.
    """
    settings = asdict(ARMS[name].config)
    # Given partitions make `clusters_from` "file".
    for machine in ("seed", "device", "threads", "clusters_from"):
        del settings[machine]
    return {"arm": name, "data_fingerprint": data, "config": settings}


def _work(dataset: Dataset, out: Path, device: str, threads: int, name: str, seed: int) -> dict[str, Any]:
    arm = ARMS[name]
    began = time.perf_counter()
    run, snapshots = train_arm(arm, seed, dataset, device, threads)
    trained = time.perf_counter()
    _save(run, record_of(out, name, seed).with_suffix(".pt"))
    record = measure_run(arm, run, dataset, ALLOWED["cifar10"], snapshots)
    record["units"] = unit_measures(run.model, run.partitions, dataset)
    record["seconds"] = {"training": trained - began, "measuring": time.perf_counter() - trained}
    result: dict[str, Any] = rounded(record)
    return result


def _save(run: Run, path: Path) -> None:
    """Keep the trained weights, so that more can be measured without training again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        torch.save(run.model.state_dict(), temporary)


if __name__ == "__main__":
    main()
