"""Train and measure every arm with every seed. A run that is stopped goes on where it was.

    python -m benchmarks.findings.run --cifar10 imagefolder:PATH

writes ``out/findings/ARM/SEED.json`` as each network is done, then ``benchmarks/findings/results/ARM.json``
of every arm that is complete.
"""

from __future__ import annotations

import argparse
import json
import queue
from collections.abc import Sequence
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from modfast.data import load_dataset
from modfast.data.dataset import Dataset
from modfast.files import atomic_write, write_json

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
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="N")
    parser.add_argument("--out", type=Path, default=Path("out/findings"), metavar="DIR")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="networks at a time")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each process")
    options = parser.parse_args()
    tasks = [
        (name, seed)
        for name in options.arms
        for seed in options.seeds
        if not (options.out / name / f"{seed}.json").exists()
    ]
    # Those that take longest first, so that none of them is left for the end.
    tasks.sort(key=lambda task: ARMS[task[0]].circuits_from is None)
    torch.set_num_threads(1)
    datasets = {kind: load_dataset(getattr(options, kind)) for kind in {ARMS[name].data for name, _ in tasks}}
    context = multiprocessing.get_context("spawn")
    waiting, done = context.Queue(), context.Queue()
    for task in tasks:
        waiting.put(task)
    workers = [
        context.Process(
            daemon=True,
            target=_work,
            args=(waiting, done, datasets, options.out, options.device, options.threads),
        )
        for _ in range(min(options.processes, len(tasks)))
    ]
    for worker in workers:
        worker.start()
    for count in range(1, len(tasks) + 1):
        while True:
            try:
                print(f"{count} of {len(tasks)}: {done.get(timeout=5)}", flush=True)
                break
            except queue.Empty:
                failed = [worker.exitcode for worker in workers if worker.exitcode]
                if failed:
                    raise SystemExit("a process failed: its error stands above") from None
    for worker in workers:
        worker.join()
    gather(options.out, options.seeds)


def _work(
    waiting: Any, done: Any, datasets: dict[str, Dataset], out: Path, device: str, threads: int
) -> None:
    torch.set_num_threads(threads)
    parent = parent_process()
    assert parent is not None
    # Without the first process, which may have been killed, nobody would know what is still being done.
    while parent.is_alive():
        try:
            name, seed = waiting.get(timeout=1)
        except queue.Empty:
            return
        arm = ARMS[name]
        result = measure(arm, seed, datasets[arm.data], device, threads, ALLOWED.get(arm.data))
        write_json(out / name / f"{seed}.json", result)
        took = result["seconds"]
        done.put(
            f"{name}, seed {seed}: " + ", ".join(f"{what} {seconds:.0f} s" for what, seconds in took.items())
        )


def gather(out: Path, seeds: Sequence[int]) -> None:
    """Write the results of every arm that is complete into one file."""
    for name in ARMS:
        files = [out / name / f"{seed}.json" for seed in seeds]
        if all(file.exists() for file in files):
            # A line for each network: small files, and changes that can be read.
            lines = ",\n".join(json.dumps(json.loads(file.read_text(encoding="utf-8"))) for file in files)
            with atomic_write(RESULTS / f"{name}.json") as temporary:
                temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
