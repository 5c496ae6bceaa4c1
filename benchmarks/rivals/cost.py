"""Time an epoch of every rival beside plain training's: ratios, side by side in one process.

    python -m benchmarks.rivals.cost --cifar10 imagefolder:PATH

writes ``benchmarks/rivals/cost.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common.campaign import rounded
from benchmarks.common.pages import at_least, what_times_depend_on
from benchmarks.findings.arms import Arm
from benchmarks.findings.measure import train_arm
from modfast.data import load_dataset
from modfast.data.dataset import Dataset
from modfast.files import write_json

from .analysis import PLAIN
from .arms import ARMS

COSTS = Path(__file__).with_name("cost.json")
IMAGES = 6400


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar10", default="cifar10", metavar="DATA", help="where CIFAR-10 is")
    parser.add_argument("--repeats", type=at_least(1), default=7, metavar="N", help="rounds; default 7")
    options = parser.parse_args()
    write_json(COSTS, measure(load_dataset(options.cifar10), options.repeats))


def measure(dataset: Dataset, repeats: int, arms: Mapping[str, Arm] = ARMS) -> dict[str, Any]:
    """Return how many times as long as of plain training an epoch takes, the median over rounds.

    Args:
        dataset: the images; an epoch has the first 6,400 of them, and hardly any test.
        repeats: how many rounds; in each every arm has its turn.
        arms: the arms by name. What starts with plain epochs is timed as after these.
    """
    few = replace(
        dataset,
        train_images=dataset.train_images[:IMAGES],
        train_labels=dataset.train_labels[:IMAGES],
        test_images=dataset.test_images[:100],
        test_labels=dataset.test_labels[:100],
    )
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(repeats + 1):
        for name, arm in arms.items():
            taken = _epoch(arm, few)
            if round_ > 0:  # the first round loads and allocates
                seconds[name].append(taken)
    ratios = {
        name: statistics.median(mine / plain for mine, plain in zip(times, seconds[PLAIN], strict=True))
        for name, times in seconds.items()
    }
    return {"ratios": rounded(ratios), "repeats": repeats, "threads": 1, **what_times_depend_on()}


def _epoch(arm: Arm, dataset: Dataset) -> float:
    """Return the seconds of an epoch, without what comes before it, such as reading the network."""
    config = replace(
        arm.config, epochs=1, warmup_epochs=0, clusters_from="blocks", recluster_every=None, ramp_epochs=0
    )
    run, _ = train_arm(replace(arm, config=config, circuits_from=None), 0, dataset, "cpu", 1)
    return float(run.history[-1]["seconds"])


def read_costs() -> dict[str, Any]:
    """Return the committed ratios."""
    found: dict[str, Any] = json.loads(COSTS.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
