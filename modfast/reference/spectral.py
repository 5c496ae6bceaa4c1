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

# Points whose distance is below this share of their distance from the origin differ by rounding only.
_SAME_PLACE = 1e-6

# Lloyd's iterations usually end within a few dozen; equal distances could in theory alternate for ever.
_MAX_LLOYD = 300


def spectral_cocluster(
    weight: Tensor, num_clusters: int, *, affinity: str = "abs", n_init: int = 10, seed: int = 0
) -> Partition:
    """Cluster rows and columns together, so that large weights lie inside clusters.

    Rows and columns are the two sides of a bipartite graph whose edge weights are the similarities ``A``.
    The top ``num_clusters`` singular vectors of ``D_row^-1/2 A D_col^-1/2`` embed both sides in one space,
    where k-means clusters them together: cluster ``c`` of the rows belongs to cluster ``c`` of the columns.
    Then single rows and columns change their cluster as long as that lowers the normalised cut.

    Args:
        weight: dense, ``(out, in, *kernel)``, of any real dtype, on any device; computed in float64 on the
            CPU. The similarities at a kernel's positions are added.
        num_clusters: from 1 to the smaller of ``out`` and ``in``.
        affinity: how a weight becomes a similarity: ``"abs"``, ``|weight|``; ``"square"``, ``weight^2``;
            ``"given"``, ``weight`` itself, which must not be negative (an accumulated gradient, for example).
        n_init: the number of random starts of k-means; the result with the lowest cost is kept.
        seed: seeds these starts. The same seed gives the same labels.

    Returns:
        The partition, on the weight's device. Clusters are numbered in the order in which they first appear
        in the rows, then in the columns. Rows and columns of zeros are in no cluster, -1. A cluster is empty
        only if fewer than ``num_clusters`` nodes differ: a constant or rank-one weight is one cluster.
        A cluster may consist of rows only or of columns only.

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
    nonzero_rows, nonzero_cols = similarity.sum(1) > 0, similarity.sum(0) > 0
    if nonzero_rows.any():
        # The rounding error that the weights' dtype causes in a singular value, the largest of which is 1.
        rounding = torch.finfo(weight.dtype if weight.is_floating_point() else torch.float64).eps
        nonzero = similarity[nonzero_rows][:, nonzero_cols]
        points, weights = _embedding(nonzero, num_clusters, max(rounding, 1e-12))
        labels = _kmeans(points, weights, num_clusters, n_init, torch.Generator("cpu").manual_seed(int(seed)))
        labels = _numbered_as_met(refine(bipartite(nonzero), labels, num_clusters))
        row_labels[nonzero_rows], col_labels[nonzero_cols] = labels.tensor_split([int(nonzero_rows.sum())])
    return Partition(row_labels, col_labels, num_clusters).to(weight.device)


def spectral_cluster(adjacency: Tensor, num_clusters: int, *, n_init: int = 10, seed: int = 0) -> Tensor:
    """Cluster the nodes of an undirected weighted graph.

    The nodes are embedded by the eigenvectors of ``D^-1/2 A D^-1/2`` with the ``num_clusters`` largest
    eigenvalues. The rest is as for :func:`spectral_cocluster`.

    Args:
        adjacency: dense, symmetric, ``(n, n)``, not negative.
        num_clusters: from 1 to ``n``.
        n_init: as for :func:`spectral_cocluster`.
        seed: as for :func:`spectral_cocluster`.

    Returns:
        ``(n,)``, int64, on the adjacency's device; -1 for a node without edges.

    Raises:
        TypeError, ValueError: as for :func:`spectral_cocluster`; the matrix is not symmetric.

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
    has_edges = similarity.sum(1) > 0
    if has_edges.any():
        similarity = similarity[has_edges][:, has_edges]
        scale = similarity.sum(1).rsqrt()
        values, vectors = torch.linalg.eigh(scale[:, None] * similarity * scale)
        positive = values[-num_clusters:] > 1e-12
        points = _in_units(scale[:, None] * vectors[:, -num_clusters:][:, positive], similarity.sum())
        weights = similarity.sum(1) / similarity.sum()
        generator = torch.Generator("cpu").manual_seed(int(seed))
        clusters = _kmeans(points, weights, num_clusters, n_init, generator)
        labels[has_edges] = _numbered_as_met(refine(similarity, clusters, num_clusters))
    return labels.to(adjacency.device)


def normalized_cut(
    adjacency: Tensor, labels: Tensor | Partition | Sequence[int], *, affinity: str = "abs"
) -> float:
    """Return the normalised cut: the share of each cluster's edge weight that leaves it, added up.

    ``sum over clusters c of cut(c) / volume(c)``, where the volume is the sum of the degrees of the
    cluster's nodes. The cut is the volume less the weight of the edges inside the cluster, each edge counted
    at both of its ends.

    Args:
        adjacency: a dense symmetric graph ``(n, n)``, not negative; with a ``Partition`` a dense weight
            ``(out, in, *kernel)``, whose rows and columns are the nodes.
        labels: ``(n,)`` integers, -1 for "in no cluster", or a ``Partition`` of the weight.
        affinity: how a weight becomes a similarity, as for :func:`spectral_cocluster`.

    Returns:
        From 0 to the number of clusters. A cluster without edges, an empty one for example, adds 0.

    Raises:
        TypeError, ValueError: as for :func:`spectral_cluster`; ``labels`` has another length.

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
    """Return the adjacency of a matrix's bipartite graph, ``(m + n, m + n)``: rows first, then columns."""
    rows, cols = similarity.shape
    graph = similarity.new_zeros(rows + cols, rows + cols)
    graph[:rows, rows:], graph[rows:, :rows] = similarity, similarity.T
    return graph


class Clusters(NamedTuple):
    """The terms of the normalised cut: each cluster's edge weight inside, its volume and its size."""

    inside: Tensor
    volume: Tensor
    sizes: Tensor

    def move(self, own: int, ties: Tensor, degree: Tensor, loop: Tensor, least: float) -> int:
        """Move a node to the cluster that lowers the normalised cut most; return that cluster.

        Args:
            own: the node's cluster.
            ties: ``(k,)``, the weight of the edges from the node to the other nodes of each cluster.
            degree: the node's degree.
            loop: the weight of the node's edge to itself.
            least: by how much the cut must fall; else the node stays.
        """
        inside, volume, sizes = self
        if sizes[own] == 1:
            return own
        # The share of edge weight inside each cluster if the node joins it, and inside its own if it leaves.
        joined = (inside + 2 * ties + loop) / (volume + degree)
        gain = joined - inside / volume.clamp(min=torch.finfo(volume.dtype).tiny)
        gain[(sizes == 0) | (ties == 0)] = -torch.inf
        left = (inside[own] - 2 * ties[own] - loop) / (volume[own] - degree)
        loss = inside[own] / volume[own] - left
        gain[own] = -torch.inf
        best = int(gain.argmax())
        if gain[best] <= loss + least:
            return own
        for cluster, sign in ((own, -1), (best, 1)):
            inside[cluster] += sign * (2 * ties[cluster] + loop)
            volume[cluster] += sign * degree
            sizes[cluster] += sign
        return best


def refine(
    similarity: Tensor, labels: Tensor, num_clusters: int, max_sweeps: int = 20, least: float = 1e-12
) -> Tensor:
    """Move one node after the other to the cluster that lowers the normalised cut most; none becomes empty.

    Args:
        similarity: ``(n, n)``, symmetric, not negative.
        labels: ``(n,)`` in ``[0, num_clusters)``; -1 stays, and its edges count in its neighbours' degrees.
        num_clusters: the number of clusters; an empty one stays empty.
        max_sweeps: the maximum number of sweeps over all nodes, even if another move would help.
        least: by how much a move must lower the cut.

    Returns:
        New labels.
    """
    labels = labels.clone()
    clustered = (labels >= 0).nonzero().flatten()
    sizes = torch.bincount(labels[clustered], minlength=num_clusters)
    clusters = Clusters(*inside_and_volume(similarity, labels, num_clusters), sizes)
    degrees, loops = similarity.sum(1), similarity.diagonal()
    for _ in range(max_sweeps):
        before = labels.clone()
        for node in clustered.tolist():
            own = int(labels[node])
            to_clusters = similarity.new_zeros(num_clusters)
            to_clusters.index_add_(0, labels[clustered], similarity[node, clustered])
            to_clusters[own] -= loops[node]
            labels[node] = clusters.move(own, to_clusters, degrees[node], loops[node], least)
        if torch.equal(labels, before):
            break
    return labels


def inside_and_volume(similarity: Tensor, labels: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Return for each cluster the weight of the edges inside it, and the sum of its nodes' degrees."""
    member = (labels[:, None] == torch.arange(num_clusters, device=labels.device)).to(similarity.dtype)
    return (member * (similarity @ member)).sum(0), member.T @ similarity.sum(1)


def _graph(adjacency: Tensor) -> Tensor:
    """Check an adjacency and return the similarities of its nodes: float64, symmetric."""
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
    """Return the similarities, summed over a kernel's positions: float64, ``(out, in)``, none negative."""
    if affinity not in _AFFINITIES:
        raise ValueError(f"affinity must be one of {_AFFINITIES}, got {affinity!r}")
    values = weight.detach().cpu().to(torch.float64)
    bad = ~values.isfinite() | (values < 0) if affinity == "given" else ~values.isfinite()
    if bad.any():
        position = tuple(bad.nonzero()[0].tolist())
        allowed = "finite and, as a given similarity, not negative" if affinity == "given" else "finite"
        raise ValueError(f"{name} must be {allowed}, got {values[position].item()} at {position}")
    # The clusters do not depend on the scale, but a square or a sum of very large numbers would be infinite.
    largest = values.abs().max()
    values = values / torch.where(largest == 0, 1.0, largest)
    values = values.square() if affinity == "square" else values.abs()
    return values.flatten(2).sum(2) if values.dim() > 2 else values


def _embedding(similarity: Tensor, num_clusters: int, rounding: float) -> tuple[Tensor, Tensor]:
    """Embed rows and columns, all of positive degree.

    Returns:
        The points, ``(rows + columns, number of singular vectors)``, and their weights,
        ``(rows + columns,)``.
    """
    row_scale, col_scale = similarity.sum(1).rsqrt(), similarity.sum(0).rsqrt()
    normalised = row_scale[:, None] * similarity * col_scale
    left, values, right = torch.linalg.svd(normalised, full_matrices=False)
    # Exactly num_clusters vectors. If no edges run between k clusters, the singular value 1 occurs k times,
    # and its k vectors, the constant one among them, place the clusters orthogonally to each other. Fewer
    # vectors (scikit-learn keeps 1 + ceil(log2 k)) project the clusters onto each other, where noise mixes
    # them; additional vectors contain noise. Vectors of singular value 0 say nothing about the matrix.
    dims = int((values[:num_clusters] > rounding).sum())
    points = torch.cat([row_scale[:, None] * left[:, :dims], col_scale[:, None] * right[:dims].T])
    degrees = torch.cat([similarity.sum(1), similarity.sum(0)])
    return _in_units(points, similarity.sum()), degrees / similarity.sum()


def _in_units(points: Tensor, total: Tensor) -> Tensor:
    """Scale points by the root of the total similarity, so that none is nearer to the origin than 1."""
    # If there are more connected components than vectors, some components have no vector. Their points are
    # set to exactly 0, rather than left in the direction of a rounding error.
    points = points * total.sqrt()
    lengths = torch.linalg.vector_norm(points, dim=1, keepdim=True)
    return torch.where(lengths > 1e-8, points, 0.0)


def _kmeans(
    points: Tensor, weights: Tensor, num_clusters: int, n_init: int, generator: torch.Generator
) -> Tensor:
    """Return the labels of the start with the lowest cost: the weighted squared distances from the means.

    A node's weight is its degree. The nodes of a cluster lie at a distance of about the inverse root of the
    cluster's volume from the origin, so merging two clusters costs the same however large they are: the cost
    approximates the normalised cut by the vectors of the embedding (I. S. Dhillon, Y. Guan and B. Kulis,
    "Kernel k-means, spectral clustering and normalized cuts", KDD 2004). With all points at distance one and
    of weight one, as is usual, splitting one large cluster and merging small ones would lower the cost.
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
    """Draw centres by k-means++ (Arthur and Vassilvitskii 2007): points, with probability in their cost.

    Returns:
        ``num_clusters`` centres, or fewer if fewer points differ.
    """
    first = int(torch.randint(len(points), (), generator=generator, device="cpu"))
    centres = points[first : first + 1]
    squares = _squared_distances(points, centres).amin(1)
    # A point that differs from a centre only by rounding must not become another centre.
    least = same_place**2 * points.square().sum(1)
    while len(centres) < num_clusters and (squares > least).any():
        chances = torch.where(squares > least, weights * squares, 0.0)
        drawn = torch.multinomial(chances.cpu(), 1, generator=generator)  # by numbers drawn on the CPU
        centres = torch.cat([centres, points[drawn]])
        squares = torch.minimum(squares, _squared_distances(points, centres[-1:]).amin(1))
    return centres


def lloyd(
    points: Tensor, weights: Tensor, centres: Tensor, max_iter: int = _MAX_LLOYD
) -> tuple[Tensor, float, int]:
    """Run Lloyd's iterations without empty clusters; return labels, cost and number of iterations."""
    count = len(centres)
    labels = torch.full((len(points),), -1, device=points.device)
    iteration = 0
    while iteration < max_iter:
        iteration += 1
        squares = _squared_distances(points, centres)
        previous, labels = labels, squares.argmin(1)
        for empty in (torch.bincount(labels, minlength=count) == 0).nonzero().flatten():
            # An empty cluster takes the point with the highest cost that is not alone in its cluster.
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
    """Return ``(points, centres)`` from differences: the expansion into products loses small distances."""
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


def _numbered_as_met(labels: Tensor) -> Tensor:
    """Renumber clusters in the order of their first point."""
    new_number: dict[int, int] = {}
    return torch.tensor(
        [new_number.setdefault(label, len(new_number)) for label in labels.tolist()], device="cpu"
    )
