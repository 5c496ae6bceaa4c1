"""k-means on a GPU: the draws, labels and cost of the CPU, and results that stay on the device.

They run on an emulated GPU as well (gpu.py), which shows nothing of speed, of the memory model, or of blocks
and streams that really run at once.
"""

import pytest
import torch
from gpu import DEVICE, EMULATED, HostCopies, cpu_kernels, needs_a_real_gpu, to_device

from modfast import backend
from modfast.reference import spectral_operators as plain
from modfast.spectral.embedding import embed_graph
from modfast.spectral.matrices import as_matrix
from modfast.spectral.operators import numbered_as_met
from modfast.spectral.refinement import cluster_places
from modfast.spectral.similarity import read_similarity

pytestmark = pytest.mark.cuda

k_means = torch.ops.modfast.k_means

SAMPLE = 32768
# Sums in float64 have another order. Squared distances, in float32, round once only where products do.
ROUNDING = 1e-12 if backend()["cpu"] == "avx512" else 1e-5


def assert_like_cpu(points, weights, *arguments):
    """Compare labels, cost and iterations with those of the CPU; return the labels."""
    with cpu_kernels():
        expected = k_means(points, weights, *arguments)
    found = k_means(*to_device(points, weights), *arguments)
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == DEVICE.type
        assert one.dtype == other.dtype
        assert one.shape == other.shape
    labels, cost, iterations = (result.cpu() for result in found)
    assert torch.equal(labels, expected[0])
    torch.testing.assert_close(cost, expected[1], rtol=ROUNDING, atol=0.0, equal_nan=True)
    assert torch.equal(iterations, expected[2])
    return labels


# Around the 128 points, 16 or 32 centres and 16 coordinates of a tile, and the 1024 points of a draw.
SIZES = [
    (1, 1, 1),
    (1, 4, 1),
    (6, 2, 6),
    (127, 3, 4),
    (128, 15, 4),
    (129, 16, 15),
    (257, 17, 16),
    (300, 2, 17),
    (1023, 1, 3),
    (1024, 3, 32),
    (1025, 5, 33),
    (2100, 2, 5),
    (400, 70, 50),  # whose sums are too many for shared memory
]


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "overlapping"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_labels_and_cost_are_those_of_the_cpu(size, apart):
    count, dims, clusters = size
    points = torch.randn(count, dims)
    if apart:
        points += 10.0 * torch.randn(clusters, dims)[torch.randint(clusters, (count,))]
    weights = torch.rand(count) + 0.01
    for starts, max_iter in ((1, 1), (3, 2), (2, 300)):
        labels = assert_like_cpu(points, weights, clusters, starts, count, max_iter, 1e-4)
    assert labels.unique().tolist() == list(range(clusters))


@pytest.mark.parametrize("count", [SAMPLE, SAMPLE + 1, SAMPLE + 1500])
def test_many_points_start_on_a_sample(count):
    points = torch.randn(count, 2)
    assert_like_cpu(
        points, torch.rand(count) + 0.1, 3, 1 if EMULATED else 10, 5, 2 if EMULATED else 300, 1e-6
    )


def test_more_starts_than_run_side_by_side():
    points, weights = torch.randn(30, 2), torch.rand(30) + 0.1
    found = set()
    for starts in (1, 64, 65, 130):
        found.add(tuple(assert_like_cpu(points, weights, 6, starts, 3, 20, 1e-6).tolist()))
    assert len(found) > 1  # later starts are better


def test_pieces_of_several_tiles():
    points = torch.randn(2500, 1)
    assert_like_cpu(points, torch.ones(2500), 3, 64, 1, 1 if EMULATED else 300, 1e-6)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_every_seed_draws_as_on_the_cpu(seed):
    assert_like_cpu(torch.randn(200, 3), torch.rand(200) + 0.1, 8, 3, seed, 300, 1e-6)


@pytest.mark.parametrize("spread", [3.0, 20.0])
def test_unequal_weights(spread):
    weights = torch.exp(spread * torch.randn(500))
    labels = assert_like_cpu(torch.randn(500, 2), weights / weights.sum(), 12, 3, 0, 300, 1e-6)
    assert len(labels.unique()) == 12


def test_equal_distances_give_the_first_centre():
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 3)
    for seed in range(10):
        assert_like_cpu(grid, torch.ones(64), 7, 1, seed, 300, 1e-6)


def test_equal_points():
    places = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1e-8, 1.0]])
    points = places[torch.randint(3, (300,))]
    labels = assert_like_cpu(points, torch.rand(300) + 0.1, 4, 5, 0, 300, 1e-6)
    assert len(labels.unique()) == 2
    assert not assert_like_cpu(torch.ones(7, 3), torch.ones(7), 3, 2, 0, 300, 1e-6).any()
    assert not assert_like_cpu(torch.zeros(140, 2), torch.ones(140), 3, 2, 0, 300, 1e-6).any()


def test_fewer_points_than_clusters():
    labels = assert_like_cpu(torch.arange(3.0)[:, None], torch.ones(3), 9, 3, 0, 300, 1e-6)
    assert sorted(labels.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 129, SAMPLE + 10])
def test_points_without_coordinates_are_one_cluster(count):
    assert not assert_like_cpu(torch.ones(count, 0), torch.ones(count), 3, 2, 0, 300, 1e-6).any()


def test_an_empty_cluster_takes_the_farthest_point():
    """A cluster that weighs nothing has no mean, so it is empty in the next iteration."""
    points = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0], [100.0]])
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    taken = 0
    for seed in range(30):
        with cpu_kernels():
            first, _, _ = k_means(points, weights, 1, 1, seed, 1, 1e-6)
            alone, _, _ = k_means(points, weights, 2, 1, seed, 1, 1e-6)
        assert not first.any()
        labels = assert_like_cpu(points, weights, 3, 1, seed, 20, 1e-6)
        if (alone == alone[5]).sum() == 1:
            taken += 1
            assert len(labels.unique()) == 3
            assert labels[5] == labels[4]  # it is in no cluster of its own any more
    assert taken > 0
    # Where no point is away from its centre, the first that is not alone.
    points = torch.tensor([[0.0], [5.0], [5.0], [5.0], [100.0]])
    for seed in range(30):
        assert_like_cpu(points, torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]), 3, 1, seed, 20, 1e-6)
    for seed in range(5 if EMULATED else 50):
        points, weights = torch.randn(150, 2), (torch.rand(150) < 0.3).float()
        assert_like_cpu(points, weights, 20, 2, seed, 10, 1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_numbers_out_of_range_end(bad):
    points, weights = torch.randn(300, 3), torch.ones(300)
    points[7, 1] = bad
    for arguments in ((5, 2, 0, 20, 1e-6), (1, 1, 0, 20, 1e-6)):
        labels, _, iterations = k_means(*to_device(points, weights), *arguments)
        assert 0 <= int(labels.min()) <= int(labels.max()) < arguments[0]
        assert 1 <= int(iterations) <= 20


def test_as_tight_as_the_reference():
    points = torch.randn(300, 4)
    _, cost, _ = k_means(*to_device(points, torch.ones(300)), 6, 10, 1, 300, 1e-6)
    _, expected, _ = plain.k_means(points, torch.ones(300), 6, 20, 1, 300, 1e-6)
    assert cost.item() == pytest.approx(expected.item(), rel=0.01)


def test_same_bits_every_time():
    points, weights = to_device(torch.randn(1100, 6), torch.rand(1100) + 0.01)
    first = k_means(points, weights, 20, 3, 0, 5, 1e-6)
    for _ in range(3 if EMULATED else 30):
        for one, other in zip(k_means(points, weights, 20, 3, 0, 5, 1e-6), first, strict=True):
            assert torch.equal(one, other)


@needs_a_real_gpu
def test_on_the_current_stream():
    points, weights = torch.randn(100_000, 8), torch.rand(100_000).cuda() + 0.1
    expected = k_means(points.cuda(), weights, 5, 2, 0, 20, 1e-6)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        changed = torch.zeros_like(points, device="cuda")
        for _ in range(20):  # work that has to be over before the kernels may look
            changed.copy_(torch.sin(torch.randn_like(changed)))
        changed.copy_(points)
        found = k_means(changed, weights, 5, 2, 0, 20, 1e-6)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


def test_bad_arguments_raise():
    points, weights = to_device(torch.randn(5, 2), torch.ones(5))
    good = (points, weights, 2, 1, 0, 10, 1e-6)
    k_means(*good)
    for match, place, bad in (
        ("points must be Float", 0, points.double()),
        ("points must be contiguous, of another shape", 0, points[0]),
        ("points must be contiguous, of another shape", 0, points[:, :1]),
        ("points must hold at least one", 0, points[:0]),
        ("weights must be Float", 1, weights.double()),
        ("weights must be contiguous, of another shape", 1, weights[:4]),
        ("weights must be contiguous, of another shape", 1, weights[:, None]),
        ("must be positive", 2, 0),
        ("must be positive", 3, 0),
        ("must be positive", 5, 0),
        ("same_place must not be negative", 6, -1.0),
        ("same_place must not be negative", 6, torch.nan),
    ):
        with pytest.raises(RuntimeError, match=match):
            k_means(*good[:place], bad, *good[place + 1 :])


@needs_a_real_gpu
def test_other_devices_raise():
    points, weights = torch.randn(5, 2), torch.ones(5)
    with pytest.raises(RuntimeError, match="weights must be on the CUDA device"):
        k_means(points.cuda(), weights, 2, 1, 0, 10, 1e-6)
    with pytest.raises(RuntimeError, match="weights must be on the CPU"):
        k_means(points, weights.cuda(), 2, 1, 0, 10, 1e-6)


def test_an_embedding_and_its_labels_stay_on_the_device():
    truth = torch.arange(3).repeat_interleave(torch.tensor([2000, 1800, 1500]))
    first = torch.tensor([0, 2000, 3800])[truth]
    size = torch.tensor([2000, 1800, 1500])[truth]
    # Ten neighbours in its own cluster for each node, and for some nodes one in any.
    own = (first + (torch.rand(10, len(truth)) * size).long()).flatten()
    rows = torch.cat([torch.arange(len(truth)).repeat(10), torch.randint(len(truth), (500,))])
    cols = torch.cat([own, torch.randint(len(truth), (500,))])
    edges = torch.sparse_coo_tensor(
        torch.stack([rows, cols]), torch.ones(len(rows)), [len(truth)] * 2, check_invariants=True
    )
    adjacency = (edges + edges.T).coalesce().to(DEVICE)
    similarity = read_similarity(as_matrix(adjacency, "adjacency"), "given")
    degrees = similarity.row_sums()
    with HostCopies() as watch:
        embedding = embed_graph(similarity, degrees, 3, tol=1e-3, max_iter=100, seed=0)
        labels, tightness = cluster_places(embedding, 3, 2, 0)
        labels = numbered_as_met(labels, 3)
    assert 1 < watch.longest < len(truth)  # basis vectors, nothing of each node
    for tensor in (embedding.points, embedding.weights, labels):
        assert tensor.device.type == DEVICE.type
    assert torch.equal(labels.cpu(), truth)
    assert 0 < tightness["inertia"] < 3
    assert 1 < tightness["iterations"] < 300
