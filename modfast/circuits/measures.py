"""Comparing circuits: with each other, with clusters, and with random circuits of equal size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import overload

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeIs

from modfast.arguments import Integer, check
from modfast.circuit import Circuit
from modfast.layers.names import known_name
from modfast.partition import Labels, Partition

from .kept_weights import KeptWeights, draw_weights, layer_named, weight_clusters
from .units.measures import KeptUnits, random_unit_circuit
from .units.unit_circuit import UnitCircuit


def circuit_overlap(circuits: Sequence[Circuit] | Sequence[UnitCircuit], layer: str | None = None) -> Tensor:
    """Return the intersection over union of the weights, or units, of each two circuits.

    Args:
        circuits: at least one, all of the same layers and shapes. Or unit circuits of one network that were
            asked for the same units: units that were not asked for do not count.
        layer: the layer to compare, of unit circuits the space; None takes all together.

    Returns:
        float64, ``(n, n)``, symmetric, with ones on the diagonal. NaN for two circuits without any weight or
        unit, whose overlap is undefined.

    Raises:
        ValueError: there is no circuit, no such layer, the circuits differ in layers or shapes, in spaces or
            in the units asked for, or some are of weights and some of units.
        TypeError: one is no circuit.

    Source: Jaccard, "Étude comparative de la distribution florale" (1901).

    Example:
        >>> masks = [torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]])]
        >>> pair = [Circuit(c, {"fc": m}, "loss", 0.0, 1, 0.0, 0.0, 1.0, 1.0) for c, m in enumerate(masks)]
        >>> circuit_overlap(pair)
        tensor([[1.0000, 0.3333],
                [0.3333, 1.0000]], dtype=torch.float64)
    """
    if _are_of_units(circuits):
        return intersection_over_union([KeptUnits(circuits).shared(layer)])
    weights = KeptWeights.of(circuits)
    name = None if layer is None else known_name(weights.shapes, layer)
    if layer is not None and name is None:
        raise ValueError(f"layer must be one of the circuits' ({', '.join(weights.shapes)}), got {layer!r}")
    names = weights.shapes if name is None else [name]
    return intersection_over_union([weights.shared(name) for name in names])


@overload
def cluster_shares(circuits: Sequence[Circuit], partitions: Mapping[str, Partition]) -> dict[str, Tensor]: ...
@overload
def cluster_shares(circuits: Sequence[UnitCircuit], partitions: Labels) -> dict[str, Tensor]: ...
def cluster_shares(
    circuits: Sequence[Circuit] | Sequence[UnitCircuit], partitions: Mapping[str, Partition] | Labels
) -> dict[str, Tensor]:
    """Return the share of each circuit's weights in a layer that lies inside each of the layer's clusters.

    Of unit circuits: the share of each circuit's units in a space that lies in each cluster.

    Args:
        circuits: as for :func:`circuit_overlap`; weights have the shape ``(out, in, *kernel)``.
        partitions: name of a layer, or of its weight, to its k clusters; other layers are left out. Of unit
            circuits the cluster of each unit, ``(num_units,)`` integers, -1 for "in no cluster"; k is the
            largest + 1.

    Returns:
        For each of ``partitions``, or each space of which units were asked for, float64, ``(n, k)``. A row
        sums to at most 1; the rest are weights between clusters, or units in none. A row is NaN for a circuit
        without a weight in the layer or a unit in the space.

    Raises:
        ValueError: as for :func:`circuit_overlap`; a partition is of an unknown layer or does not fit; labels
            are not one integer, -1 or above, for each unit.
        TypeError: as for :func:`circuit_overlap`; ``partitions`` are labels for circuits of weights, or a
            mapping for those of units.

    Example:
        >>> masks = {"fc": torch.tensor([[True, True], [False, True]])}
        >>> circuit = Circuit(0, masks, "loss", 0.0, 1, 0.0, 0.0, 1.0, 1.0)
        >>> cluster_shares([circuit], {"fc": Partition([0, 1], [0, 1], 2)})
        {'fc': tensor([[0.3333, 0.3333]], dtype=torch.float64)}
    """
    counts = _cluster_counts(circuits, partitions)
    shares = {name: of_layer[:, :-1] / of_layer.sum(1, keepdim=True) for name, of_layer in counts.items()}
    if not isinstance(partitions, Mapping):
        return shares
    return {name: shares[layer_named(shares, name, "partitions")] for name in partitions}


@overload
def cluster_information(
    circuits: Sequence[Circuit], partitions: Mapping[str, Partition], layer: str | None = None
) -> float: ...
@overload
def cluster_information(
    circuits: Sequence[UnitCircuit], partitions: Labels, layer: str | None = None
) -> float: ...
def cluster_information(
    circuits: Sequence[Circuit] | Sequence[UnitCircuit],
    partitions: Mapping[str, Partition] | Labels,
    layer: str | None = None,
) -> float:
    """Return the mutual information, in bits, between a kept weight's cluster and its circuit's label.

    Draw one circuit, each with equal probability, then one of its weights. X is the weight's cluster, where
    all weights between clusters count as one additional cluster; Y is the circuit's label. With equal
    probabilities a large circuit does not outweigh small ones, and the result is the Jensen-Shannon
    divergence between the circuits' distributions over clusters: 0 if all are alike, at most ``log2`` of the
    number of circuits or of clusters with the additional one. Over several layers it is I(X; Y | layer):
    cluster 2 of one layer differs from cluster 2 of another, and circuits in different layers alone give no
    information. Of unit circuits: draw one of the circuit's units; X is its cluster, where all units in no
    cluster count as one more; over several spaces it is I(X; Y | space).

    The estimate is biased upwards for few weights, by about ``k (n - 1) / (2 N ln 2)`` bits if N weights are
    independent of the label (Miller 1955): compare with :func:`random_circuits`.

    Args:
        circuits: as for :func:`cluster_shares`. Circuits without a weight in the layers, or a unit in the
            spaces, are left out; the others count as one label each.
        partitions: name of a layer to its clusters; other layers are left out. Of unit circuits the cluster
            of each unit, as for :func:`cluster_shares`.
        layer: one of ``partitions``, of unit circuits a space; None takes all of them.

    Returns:
        Bits; NaN unless at least two circuits have weights or units in the layers or spaces.

    Raises:
        ValueError: as for :func:`cluster_shares`; ``partitions`` is empty, or ``layer`` is not in it, or no
            space of which units were asked for.
        TypeError: as for :func:`cluster_shares`.

    Source: Lin, "Divergence measures based on the Shannon entropy" (IEEE Transactions on Information Theory
    37, 1991); Miller, "Note on the bias of information estimates" (1955).

    Example:
        >>> masks = [torch.tensor([[True, False], [False, False]])]
        >>> masks += [torch.tensor([[False, False], [False, True]])]
        >>> pair = [Circuit(c, {"fc": m}, "loss", 0.0, 1, 0.0, 0.0, 1.0, 1.0) for c, m in enumerate(masks)]
        >>> cluster_information(pair, {"fc": Partition([0, 1], [0, 1], 2)})
        1.0
    """
    if _are_of_units(circuits):
        counts = _cluster_counts(circuits, partitions)
        if layer is not None:
            name = KeptUnits(circuits).space_named(layer)
            counts = {name: counts[name]}
        return mutual_information(list(counts.values()))
    chosen = _mapping(partitions)
    if not chosen:
        raise ValueError("partitions must hold at least one layer, got none")
    if layer is not None:
        shapes = KeptWeights.of(circuits).shapes
        known = known_name(shapes, layer)
        named = [name for name in chosen if known is not None and known_name(shapes, name) == known]
        if not named:
            raise ValueError(
                f"layer must be one of partitions ({', '.join(map(repr, chosen))}), got {layer!r}"
            )
        chosen = {name: chosen[name] for name in named}
    return mutual_information(list(_cluster_counts(circuits, chosen).values()))


@overload
def random_circuits(circuits: Sequence[Circuit], seed: int) -> list[Circuit]: ...
@overload
def random_circuits(circuits: Sequence[UnitCircuit], seed: int) -> list[UnitCircuit]: ...
def random_circuits(
    circuits: Sequence[Circuit] | Sequence[UnitCircuit], seed: int
) -> list[Circuit] | list[UnitCircuit]:
    """Return circuits of the same sizes in each layer with random weights, as a baseline for measures.

    Of unit circuits: with as many random units in each space.

    Args:
        circuits: any number, all of weights or all of units.
        seed: seeds the draws. Each circuit's weights are drawn independently from all weights of the layer,
            its units from those of the space that were asked for.

    Returns:
        As many circuits, in order, with the same labels, scores and numbers; ``loss_after``,
        ``accuracy_after`` and ``metric_after`` are NaN, since these circuits are not run.

    Raises:
        ValueError: ``seed`` is negative, or some circuits are of weights and some of units.
        TypeError: one is no circuit.

    Example:
        >>> circuit = Circuit(3, {"fc": torch.eye(4, dtype=torch.bool)}, "loss", 0.0, 1, 0.0, 0.0, 1.0, 1.0)
        >>> random_circuits([circuit], seed=0)[0].num_weights
        4
    """
    check("seed", seed, Integer(0))
    generator = np.random.default_rng(seed)
    if _are_of_units(circuits):
        return [random_unit_circuit(circuit, generator) for circuit in circuits]

    def draw(mask: Tensor) -> Tensor:
        drawn = torch.zeros(mask.numel(), dtype=torch.bool, device="cpu")
        drawn[torch.from_numpy(draw_weights(generator, mask.numel(), int(mask.count_nonzero())))] = True
        return drawn.view(mask.shape)

    return [
        replace(
            circuit,
            masks={name: draw(mask) for name, mask in circuit.masks.items()},
            loss_after=math.nan,
            accuracy_after=math.nan,
        )
        for circuit in circuits
    ]


def intersection_over_union(shared: Sequence[Tensor]) -> Tensor:
    """Return the overlap of each two circuits over layers, from their shared weights in each, ``(n, n)``."""
    total = torch.stack(list(shared)).sum(0)
    sizes = total.diagonal()
    return total / (sizes[:, None] + sizes[None, :] - total)


def mutual_information(counts: Sequence[Tensor]) -> float:
    """Return bits, from each circuit's number of weights in each cluster, ``(n, k + 1)`` for each layer."""
    totals = torch.stack([of_layer.sum(1) for of_layer in counts]).sum(0)
    nonempty = totals > 0
    if nonempty.sum() < 2:
        return math.nan
    bits = 0.0
    for of_layer in counts:
        # p(x, y, layer), against its value if x and y were independent within the layer.
        joint = of_layer[nonempty] / totals[nonempty, None] / nonempty.sum()
        independent = joint.sum(1, keepdim=True) * joint.sum(0) / joint.sum()
        positive = joint > 0
        bits += float((joint[positive] * (joint[positive] / independent[positive]).log2()).sum())
    return max(bits, 0.0)  # rounding may make the sum negative


def _are_of_units(
    circuits: Sequence[Circuit] | Sequence[UnitCircuit],
) -> TypeIs[Sequence[UnitCircuit]]:
    """Whether circuits are of units; no circuit at all counts as of weights.

    Raises:
        ValueError: some are of units and some of weights.
        TypeError: one is no circuit.
    """
    for circuit in circuits:
        if not isinstance(circuit, (Circuit, UnitCircuit)):
            raise TypeError(f"circuits must hold Circuit or UnitCircuit, got {type(circuit).__name__}")
    kinds = [isinstance(circuit, UnitCircuit) for circuit in circuits]
    if len(set(kinds)) > 1:
        raise ValueError(
            f"circuits must be all of weights or all of units, got {sum(kinds)} UnitCircuit of {len(kinds)}"
        )
    return bool(kinds) and kinds[0]


def _mapping(partitions: Mapping[str, Partition] | Labels) -> Mapping[str, Partition]:
    if not isinstance(partitions, Mapping):
        raise TypeError(
            "partitions must map layers to Partition for circuits of weights, got "
            f"{type(partitions).__name__}"
        )
    return partitions


def _cluster_counts(
    circuits: Sequence[Circuit] | Sequence[UnitCircuit], partitions: Mapping[str, Partition] | Labels
) -> dict[str, Tensor]:
    if _are_of_units(circuits):
        if isinstance(partitions, Mapping):
            raise TypeError(
                "partitions must be one label for each unit, (num_units,), for circuits of units, got "
                f"{type(partitions).__name__}"
            )
        return KeptUnits(circuits).clustered(partitions, "partitions")
    weights = KeptWeights.of(circuits)
    clusters = weight_clusters(weights.shapes, _mapping(partitions))
    return {name: weights.clustered(name, of_layer) for name, of_layer in clusters.items()}
