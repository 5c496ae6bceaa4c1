"""The specification of spectral clustering, of weights and of graphs, in plain PyTorch.

Method: I. S. Dhillon, "Co-clustering documents and words using bipartite spectral graph partitioning",
KDD 2001, with k-means weighted as in Dhillon, Guan and Kulis, "Kernel k-means, spectral clustering and
normalized cuts", KDD 2004, then single moves that lower the normalised cut of Shi and Malik, "Normalized cuts
and image segmentation", PAMI 2000.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from modfast.arguments import SEED, Integer, check
from modfast.arrays import require_whole
from modfast.partition import Partition

_AFFINITIES = ("abs", "square", "given")

# Nodes closer than this share of their distance from the origin are one place: they differ by rounding.
_SAME_PLACE = 1e-6

# Lloyd's iterations end by themselves, as a rule within a few dozen; a tie could in theory go on for ever.
_MAX_LLOYD = 300


def spectral_cocluster(
    weight: Tensor, num_clusters: int, *, affinity: str = "abs", n_init: int = 10, seed: int = 0
) -> Partition:
    """Clusters of rows and columns that are tied to each other more than to the rest.

    Rows and columns are the two sides of a bipartite graph with similarities ``A``. The top
    ``num_clusters`` singular vectors of ``D_row^-1/2 A D_col^-1/2`` embed both sides in one space, where
    k-means clusters them together: cluster ``c`` of the rows belongs to cluster ``c`` of the columns. Then
    single rows and columns change their cluster as long as that lowers the normalised cut.

    Args:
        weight: dense, ``(out, in, *kernel)``, of any real dtype, on any device; computed in float64 on the
            CPU. The similarities at a kernel's positions are added.
        num_clusters: from 1 to the smaller of ``out`` and ``in``.
        affinity: the similarity: ``"abs"``, ``|weight|``; ``"square"``, ``weight^2``; ``"given"``,
            ``weight`` itself, which must not be negative (an accumulated gradient, for example).
        n_init: how many times k-means starts anew; the tightest result is kept.
        seed: of these starts. The same seed gives the same labels.

    Returns:
        The partition, on the weight's device. Clusters are numbered in the order in which the rows, then
        the columns, first show them. Rows and columns of zeros are in no cluster, -1. A cluster is empty
        only if fewer than ``num_clusters`` nodes differ: a constant or rank-one weight is one cluster.
        It may consist of rows only or of columns only.

    Raises:
        TypeError: ``weight`` is no tensor, complex, or a ``DTensor``.
        ValueError: ``weight`` is not dense, has fewer than two dimensions, holds NaN or infinity or, as a
            given similarity, a negative number; any other argument is out of range.

    Example:
        >>> weight = torch.tensor([[5.0, 0.1, 4.0], [0.1, -3.0, 0.2], [6.0, 0.2, -5.0]])
        >>> partition = spectral_cocluster(weight, 2)
        >>> partition.row_labels.tolist(), partition.col_labels.tolist()
        ([0, 1, 0], [0, 1, 0])
    """
    _check_weight(weight)
    rows, cols = weight.shape[:2]
    check("num_clusters", num_clusters, Integer(1, min(rows, cols)), f" for shape {(rows, cols)}")
    check("n_init", n_init, Integer(1, 2**31 - 1))
    check("seed", seed, SEED)
    similarity = _similarity(weight, affinity)

    row_labels, col_labels = (torch.full((size,), -1, device="cpu") for size in (rows, cols))
    tied_rows, tied_cols = similarity.sum(1) > 0, similarity.sum(0) > 0
    if tied_rows.any():
        # What the rounding of the weights may change in a singular value, the first of which is 1.
        rounding = torch.finfo(weight.dtype if weight.is_floating_point() else torch.float64).eps
        tied = similarity[tied_rows][:, tied_cols]
        points, weights = _embedding(tied, num_clusters, max(rounding, 1e-12))
        labels = _kmeans(points, weights, num_clusters, n_init, torch.Generator("cpu").manual_seed(int(seed)))
        labels = _numbered_as_met(refine(bipartite(tied), labels, num_clusters))
        row_labels[tied_rows], col_labels[tied_cols] = labels.tensor_split([int(tied_rows.sum())])
    return Partition(row_labels, col_labels, num_clusters).to(weight.device)


def spectral_cluster(adjacency: Tensor, num_clusters: int, *, n_init: int = 10, seed: int = 0) -> Tensor:
    """Clusters of an undirected graph: the same for a symmetric matrix of similarities.

    The embedding is of the eigenvectors of ``D^-1/2 A D^-1/2`` with the ``num_clusters`` largest
    eigenvalues. Arguments, errors and what else holds as for :func:`spectral_cocluster`.

    Args:
        adjacency: dense, symmetric, ``(n, n)``, not negative.
        num_clusters: from 1 to ``n``.
        n_init: as there.
        seed: as there.

    Returns:
        ``(n,)``, int64, on the adjacency's device; -1 for a node without edges.

    Raises:
        TypeError, ValueError: as there, and for a matrix that is not symmetric.

    Example:
        >>> two_pairs = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)) + 0.1
        >>> spectral_cluster(two_pairs, 2)
        tensor([0, 0, 1, 1])
    """
    similarity = _graph(adjacency)
    check("num_clusters", num_clusters, Integer(1, len(similarity)), f" for {len(similarity)} nodes")
    check("n_init", n_init, Integer(1, 2**31 - 1))
    check("seed", seed, SEED)
    labels = torch.full((len(similarity),), -1, device="cpu")
    tied = similarity.sum(1) > 0
    if tied.any():
        similarity = similarity[tied][:, tied]
        scale = similarity.sum(1).rsqrt()
        values, vectors = torch.linalg.eigh(scale[:, None] * similarity * scale)
        kept = values[-num_clusters:] > 1e-12
        points = _in_units(scale[:, None] * vectors[:, -num_clusters:][:, kept], similarity.sum())
        weights = similarity.sum(1) / similarity.sum()
        found = _kmeans(points, weights, num_clusters, n_init, torch.Generator("cpu").manual_seed(int(seed)))
        labels[tied] = _numbered_as_met(refine(similarity, found, num_clusters))
    return labels.to(adjacency.device)


def normalized_cut(
    adjacency: Tensor, labels: Tensor | Partition | Sequence[int], *, affinity: str = "abs"
) -> float:
    """The normalised cut: for each cluster the share of its ties that leave it, added up.

    ``sum over clusters c of cut(c) / volume(c)``: the volume is the sum of the degrees of its nodes, the
    cut is the volume less what ties two nodes of the cluster (each tie counts at both of its ends).

    Args:
        adjacency: a dense symmetric graph ``(n, n)``, not negative; with a ``Partition`` a dense weight
            ``(out, in, *kernel)``, whose rows and columns are the nodes.
        labels: ``(n,)`` integers, -1 for "in no cluster", or a ``Partition`` of the weight.
        affinity: the similarity of a weight, as for :func:`spectral_cocluster`.

    Returns:
        From 0 to the number of clusters. A cluster without any tie, an empty one for example, adds 0.

    Raises:
        TypeError, ValueError: as for :func:`spectral_cluster`; labels of another length.

    Example:
        >>> normalized_cut(torch.tensor([[4.0, 1.0], [1.0, 1.0]]), Partition([0, 1], [0, 1], 2))
        0.7
    """
    if isinstance(labels, Partition):
        _check_weight(adjacency)
        if labels.shape != tuple(adjacency.shape[:2]):
            raise ValueError(f"labels must fit shape {tuple(adjacency.shape[:2])}, got {labels.shape}")
        similarity = bipartite(_similarity(adjacency, affinity))
        joint, count = torch.cat([labels.row_labels, labels.col_labels]).cpu(), labels.num_clusters
    else:
        require_whole("labels", labels)
        similarity, joint = _graph(adjacency), torch.as_tensor(labels, device="cpu")
        if joint.shape != (len(similarity),):
            raise ValueError(f"labels must have shape ({len(similarity)},), got {tuple(joint.shape)}")
        count = max(int(joint.max()) + 1, 1)
    inside, volume = inside_and_volume(similarity, joint, count)
    return float(((volume - inside) / volume)[volume > 0].sum())


def bipartite(similarity: Tensor) -> Tensor:
    """The graph of a matrix: its rows, then its columns, as nodes. ``(m, n)`` to ``(m + n, m + n)``."""
    rows, cols = similarity.shape
    graph = similarity.new_zeros(rows + cols, rows + cols)
    graph[:rows, rows:], graph[rows:, :rows] = similarity, similarity.T
    return graph


class Clusters(NamedTuple):
    """The clusters of a graph as its normalised cut sees them: what lies inside, the volume, the size."""

    inside: Tensor
    volume: Tensor
    sizes: Tensor

    def move(self, own: int, ties: Tensor, degree: Tensor, loop: Tensor, least: float) -> int:
        """The cluster to which one node moves from its own: where it lowers the normalised cut most.

        Args:
            own: the node's cluster.
            ties: ``(k,)``, of the node to each cluster, itself left out.
            degree: of the node.
            loop: its tie to itself.
            least: by how much the cut must fall.
        """
        inside, volume, sizes = self
        if sizes[own] == 1:
            return own
        # The share inside of a cluster that the node joins, and of the one that it leaves.
        joined = (inside + 2 * ties + loop) / (volume + degree)
        gain = joined - inside / volume.clamp(min=torch.finfo(volume.dtype).tiny)
        gain[(sizes == 0) | (ties == 0)] = -torch.inf
        left = (inside[own] - 2 * ties[own] - loop) / (volume[own] - degree)
        stays = inside[own] / volume[own] - left
        gain[own] = -torch.inf
        best = int(gain.argmax())
        if gain[best] <= stays + least:
            return own
        for cluster, sign in ((own, -1), (best, 1)):
            inside[cluster] += sign * (2 * ties[cluster] + loop)
            volume[cluster] += sign * degree
            sizes[cluster] += sign
        return best


def refine(
    similarity: Tensor, labels: Tensor, num_clusters: int, max_sweeps: int = 20, least: float = 1e-12
) -> Tensor:
    """Moves one node after the other to where it lowers the normalised cut most; none becomes empty.

    Args:
        similarity: ``(n, n)``, symmetric, not negative.
        labels: ``(n,)`` in ``[0, num_clusters)``.
        num_clusters: how many there are; an empty one stays empty.
        max_sweeps: over all nodes, after which it ends even if another move would help.
        least: by how much a move must lower the cut.

    Returns:
        New labels.
    """
    labels = labels.clone()
    clusters = Clusters(
        *inside_and_volume(similarity, labels, num_clusters), torch.bincount(labels, minlength=num_clusters)
    )
    degrees, loops = similarity.sum(1), similarity.diagonal()
    for _ in range(max_sweeps):
        before = labels.clone()
        for node in range(len(labels)):
            own = int(labels[node])
            ties = similarity.new_zeros(num_clusters).index_add(0, labels, similarity[node])
            ties[own] -= loops[node]
            labels[node] = clusters.move(own, ties, degrees[node], loops[node], least)
        if torch.equal(labels, before):
            break
    return labels


def inside_and_volume(similarity: Tensor, labels: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """For each cluster what ties its nodes to each other, and the sum of their degrees."""
    member = (labels[:, None] == torch.arange(num_clusters, device=labels.device)).to(similarity.dtype)
    return (member * (similarity @ member)).sum(0), member.T @ similarity.sum(1)


def _graph(adjacency: Tensor) -> Tensor:
    """The similarities of a graph's nodes: float64, symmetric."""
    _check_weight(adjacency, "adjacency")
    if adjacency.dim() != 2 or adjacency.shape[0] != adjacency.shape[1]:
        raise ValueError(f"adjacency must have shape (n, n), got {tuple(adjacency.shape)}")
    similarity = _similarity(adjacency, "given", "adjacency")
    if not torch.allclose(similarity, similarity.T, rtol=1e-5, atol=0.0):
        raise ValueError("adjacency must be symmetric")
    return (similarity + similarity.T) / 2


def _check_weight(weight: object, name: str = "weight") -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(weight).__name__}")
    require_whole(name, weight)
    if weight.is_complex():
        raise TypeError(f"{name} must be real, got {weight.dtype}")
    if weight.layout != torch.strided:
        raise ValueError(f"{name} must be dense, got layout {weight.layout}")
    if weight.dim() < 2 or weight.numel() == 0:
        raise ValueError(f"{name} must have shape (out, in, *kernel), none 0, got {tuple(weight.shape)}")


def _similarity(weight: Tensor, affinity: str, name: str = "weight") -> Tensor:
    """The similarities of rows and columns, kernels summed: float64, ``(out, in)``, none negative."""
    if affinity not in _AFFINITIES:
        raise ValueError(f"affinity must be one of {_AFFINITIES}, got {affinity!r}")
    values = weight.detach().cpu().to(torch.float64)
    bad = ~values.isfinite() | (values < 0) if affinity == "given" else ~values.isfinite()
    if bad.any():
        place = tuple(bad.nonzero()[0].tolist())
        allowed = "finite and, as a given similarity, not negative" if affinity == "given" else "finite"
        raise ValueError(f"{name} must be {allowed}, got {values[place].item()} at {place}")
    # The clusters do not depend on the scale, but a square or a sum of very large numbers would be infinite.
    largest = values.abs().max()
    values = values / torch.where(largest == 0, 1.0, largest)
    values = values.square() if affinity == "square" else values.abs()
    return values.flatten(2).sum(2) if values.dim() > 2 else values


def _embedding(similarity: Tensor, num_clusters: int, rounding: float) -> tuple[Tensor, Tensor]:
    """A place for each row, then for each column, and their weights; every degree is positive.

    Returns:
        ``(rows + columns, number of singular vectors)`` and ``(rows + columns,)``.
    """
    row_scale, col_scale = similarity.sum(1).rsqrt(), similarity.sum(0).rsqrt()
    normalised = row_scale[:, None] * similarity * col_scale
    left, values, right = torch.linalg.svd(normalised, full_matrices=False)
    # Exactly num_clusters vectors. k clusters without ties between them have the singular value 1 k times
    # over; its k vectors, the constant one among them, put the clusters at right angles to each other. With
    # fewer (scikit-learn keeps 1 + ceil(log2 k)) the clusters are projected onto each other, and noise then
    # mixes them; further vectors hold noise. Vectors of singular value 0 say nothing about the matrix.
    kept = int((values[:num_clusters] > rounding).sum())
    points = torch.cat([row_scale[:, None] * left[:, :kept], col_scale[:, None] * right[:kept].T])
    degrees = torch.cat([similarity.sum(1), similarity.sum(0)])
    return _in_units(points, similarity.sum()), degrees / similarity.sum()


def _in_units(points: Tensor, total: Tensor) -> Tensor:
    """The points in a unit in which none is nearer to the origin than 1."""
    # But where there are more separate parts than vectors: a part that has none of them is put at the origin,
    # a place of its own, rather than in the direction of a rounding error.
    points = points * total.sqrt()
    lengths = torch.linalg.vector_norm(points, dim=1, keepdim=True)
    return torch.where(lengths > 1e-8, points, 0.0)


def _kmeans(
    points: Tensor, weights: Tensor, num_clusters: int, n_init: int, generator: torch.Generator
) -> Tensor:
    """The labels, of ``n_init`` starts, with the least cost: squared distances from the means, weighted.

    Each node weighs as much as its degree. The nodes of a cluster lie about the inverse root of its volume
    away from the origin, so that to join two clusters costs the same however large they are: the cost is the
    normalised cut as far as the vectors tell it (I. S. Dhillon, Y. Guan and B. Kulis, "Kernel k-means,
    spectral clustering and normalized cuts", KDD 2004). With all points at distance one and of weight one, as
    is usual, it pays to divide one large cluster and to join small ones.
    """
    best_labels, best_cost = torch.zeros(len(points), dtype=torch.int64, device=points.device), torch.inf
    for _ in range(n_init):
        labels, cost, _ = lloyd(points, weights, first_centres(points, weights, num_clusters, generator))
        if cost < best_cost:
            best_labels, best_cost = labels, cost
    return best_labels


def first_centres(
    points: Tensor,
    weights: Tensor,
    num_clusters: int,
    generator: torch.Generator,
    same_place: float = _SAME_PLACE,
) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): each next centre is a point, drawn by its cost.

    Returns:
        At most ``num_clusters`` centres: no more than there are places that differ.
    """
    first = int(torch.randint(len(points), (), generator=generator, device="cpu"))
    centres = points[first : first + 1]
    squares = _squared_distances(points, centres).amin(1)
    # A point that differs from a centre by rounding only must not be drawn as another centre.
    least = same_place**2 * points.square().sum(1)
    while len(centres) < num_clusters and (squares > least).any():
        chances = torch.where(squares > least, weights * squares, 0.0)
        centres = torch.cat([centres, points[torch.multinomial(chances, 1, generator=generator)]])
        squares = torch.minimum(squares, _squared_distances(points, centres[-1:]).amin(1))
    return centres


def lloyd(
    points: Tensor, weights: Tensor, centres: Tensor, max_iter: int = _MAX_LLOYD
) -> tuple[Tensor, float, int]:
    """Lloyd's iterations to their end, no cluster being empty: labels, cost and number of iterations."""
    count = len(centres)
    labels = torch.full((len(points),), -1, device=points.device)
    iteration = 0
    while iteration < max_iter:
        iteration += 1
        squares = _squared_distances(points, centres)
        previous, labels = labels, squares.argmin(1)
        for empty in (torch.bincount(labels, minlength=count) == 0).nonzero().flatten():
            # An emptied cluster restarts at the point that costs most and leaves no cluster empty.
            alone = torch.bincount(labels, minlength=count)[labels] == 1
            own = weights * squares.gather(1, labels[:, None]).flatten()
            labels[torch.where(alone, -1.0, own).argmax()] = empty
        masses = points.new_zeros(count).index_add(0, labels, weights)
        sums = torch.zeros_like(centres).index_add(0, labels, weights[:, None] * points)
        centres = sums / masses[:, None]
        if torch.equal(labels, previous):
            break
    return labels, float((weights * (points - centres[labels]).square().sum(1)).sum()), iteration


def _squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """``(points, centres)``, of differences: the shorter form by products loses small distances."""
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


def _numbered_as_met(labels: Tensor) -> Tensor:
    """The same clusters, numbered by their first point."""
    new_number: dict[int, int] = {}
    return torch.tensor(
        [new_number.setdefault(label, len(new_number)) for label in labels.tolist()], device="cpu"
    )
