"""Time trials of the walk along convolutions beside trials of the reference loop, in one process.

    python -m benchmarks.circuits.convolutions [--json FILE]

A round makes a step of the walk, as many trials of a row as a step has, and one trial of the loop, which
runs the whole network in float64. The table of docs/guides/circuits.md is its output.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.circuits.cases import noisy_patterns
from benchmarks.common.pages import as_markdown, what_times_depend_on
from modfast.circuits.linear_tail import read_tail
from modfast.circuits.walk import Walk
from modfast.files import write_json
from modfast.models import LargeCNN
from modfast.reference.circuits import PlainWalk

LABEL = 0
HEADINGS = [
    "model",
    "images",
    "layer",
    "its weights",
    "work per trial and image",
    "modfast, ms",
    "loop / modfast",
]


def small_vgg() -> nn.Module:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for before, after in ((3, 8), (8, 16)):
        for inside in (before, after):
            parts += [nn.Conv2d(inside, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(16 * 64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()


def cases() -> Iterator[tuple[str, nn.Module, Tensor, str, list[str]]]:
    """The networks with their images, the layer whose trials are timed, and all that are walked along."""
    case = noisy_patterns()
    images = case.of_class(LABEL)
    linear = ["fc1", "fc2", "fc3"]
    yield "the paper's CNN, after its linear layers", case.model, images, "conv1", ["conv1", *linear]
    yield "the paper's CNN, this layer alone", case.model, images, "conv1", ["conv1"]
    torch.manual_seed(0)
    large = LargeCNN().eval()
    yield "the notebook's CNN", large, torch.rand(200, 3, 32, 32), "conv2", ["conv2"]
    yield "the notebook's CNN", large, torch.rand(200, 3, 32, 32), "conv1", ["conv1"]
    yield "a small VGG, 8 to 16 channels", small_vgg(), torch.rand(200, 3, 32, 32), "0", ["0"]


def measure(
    name: str, model: nn.Module, images: Tensor, layer: str, layers: list[str], rounds: int
) -> dict[str, Any]:
    tail = read_tail(model, images, layers)
    is_label = torch.ones(len(images), dtype=torch.bool)
    threads = torch.get_num_threads()
    walk = Walk(tail, LABEL, is_label, "loss", 0.0, torch.device("cpu"), threads)
    loop = PlainWalk(model, images, LABEL, is_label, [layer], "loss", 0.0)
    _ = loop.before
    trials = (decide for _, decide in loop.steps())
    index = next(place for place, each in enumerate(tail.layers) if each.name == layer)
    weights = tail.layers[index].weight
    ours, theirs = [], []
    size, left = 0, rounds
    for count, decide in walk.steps():
        took = seconds_of(decide)
        # The steps of later layers go first. Of a row in several steps the last may be short; it is left out.
        if decide.args[0][0] != index:
            continue
        size = size or count
        if count < size:
            continue
        ours.append(took / count)
        theirs.append(seconds_of(next(trials)))
        left -= 1
        if left == 0:
            break
    return {
        "case": name,
        "images": len(images),
        "layer": layer,
        "weights": weights.numel(),
        "work": walk._work_of_trial(index),
        "milliseconds": 1e3 * median(ours),
        "loop_milliseconds": 1e3 * median(theirs),
        "ratio": median(loop / own for loop, own in zip(theirs, ours, strict=True)),
    }


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def markdown(report: dict[str, Any]) -> str:
    """Return what a page shows of a report."""
    rows = [
        [
            each["case"],
            str(each["images"]),
            each["layer"],
            str(each["weights"]),
            f"{each['work'] / 1e3:.0f} thousand",
            f"{each['milliseconds']:.3g}",
            f"{each['ratio']:.0f}",
        ]
        for each in report["results"]
    ]
    return f"{as_markdown(HEADINGS, rows)}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3, help="steps of each layer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = [measure(*case, options.rounds) for case in cases()]
    report = {**what_times_depend_on(), "threads": options.threads, "results": results}
    print(markdown(report))
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    main()
