"""What circuits answer to images of other classes: one that always gives the same answer tells nothing.

    python -m benchmarks.circuits.answers RUN

RUN is what `modfast circuits` has been through. For each model and criterion, means over its classes.
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
    """What the model gives with nothing left of the circuit's layers but the circuit."""
    values = tail.features
    for layer in tail.layers:
        mask = circuit.masks.get(layer.name)
        kept = layer if mask is None else replace(layer, weight=layer.weight * mask)
        values = kept.run(values)
    return values


def shares(logits: Tensor, labels: Tensor, label: int) -> tuple[float, float, float]:
    """Which shares of the class's images and of the others are answered as the class; and how often an image
    of the class is thought more probable to be one than another image is (the area under the ROC curve)."""
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
        kept = CircuitFolder(folder / run["folder"], settings)
        pairs = [
            (
                shares(tail.logits, dataset.test_labels, label),
                shares(logits_of(tail, kept.load(label)), dataset.test_labels, label),
            )
            for label in config["labels"]
        ]
        means = torch.tensor(pairs, dtype=torch.float64).mean(0)
        # Of the whole model and of its circuit, beside each other.
        measured.append({"name": run["name"], "criterion": criterion, "shares": means.T.tolist()})
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--data", metavar="DATA", help="where the images are, if not where they were")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    options = parser.parse_args(arguments)
    results = read_circuits(options.run)
    config = results["config"]
    dataset = load_dataset(options.data or config["data"])
    measured = [each for run in results["runs"] for each in measure(options.run, run, config, dataset)]
    rows = [
        [
            each["name"],
            each["criterion"],
            *(f"{100 * share:.1f}" for pair in each["shares"] for share in pair),
        ]
        for each in measured
    ]
    show(str(options.run), "Means over classes, on the test images.", HEADINGS, rows)
    print(as_markdown(HEADINGS, rows))
    if options.json:
        write_json(options.json, measured)


if __name__ == "__main__":
    main()
