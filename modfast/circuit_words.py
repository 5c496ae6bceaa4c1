"""What the measures of ``circuits.json`` are called, their units, and how many digits are told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .circuits.keys import REGULARISED, layer_of
from .statistics import mean_interval


class Measure(NamedTuple):
    """A measure's name for readers, its unit ("" for none), and by what a number is multiplied for it."""

    title: str
    unit: str
    scale: float


# {} is where the layer goes, if the measure is of one.
_MEASURES = {
    "accuracy": Measure("Test accuracy", "%", 100.0),
    "clusterability": Measure("Clusterability{}", "% of squared weight", 100.0),
    "specialisation_only": Measure("Specialisation, one cluster alone{}", "points", 100.0),
    "specialisation_without": Measure("Specialisation, one cluster off{}", "points", 100.0),
    "accuracy_before": Measure("Accuracy of the whole network on these images", "%", 100.0),
    "accuracy_after": Measure("Accuracy of the circuit on these images", "%", 100.0),
    "size": Measure("Circuit size{}", "% of weights", 100.0),
    "overlap": Measure("Overlap of two circuits{}", "% of their union", 100.0),
    "inside": Measure("Circuit inside clusters{}", "% of kept weights", 100.0),
    "information": Measure("Information between cluster and class{}", "bits", 1.0),
}
RANDOM = "random_"
"""What the names of measures of random circuits begin with."""

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"


class Criterion(NamedTuple):
    """What a criterion is called, what "worse" means by it in a sentence, and in its own section."""

    title: str
    worse: str
    rule: str


CRITERIA = {
    "loss": Criterion(
        "Circuits by loss",
        "a higher loss on images of the class, so that a circuit may give this answer whatever it sees",
        "A weight stays zero if that leaves the mean cross-entropy on the images of the class no higher than "
        "the whole network's{}. A circuit that answers this class whatever it sees would do, and be right on "
        "100 % of these images.",
    ),
    "loss_and_accuracy": Criterion(
        "Circuits by loss and accuracy",
        "a higher loss on images of the class, or fewer of them recognised",
        "A weight stays zero if that leaves the mean cross-entropy on the images of the class no higher than "
        "the whole network's{}, and the accuracy on them no lower. A circuit that answers this class "
        "whatever it sees would do.",
    ),
    "balanced": Criterion(
        "Circuits by balanced loss",
        "a higher loss of telling images of the class from as many of other classes",
        "A weight stays zero if that leaves the loss of telling the class from the others no higher than the "
        "whole network's{}, on the images of the class and as many of other classes. The loss looks at the "
        "probability of the class alone, not at whether another has a higher one. An answer is right if it "
        "holds the class for more likely than not on its own images, and for less on the others: who gives "
        "the same answer to all images is right on 50 %.",
    ),
}


def describe(name: str) -> Measure:
    """The measure of this name, ``"size"`` or ``"size:fc2"``; what follows the colon is a :func:`layer_key`.

    Example:
        >>> describe("size:fc2")
        Measure(title='Circuit size, fc2', unit='% of weights', scale=100.0)
        >>> describe("random_overlap").title
        'Overlap of two circuits, by chance'
    """
    measure, colon, key = name.partition(":")
    layer = "mean of the regularised layers" if key == REGULARISED else layer_of(key)
    layer = repr(layer) if colon and not layer else layer
    known = _MEASURES.get(measure.removeprefix(RANDOM))
    if known is None:
        known = Measure(measure.replace("_", " ").capitalize() + "{}", "", 1.0)
    elif measure.startswith(RANDOM):
        layer = f"{layer}, by chance" if layer else "by chance"
    return known._replace(title=known.title.format(f", {layer}" if layer else ""))


class Estimate(NamedTuple):
    """A mean over seeds, half the width of its 95% interval if there are several, and the seeds' values."""

    mean: float
    interval: float | None
    values: Sequence[float]


def estimate(values: Sequence[float | None], scale: float = 1.0) -> Estimate | None:
    """Of the values that there are; None if there is none.

    Example:
        >>> estimate([0.5, None], 100.0)
        Estimate(mean=50.0, interval=None, values=[50.0])
    """
    known = [scale * value for value in values if value is not None]
    return Estimate(*mean_interval(known), known) if known else None


def average(values: Sequence[float | None]) -> float | None:
    """The mean of the values that there are; None if there is none."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def numbers(parts: Sequence[Mapping[str, Any] | None], scale: float = 1.0) -> list[str]:
    """Means with their intervals for one row of a table, all with the same sensible number of digits.

    The widest interval is told to two digits, or the largest mean to three without any, and to no more than
    four beside a narrow one. The third part is a difference and has a sign.

    Args:
        parts: each with ``mean`` and ``interval``, either of which may be None.
        scale: what they are multiplied by.

    Example:
        >>> plain, modular = {"mean": 0.95667, "interval": 0.0379}, {"mean": 0.96, "interval": 0.0248}
        >>> numbers([plain, modular, {"mean": 0.0033, "interval": 0.0143}], 100.0)
        ['95.7 ± 3.8', '96.0 ± 2.5', '+0.3 ± 1.4']
        >>> numbers([{"mean": 0.00781, "interval": None}], 100.0)
        ['0.781']
    """
    given = [part for part in parts if part is not None and part["mean"] is not None]
    widest = scale * max((part["interval"] or 0.0 for part in given), default=0.0)
    largest = scale * max((abs(part["mean"]) for part in given), default=0.0)
    decimals = _decimals(largest, 3)
    if widest > 0.0:
        decimals = min(_decimals(widest, 2), _decimals(max(largest, widest), 4))
    texts = []
    for index, part in enumerate(parts):
        if part is None or part["mean"] is None:
            texts.append(NOTHING)
            continue
        text = _fixed(scale * part["mean"], decimals, signed=index == 2)
        if part["interval"] is not None:
            text += f" ± {scale * part['interval']:.{decimals}f}"
        texts.append(text)
    return texts


def _decimals(value: float, digits: int) -> int:
    """With how many decimals ``value`` has so many digits."""
    return 0 if value == 0.0 else max(digits - 1 - math.floor(math.log10(value)), 0)


def _fixed(value: float, decimals: int, signed: bool = False) -> str:
    """With a true minus sign; what rounds to zero has no sign."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0.0:
        return text
    return f"{MINUS if value < 0 else '+' if signed else ''}{text}"


def percent(share: float | None) -> str:
    """A share in percent, with three digits.

    Example:
        >>> percent(0.0078125), percent(0.0), percent(0.01), percent(1.0)
        ('0.781 %', '0 %', '1.00 %', '100 %')
    """
    if share is None:
        return NOTHING
    return f"{_fixed(100 * share, _decimals(100 * abs(share), 3))} %"
