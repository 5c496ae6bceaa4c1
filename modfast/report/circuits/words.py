"""What the measures of ``circuits.json`` are called, their units, and how many digits are told."""

from __future__ import annotations

from typing import NamedTuple

from modfast.circuits.keys import REGULARISED, layer_of


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


class Criterion(NamedTuple):
    """What a criterion is called, what "worse" means by it in a sentence, and in its own section."""

    name: str
    worse: str
    rule: str

    @property
    def title(self) -> str:
        """Of what it found."""
        return f"Circuits by {self.name}"


CRITERIA = {
    "loss": Criterion(
        "loss",
        "a higher loss on images of the class, so that a circuit may give this answer whatever it sees",
        "A weight stays zero if that leaves the mean cross-entropy on the images of the class no higher than "
        "the whole network's{}. A circuit that answers this class whatever it sees would do, and be right on "
        "100 % of these images.",
    ),
    "loss_and_accuracy": Criterion(
        "loss and accuracy",
        "a higher loss on images of the class, or fewer of them recognised",
        "A weight stays zero if that leaves the mean cross-entropy on the images of the class no higher than "
        "the whole network's{}, and the accuracy on them no lower. A circuit that answers this class "
        "whatever it sees would do.",
    ),
    "balanced": Criterion(
        "balanced loss",
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
