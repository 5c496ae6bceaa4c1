"""Clusters of one graph for many numbers of them: the same as one by one, from one embedding."""

import pytest
import torch

from modfast import ConvergenceWarning, normalized_cut, spectral_cluster
from modfast.spectral.counts import spectral_cluster_counts


def planted_graph(clusters, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(clusters * size, generator=generator)
    truth = torch.arange(clusters).repeat_interleave(size)[order]
    weights = torch.rand(len(truth), len(truth), generator=generator)
    weights = weights * torch.where(truth[:, None] == truth, 1.0, 0.05)
    return (weights + weights.T).fill_diagonal_(0.0), truth


def same_clusters(one, other):
    pairs = torch.unique(torch.stack([one, other]), dim=1)
    return pairs.shape[1] == len(one.unique()) == len(other.unique())


def test_the_planted_number_is_found_as_by_itself():
    graph, truth = planted_graph(5, 60)
    steps = []
    found = spectral_cluster_counts(graph, [2, 5, 8], on_count=steps.append)
    assert steps == list(found.labels) == [2, 5, 8]
    assert same_clusters(found.labels[5], truth)
    assert torch.equal(found.labels[5], spectral_cluster(graph, 5))
    for k, labels in found.labels.items():
        assert found.normalized_cuts[k] == pytest.approx(normalized_cut(graph, labels), rel=1e-9)
        alone = normalized_cut(graph, spectral_cluster(graph, k))
        assert found.normalized_cuts[k] == pytest.approx(alone, rel=0.02)
    degrees = graph.double().sum(0)
    values = torch.linalg.eigvalsh(graph.double() / (degrees[:, None] * degrees).sqrt()).flip(0)
    assert found.eigenvalues == pytest.approx(values[:9].tolist(), abs=2e-3)
    assert found.converged


def test_nodes_without_edges_are_in_no_cluster():
    graph, _ = planted_graph(3, 40)
    graph[7], graph[:, 7] = 0.0, 0.0
    found = spectral_cluster_counts(graph.to_sparse_csr(), [2, 3])
    for labels in found.labels.values():
        assert (labels == -1).nonzero().flatten().tolist() == [7]
    empty = spectral_cluster_counts(torch.zeros(4, 4), [2])
    assert empty.labels[2].tolist() == [-1] * 4
    assert empty.normalized_cuts == {2: 0.0}


def test_components_without_a_vector_are_as_by_itself():
    # Six components and two vectors: four components lie where rounding puts them, unless they are set to 0.
    graph = torch.block_diag(*[torch.ones(30, 30)] * 6)
    found = spectral_cluster_counts(graph, [2, 6])
    assert same_clusters(found.labels[6], torch.arange(6).repeat_interleave(30))
    assert found.normalized_cuts[6] == pytest.approx(0.0, abs=1e-9)
    assert found.normalized_cuts[2] == pytest.approx(0.0, abs=1e-9)


def test_there_is_no_eigenvalue_beyond_the_last():
    found = spectral_cluster_counts(torch.ones(3, 3), [3])
    assert len(found.eigenvalues) == 3


@pytest.mark.parametrize(
    ("counts", "message"),
    [([], "at least one number"), ([0], "num_clusters"), ([2, 9], "for 6 nodes"), ([2.5], "num_clusters")],
)
def test_other_numbers_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        spectral_cluster_counts(torch.ones(6, 6), counts)


def test_it_warns_if_the_solver_stops_early():
    graph, _ = planted_graph(4, 100)
    with pytest.warns(ConvergenceWarning, match="stopped after"):
        found = spectral_cluster_counts(graph, [20], max_iter=1, tol=1e-9)
    assert not found.converged
