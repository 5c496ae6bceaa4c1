"""The settings of clusterings and of circuits, without PyTorch, for the command line's options."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from modfast.arguments import (
    CRITERIA,
    SEED,
    SIZE,
    THREADS,
    UNIT_METHODS,
    Constraint,
    Distinct,
    Integer,
    NoneOr,
    Number,
    OneOf,
    check_fields,
)

AFFINITIES = ("abs", "square")

RUN_ABLATIONS = ("zero", "mean")
"""What units of a run may be replaced by. For another example's values it would have to say which example."""


@dataclass(frozen=True)
class ClusterConfig:
    """The settings of a clustering.

    Attributes:
        num_clusters: the numbers of clusters to try.
        layers: names or globs of the layers; None takes every weight matrix. Name some to cluster only those,
            or weights that are no layer's ``weight``.
        affinity: the similarity: "abs", ``|weight|``, or "square", ``weight^2``. Use "square" to weigh
            entries as clusterability and the enmeshment loss do; "abs" lets small weights count for more.
        n_init: the number of starts of k-means, of which the best is kept. Raise it if clusters change with
            the seed.
        shuffles: how many times the weights are shuffled, to see what gap arises without structure.
        tol: the residual below which a singular vector has converged; see :func:`modfast.spectral_cocluster`.
            The default suits clustering; lower it for more exact singular values.
        seed: the seed of k-means, of the shuffles, and of a model that a callable makes.
        device: "auto" takes a CUDA device that this build has kernels for, if there is one, else the CPU.
        threads: PyTorch's number of threads on the CPU; None leaves it unchanged.

    Raises:
        ValueError: a value is out of range; the message names it.

    Example:
        >>> ClusterConfig(num_clusters=(4,)).affinity
        'abs'
    """

    num_clusters: tuple[int, ...] = tuple(range(2, 21))
    layers: tuple[str, ...] | None = None
    affinity: str = "abs"
    n_init: int = 10
    shuffles: int = 19
    tol: float = 1e-3
    seed: int = 0
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        counts = self.num_clusters
        ascending = all(low < high for low, high in pairwise(counts))
        if not (counts and counts[0] in Integer(1) and ascending):
            raise ValueError(f"num_clusters must be ascending, from 1 on, got {counts!r}")
        check_fields(
            self,
            {
                "affinity": OneOf(AFFINITIES),
                "n_init": Integer(1),
                "shuffles": Integer(1),
                "tol": Number(0),
                "seed": SEED,
                "threads": THREADS,
            },
        )


# What circuits of weights and those of units have in common.
_OF_CIRCUITS: dict[str, Constraint] = {
    "tolerance": Number(0, included=True),
    "labels": NoneOr(Distinct(Integer(0))),
    "images": NoneOr(SIZE),
    "seed": Integer(0, 2**31 - 1),
    "threads": THREADS,
}


@dataclass(frozen=True)
class CircuitConfig:
    """The settings for finding circuits.

    Attributes:
        criteria: one or more criteria of :func:`modfast.find_circuit`; each gives a circuit for each label.
            ``"loss"`` is the paper's, which a circuit that always gives one answer passes;
            ``"loss_and_accuracy"`` also keeps the accuracy. Use ``"balanced"`` for circuits that distinguish
            the class from others.
        tolerance: by how much the loss may rise, in nats.
        labels: the classes whose circuits are found; None takes every class that has a test image.
        images: at most this many test images of each class are used, the first ones; None takes all.
        layers: names or globs of the layers to prune. None suits most models: it leaves the choice to
            :func:`modfast.find_circuits`, which takes all linear layers at the model's end.
        seed: the seed of the other classes' images that ``"balanced"`` draws, and of the random circuits.
        device: "auto" takes a CUDA device that this build has kernels for, if there is one, else the CPU.
        threads: PyTorch's number of threads on the CPU; None leaves it unchanged.

    Raises:
        ValueError: a value is out of range; the message names it.

    Example:
        >>> CircuitConfig(labels=(0, 1)).criteria
        ('loss', 'balanced')
    """

    criteria: tuple[str, ...] = ("loss", "balanced")
    tolerance: float = 0.0
    labels: tuple[int, ...] | None = None
    images: int | None = None
    layers: tuple[str, ...] | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            {"criteria": Distinct(OneOf(CRITERIA)), **_OF_CIRCUITS},
        )
        if self.layers is not None and not self.layers:
            raise ValueError(f"layers must be None or at least one name, got {self.layers!r}")


@dataclass(frozen=True)
class UnitCircuitConfig:
    """The settings for finding unit circuits.

    Attributes:
        method: ``"attribution"`` keeps the units of highest score and is fast; ``"greedy"`` decides unit by
            unit and mostly keeps fewer. See :func:`modfast.circuits.units.find.find_unit_circuit`.
        ablation: what units outside a circuit are replaced by: ``"zero"``, or ``"mean"``, their mean over the
            test images of all classes.
        tolerance: by how much the mean log-likelihood of the class may fall, in nats.
        labels: the classes whose circuits are found; None takes every class that has a test image.
        images: at most this many test images of each class are used, the first ones; None takes all.
        seed: the seed of random circuits of the same sizes.
        device: where to compute.
        threads: on the CPU; None leaves PyTorch's choice.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> UnitCircuitConfig(labels=(0, 1)).method
        'attribution'
    """

    method: str = "attribution"
    ablation: str = "zero"
    tolerance: float = 0.0
    labels: tuple[int, ...] | None = None
    images: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            {"method": OneOf(UNIT_METHODS), "ablation": OneOf(RUN_ABLATIONS), **_OF_CIRCUITS},
        )
