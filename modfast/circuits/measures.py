"""Comparing circuits: with each other, with clusters, and with random circuits of equal size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from modfast.arguments import Integer, check
from modfast.circuit import Circuit
from modfast.layers.names import known_name
from modfast.partition import Partition

from .kept_weights import KeptWeights, draw_weights, layer_named, weight_clusters


def circuit_overlap(circuits: Sequence[Circuit], layer: str | None = None) -> Tensor:
    """Return the intersection over union of the weights of each two circuits.

    Args:
        circuits: at least one, all of the same layers and shapes.
        layer: the layer to compare; None takes the weights of all layers together.

    Returns:
        float64, ``(n, n)``, symmetric, with ones on the diagonal. NaN for two circuits without any weight,
        whose overlap is undefined.

    Raises:
        ValueError: there is no circuit, no such layer, or the circuits differ in layers or shapes.

    Source: Jaccard, "Étude comparative de la distribution florale" (1901).

    Example:
        >>> masks = [torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]])]
        >>> pair = [Circuit(c, {"fc": m}, "loss", 0.0, 1, 0.0, 0.0, 1.0, 1.0) for c, m in enumerate(masks)]
        >>> circuit_overlap(pair)
        tensor([[1.0000, 0.3333],
                [0.3333, 1.0000]], dtype=torch.float64)
    """
    weights = KeptWeights.of(circuits)
    name = None if layer is None else known_name(weights.shapes, layer)
    if layer is not None and name is None:
        raise ValueError(f"layer must be one of the circuits' ({', '.join(weights.shapes)}), got {layer!r}")
    names = weights.shapes if name is None else [name]
    return intersection_over_union([weights.shared(name) for name in names])


def cluster_shares(circuits: Sequence[Circuit], partitions: Mapping[str, Partition]) -> dict[str, Tensor]:
    """Return the share of each circuit's weights in a layer that lies inside each of the layer's clusters.

    Args:
        circuits: at least one, all of the same layers and shapes ``(out, in, *kernel)``.
        partitions: name of a layer, or of its weight, to its k clusters; other layers are left out.

    Returns:
        For each of ``partitions`` float64, ``(n, k)``. A row sums to at most 1; the rest are weights between
        clusters. A row is NaN for a circuit without a weight in the layer.

    Raises:
        ValueError: as for :func:`circuit_overlap`; a partition is of an unknown layer or does not fit.

    Example:
        >>> masks = {"fc": torch.tensor([[True, True], [False, True]])}
        >>> circuit = Circuit(0, masks, "loss", 0.0, 1, 0.0, 0.0, 1.0, 1.0)
        >>> cluster_shares([circuit], {"fc": Partition([0, 1], [0, 1], 2)})
        {'fc': tensor([[0.3333, 0.3333]], dtype=torch.float64)}
    """
    counts = _cluster_counts(circuits, partitions)
    shares = {name: of_layer[:, :-1] / of_layer.sum(1, keepdim=True) for name, of_layer in counts.items()}
    return {name: shares[layer_named(shares, name, "partitions")] for name in partitions}


def cluster_information(
    circuits: Sequence[Circuit], partitions: Mapping[str, Partition], layer: str | None = None
) -> float:
    """Return the mutual information, in bits, between a kept weight's cluster and its circuit's label.

    Draw one circuit, each with equal probability, then one of its weights. X is the weight's cluster, where
    all weights between clusters count as one additional cluster; Y is the circuit's label. With equal
    probabilities a large circuit does not outweigh small ones, and the result is the Jensen-Shannon
    divergence between the circuits' distributions over clusters: 0 if all are alike, at most ``log2`` of the
    number of circuits or of clusters with the additional one. Over several layers it is I(X; Y | layer):
    cluster 2 of one layer differs from cluster 2 of another, and circuits in different layers alone give no
    information.

    The estimate is biased upwards for few weights, by about ``k (n - 1) / (2 N ln 2)`` bits if N weights are
    independent of the label (Miller 1955): compare with :func:`random_circuits`.

    Args:
        circuits: as for :func:`cluster_shares`. Circuits without a weight in the layers are left out.
        partitions: name of a layer to its clusters; other layers are left out.
        layer: one of ``partitions``; None takes all of them.

    Returns:
        Bits; NaN unless at least two circuits have weights in the layers.

    Raises:
        ValueError: as for :func:`cluster_shares`; ``partitions`` is empty, or ``layer`` is not in it.

    Source: Lin, "Divergence measures based on the Shannon entropy" (IEEE Transactions on Information Theory
    37, 1991); Miller, "Note on the bias of information estimates" (1955).

    Example:
        >>> masks = [torch.tensor([[True, False], [False, False]])]
        >>> masks += [torch.tensor([[False, False], [False, True]])]
        >>> pair = [Circuit(c, {"fc": m}, "loss", 0.0, 1, 0.0, 0.0, 1.0, 1.0) for c, m in enumerate(masks)]
        >>> cluster_information(pair, {"fc": Partition([0, 1], [0, 1], 2)})
        1.0
    """
    if not partitions:
        raise ValueError("partitions must hold at least one layer, got none")
    if layer is not None:
        shapes = KeptWeights.of(circuits).shapes
        chosen = known_name(shapes, layer)
        named = [name for name in partitions if chosen is not None and known_name(shapes, name) == chosen]
        if not named:
            raise ValueError(
                f"layer must be one of partitions ({', '.join(map(repr, partitions))}), got {layer!r}"
            )
        partitions = {name: partitions[name] for name in named}
    return mutual_information(list(_cluster_counts(circuits, partitions).values()))


def random_circuits(circuits: Sequence[Circuit], seed: int) -> list[Circuit]:
    """Return circuits of the same sizes in each layer with random weights, as a baseline for measures.

    Args:
        circuits: any number.
        seed: seeds the draws. Each circuit's weights are drawn independently from all weights of the layer.

    Returns:
        As many circuits, in order, with the same labels and numbers; ``loss_after`` and ``accuracy_after``
        are NaN, since these circuits are not run.

    Raises:
        ValueError: ``seed`` is negative.

    Example:
        >>> circuit = Circuit(3, {"fc": torch.eye(4, dtype=torch.bool)}, "loss", 0.0, 1, 0.0, 0.0, 1.0, 1.0)
        >>> random_circuits([circuit], seed=0)[0].num_weights
        4
    """
    check("seed", seed, Integer(0))
    generator = np.random.default_rng(seed)

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


def _cluster_counts(circuits: Sequence[Circuit], partitions: Mapping[str, Partition]) -> dict[str, Tensor]:
    weights = KeptWeights.of(circuits)
    clusters = weight_clusters(weights.shapes, partitions)
    return {name: weights.clustered(name, of_layer) for name, of_layer in clusters.items()}
