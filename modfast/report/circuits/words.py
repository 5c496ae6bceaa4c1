"""The names of measures and criteria for readers, with units and explanations."""

from __future__ import annotations

from typing import NamedTuple

from modfast.circuits.keys import REGULARISED, layer_of


class Measure(NamedTuple):
    """A measure's name for readers, its unit ("" for none), and the factor that converts numbers to it."""

    title: str
    unit: str
    scale: float


# {} stands for the layer, if the measure is of one.
_MEASURES = {
    "accuracy": Measure("Test accuracy", "%", 100.0),
    "test_loss": Measure("Test loss", "nats", 1.0),
    "clusterability": Measure("Clusterability{}", "% of squared weight", 100.0),
    "specialisation_only": Measure("Specialisation, one cluster alone{}", "points", 100.0),
    "specialisation_without": Measure("Specialisation, one cluster off{}", "points", 100.0),
    "label_semanticity": Measure("Classes among a neuron's top images{}", "% of classes", 100.0),
    "search_space_reduction": Measure("Search-space reduction", "% of parameters", 100.0),
    "live_rows": Measure("Live rows{}", "% of rows", 100.0),
    "live_columns": Measure("Live columns{}", "% of columns", 100.0),
    "live_clusters": Measure("Live clusters{}", "effective number", 1.0),
    "accuracy_before": Measure("Accuracy of the whole network on these images", "%", 100.0),
    "accuracy_after": Measure("Accuracy of the circuit on these images", "%", 100.0),
    "size": Measure("Circuit size{}", "% of weights", 100.0),
    "overlap": Measure("Overlap of two circuits{}", "% of their union", 100.0),
    "inside": Measure("Circuit inside clusters{}", "% of kept weights", 100.0),
    "information": Measure("Information between cluster and class{}", "bits", 1.0),
}
RANDOM = "random_"
"""The beginning of the names of measures of random circuits."""


class Criterion(NamedTuple):
    """A criterion's name, what "worse" means by it (part of a sentence), and the rule in its own section."""

    name: str
    worse: str
    rule: str

    @property
    def title(self) -> str:
        """The title of the circuits that it found."""
        return f"Circuits by {self.name}"


CRITERIA = {
    "loss": Criterion(
        "loss",
        "a higher loss on images of the class, so that a circuit may give this answer to every image",
        "A weight stays zero if that leaves the mean cross-entropy on the images of the class no higher than "
        "the whole network's{}. A circuit that gives this answer to every image passes, and is right on "
        "100 % of these images.",
    ),
    "loss_and_accuracy": Criterion(
        "loss and accuracy",
        "a higher loss on images of the class, or fewer of them recognised",
        "A weight stays zero if that leaves the mean cross-entropy on the images of the class no higher than "
        "the whole network's{}, and the accuracy on them no lower. A circuit that gives this answer "
        "to every image passes.",
    ),
    "balanced": Criterion(
        "balanced loss",
        "a higher loss in telling images of the class from as many of other classes",
        "A weight stays zero if that leaves the loss in telling the class from the others no higher than the "
        "whole network's{}, on the images of the class and as many of other classes. The loss looks at the "
        "probability of the class alone, not at whether another has a higher one. An answer is right if it "
        "finds the class more likely than not on its own images, and less likely on the others: a circuit "
        "that gives the same answer to all images is right on 50 %.",
    ),
}


def describe(name: str) -> Measure:
    """Return the measure named ``"size"`` or ``"size:fc2"``; after the colon stands a :func:`layer_key`.

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
