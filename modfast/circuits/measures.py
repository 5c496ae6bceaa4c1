"""How circuits compare: with each other, with clusters, and with random ones of equal size."""

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
    """Intersection over union between circuits: which share of the weights of either is in both.

    Args:
        circuits: at least one, all of the same layers and shapes.
        layer: the layer to compare; None takes the weights of all layers together.

    Returns:
        float64, ``(n, n)``, symmetric, with ones on the diagonal. NaN for two circuits without any weight,
        which have nothing to be alike or different in: neither 0 nor 1 would be a finding.

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
    kept = KeptWeights.of(circuits)
    name = None if layer is None else known_name(kept.shapes, layer)
    if layer is not None and name is None:
        raise ValueError(f"layer must be one of the circuits' ({', '.join(kept.shapes)}), got {layer!r}")
    names = kept.shapes if name is None else [name]
    return intersection_over_union([kept.shared(name) for name in names])


def cluster_shares(circuits: Sequence[Circuit], partitions: Mapping[str, Partition]) -> dict[str, Tensor]:
    """Which share of each circuit's weights in a layer lies inside each of the layer's clusters.

    Args:
        circuits: at least one, all of the same layers and shapes ``(out, in, *kernel)``.
        partitions: name of a layer, or of its weight, to its k clusters; other layers are left out.

    Returns:
        For each of ``partitions`` float64, ``(n, k)``. A row's sum is at most 1, the rest being weights that
        cross from cluster to cluster; it is NaN for a circuit without a weight in the layer.

    Raises:
        ValueError: as :func:`circuit_overlap` does; a partition is of an unknown layer or does not fit.

    Example:
        >>> masks = {"fc": torch.tensor([[True, True], [False, True]])}
        >>> circuit = Circuit(0, masks, "loss", 0.0, 1, 0.0, 0.0, 1.0, 1.0)
        >>> cluster_shares([circuit], {"fc": Partition([0, 1], [0, 1], 2)})
        {'fc': tensor([[0.3333, 0.3333]], dtype=torch.float64)}
    """
    counts = _cluster_counts(circuits, partitions)
    shares = {name: each[:, :-1] / each.sum(1, keepdim=True) for name, each in counts.items()}
    return {name: shares[layer_named(shares, name, "partitions")] for name in partitions}


def cluster_information(
    circuits: Sequence[Circuit], partitions: Mapping[str, Partition], layer: str | None = None
) -> float:
    """Mutual information: how many bits a kept weight's cluster tells about whose circuit it is in.

    One circuit is chosen, each with equal chance, then one of its weights. X is the weight's cluster, where
    all weights that cross from cluster to cluster count as one more; Y is the circuit's label. Equal chances,
    because then a large circuit does not drown small ones, and the result is the Jensen-Shannon divergence
    between the circuits' distributions over clusters: 0 if all are alike, at most ``log2`` of the number of
    circuits or of clusters with the one more. Over several layers it is I(X; Y | layer): cluster 2 of one
    layer is not taken for cluster 2 of another, and that circuits lie in different layers tells nothing.

    Few weights seem to tell more than many, by about ``k (n - 1) / (2 N ln 2)`` bits of N weights that tell
    nothing (Miller 1955): compare with :func:`random_circuits`.

    Args:
        circuits: as for :func:`cluster_shares`. Those without a weight in the layers are left out.
        partitions: name of a layer to its clusters; other layers are left out.
        layer: one of ``partitions``; None takes all of them.

    Returns:
        Bits; NaN unless two circuits have weights there, since one alone leaves nothing to tell.

    Raises:
        ValueError: as :func:`cluster_shares` does; ``partitions`` is empty, or ``layer`` not in it.

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
    """Circuits of the same sizes in each layer, of weights drawn at random: what a measure gives by chance.

    Args:
        circuits: any number.
        seed: of the draws. Each circuit's weights are drawn anew, from all weights of the layer.

    Returns:
        As many circuits, in order, with the same labels and numbers; ``loss_after`` and ``accuracy_after``
        are NaN, since nobody ran them.

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
    """Of the weights of layers together, from how many each two circuits share in each, ``(n, n)``."""
    total = torch.stack(list(shared)).sum(0)
    sizes = total.diagonal()
    return total / (sizes[:, None] + sizes[None, :] - total)


def mutual_information(counts: Sequence[Tensor]) -> float:
    """Bits, from how many weights each circuit has in each cluster of each layer, ``(n, k + 1)``."""
    totals = torch.stack([each.sum(1) for each in counts]).sum(0)
    held = totals > 0
    if held.sum() < 2:
        return math.nan
    bits = 0.0
    for each in counts:
        # p(x, y, layer), against what it would be if x and y were independent within the layer.
        joint = each[held] / totals[held, None] / held.sum()
        independent = joint.sum(1, keepdim=True) * joint.sum(0) / joint.sum()
        some = joint > 0
        bits += float((joint[some] * (joint[some] / independent[some]).log2()).sum())
    return max(bits, 0.0)  # rounding may leave less


def _cluster_counts(circuits: Sequence[Circuit], partitions: Mapping[str, Partition]) -> dict[str, Tensor]:
    kept = KeptWeights.of(circuits)
    clusters = weight_clusters(kept.shapes, partitions)
    return {name: kept.clustered(name, each) for name, each in clusters.items()}
