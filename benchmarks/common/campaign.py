"""Many independent runs, such as every arm with every seed. Each has a record; what is stopped goes on."""

from __future__ import annotations

import argparse
import json
import queue
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import multiprocessing

from modfast.files import atomic_write, write_json

Job: TypeAlias = tuple[str, int]
"""The name of an arm, and a seed."""

Record: TypeAlias = dict[str, Any]


def add_options(
    parser: argparse.ArgumentParser,
    arms: Iterable[str],
    seeds: Sequence[int],
    out: Path,
    *,
    device: bool = True,
) -> None:
    """Add the options that every campaign has.

    Args:
        parser: gets ``--arms``, ``--seeds``, ``--out``, ``--processes``, ``--threads``, ``--more`` (see
            :func:`take_committed`) and ``--device``.
        arms: the names to choose from; by default all are run.
        seeds: the seeds that are run by default.
        out: the folder of records by default.
        device: whether there is a choice of the device.
    """
    names = list(arms)
    parser.add_argument("--arms", nargs="+", choices=names, default=names, metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds), metavar="N")
    parser.add_argument("--out", type=Path, default=out, metavar="DIR")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each process")
    parser.add_argument("--more", action="store_true", help="take the committed records as done")
    if device:
        parser.add_argument("--device", default="cpu")


def unfinished(arms: Iterable[str], seeds: Iterable[int], out: Path) -> list[Job]:
    """Return the runs that have no record yet, seed by seed, so that all arms get equally many."""
    names = list(arms)
    return [(name, seed) for seed in seeds for name in names if not record_of(out, name, seed).exists()]


def take_committed(results: Path, out: Path) -> None:
    """Take the committed records as done, so that more seeds are added to them.

    Args:
        results: the folder that :func:`gather` wrote to.
        out: the folder of records; those that are there stay as they are.
    """
    for file in sorted(results.glob("*.json")):
        for record in json.loads(file.read_text(encoding="utf-8")):
            path = record_of(out, file.stem, record["seed"])
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, record)


def check_records(
    out: Path, arms: Iterable[str], seeds: Iterable[int], expected: Callable[[str], Record]
) -> None:
    """Raise if a record that counts as done is of other settings than those that would be run now.

    Args:
        out: the folder of records.
        arms: their names.
        seeds: whose records are looked at.
        expected: for an arm what its records hold; of a dictionary in it those names that are given.

    Raises:
        SystemExit: a record differs; the message names it, and what differs.
    """
    seeds = list(seeds)
    for name in arms:
        wanted = json.loads(json.dumps(rounded(expected(name))))
        for seed in seeds:
            path = record_of(out, name, seed)
            if not path.exists():
                continue
            differing = _differing(wanted, json.loads(path.read_text(encoding="utf-8")))
            if differing:
                raise SystemExit(
                    f"{path} is of a run with {'; '.join(differing)}: move it away, or take another --out"
                )


def _differing(wanted: Record, found: Record, within: str = "") -> list[str]:
    differing = []
    for name, value in wanted.items():
        there = found.get(name)
        if isinstance(value, dict) and isinstance(there, dict):
            differing += _differing(value, there, f"{within}{name}.")
        elif there != value:
            differing.append(f"{within}{name} {there!r}, not {value!r}")
    return differing


def record_of(out: Path, arm: str, seed: int) -> Path:
    """Return the file of a run's record."""
    return out / arm / f"{seed}.json"


def run_jobs(
    jobs: Sequence[Job],
    work: Callable[[str, int], Record],
    out: Path,
    *,
    processes: int = 1,
    threads: int = 1,
) -> None:
    """Call ``work(arm, seed)`` for each job, and write what it returns to ``out/ARM/SEED.json``.

    Args:
        jobs: in the order in which they begin.
        work: a function that processes can be given. The ``seconds`` of its record are printed.
        out: the folder of records.
        processes: how many jobs run at a time, each in a process of its own.
        threads: PyTorch's threads in each.

    Raises:
        SystemExit: a process failed; its error stands above.
    """
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    waiting, done = context.Queue(), context.Queue()
    for job in jobs:
        waiting.put(job)
    workers = [
        context.Process(daemon=True, target=_work, args=(waiting, done, work, out, threads))
        for _ in range(min(processes, len(jobs)))
    ]
    for worker in workers:
        worker.start()
    for count in range(1, len(jobs) + 1):
        while True:
            # Asked before the wait: what a process said before it ended is read first.
            ended = all(worker.exitcode is not None for worker in workers)
            try:
                print(f"{count} of {len(jobs)}: {done.get(timeout=5)}", flush=True)
                break
            except queue.Empty:
                if any(worker.exitcode for worker in workers):
                    raise SystemExit("a process failed: its error stands above") from None
                if ended:
                    raise SystemExit(f"all processes ended after {count - 1} of {len(jobs)} jobs") from None
    for worker in workers:
        worker.join()


def _work(waiting: Any, done: Any, work: Callable[[str, int], Record], out: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    parent = parent_process()
    assert parent is not None
    # Without the first process, which may have been killed, nobody would know what is still being done.
    while parent.is_alive():
        try:
            name, seed = waiting.get(timeout=1)
        except queue.Empty:
            return
        record = work(name, seed)
        path = record_of(out, name, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        took = record["seconds"]
        done.put(f"{name}, seed {seed}: " + ", ".join(f"{what} {time:.0f} s" for what, time in took.items()))


def gather(out: Path, results: Path, arms: Iterable[str], seeds: Sequence[int]) -> list[str]:
    """Write the records of every arm that has them for all seeds into one file, ``results/ARM.json``.

    Returns:
        The names of these arms.

    Raises:
        SystemExit: a file has records of other seeds, which would be lost; nothing is written.
    """
    complete = {}
    for name in arms:
        files = [record_of(out, name, seed) for seed in seeds]
        if all(file.exists() for file in files):
            complete[name] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
            _check_kept(results / f"{name}.json", seeds)
    for name, records in complete.items():
        write_records(results / f"{name}.json", records)
    return list(complete)


def _check_kept(path: Path, seeds: Sequence[int]) -> None:
    if not path.exists():
        return
    others = sorted({record["seed"] for record in json.loads(path.read_text(encoding="utf-8"))} - set(seeds))
    if others:
        raise SystemExit(
            f"{path} also has the seeds {', '.join(map(str, others))}, which would be lost: run these too, "
            "or remove the file"
        )


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write records, each in a line of its own: small files, and changes that can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(record) for record in records)
    with atomic_write(path) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """Round all numbers to six digits: more would be noise, and make the files three times as large."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
