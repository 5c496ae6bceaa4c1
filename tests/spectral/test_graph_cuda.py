"""Moves of nodes, cuts, and products of graphs on a GPU, held to the CPU's.

What moves and what a cut adds up are the CPU's, bit for bit: only then do all labels agree.

They run on an emulated GPU as well (gpu.py), which shows nothing of speed, of the memory model, or of blocks
and streams that really run at once.
"""

import pytest
import torch
from gpu import DEVICE, EMULATED, HostCopies, cpu_kernels, needs_a_real_gpu, to_device
from torch import Tensor

from modfast import normalized_cut, spectral_cluster, spectral_cocluster
from modfast.reference import spectral_operators as plain
from modfast.spectral.refinement import refine_graph, refine_sides, sides_cut
from modfast.spectral.similarity import DenseSimilarity, SparseSimilarity

pytestmark = pytest.mark.cuda

OPS = torch.ops.modfast
INDICES = [torch.int32, torch.int64]
FLOATS = [torch.float32, torch.float64]


def on_cpu(name, *arguments):
    """What the CPU's kernel returns."""
    with cpu_kernels():
        return getattr(OPS, name)(*arguments)


def on_device(name, *arguments):
    moved = [to_device(each) if isinstance(each, Tensor) else each for each in arguments]
    result = getattr(OPS, name)(*moved)
    results = (result,) if isinstance(result, Tensor) else result
    assert all(each.device.type == DEVICE.type for each in results)
    return result.cpu() if isinstance(result, Tensor) else [each.cpu() for each in result]


def random_graph(nodes, edges, index=torch.int64, dtype=torch.float64):
    """A symmetric graph with loops, entries that repeat, in any order, and nodes without edges."""
    if nodes == 0:
        edges = 0
    ends = torch.randint(max(nodes, 1), (2, edges))
    ends = ends[:, (ends % 7 != 3).all(0)]  # nodes without edges
    weights = torch.rand(ends.shape[1]).to(dtype)
    other = ends[0] != ends[1]
    rows = torch.cat([ends[0], ends[1][other], ends[0][:5], ends[1][:5]])
    cols = torch.cat([ends[1], ends[0][other], ends[1][:5], ends[0][:5]])
    values = torch.cat([weights, weights[other], weights[:5], weights[:5]])
    shuffled = torch.randperm(len(rows))
    order = shuffled[rows[shuffled].argsort(stable=True)]
    starts = torch.zeros(nodes + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(rows, minlength=nodes).cumsum(0) if nodes else starts[1:]
    return starts.to(index), cols[order].to(index), values[order]


def some_labels(nodes, clusters, unclustered=0.1):
    labels = torch.randint(clusters, (nodes,))
    return torch.where(torch.rand(nodes) < unclustered, -1, labels)


def nearly_settled(graph, clusters, disturbed):
    """Labels that no single move improves, but for some nodes: an emulated GPU takes its time for each."""
    nodes = len(graph[0]) - 1
    labels = on_cpu("move_graph", *graph, 1.0, some_labels(nodes, clusters), clusters, 1e-9, 20)
    changed = torch.randperm(nodes)[:disturbed]
    labels[changed] = torch.where(labels[changed] < 0, -1, torch.randint(clusters, (len(changed),)))
    return labels


def assert_moves_and_cut(graph, labels, clusters, sweeps):
    found = on_device("graph_cut", *graph, 2.0, labels, clusters)
    for one, other in zip(found, on_cpu("graph_cut", *graph, 2.0, labels, clusters), strict=True):
        assert torch.equal(one, other)
    given = (*graph, 2.0, labels, clusters, 1e-9, sweeps)
    moved, expected = on_device("move_graph", *given), on_cpu("move_graph", *given)
    assert torch.equal(moved, expected)
    assert torch.equal(moved < 0, labels < 0)
    return int((moved != labels).sum())


@pytest.mark.parametrize("clusters", [1, 2, 33, 300])
@pytest.mark.parametrize("size", [(0, 0), (1, 0), (1, 2), (2, 5), (33, 90), (150, 500)], ids=str)
def test_moves_and_cuts_of_a_graph_are_those_of_the_cpu(size, clusters):
    moves = 0
    for index in INDICES:
        for dtype in FLOATS:
            graph = random_graph(*size, index, dtype)
            moves += assert_moves_and_cut(graph, some_labels(size[0], clusters), clusters, 20)
    assert moves > 0 or clusters == 1 or size[0] < 33


# Around the nodes that are listed at once, 4096, and a chunk of the cut, 16,384.
@pytest.mark.parametrize("nodes", [1023, 4095, 4097, 16385])
def test_moves_and_cuts_of_a_larger_graph_are_those_of_the_cpu(nodes):
    graph = random_graph(nodes, 2 * nodes)
    assert assert_moves_and_cut(graph, nearly_settled(graph, 5, 40), 5, 1) > 10
    assert assert_moves_and_cut(graph, torch.full((nodes,), -1), 5, 1) == 0


def test_sweeps_end_with_the_last_one():
    graph = random_graph(120, 400)
    labels = some_labels(120, 6)
    results = []
    for sweeps in (0, 1, 2, 3):
        assert_moves_and_cut(graph, labels, 6, sweeps)
        results.append(on_device("move_graph", *graph, 2.0, labels, 6, 1e-9, sweeps))
    assert torch.equal(results[0], labels)
    assert not torch.equal(results[1], results[2])


def test_against_the_reference():
    graph, labels = random_graph(60, 300), some_labels(60, 4)
    for one, other in zip(
        on_device("graph_cut", *graph, 1.0, labels, 4), plain.graph_cut(*graph, 1.0, labels, 4), strict=True
    ):
        torch.testing.assert_close(one, other)
    moved = on_device("move_graph", *graph, 1.0, labels, 4, 1e-9, 20)
    assert not torch.equal(moved, labels)
    # In its sweeps the reference looks at other nodes too, and may end elsewhere; but it may end there.
    assert torch.equal(moved, plain.move_graph(*graph, 1.0, moved, 4, 1e-9, 1))


def test_more_clusters_than_shared_memory_holds():
    """Then fewer warps have their ties there, and from 4609 clusters on none."""
    graph = random_graph(120, 400)
    for clusters in (577, 4608, 4609, 9000):
        labels = torch.randint(12, (120,)) * (clusters // 12)
        given = (*graph, 1.0, labels, clusters, 1e-9, 3)
        found = on_device("move_graph", *given)
        assert torch.equal(found, on_cpu("move_graph", *given))
        assert not torch.equal(found, labels)


@pytest.mark.parametrize("least", [0.0, 1e-9])
def test_ties_between_clusters_go_to_the_first(least):
    """A ring of equal edges: many clusters are equally good, and many nodes gain as much."""
    nodes = 100
    around = torch.arange(nodes)
    cols = torch.stack([(around - 1) % nodes, (around + 1) % nodes], 1).flatten()
    graph = (2 * torch.arange(nodes + 1), cols, torch.ones(2 * nodes, dtype=torch.float64))
    for clusters in (3, 40):
        given = (*graph, 1.0, around % clusters, clusters, least, 20)
        found = on_device("move_graph", *given)
        assert torch.equal(found, on_cpu("move_graph", *given))
        assert (found != around % clusters).sum() > nodes // 4


def test_many_sweeps_stop_when_none_moves():
    """The host asks the device only after every 32 sweeps; ten million would take hours."""
    graph, labels = random_graph(80, 200), some_labels(80, 3)
    given = (*graph, 1.0, labels, 3, 1e-9)
    assert torch.equal(on_device("move_graph", *given, 10_000_000), on_cpu("move_graph", *given, 10_000_000))


@pytest.mark.parametrize("nodes", [0, 1, 31, 1023, 1024, 1025, 2050])
@pytest.mark.parametrize("clusters", [1, 2, 33])
def test_moves_of_a_side_are_those_of_the_cpu(nodes, clusters):
    given = side(nodes, clusters)
    if nodes > 100:  # as settled as nearly_settled
        settled = on_cpu("move_side", *given, 20)
        changed = torch.randperm(nodes)[:40]
        settled[0][changed] = torch.where(settled[0][changed] < 0, -1, torch.randint(clusters, (40,)))
        given = (*settled, *given[4:])
    for sweeps in (0, 1, 20):
        found, expected = on_device("move_side", *given, sweeps), on_cpu("move_side", *given, sweeps)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)
    assert clusters == 1 or nodes < 31 or not torch.equal(found[0], given[0])


def side(nodes, clusters, loops=True):
    """Arguments of move_side: ties with gaps and zeros, nodes that should move and nodes in no cluster."""
    ties = torch.rand(nodes, clusters + 3, dtype=torch.float64)
    ties = torch.where(torch.rand(ties.shape) < 0.3, 0.0, ties)
    of_loops = 0.1 * torch.rand(nodes, dtype=torch.float64)
    labels = some_labels(nodes, clusters)
    sizes = torch.bincount(labels[labels >= 0], minlength=clusters) + torch.randint(2, (clusters,))
    volume = 20.0 * sizes + torch.rand(clusters, dtype=torch.float64)
    return (
        labels,
        0.3 * volume,
        volume,
        sizes,
        ties,
        ties[:, :clusters].sum(1) + of_loops,
        of_loops if loops else None,
        1e-9,
    )


def test_moves_of_a_side_against_the_reference():
    for loops in (True, False):
        given = side(70, 5, loops)
        found = on_device("move_side", *given, 10)
        assert (found[0] != given[0]).sum() > 10
        for one, other in zip(found, plain.move_side(*given, 10), strict=True):
            torch.testing.assert_close(one, other)


def test_moves_of_a_side_with_many_clusters():
    given = side(60, 300)
    for one, other in zip(on_device("move_side", *given, 5), on_cpu("move_side", *given, 5), strict=True):
        assert torch.equal(one, other)


# --- The product


@pytest.mark.parametrize("compute", FLOATS, ids=str)
@pytest.mark.parametrize("index", INDICES, ids=str)
def test_graph_product(index, compute):
    for size in ((0, 0), (1, 0), (2, 5), (33, 90), (257, 900)):
        for dtype in FLOATS:
            graph = random_graph(*size, index, dtype)
            for width in (8, 24, 72):
                right, weights = (torch.randn(*each, dtype=compute) for each in ((size[0], width), size[:1]))
                out, given = to_device(torch.full_like(right, torch.nan)), to_device(*graph)
                OPS.graph_product_(out, *given, 2.0, *to_device(right, weights))
                doubles = [each.double() for each in (graph[2], right, weights)]
                exact, sizes = torch.zeros(2, *right.shape, dtype=torch.float64)
                plain.graph_product_(exact, *graph[:2], doubles[0], 2.0, *doubles[1:])
                plain.graph_product_(sizes, *graph[:2], doubles[0], 2.0, doubles[1].abs(), doubles[2].abs())
                allowed = 40 * torch.finfo(compute).eps * sizes
                assert ((out.double().cpu() - exact).abs() <= allowed).all()


# --- The transpose of sparse weights


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (40, 700), (700, 40), (0, 5), (5, 0), (0, 0)], ids=str)
def test_transpose(shape, dtype, index):
    rows, cols = shape
    counts = torch.randint(5, (rows,)) if cols else torch.zeros(rows, dtype=torch.int64)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(index)
    indices = torch.randint(max(cols, 1), (int(counts.sum()),)).to(index)
    values = torch.randn(len(indices)).to(dtype)
    found = on_device("sparse_transpose", starts, indices, values, cols)
    for result in (found, on_cpu("sparse_transpose", starts, indices, values, cols)):
        expected = plain.sparse_transpose(starts, indices, values, cols)
        for one, other in zip(result, expected, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


class Sorts(HostCopies):
    """Counts how often a matrix is transposed."""

    def __init__(self):
        super().__init__()
        self.transposes = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.transposes += "sparse_transpose" in str(func)
        return super().__torch_function__(func, types, args, kwargs)


def test_a_sparse_weight_is_transposed_once():
    weight = torch.where(torch.rand(90, 120) < 0.3, torch.rand(90, 120), 0.0).to_sparse_csr()
    crow, col = weight.crow_indices(), weight.col_indices()
    similarity = SparseSimilarity(*to_device(crow, col, weight.values()), 120, 0, 1.0)
    right, left = torch.rand(120, 8), torch.rand(90, 8)
    weights = torch.rand(90)
    dense = weight.to_dense()
    with Sorts() as watch:
        for given, expected in (
            ((right, None, None), (dense @ right, torch.empty(0, 8))),
            ((None, left, None), (torch.empty(0, 8), dense.T @ left)),
            ((right, left, None), (dense @ right, dense.T @ left)),
            ((right, None, weights), (dense @ right, dense.T @ (weights[:, None] * (dense @ right)))),
        ):
            found = similarity.product(*to_device(*given))
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one.cpu(), other)
        for one, other in zip(similarity.sums(), (dense.double().sum(1), dense.double().sum(0)), strict=True):
            torch.testing.assert_close(one.cpu(), other)
    assert watch.transposes == 1


# --- Refinement and the cut of a weight


def test_refinement_stays_on_the_device():
    weight = torch.rand(70, 50) * (1.0 + 5.0 * (torch.arange(70)[:, None] % 3 == torch.arange(50) % 3))
    labels = [some_labels(size, 3) for size in weight.shape]

    def refined(weight, labels):
        similarity = DenseSimilarity(weight, 0, 1.0)
        degrees = similarity.sums()
        inside, volume, _ = sides_cut(similarity, degrees, labels, 3, torch.float64)
        refined_labels = refine_sides(similarity, degrees, torch.cat(labels), 3, torch.float64)
        return [*refined_labels.split(weight.shape), inside, volume]

    with cpu_kernels():
        expected = refined(weight, labels)
    given = to_device(weight), to_device(*labels)
    with HostCopies() as watch:
        found = refined(*given)
    assert watch.longest <= 1
    assert not torch.equal(expected[0], labels[0])
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert one.device.type == DEVICE.type
        assert torch.equal(one.cpu(), other)
    for one, other in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(one.cpu(), other)


def test_refinement_of_a_graph_leaves_no_move_that_helps():
    graph, labels = random_graph(150, 700), some_labels(150, 4)
    similarity = SparseSimilarity(*to_device(*graph), 150, 2, 1.0)
    found = refine_graph(similarity, to_device(labels), 4).cpu()
    assert torch.equal(plain.move_graph(*graph, 1.0, found, 4, 1e-9, 1), found)
    with cpu_kernels():
        on_host = SparseSimilarity(*graph, 150, 2, 1.0)
        assert torch.equal(refine_graph(on_host, labels, 4), found)


def test_clusters_of_sparse_matrices_are_those_of_the_cpu():
    generator = torch.Generator().manual_seed(1)
    same = torch.arange(240)[:, None] % 4 == torch.arange(200) % 4
    weight = torch.where(torch.rand(240, 200, generator=generator) < torch.where(same, 0.4, 0.05), 1.0, 0.0)
    graph = torch.cat([weight, torch.zeros(240, 40)], 1)
    graph = (graph + graph.T).to_sparse_csr()
    sparse = weight.to_sparse_csr()
    with cpu_kernels():
        partition, labels = spectral_cocluster(sparse, 4), spectral_cluster(graph, 4)
        cuts = normalized_cut(sparse, partition), normalized_cut(graph, labels)
    found, found_labels = spectral_cocluster(sparse.to(DEVICE), 4), spectral_cluster(graph.to(DEVICE), 4)
    assert found.to("cpu") == partition
    assert torch.equal(found_labels.cpu(), labels)
    assert normalized_cut(sparse.to(DEVICE), found) == pytest.approx(cuts[0], rel=1e-9)
    assert normalized_cut(graph.to(DEVICE), found_labels) == pytest.approx(cuts[1], rel=1e-9)


# --- What holds for all


def test_same_bits_every_time():
    graph = random_graph(500, 2000)
    graph, labels = to_device(*graph), to_device(nearly_settled(graph, 7, 40))
    basis = to_device(*[torch.randn(500, width) for width in (8, 16, 24)])
    block, weights = to_device(torch.randn(500, 24), torch.rand(500))
    factors = to_device(torch.randn(48, 48, dtype=torch.float64))

    def results():
        out, rotated = torch.empty_like(block), [each.clone() for each in basis]
        OPS.graph_product_(out, *graph, 1.0, block, weights)
        OPS.basis_rotate_(rotated, factors)
        return [
            out,
            *rotated,
            OPS.basis_inner(basis, block, weights),
            *OPS.graph_cut(*graph, 1.0, labels, 7),
            OPS.move_graph(*graph, 1.0, labels, 7, 1e-9, 5),
            *OPS.sparse_transpose(*graph, 500),
        ]

    first = results()
    for _ in range(2 if EMULATED else 30):
        for one, other in zip(first, results(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_what_is_out_of_range_counts_as_empty(index):
    """A start or index is no edge; a label is in no cluster, and stays as it is."""
    far = torch.iinfo(index).max
    starts = torch.tensor([0, 2, 4, 5, 6, 6], dtype=index)
    indices = torch.tensor([1, far, 0, -1, 3, 2], dtype=index)
    values = torch.ones(6, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, -1])
    inside, volume = on_device("graph_cut", starts, indices, values, 1.0, labels, 2)
    assert inside.tolist() == volume.tolist() == [2.0, 2.0]
    for bad in (2, -2, 2**40, -(2**62)):
        bad_labels = torch.tensor([0, 0, 1, bad, -1])
        inside, volume = on_device("graph_cut", starts, indices, values, 1.0, bad_labels, 2)
        assert (inside.tolist(), volume.tolist()) == ([2.0, 0.0], [2.0, 1.0])
        moved = on_device("move_graph", starts, indices, values, 1.0, bad_labels, 2, 0.0, 3)
        assert torch.equal(moved, bad_labels)
        given = side(5, 2)
        (found, *rest), expected = (
            on_device("move_side", first, *given[1:], 3)
            for first in (bad_labels, torch.where(torch.arange(5) == 3, -1, bad_labels))
        )
        assert found.tolist() == [*expected[0][:3].tolist(), bad, -1]
        for one, other in zip(rest, expected[1:], strict=True):
            assert torch.equal(one, other)
    starts[1] = far
    inside, volume = on_device("graph_cut", starts, indices, values, 1.0, labels, 2)
    assert volume.tolist() == [0.0, 2.0]
    out, right = to_device(torch.zeros(5, 8), torch.ones(5, 8))
    OPS.graph_product_(out, *to_device(starts, indices, values), 1.0, right, right[:, 0].contiguous())
    assert out[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]


def bad_calls():
    graph = (torch.tensor([0, 1, 2]), torch.tensor([1, 0]), torch.ones(2))
    labels, sums = torch.tensor([0, 1]), torch.ones(2, dtype=torch.float64)
    block, two = torch.ones(2, 8), torch.tensor([1, 1])
    factors = torch.ones(8, 8, dtype=torch.float64)
    ties = torch.ones(2, 2, dtype=torch.float64)
    return [
        ("labels must be contiguous, of another shape", "graph_cut", (*graph, 1.0, labels[:1], 2)),
        ("labels must be Long", "graph_cut", (*graph, 1.0, labels.int(), 2)),
        ("num_clusters must be a positive", "graph_cut", (*graph, 1.0, labels, 0)),
        ("scale must be finite", "move_graph", (*graph, float("inf"), labels, 2, 0.0, 1)),
        ("num_clusters must be a positive", "move_graph", (*graph, 1.0, labels, -1, 0.0, 1)),
        ("labels must be contiguous", "move_graph", (*graph, 1.0, labels[:, None], 2, 0.0, 1)),
        ("starts must hold at least one", "move_graph", (labels[:0], *graph[1:], 1.0, labels, 2, 0.0, 1)),
        (
            "ties must have a column",
            "move_side",
            (labels, sums, sums, two, ties[:, :1].clone(), sums, None, 0.0, 1),
        ),
        ("volume must be contiguous", "move_side", (labels, sums, sums[:1], two, ties, sums, None, 0.0, 1)),
        ("loops must be Double", "move_side", (labels, sums, sums, two, ties, sums, sums.float(), 0.0, 1)),
        ("sizes must be Long", "move_side", (labels, sums, sums, two.int(), ties, sums, None, 0.0, 1)),
        ("out must be contiguous", "graph_product_", (block[:1], *graph, 1.0, block, torch.ones(2))),
        ("out must not be right", "graph_product_", (block, *graph, 1.0, block, torch.ones(2))),
        ("right must have a width", "graph_product_", (block, *graph, 1.0, block[:, :4], torch.ones(2))),
        ("basis must hold at least one", "basis_inner", ([], block, None)),
        ("basis must hold at most 64", "basis_inner", ([block] * 65, block, None)),
        ("weights must be contiguous", "basis_inner", ([block], block, torch.ones(3))),
        (
            "basis must hold at most 64",
            "basis_rotate_",
            ([block] * 65, torch.ones(520, 8, dtype=torch.float64)),
        ),
        ("factors must be contiguous", "basis_rotate_", ([block, block], factors)),
        ("factors must be Double", "basis_rotate_", ([block], factors.float())),
        (
            "factors must be as wide",
            "basis_rotate_",
            ([torch.ones(2, 16)], torch.ones(16, 8, dtype=torch.float64)),
        ),
        ("values must be contiguous", "sparse_transpose", (*graph[:2], torch.ones(3), 2)),
        ("cols must not be negative", "sparse_transpose", (*graph, -1)),
        ("starts must be Long", "sparse_transpose", (graph[0].int(), *graph[1:], 2)),
    ]


@pytest.mark.parametrize("place", range(len(bad_calls())))
def test_bad_arguments_raise(place):
    message, name, arguments = bad_calls()[place]
    moved = {}

    def there(argument):
        if isinstance(argument, list):
            return [there(each) for each in argument]
        if not isinstance(argument, Tensor):
            return argument
        return moved.setdefault(id(argument), argument.to(DEVICE))

    with pytest.raises(RuntimeError, match=message):
        getattr(OPS, name)(*map(there, arguments))


@needs_a_real_gpu
def test_another_device_is_refused():
    graph = to_device(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), torch.ones(2))
    with pytest.raises(RuntimeError, match="labels must be on the CUDA device"):
        OPS.graph_cut(*graph, 1.0, torch.tensor([0, 1]), 2)
    with pytest.raises(RuntimeError, match="basis must be on the CUDA device"):
        OPS.basis_inner([torch.ones(2, 8)], torch.ones(2, 8, device=DEVICE), None)


@needs_a_real_gpu
def test_nothing_waits_for_the_device():
    graph, labels = to_device(*random_graph(2000, 9000)), to_device(some_labels(2000, 5))
    basis = to_device(torch.randn(2000, 8), torch.randn(2000, 40))
    factors = to_device(torch.randn(48, 48, dtype=torch.float64))
    arguments = [to_device(each) if isinstance(each, Tensor) else each for each in side(2000, 5)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        OPS.move_graph(*graph, 1.0, labels, 5, 1e-9, 20)
        OPS.graph_cut(*graph, 1.0, labels, 5)
        OPS.move_side(*arguments, 20)
        OPS.basis_inner(basis, basis[0], None)
        OPS.basis_rotate_(basis, factors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
