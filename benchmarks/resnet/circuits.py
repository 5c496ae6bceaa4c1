"""Channel circuits: which channels of a network tell one class from the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from modfast import (
    Network,
    UnitCircuit,
    ablate_units,
    circuit_overlap,
    class_log_odds,
    cluster_information,
    find_unit_circuit,
    random_circuits,
    unit_scores,
)
from modfast.data.dataset import Dataset
from modfast.metrics import Metric

TOLERANCE = 0.1
"""By how much a circuit's loss may be above its network's, in nats."""

ALLOWED = (0.40, 0.30, 0.55, 0.60, 0.50, 0.50, 0.40, 0.40, 0.30, 0.35)
"""The loss that circuits of all networks may have, by class, in nats; a coin's is 0.693.

Some 0.2 above that of a plain network of 24 channels, trained for 8 epochs with the seed 1.
"""

REFERENCE = 100
"""Training images whose mean takes the place of an ablated channel."""

_STEPS = 3  # of integrated gradients, for the scores
_DRAWS = 20  # of random circuits


class Images(NamedTuple):
    """Images of a class and as many of the others: to choose a circuit by, and to test it on."""

    label: int
    chosen_by: tuple[Tensor, Tensor]
    tested_on: tuple[Tensor, Tensor]


def images_of(dataset: Dataset, label: int, each: int) -> Images:
    """Return ``each`` test images of a class and as many of the other classes, twice, without repetition.

    They are the same for every network.
    """
    generator = np.random.default_rng(label)
    is_own = dataset.test_labels.numpy() == label
    own, others = (generator.permutation(np.flatnonzero(which)) for which in (is_own, ~is_own))
    if min(len(own), len(others)) < 2 * each:
        raise ValueError(f"each must be at most {min(len(own), len(others)) // 2}, got {each}")

    def part(which: slice) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(np.concatenate([own[which], others[which]]))
        return dataset.normalize(dataset.test_images[rows]), dataset.test_labels[rows]

    return Images(label, part(slice(0, each)), part(slice(each, 2 * each)))


def this_class(label: int) -> Metric:
    """Return the log likelihood of the right answer to "this class or another?", for each example.

    A circuit that answers its class to every image does not pass, as it would by the log likelihood of the
    class on the class's own images.
    """

    def metric(output: Any, batch: Any) -> Tensor:
        return logsigmoid(_for_right(output, batch, label))

    return metric


def is_right(label: int) -> Metric:
    """Return whether "this class or another?" is answered right, for each example."""

    def metric(output: Any, batch: Any) -> Tensor:
        return (_for_right(output, batch, label) > 0).double()

    return metric


def _for_right(output: Any, batch: Any, label: int) -> Tensor:
    """Return the log odds of the right answer.

    In training there are as many images of each class, so one of a class for ``classes - 1`` of the others;
    here there is one for one. By Bayes' rule the odds of the class are ``classes - 1`` times as high here.
    """
    inputs, targets = batch
    odds = class_log_odds(output, (inputs, torch.full_like(targets, label))) + math.log(output.shape[1] - 1)
    return torch.where(targets == label, odds, -odds)


def by_own_logit(logits: Tensor, targets: Tensor, label: int) -> tuple[Metric, Metric]:
    """Return "this class or another?" answered by the class's own logit alone: log likelihood, and rightness.

    The log odds of a class read the logits of all classes, so what computes any of them counts. These metrics
    read one logit, on a scale and with a threshold that fit the whole network best (logistic regression).

    Args:
        logits: of the whole network.
        targets: the classes of these images.
        label: the class.
    """
    own, is_own = logits[:, label].double(), (targets == label).double()
    scale, middle = own.std(), own.mean()
    features = torch.stack([(own - middle) / scale, torch.ones_like(own)], dim=1)
    weights = torch.zeros(2, dtype=torch.float64)
    # Newton's steps; the small ridge keeps them finite where the classes can be told apart without error.
    for _ in range(25):
        likely = (features @ weights).sigmoid()
        gradient = features.T @ (is_own - likely) - 1e-2 * weights
        curvature = (features.T * (likely * (1 - likely))) @ features + 1e-2 * torch.eye(2).double()
        weights = weights + torch.linalg.solve(curvature, gradient)
    factor, shift = float(weights[0] / scale), float(weights[1] - weights[0] * middle / scale)

    def for_right(output: Any, batch: Any) -> Tensor:
        odds = factor * output[:, label] + shift
        return torch.where(batch[1] == label, odds, -odds)

    def likelihood(output: Any, batch: Any) -> Tensor:
        return logsigmoid(for_right(output, batch))

    def right(output: Any, batch: Any) -> Tensor:
        return (for_right(output, batch) > 0).double()

    return likelihood, right


class Found(NamedTuple):
    """A circuit, and how often it answers right for images that it was not chosen by."""

    circuit: UnitCircuit
    held_out: float


def find_class_circuits(
    model: nn.Module, network: Network, dataset: Dataset, each: int
) -> dict[str, list[Found | None]]:
    """Return a circuit for each class, by three rules.

    Args:
        model: the network.
        network: its channels.
        dataset: the images.
        each: images of a class, and of others, that a circuit is chosen by.

    Returns:
        ``"own"``: circuits whose loss may be :data:`TOLERANCE` above their network's. ``"same"``: those whose
        loss may be :data:`ALLOWED`, whatever their network's is; None where that one's is higher.
        ``"logit"``: as ``"own"``, of the answer by the class's own logit (:func:`by_own_logit`).
    """
    found: dict[str, list[Found | None]] = {"own": [], "same": [], "logit": []}
    instead: dict[str, Any] = {"ablation": "mean", "reference": reference_of(dataset)}

    def circuit(metric: Metric, right: Metric, scores: Tensor, tolerance: float) -> Found:
        chosen = find_unit_circuit(
            model, images.chosen_by, metric, network, tolerance=tolerance, scores=scores, **instead
        )
        with torch.no_grad(), ablate_units(model, network, ~chosen.kept, **instead):
            answers = right(model(images.tested_on[0]), images.tested_on)
        return Found(chosen, float(answers.mean()))

    for label in range(dataset.num_classes):
        images = images_of(dataset, label, each)
        by_odds = this_class(label), is_right(label)
        scores = unit_scores(model, images.chosen_by, by_odds[0], network, steps=_STEPS, **instead)
        found["own"].append(circuit(*by_odds, scores, TOLERANCE))
        more = ALLOWED[label] + found["own"][-1].circuit.metric_before
        found["same"].append(None if more < 0 else circuit(*by_odds, scores, more))
        with torch.no_grad():
            by_logit = by_own_logit(model(images.chosen_by[0]), images.chosen_by[1], label)
        scores = unit_scores(model, images.chosen_by, by_logit[0], network, steps=_STEPS, **instead)
        found["logit"].append(circuit(*by_logit, scores, TOLERANCE))
    return found


def reference_of(dataset: Dataset) -> Tensor:
    """Return the training images whose mean takes the place of what is ablated."""
    return dataset.normalize(dataset.train_images[:: max(1, len(dataset.train_images) // REFERENCE)])


def describe(circuits: Sequence[UnitCircuit], labels: dict[str, Tensor]) -> dict[str, Any]:
    """Return size, overlap and clusters of one circuit for each class, beside those of random circuits.

    Args:
        circuits: of one network.
        labels: of several clusterings of its units.
    """
    draws = [random_circuits(circuits, seed) for seed in range(_DRAWS)]
    return {
        "size": _mean([circuit.size for circuit in circuits]),
        "overlap": _or_none(_pairs(circuits)),
        "random_overlap": _or_none(_mean([_pairs(drawn) for drawn in draws])),
        "clusters": {
            name: {
                "shares": [shares_of(circuit, of_unit) for circuit in circuits],
                "inside": _mean([max(shares_of(circuit, of_unit)) for circuit in circuits]),
                "random_inside": _mean([max(shares_of(each, of_unit)) for drawn in draws for each in drawn]),
                "information": _or_none(cluster_information(circuits, of_unit)),
                "random_information": _or_none(
                    _mean([cluster_information(drawn, of_unit) for drawn in draws])
                ),
            }
            for name, of_unit in labels.items()
        },
    }


def shares_of(circuit: UnitCircuit, labels: Tensor) -> list[float]:
    """Return the share of a circuit's channels that lies in each cluster; zeros for an empty circuit."""
    kept = labels[circuit.kept & circuit.asked]
    counts = torch.bincount(kept[kept >= 0], minlength=int(labels.max()) + 1)
    return [float(count) / max(1, len(kept)) for count in counts]


def _pairs(circuits: Sequence[UnitCircuit]) -> float:
    overlap = circuit_overlap(circuits)
    first, second = torch.triu_indices(len(circuits), len(circuits), 1)
    return float(overlap[first, second].mean())


def _or_none(value: float) -> float | None:
    """Return None for NaN, which JSON cannot hold: what empty circuits share is undefined."""
    return None if math.isnan(value) else value


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
