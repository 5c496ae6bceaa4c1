"""Spectral clustering of graphs, their normalised cut and their embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from planted import planted
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from modfast import Partition, normalized_cut, reference, spectral_cluster
from modfast.spectral import graph_embedding
from modfast.spectral.matrices import as_matrix
from modfast.spectral.similarity import read_similarity


def block_model(
    nodes: int, blocks: int, degree: float, share: float, seed: int = 0
) -> tuple[scipy.sparse.csr_matrix, np.ndarray[Any, Any]]:
    """A stochastic block model: this share of a node's edges ends in its own block."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(nodes) * blocks // nodes)
    inside = labels[:, None] == labels
    chance = np.where(
        inside, share * degree * blocks / nodes, (1 - share) * degree * blocks / (blocks - 1) / nodes
    )
    upper = np.triu(generator.random((nodes, nodes)) < chance, 1)
    return scipy.sparse.csr_matrix((upper | upper.T).astype(float)), labels


def as_torch(graph: scipy.sparse.csr_matrix, dtype: torch.dtype, index: torch.dtype) -> Tensor:
    return torch.sparse_csr_tensor(
        torch.from_numpy(graph.indptr).to(index),
        torch.from_numpy(graph.indices).to(index),
        torch.from_numpy(graph.data).to(dtype),
        graph.shape,
        check_invariants=False,
    )


pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
]


@pytest.mark.parametrize(("nodes", "blocks"), [(120, 3), (1000, 4), (2000, 8)])
def test_block_model(nodes: int, blocks: int) -> None:
    graph, truth = block_model(nodes, blocks, 20.0, 0.8)
    found, info = spectral_cluster(graph, blocks, return_info=True)
    assert adjusted_rand_score(truth, found) >= 0.99
    assert info["converged"]
    values = np.linalg.eigvalsh(normalised(graph.toarray()))[::-1][:blocks]
    torch.testing.assert_close(info["eigenvalues"], torch.tensor(values.copy()), rtol=0, atol=1e-5)
    assert (info["residuals"] <= 1e-3).all()


def normalised(dense: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    degrees = dense.sum(1)
    scale = np.divide(1.0, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
    result: np.ndarray[Any, Any] = scale[:, None] * dense * scale
    return result


def test_kinds_of_input_do_not_matter() -> None:
    graph, _ = block_model(400, 3, 20.0, 0.7)
    expected = spectral_cluster(graph, 3)
    dense = torch.from_numpy(graph.toarray())
    kinds: list[Any] = [
        dense,
        dense.float(),
        dense.numpy(),
        dense.to_sparse(),
        graph.tocoo(),
        graph.tocsc(),
        scipy.sparse.csr_array(graph),
        graph.astype(np.float32),
        graph.astype(np.int64),
        graph.astype(bool),
        as_torch(graph, torch.float32, torch.int64),
        as_torch(graph, torch.float64, torch.int32),
        as_torch(graph, torch.float16, torch.int64),
    ]
    for kind in kinds:
        assert torch.equal(spectral_cluster(kind, 3), expected)


@pytest.mark.parametrize("nodes", [100, 500])
def test_nodes_without_edges_are_in_no_cluster(nodes: int) -> None:
    graph, truth = block_model(nodes, 2, 20.0, 0.9)
    dense = graph.toarray()
    dense[::9], dense[:, ::9] = 0.0, 0.0
    for kind in (dense, scipy.sparse.csr_matrix(dense)):
        found = spectral_cluster(kind, 2).numpy()
        assert np.array_equal(found < 0, np.arange(nodes) % 9 == 0)
        assert adjusted_rand_score(truth[found >= 0], found[found >= 0]) >= 0.99
    assert spectral_cluster(np.zeros((4, 4)), 2).tolist() == [-1] * 4


def test_few_edges_in_a_large_graph() -> None:
    graph = scipy.sparse.lil_matrix((3000, 3000))
    for block in (range(10, 2000, 400), range(17, 2900, 700)):
        for node in block:
            for other in block:
                graph[node, other] = 1.0
    found = spectral_cluster(graph.tocsr(), 2)
    assert found[10:2000:400].tolist() == [0] * 5
    assert found[17:2900:700].tolist() == [1] * 5
    assert int((found >= 0).sum()) == 10


@pytest.mark.parametrize("blocks", [2, 6, 9])
def test_separate_parts(blocks: int) -> None:
    part = np.ones((40, 40))
    graph = scipy.sparse.block_diag([part * 10.0**-i for i in range(6)], format="csr")
    found = spectral_cluster(graph, blocks)
    assert len(np.unique(found)) == min(blocks, 6)
    assert normalized_cut(graph, found) == pytest.approx(0.0, abs=1e-12)


def test_loops_tie_a_node_to_itself() -> None:
    graph, _ = block_model(200, 2, 20.0, 0.9)
    with_loops = graph + scipy.sparse.identity(200) * 3.0
    labels = spectral_cluster(with_loops, 2)
    expected = reference.normalized_cut(torch.from_numpy(with_loops.toarray()), labels)
    assert normalized_cut(with_loops, labels) == pytest.approx(expected, rel=1e-12)


def test_refinement_leaves_no_move_that_helps() -> None:
    graph, _ = block_model(300, 3, 12.0, 0.55)
    labels = spectral_cluster(graph, 3)
    dense = torch.from_numpy(graph.toarray())
    tied = labels >= 0
    assert torch.equal(
        reference.spectral.refine(dense[tied][:, tied], labels[tied], 3, 1, 1e-9), labels[tied]
    )


def test_same_labels_for_any_number_of_threads(set_threads: Callable[[int], None]) -> None:
    graph, _ = block_model(1500, 4, 8.0, 0.4)
    results = []
    for threads in (1, 2, 5):
        set_threads(threads)
        labels, info = spectral_cluster(graph, 6, return_info=True)
        results.append((labels, info["eigenvalues"]))
    for labels, values in results[1:]:
        assert torch.equal(labels, results[0][0])
        assert torch.equal(values, results[0][1])


def test_many_points_are_clustered_from_a_sample() -> None:
    """Of four random graphs of 10,000 nodes, more nodes than k-means tries its starts on."""
    generator = np.random.default_rng(0)
    parts = []
    for _ in range(4):
        ways = [scipy.sparse.identity(10_000, format="csr")[generator.permutation(10_000)] for _ in range(4)]
        parts.append(sum(way + way.T for way in ways))
    found = spectral_cluster(scipy.sparse.block_diag(parts, format="csr"), 4)
    assert torch.equal(found, torch.arange(40_000) // 10_000)


# --- the normalised cut


@pytest.mark.parametrize("affinity", ["abs", "square"])
@pytest.mark.parametrize("shape", [(30, 20), (6, 5, 3, 3)])
def test_normalized_cut_of_a_weight(shape: tuple[int, ...], affinity: str) -> None:
    weight = torch.randn(shape)
    partition = Partition(torch.randint(-1, 4, (shape[0],)), torch.randint(-1, 4, (shape[1],)), 5)
    expected = reference.normalized_cut(weight, partition, affinity=affinity)
    assert normalized_cut(weight, partition, affinity=affinity) == pytest.approx(expected, rel=1e-6)
    if weight.dim() == 2:
        sparse = scipy.sparse.csr_matrix(weight.double().numpy())
        assert normalized_cut(sparse, partition, affinity=affinity) == pytest.approx(expected, rel=1e-12)


def test_normalized_cut_of_a_graph() -> None:
    graph, _ = block_model(150, 3, 15.0, 0.6)
    labels = torch.randint(-1, 3, (150,))
    expected = reference.normalized_cut(torch.from_numpy(graph.toarray()), labels)
    for given in (labels, labels.numpy(), labels.tolist(), labels.to(torch.int32)):
        assert normalized_cut(graph, given) == pytest.approx(expected, rel=1e-12)
    assert normalized_cut(graph, np.zeros(150, dtype=int)) == pytest.approx(0.0, abs=1e-12)


def test_a_weight_is_a_graph_of_its_rows_and_columns() -> None:
    weight, truth = planted([12] * 3, [9] * 3, 0)
    graph = reference.spectral.bipartite(weight.abs().double())
    labels = torch.cat([truth.row_labels, truth.col_labels])
    assert normalized_cut(weight, truth) == pytest.approx(normalized_cut(graph, labels), rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"labels must have shape \(3,\), got \(2,\)"),
        ([0, 1, -2], "labels must be -1 or more, got -2"),
        ([0.0, 1.0, 2.0], "labels must be integers, got dtype torch.float"),
        ([[0, 1, 2]], r"labels must have shape \(3,\), got \(1, 3\)"),
        ("abc", "labels must be integers, one for each node, got 'abc'"),
        (Partition([0, 1], [0, 1], 2), r"labels must fit shape \(3, 3\)"),
    ],
)
def test_labels_that_do_not_fit(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalized_cut(torch.ones(3, 3), labels)


# --- the embedding


@pytest.mark.parametrize("nodes", [60, 300])
def test_embedding(nodes: int) -> None:
    graph, _ = block_model(nodes, 3, 20.0, 0.8)
    places = graph_embedding(graph, 3, tol=1e-9)
    dense = torch.from_numpy(graph.toarray())
    degrees = dense.sum(1)
    laplacian = torch.diag(degrees) - dense
    values = torch.tensor(np.linalg.eigvalsh(normalised(graph.toarray()))[::-1][:3].copy())
    residual = laplacian @ places - (1 - values) * degrees[:, None] * places
    assert residual.abs().max() < 1e-7
    unit = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(places.T @ (degrees[:, None] * places), unit, rtol=0, atol=1e-8)


# --- arguments


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [
        (torch.ones(3, 4), ValueError, r"adjacency must have shape \(n, n\), got \(3, 4\)"),
        (torch.ones(3), ValueError, r"adjacency must have shape \(n, n\)"),
        (torch.ones(0, 0), ValueError, "adjacency must have shape"),
        (torch.tensor([[0.0, 1.0], [2.0, 0.0]]), ValueError, "adjacency must be symmetric; row and column"),
        (torch.tensor([[0.0, -1.0], [-1.0, 0.0]]), ValueError, r"not negative, got -1.0 at \(0, 1\)"),
        (torch.tensor([[0.0, torch.nan], [1.0, 0.0]]), ValueError, r"got nan at \(0, 1\)"),
        (torch.eye(2, dtype=torch.complex64), TypeError, "adjacency must be real, got torch.complex64"),
        (np.array([["a"]]), TypeError, "adjacency must hold real numbers"),
        (
            [[1.0]],
            TypeError,
            "adjacency must be a torch.Tensor, a NumPy array or a SciPy sparse matrix, got list",
        ),
    ],
)
def test_bad_graphs(graph: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spectral_cluster(graph, 1)


def test_one_edge_that_has_no_way_back() -> None:
    graph, _ = block_model(1000, 2, 20.0, 0.8)
    graph = graph.tolil()
    graph[3, 700] = 0.0 if graph[3, 700] else 1.0
    with pytest.raises(ValueError, match=r"adjacency must be symmetric; row and column (3|700) differ"):
        spectral_cluster(graph.tocsr(), 2)


@pytest.mark.parametrize("num_clusters", [0, 4, 2.0, True])
def test_num_clusters_out_of_range(num_clusters: Any) -> None:
    with pytest.raises(ValueError, match=r"num_clusters must be an integer in \[1, 3\] for 3 nodes"):
        spectral_cluster(torch.ones(3, 3), num_clusters)


def test_a_part_of_a_sparse_similarity() -> None:
    weight = torch.zeros(5, 7)
    weight[[0, 0, 3, 4], [1, 6, 2, 1]] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    sparse = scipy.sparse.csr_matrix(weight.numpy())
    part = read_similarity(as_matrix(sparse, "weight"), "given").part(weight.any(1), weight.any(0))
    assert part.shape == (3, 3)
    rows, _ = part.product(right=torch.eye(3, 8, dtype=torch.float64))
    expected = weight[weight.any(1)][:, weight.any(0)].double()
    torch.testing.assert_close(rows[:, :3] / part.scale, expected)
