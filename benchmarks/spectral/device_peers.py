"""The peers of spectral clustering on a GPU, all of them plain PyTorch on the device of their input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import modfast
from benchmarks.common.device import copy_of
from benchmarks.spectral.cases import Planted
from benchmarks.spectral.peers import FLOOR, LOWRANK, OURS, Contestant, Found, lowrank_points
from modfast.spectral.matrices import as_matrix
from modfast.spectral.operators import LANES
from modfast.spectral.similarity import read_similarity

MATMUL = "matmul"


def k_means(points: Tensor, weights: Tensor, k: int, n_init: int = 10, max_iter: int = 300) -> Tensor:
    """Cluster weighted points by Lloyd's iterations, all random starts side by side; return the labels.

    Args:
        points: ``(n, dims)``.
        weights: ``(n,)``, positive.
        k: the number of clusters.
        n_init: the number of starts, by k-means++; the one of lowest cost is kept.
        max_iter: iterations at most.
    """
    # (starts, n, 1): Lloyd's iterations of all starts are products of batches.
    lengths = points.square().sum(1)[None, :, None]

    def squared_distances(centres: Tensor) -> Tensor:
        products = points @ centres.transpose(1, 2)
        return (lengths - 2.0 * products + centres.square().sum(2)[:, None, :]).clamp_(min=0.0)

    first = torch.multinomial(weights, n_init, replacement=True)
    centres = points[first][:, None, :]
    for _ in range(1, k):
        nearest = squared_distances(centres).amin(2)
        # A start whose points coincide with its centres takes any.
        chance = weights * nearest + 1e-30 * weights
        chosen = torch.multinomial(chance, 1)[:, 0]
        centres = torch.cat([centres, points[chosen][:, None, :]], 1)
    labels: Tensor | None = None
    for _ in range(max_iter):
        now = squared_distances(centres).argmin(2)
        if labels is not None and torch.equal(now, labels):
            break
        labels = now
        members = torch.nn.functional.one_hot(labels, k).to(points.dtype).transpose(1, 2)
        volumes = members @ weights
        sums = members @ (weights[:, None] * points)
        means = sums / volumes.clamp(min=torch.finfo(points.dtype).tiny)[:, :, None]
        centres = torch.where(volumes[:, :, None] > 0, means, centres)
    distances = squared_distances(centres).amin(2)
    return squared_distances(centres)[int((distances @ weights).argmin())].argmin(1)


def svd_lowrank(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cluster rows and columns in one embedding: PyTorch's randomized SVD, then the k-means above."""
    points, row_scale, col_scale = lowrank_points(similarity, k)
    degrees = torch.cat([row_scale, col_scale])[:, 0] ** -2
    return k_means(points, degrees, k).split([len(row_scale), len(col_scale)])


def svd_lowrank_graph(adjacency: Tensor, k: int) -> Tensor:
    points, row_scale, _ = lowrank_points(adjacency, k)
    return k_means(points[: len(row_scale)], row_scale[:, 0] ** -2, k)


def on_device(matrix: Any, device: str) -> Tensor:
    """Return SciPy's compressed rows as PyTorch's, with the same dtypes."""
    parts = [torch.from_numpy(part).to(device) for part in (matrix.indptr, matrix.indices, matrix.data)]
    return torch.sparse_csr_tensor(*parts, size=matrix.shape)


def bytes_of_matrix(matrix: Tensor) -> int:
    """Return what one pass reads: all numbers, in compressed rows the starts and indices as well."""
    if matrix.layout == torch.strided:
        return matrix.nbytes
    return matrix.crow_indices().nbytes + matrix.col_indices().nbytes + matrix.values().nbytes


def scaled(matrix: Tensor, scale: float) -> Tensor:
    """Return ``|scale * matrix|`` in the matrix's layout."""
    if matrix.layout == torch.strided:
        return (scale * matrix).abs()
    values = (scale * matrix.values()).abs()
    return torch.sparse_csr_tensor(matrix.crow_indices(), matrix.col_indices(), values, size=matrix.shape)


def as_coo(rows: Tensor) -> Tensor:
    """Return what PyTorch scales by rows and columns: it does not do that with compressed rows."""
    return rows.to_sparse_coo().coalesce()


def weight_contestants(planted: Planted, device: str) -> dict[str, Contestant]:
    """Return, by name, functions that find the clusters of a weight on the device; not so the floor."""
    k = planted.partition.num_clusters
    weight = planted.weight.to(device) if planted.sparse is None else on_device(planted.sparse, device)
    similarity = weight.abs() if planted.sparse is None else as_coo(on_device(abs(planted.sparse), device))
    copied = copy_of(bytes_of_matrix(weight), device)

    def ours() -> Found:
        partition, info = modfast.spectral_cocluster(weight, k, return_info=True)
        return Found((partition.row_labels.cpu().numpy(), partition.col_labels.cpu().numpy()), info["passes"])

    def floor() -> None:
        copied()

    def peer() -> Found:
        row_labels, col_labels = svd_lowrank(similarity, k)
        return Found((row_labels.cpu().numpy(), col_labels.cpu().numpy()))

    return {OURS: ours, FLOOR: floor, LOWRANK: peer}


def graph_contestants(adjacency: Any, k: int, device: str) -> dict[str, Contestant]:
    """Return, by name, functions that find the clusters of a graph on the device."""
    rows = on_device(adjacency, device)
    similarity, copied = as_coo(rows), copy_of(bytes_of_matrix(rows), device)

    def ours() -> Found:
        labels, info = modfast.spectral_cluster(rows, k, return_info=True)
        return Found((labels.cpu().numpy(),), info["passes"])

    def floor() -> None:
        copied()

    return {
        OURS: ours,
        FLOOR: floor,
        LOWRANK: lambda: Found((svd_lowrank_graph(similarity, k).cpu().numpy(),)),
    }


# --- The product alone


def product_contestants(
    matrix: Tensor, width: int, symmetric: bool
) -> tuple[dict[str, Callable[[], Tensor]], int]:
    """Return, by name, functions for the product of a solver's step; and the bytes that it has to move.

    These are the matrix once, the vectors and the results. PyTorch's peer gets the similarities and, if they
    are sparse, their transpose ready-made.

    Args:
        matrix: dense, or compressed rows.
        width: how many vectors it is multiplied by, rounded up as the solver does.
        symmetric: a graph, with the step ``A right``; else a weight, with ``|W|^T (weights * (|W| right))``.
    """
    rows, cols = matrix.shape
    width = -(-width // LANES) * LANES
    generator = torch.Generator().manual_seed(0)
    right = torch.randn(cols, width, generator=generator).to(matrix.device)
    weights = (torch.rand(rows, generator=generator) + 0.5).to(matrix.device)
    similarity = read_similarity(as_matrix(matrix, "matrix"), "given" if symmetric else "abs")
    sizes = scaled(matrix, similarity.scale)  # modfast scales by a power of two, too
    transposed = sizes.T if sizes.layout == torch.strided else as_coo(sizes).T.coalesce().to_sparse_csr()

    def ours() -> Tensor:
        if symmetric:
            return similarity.product(right=right)[0]
        return similarity.product(right=right, row_weights=weights)[1]

    def matmul() -> Tensor:
        forward = sizes @ right
        return forward if symmetric else transposed @ (weights[:, None] * forward)

    number = right.element_size()
    moved = bytes_of_matrix(matrix) + number * width * (rows + cols + (0 if symmetric else cols))
    return {OURS: ours, FLOOR: copy_of(moved, str(matrix.device)), MATMUL: matmul}, moved  # type: ignore[dict-item]
