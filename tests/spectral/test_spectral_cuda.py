"""The spectral family on a GPU, held to the specification and to the CPU.

They run on an emulated GPU as well (gpu.py), which shows nothing of speed, of the memory model, or of blocks
and streams that really run at once.
"""

import pytest
import torch
from gpu import DEVICE, EMULATED, HostCopies, cpu_kernels, like_on_device, needs_a_real_gpu, to_device
from labelled import DTYPES
from planted import planted

from modfast import normalized_cut, spectral_cluster, spectral_cocluster
from modfast.reference import spectral_operators as plain
from modfast.spectral.matrices import compress

pytestmark = pytest.mark.cuda

OPS = torch.ops.modfast

# Emulation takes its time.
LONG = 600 if EMULATED else 1500

# Affinities, scales and widths; the widest has several parts.
WAYS = ((0, 1.0, 8), (1, 0.25, 24), (2, 2.0, 40 if EMULATED else 72))

# Around a tile of 64, 128 or 256 lines, a piece of 128 or more, a warp's 256 columns; nothing.
SHAPES = [
    (1, 1),
    (1, 700),
    (700, 1),
    (7, 9),
    (63, 65),
    (256, 128),
    (257, 129),
    (33, LONG),
    (LONG, 33),
    (0, 5),
    (5, 0),
]
LAYOUTS = {
    "contiguous": lambda rows, cols, dtype: torch.randn(rows, cols, dtype=dtype),
    "columns of a wider": lambda rows, cols, dtype: torch.randn(rows, cols + 3, dtype=dtype)[:, 1 : cols + 1],
    "every other row": lambda rows, cols, dtype: torch.randn(2 * rows, cols, dtype=dtype)[::2],
    "one row for all": lambda rows, cols, dtype: torch.randn(1, cols, dtype=dtype).expand(rows, cols),
}


def assert_sums(found, expected, sizes, terms, dtype):
    """Sums of so many terms, as far from exact ones as rounding may take them: sizes add absolute values."""
    assert found.dtype == dtype
    assert found.shape == expected.shape
    allowed = 4.0 * (8.0 + terms**0.5) * torch.finfo(dtype).eps * sizes
    assert ((found.double().cpu() - expected).abs() <= allowed + torch.finfo(dtype).tiny).all()


def assert_product(run, exact, shape, width, dtype):
    """Every combination of arguments of a product, given functions to run on the GPU and exactly."""
    rows, cols = shape
    right, left = torch.randn(cols, width, dtype=dtype), torch.randn(rows, width, dtype=dtype)
    weights = torch.randn(rows, dtype=dtype)
    for given in ([right, None, None], [None, left, None], [right, left, None], [right, None, weights]):
        found = run(*to_device(*given))
        doubles = [None if each is None else each.double() for each in given]
        expected = exact(False, *doubles)
        sizes = exact(True, *[None if each is None else each.abs() for each in doubles])
        # The product goes back as it came forward, rounded twice.
        terms = rows + cols if given[2] is not None else max(rows, cols)
        for each in range(2):
            assert_sums(found[each], expected[each], sizes[each], terms, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_operators_against_reference(shape, dtype, layout):
    weight = LAYOUTS[layout](*shape, dtype)
    gpu = like_on_device(weight)
    for affinity, scale, width in WAYS:
        sizes = plain.similarity_sums(weight.abs(), affinity, scale)
        exact = plain.similarity_sums(weight, affinity, scale)
        for found, expected, size in zip(
            OPS.similarity_sums(gpu, affinity, scale), exact, sizes, strict=True
        ):
            assert_sums(found, expected, size, max(shape), torch.float64)

        def run(*given, affinity=affinity, scale=scale):
            return OPS.similarity_product(gpu, affinity, scale, *given)

        def exactly(sizes, *given, affinity=affinity, scale=scale):
            values = weight.double().abs() if sizes else weight.double()
            return plain.similarity_product(values, affinity, scale, *given)

        for compute in (torch.float32, torch.float64):
            assert_product(run, exactly, shape, width, compute)


def test_a_weight_of_many_stripes_goes_back_in_the_same_order():
    weight = torch.randn(20000, 1024, device=DEVICE)
    right, weights = torch.randn(1024, 8, device=DEVICE), torch.rand(20000, device=DEVICE)
    forward, backward = OPS.similarity_product(weight, 0, 1.0, right, None, weights)
    # Given what goes back, the rows are not taken in stripes.
    _, again = OPS.similarity_product(weight, 0, 1.0, None, weights[:, None] * forward, None)
    assert torch.equal(OPS.similarity_product(weight, 0, 1.0, right, None, None)[0], forward)
    assert torch.equal(again, backward)
    doubles = [each.double() for each in (right, weights)]
    exact = plain.similarity_product(weight.double(), 0, 1.0, doubles[0], None, doubles[1])
    sizes = plain.similarity_product(weight.double(), 0, 1.0, doubles[0].abs(), None, doubles[1])
    for found, expected, size in zip((forward, backward), exact, sizes, strict=True):
        assert_sums(found, expected.cpu(), size.cpu(), 20000, torch.float32)


def test_numbers_beyond_float32_are_scaled_first():
    weight = torch.full((40, 30), 1e200, dtype=torch.float64, device=DEVICE)
    forward, _ = OPS.similarity_product(weight, 0, 2.0**-664, torch.ones(30, 8, device=DEVICE), None, None)
    expected = torch.full((40, 8), 30 * 1e200 * 2.0**-664)
    torch.testing.assert_close(forward.cpu(), expected)


def random_rows(rows, cols, share, index, dtype):
    """Starts, indices and values, with empty rows and with entries that repeat."""
    weight = torch.where(torch.rand(rows, cols) < share, torch.randn(rows, cols), 0.0)
    weight[::3] = 0.0
    compressed = compress(weight)
    starts, indices, values = compressed.starts * 2, compressed.indices, compressed.values
    return (
        starts.to(index),
        indices.repeat_interleave(2).to(index),
        torch.stack([values, torch.randn(len(values))], 1).flatten().to(dtype),
    )


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (40, 700), (700, 40), (257, 300), (0, 5), (5, 0)], ids=str)
def test_sparse_operators_against_reference(shape, share, dtype, index):
    rows, cols = shape
    starts, indices, values = random_rows(rows, cols, share, index, dtype)
    gpu = to_device(starts, indices, values)
    # Similarities of entries that repeat are added; the specification would add the entries.
    of_rows = torch.repeat_interleave(torch.arange(rows), starts.diff().long())
    for affinity, scale, width in WAYS:
        signed = plain._similarity(values, affinity, scale, torch.float64)
        dense = torch.zeros(shape, dtype=torch.float64).index_put(
            (of_rows, indices.long()), signed, accumulate=True
        )
        sized = torch.zeros_like(dense).index_put((of_rows, indices.long()), signed.abs(), accumulate=True)

        def exactly(sizes, *given, dense=dense, sized=sized):
            return plain.similarity_product(sized if sizes else dense, 2, 1.0, *given)

        def run(*given, affinity=affinity, scale=scale):
            return OPS.sparse_similarity_product(*gpu, cols, affinity, scale, *given)

        for compute in (torch.float32, torch.float64):
            assert_product(run, exactly, shape, width, compute)
        only_rows, nothing = OPS.sparse_similarity_sums(*gpu, cols, affinity, scale, None, None, False)
        assert_sums(only_rows, dense.sum(1), sized.sum(1), 2 * cols, torch.float64)
        assert nothing.shape == (0,)
        right, left = torch.rand(cols, dtype=torch.float64), torch.rand(rows, dtype=torch.float64)
        for probes in ((right, left), (None, None)):
            found = OPS.sparse_similarity_sums(*gpu, cols, affinity, scale, *to_device(*probes), True)
            ones = [torch.ones_like(each) for each in (right, left)]
            over = [given if given is not None else one for given, one in zip(probes, ones, strict=True)]
            for sums, matrix, probe, each in zip(
                found, (dense, dense.T), over, (sized, sized.T), strict=True
            ):
                assert_sums(sums, matrix @ probe, each @ probe, 2 * max(shape), torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (9, 300), (300, 9), (0, 3), (3, 0)], ids=str)
def test_edge_gradient_rounds_as_the_cpu_does(shape, dtype):
    weight = torch.randn(shape).to(dtype)
    weight[torch.rand(shape) < 0.2] = 0.0
    for width in (0, 1, 5):
        numbers = [torch.randn(size, dtype=torch.float64) for size in shape]
        vectors = [torch.randn(size, width, dtype=torch.float64) for size in shape]
        found = OPS.edge_gradient(*to_device(weight, *numbers, *vectors))
        with cpu_kernels():
            expected = OPS.edge_gradient(weight, *numbers, *vectors)
        assert torch.equal(found.cpu(), expected)


def test_same_bits_every_time():
    weight = torch.randn(3000, 1000, device=DEVICE)
    right, weights = torch.randn(1000, 8, device=DEVICE), torch.rand(3000, device=DEVICE)
    sparse = to_device(*random_rows(3000, 1000, 0.05, torch.int64, torch.float32))

    def results():
        return [
            *OPS.similarity_sums(weight, 0, 1.0),
            *OPS.similarity_product(weight, 0, 1.0, right, None, weights),
            *OPS.sparse_similarity_sums(*sparse, 1000, 0, 1.0, None, None, True),
            *OPS.sparse_similarity_product(*sparse, 1000, 0, 1.0, right, None, weights),
        ]

    first = results()
    for _ in range(3 if EMULATED else 30):
        for one, other in zip(first, results(), strict=True):
            assert torch.equal(one, other)


@needs_a_real_gpu
def test_on_the_current_stream_without_waiting():
    weight, right = torch.randn(2048, 1024, device=DEVICE), torch.randn(1024, 8, device=DEVICE)
    weights = torch.rand(2048, device=DEVICE)
    expected = OPS.similarity_product(weight, 1, 1.0, right, None, weights)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            changed = weight.clone()
            for _ in range(20):  # work that has to be over before the product may look
                changed.copy_(torch.sin(torch.randn_like(weight)))
            changed.copy_(weight)
            found = OPS.similarity_product(changed, 1, 1.0, right, None, weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@needs_a_real_gpu
def test_captured_in_a_graph():
    weight, right = torch.randn(300, 200, device=DEVICE), torch.randn(200, 16, device=DEVICE)
    weights = torch.rand(300, device=DEVICE)
    OPS.similarity_product(weight, 0, 1.0, right, None, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = OPS.similarity_product(weight, 0, 1.0, right, None, weights)
    for _ in range(3):
        weight.normal_()
        graph.replay()
        for one, other in zip(
            found, OPS.similarity_product(weight, 0, 1.0, right, None, weights), strict=True
        ):
            assert torch.equal(one, other)


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_what_is_out_of_range_counts_as_empty(index):
    starts = torch.tensor([0, 2, 3], dtype=index, device=DEVICE)
    indices = torch.tensor([0, 1, 2], dtype=index, device=DEVICE)
    values, right = torch.ones(3, device=DEVICE), torch.ones(3, 8, device=DEVICE)
    far = torch.iinfo(index).max
    for bad_starts, bad_indices, of_rows, of_cols in (
        ([0, 2, 3], [0, 3, 2], [1.0, 1.0], [1.0, 0.0, 1.0]),
        ([0, 2, 3], [-1, 1, far], [1.0, 0.0], [0.0, 1.0, 0.0]),
        ([0, far, 3], [0, 1, 2], [0.0, 0.0], None),
        ([-far, 2, 3], [0, 1, 2], [0.0, 1.0], None),
        ([0, 2, 4], [0, 1, 2], [2.0, 0.0], None),
    ):
        bad = (starts.new_tensor(bad_starts), indices.new_tensor(bad_indices), values)
        rows, cols = OPS.sparse_similarity_sums(*bad, 3, 0, 1.0, None, None, True)
        forward, backward = OPS.sparse_similarity_product(*bad, 3, 0, 1.0, right, right[:2], None)
        assert rows.tolist() == forward[:, 0].tolist() == of_rows
        if of_cols is not None:
            assert cols.tolist() == backward[:, 0].tolist() == of_cols


def test_malformed_rows_are_refused():
    starts, indices = to_device(torch.tensor([0, 2, 3]), torch.tensor([0, 1, 7]))
    weight = torch.sparse_csr_tensor(
        starts, indices, torch.ones(3, device=DEVICE), (2, 3), check_invariants=False
    )
    with pytest.raises(ValueError, match=r"column indices must be in \[0, 2\], got 7"):
        spectral_cocluster(weight, 2)


def test_bad_arguments_raise():
    weight, right = torch.ones(4, 3, device=DEVICE), torch.ones(3, 8, device=DEVICE)
    for match, arguments in (
        ("right must be on the CUDA device", (weight, 0, 1.0, right.cpu(), None, None)),
        ("right must be contiguous, of another shape", (weight, 0, 1.0, right[:2], None, None)),
        ("right or left must be given", (weight, 0, 1.0, None, None, None)),
        ("multiple of 8", (weight, 0, 1.0, right[:, :4], None, None)),
        ("rows must be contiguous", (weight.T, 0, 1.0, right, None, None)),
        ("affinity must be 0", (weight, 3, 1.0, right, None, None)),
        ("scale must be finite", (weight, 0, float("nan"), right, None, None)),
    ):
        if EMULATED and "CUDA device" in match:
            continue  # here one device has all tensors
        with pytest.raises(RuntimeError, match=match):
            OPS.similarity_product(*arguments)


# --- The solver on a GPU


def clusters_on_cpu(function, *arguments, **options):
    with cpu_kernels():
        return function(*arguments, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("affinity", ["abs", "square"])
def test_clusters_of_a_weight_are_those_of_the_cpu(affinity, dtype):
    weight, _ = planted([300, 200, 100, 100], [150, 50, 150, 50], 0)
    weight = weight.to(dtype)
    expected, told = clusters_on_cpu(spectral_cocluster, weight, 4, affinity=affinity, return_info=True)
    gpu = weight.to(DEVICE)
    with HostCopies() as watch:
        found, info = spectral_cocluster(gpu, 4, affinity=affinity, return_info=True)
    assert 1 < watch.longest < min(weight.shape)  # nothing of each node
    assert found.row_labels.device.type == DEVICE.type
    assert found.to("cpu") == expected
    torch.testing.assert_close(info["singular_values"], told["singular_values"], rtol=1e-4, atol=1e-5)
    assert info["converged"]


@pytest.mark.parametrize("layout", ["transposed", "kernel", "sparse", "small"])
def test_clusters_of_other_weights_are_those_of_the_cpu(layout):
    weight, _ = planted([120, 100, 80], [90, 70, 60], 1)
    if layout == "transposed":
        weight = weight.T
    elif layout == "kernel":
        weight = weight[:, :, None, None] * torch.rand(300, 220, 2, 2)
    elif layout == "sparse":
        weight = torch.where(torch.rand(300, 220) < 0.4, weight, 0.0).to_sparse_csr()
    else:
        weight = weight[:90]
    expected = clusters_on_cpu(spectral_cocluster, weight, 3)
    there = weight.to(DEVICE)  # which asks for the host itself where the device is emulated
    with HostCopies() as watch:
        found = spectral_cocluster(there, 3)
    assert watch.longest < min(weight.shape[:2])
    assert found.to("cpu") == expected


def test_rounding_of_products_does_not_depend_on_tensor_cores():
    weight, _ = planted([120, 100, 80], [90, 70, 60], 2)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found, info = spectral_cocluster(weight.to(DEVICE), 3, tol=1e-5, return_info=True)
    finally:
        torch.set_float32_matmul_precision(before)
    assert found.to("cpu") == clusters_on_cpu(spectral_cocluster, weight, 3, tol=1e-5)
    assert info["converged"]


def planted_graph(sizes, inside, outside, seed):
    """The adjacency of a stochastic block model, and the cluster of each node."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    chance = torch.where(labels[:, None] == labels, inside, outside)
    upper = (torch.rand(chance.shape, generator=generator) < chance).triu(1).float()
    return upper + upper.T, labels


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_clusters_of_a_graph_are_those_of_the_cpu(sparse):
    adjacency, truth = planted_graph([200, 150, 250], 0.2, 0.02, 0)
    given = adjacency.to_sparse_csr() if sparse else adjacency
    expected = clusters_on_cpu(spectral_cluster, given, 3)
    there = given.to(DEVICE)
    with HostCopies() as watch:
        found = spectral_cluster(there, 3)
    assert watch.longest < len(truth)
    assert found.device.type == DEVICE.type
    assert torch.equal(found.cpu(), expected)
    assert torch.equal(expected, truth)
    assert normalized_cut(given.to(DEVICE), found) == pytest.approx(
        clusters_on_cpu(normalized_cut, given, expected), rel=1e-6
    )
