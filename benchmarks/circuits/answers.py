"""Measure what circuits answer to images of other classes: one that always answers the same knows nothing.

    python -m benchmarks.circuits.answers RUN

RUN is a folder in which `modfast circuits` found circuits. Prints means over classes, by model and criterion.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.common.pages import as_markdown, show
from modfast.circuit import Circuit
from modfast.circuits.folder import CircuitFolder, read_circuits
from modfast.circuits.linear_tail import Tail, read_tail
from modfast.data import load_dataset
from modfast.files import write_json
from modfast.models import build_model
from modfast.train import CHECKPOINT, read_checkpoint

WHAT = ("own images answered as the class, %", "other images answered as the class, %", "AUC, %")
HEADINGS = ["model", "criterion"]
for _what in WHAT:
    HEADINGS += [f"{_what}: whole model", "circuit"]


def logits_of(tail: Tail, circuit: Circuit) -> Tensor:
    """Return the logits of the model when the circuit's layers keep only the circuit."""
    values = tail.features
    for layer in tail.layers:
        mask = circuit.masks.get(layer.name)
        masked = layer if mask is None else replace(layer, weight=layer.weight * mask)
        values = masked.run(values)
    return values


def shares(logits: Tensor, labels: Tensor, label: int) -> tuple[float, float, float]:
    """Return the shares of the class's images and of the others that are answered as the class; and how often
    an image of the class gets a higher probability of it than another (the area under the ROC curve)."""
    answered = (logits.argmax(1) == label).double()
    own = labels == label
    auc = float(roc_auc_score(own, logits.softmax(1)[:, label]))
    return answered[own].mean().item(), answered[~own].mean().item(), auc


def measure(folder: Path, run: dict[str, Any], config: dict[str, Any], dataset: Any) -> list[dict[str, Any]]:
    model = build_model(config["model"], dataset.image_shape, dataset.num_classes)
    model.load_state_dict(read_checkpoint(folder / run["folder"] / CHECKPOINT)["model"])
    tail = read_tail(model, dataset.normalize(dataset.test_images))
    measured = []
    for criterion in config["criteria"]:
        settings = {"criterion": criterion, "tolerance": config["tolerance"]}
        circuits = CircuitFolder(folder / run["folder"], settings)
        pairs = [
            (
                shares(tail.logits, dataset.test_labels, label),
                shares(logits_of(tail, circuits.load(label)), dataset.test_labels, label),
            )
            for label in config["labels"]
        ]
        means = torch.tensor(pairs, dtype=torch.float64).mean(0)
        # Each share of the whole model stands beside that of its circuit.
        measured.append({"name": run["name"], "criterion": criterion, "shares": means.T.tolist()})
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--data", metavar="DATA", help="where the images are now, if they were moved")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    options = parser.parse_args(arguments)
    results = read_circuits(options.run)
    config = results["config"]
    dataset = load_dataset(options.data or config["data"])
    measured = [means for run in results["runs"] for means in measure(options.run, run, config, dataset)]
    rows = [
        [
            means["name"],
            means["criterion"],
            *(f"{100 * share:.1f}" for pair in means["shares"] for share in pair),
        ]
        for means in measured
    ]
    show(str(options.run), "Means over classes, on the test images.", HEADINGS, rows)
    print(as_markdown(HEADINGS, rows))
    if options.json:
        write_json(options.json, measured)


if __name__ == "__main__":
    main()
