"""The compiled operators and the functions on them, held to the specification in plain PyTorch."""

import pytest
import torch
from gpu import needs_cpu_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import (
    DTYPES,
    LAYOUTS,
    OPS,
    SHAPES,
    SUM_TOLERANCE,
    assert_split,
    assert_sums,
    labels_of,
    product_tolerance,
    random_partition,
)

from modfast import Partition, block_energy, block_inner, block_scale, clusterability, enmeshment, reference

# --- against the specification


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_operators_against_reference(shape, dtype, layout):
    weight = LAYOUTS[layout](shape, dtype)
    assert weight.shape == shape
    # One cluster, a few, and more than there are rows or columns to hold them.
    for k in (1, 3, max(shape[:2]) + 2 if max(shape[:2]) < 50 else 10):
        partition = random_partition(shape, k)
        other = torch.randn(shape, dtype=dtype)
        factors = torch.randn(k + 1, k + 1, dtype=torch.float64)
        assert_sums(OPS.block_inner(weight, None, *labels_of(partition), k), weight, None, partition)
        assert_sums(OPS.block_inner(weight, other, *labels_of(partition), k), weight, other, partition)
        assert_sums(OPS.block_inner(other, weight, *labels_of(partition), k), other, weight, partition)

        scaled = OPS.block_scale(weight, factors, *labels_of(partition))
        exact = reference.labelled_block_scale(weight.double(), factors, *labels_of(partition))
        assert (scaled.dtype, scaled.shape) == (dtype, shape)
        torch.testing.assert_close(scaled.double(), exact, **product_tolerance(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", ["contiguous", "transposed", "columns of a wider", "kernel permuted"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accumulation_against_reference(dtype, layout, grad_layout):
    shapes = [(13, 17), (129, 40), (3, 1030), (8, 4, 3, 3), (0, 4)]
    weights = [LAYOUTS[layout](shape, dtype) for shape in shapes]
    partitions = [random_partition(shape, k) for shape, k in zip(shapes, (1, 4, 9, 2, 3), strict=True)]
    grads = [LAYOUTS[grad_layout](shape, dtype) for shape in shapes]
    exact = [grad.to(torch.float64, copy=True) for grad in grads]
    labels = [
        [partition.row_labels for partition in partitions],
        [partition.col_labels for partition in partitions],
        [partition.num_clusters for partition in partitions],
    ]
    in_steps = [grad.clone(memory_format=torch.preserve_format) for grad in grads]
    losses = OPS.accumulate_enmeshment_grad_(weights, grads, *labels, 100.0)
    doubles = [weight.double() for weight in weights]
    before = [grad.clone() for grad in exact]
    expected = reference.accumulate_enmeshment_grad_(doubles, exact, *labels, 100.0)
    torch.testing.assert_close(losses, expected, rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE)

    def assert_gradients(found, before, exact):
        for grad, old, new in zip(found, before, exact, strict=True):
            # What is added is good to the tolerance of a product, its factor (a quotient of sums) to theirs.
            # Adding it rounds once, in half types twice.
            eps, step = torch.finfo(dtype).eps, (new - old).abs()
            allowed = 3 * eps * torch.maximum(old.abs(), step) + 3 * SUM_TOLERANCE * step
            assert grad.dtype == dtype
            assert ((grad.double() - new).abs() <= allowed + torch.finfo(dtype).tiny).all()

    assert_gradients(grads, before, exact)

    # The same in two steps, and a gradient by itself.
    alone, energies = OPS.enmeshment(weights, *labels)
    torch.testing.assert_close(alone, expected, rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE)
    assert_split(energies, weights, partitions)
    slopes = torch.tensor([100.0, 100.0, 100.0, 100.0, 100.0], dtype=torch.float64)
    OPS.add_enmeshment_grad_(weights, in_steps, energies, slopes, *labels)
    assert_gradients(in_steps, before, exact)
    slopes = torch.randn(len(shapes), dtype=torch.float64)
    fresh = OPS.enmeshment_grad(weights, energies, slopes, *labels)
    zeros = [torch.zeros_like(new) for new in exact]
    assert_gradients(fresh, zeros, reference.enmeshment_grad(doubles, energies, slopes, *labels))


@needs_cpu_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [0, 3])
def test_gradients_larger_than_a_cache(dtype, start):
    """These are written past it; an odd number of columns moves each row's beginning."""
    rows, cols = 2051, 2 * 34 * 2**20 // dtype.itemsize // 4096 + 5
    weight = torch.randn(rows, cols + start).to(dtype)[:, start:]
    assert weight.numel() * dtype.itemsize > 32 * 2**20
    row_labels, col_labels = labels_of(random_partition((rows, cols), 5))
    labels, slopes = ([row_labels], [col_labels], [5]), torch.tensor([0.7], dtype=torch.float64)
    _, energies = OPS.enmeshment([weight], *labels)
    (fresh,) = OPS.enmeshment_grad([weight], energies, slopes, *labels)
    added = torch.zeros_like(weight)
    OPS.add_enmeshment_grad_([weight], [added], energies, slopes, *labels)
    assert torch.equal(fresh, added)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(13, 17), (129, 130), (5, 4, 3, 3), (6, 4, 3)], ids=str)
def test_functions_and_gradients_against_reference(shape, dtype):
    partition = random_partition(shape, 3)
    sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.randn(shape, dtype=dtype, requires_grad=True)
    other = torch.randn(shape, dtype=dtype, requires_grad=True)
    factors = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    for function, operands in [
        (block_energy, (weight,)),
        (enmeshment, (weight,)),
        (clusterability, (weight,)),
        (block_inner, (weight, other)),
        (block_scale, (weight, factors)),
    ]:
        exact_operands = [operand.detach().double().requires_grad_() for operand in operands]
        found = function(*operands, partition)
        exact = getattr(reference, function.__name__)(*exact_operands, partition)
        assert found.dtype == (dtype if function is block_scale else sum_dtype)
        # Sums are rounded once, to their dtype; gradients are a product and, on the way back, a factor of the
        # result's dtype: three roundings of half an eps, where the specification in float64 has none.
        coarse = {"rtol": 2 * max(torch.finfo(found.dtype).eps, 1e-12), "atol": 1e-12}
        torch.testing.assert_close(found.double(), exact, **coarse)
        direction = torch.randn(found.shape, dtype=found.dtype)
        gradients = torch.autograd.grad(found, operands, direction)
        exact_gradients = torch.autograd.grad(exact, exact_operands, direction.double())
        for gradient, exact_gradient, operand in zip(gradients, exact_gradients, operands, strict=True):
            assert (gradient.dtype, gradient.shape) == (operand.dtype, operand.shape)
            rtol = 2 * max(torch.finfo(gradient.dtype).eps, 1e-12)
            torch.testing.assert_close(
                gradient.double(), exact_gradient, rtol=rtol, atol=max(1e-12, rtol / 1e3)
            )


labelled = st.integers(1, 6).flatmap(
    lambda k: st.builds(
        Partition,
        st.lists(st.integers(-1, k - 1), min_size=1, max_size=40),
        st.lists(st.integers(-1, k - 1), min_size=1, max_size=40),
        st.just(k),
    )
)


@given(
    labelled, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.integers(-30, 30), st.data()
)
@settings(max_examples=100)
def test_any_labels_at_any_scale(partition, dtype, exponent, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    weight = torch.randn(partition.shape, dtype=torch.float64, generator=generator)
    weight = (weight * 10.0**exponent).to(dtype).requires_grad_()
    exact_weight = weight.detach().double().requires_grad_()
    found, exact = enmeshment(weight, partition), reference.enmeshment(exact_weight, partition)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0.0)
    found.backward()
    exact.backward()
    # Gradients of E are of the order of 1 over the weights: both in range for these dtypes and scales.
    eps = torch.finfo(dtype).eps
    bound = exact_weight.grad.abs().max() * (1e-9 if dtype == torch.float64 else eps / 100)
    torch.testing.assert_close(
        weight.grad.double(), exact_weight.grad, rtol=max(2 * eps, 1e-9), atol=float(bound)
    )


# --- what the functions are, apart from any specification


def test_block_energy_by_hand():
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    partition = Partition([1, 0, -1], [0, 1, 0], 2)
    assert block_energy(weight, partition).tolist() == [[16 + 36, 25], [1 + 9, 4]]
    inside = 16 + 36 + 4
    total = sum(i * i for i in range(1, 10))
    assert clusterability(weight, partition).item() == pytest.approx(inside / total, rel=1e-7)
    assert enmeshment(weight, partition).item() == pytest.approx(1 - inside / total, rel=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_result_dtypes(dtype):
    weight, partition = torch.ones(4, 4, dtype=dtype), Partition.blocks((4, 4), 2)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for function in (block_energy, clusterability, enmeshment):
        assert function(weight, partition).dtype == expected
    assert block_inner(weight, weight, partition).dtype == expected
    assert block_scale(weight, torch.ones(2, 2), partition).dtype == dtype


def test_invariances():
    weight, partition = torch.randn(40, 30, dtype=torch.float64), random_partition((40, 30), 4)
    value = enmeshment(weight, partition)
    assert 0.0 < value < 1.0
    torch.testing.assert_close(1.0 - clusterability(weight, partition), value)
    for scale in (-1.0, 1e-6, 3e8):
        torch.testing.assert_close(enmeshment(scale * weight, partition), value)
    torch.testing.assert_close(enmeshment(weight.T, partition.transpose()), value)
    rows, cols = torch.randperm(40), torch.randperm(30)
    moved = Partition(partition.row_labels[rows], partition.col_labels[cols], 4)
    torch.testing.assert_close(enmeshment(weight[rows][:, cols], moved), value)
    names = torch.tensor([2, 0, 3, 1, -1])  # the last for label -1
    renamed = Partition(names[partition.row_labels], names[partition.col_labels], 4)
    torch.testing.assert_close(enmeshment(weight, renamed), value)


def test_gradient_is_the_papers():
    weight, partition = (
        torch.randn(20, 30, dtype=torch.float64, requires_grad=True),
        random_partition((20, 30), 3),
    )
    enmeshment(weight, partition).backward()
    share = clusterability(weight.detach(), partition)
    expected = 2 * weight.detach() * (share - partition.mask().double()) / weight.detach().square().sum()
    torch.testing.assert_close(weight.grad, expected)


def test_one_cluster_and_no_cluster():
    weight = torch.randn(5, 6, requires_grad=True)
    for partition, value in (
        (Partition.blocks((5, 6), 1), 0.0),
        (Partition([-1] * 5, [-1] * 6, 2), 1.0),
        (Partition([0] * 5, [-1] * 6, 2), 1.0),
        (Partition([0] * 5, [1] * 6, 2), 1.0),
    ):
        result = enmeshment(weight, partition)
        assert result.item() == value
        (gradient,) = torch.autograd.grad(result, weight)
        assert gradient.abs().max() < 1e-8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 6), (0, 6), (4, 0), (3, 4, 2, 2)], ids=str)
def test_no_weight_at_all(shape, dtype):
    weight = torch.zeros(shape, dtype=dtype, requires_grad=True)
    partition = random_partition(shape, 2)
    result = enmeshment(weight, partition)
    result.backward()
    assert result.item() == 0.0
    assert clusterability(weight, partition).item() == 1.0
    assert (weight.grad == 0.0).all()
    assert (block_energy(weight, partition) == 0.0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0), (0, 3), (3, 0), (3, 3)])
def test_not_finite_gives_nan(dtype, value, place):
    weight = torch.randn(4, 4).to(dtype)
    weight[place] = value
    weight.requires_grad_()
    for partition in (Partition.blocks((4, 4), 2), Partition([0, 0, 1, -1], [0, 0, 1, -1], 2)):
        for function in (enmeshment, clusterability):
            result = function(weight, partition)
            assert result.isnan()
            (gradient,) = torch.autograd.grad(result, weight)
            assert gradient.isnan().all()
        grad = torch.zeros_like(weight)
        arguments = [[side] for side in (*labels_of(partition), partition.num_clusters)]
        assert OPS.accumulate_enmeshment_grad_([weight.detach()], [grad], *arguments, 1.0).isnan().all()
        assert grad.isnan().all()


def test_only_the_block_that_holds_it_is_not_finite():
    weight = torch.ones(4, 4)
    weight[0, 3] = float("nan")
    assert block_energy(weight, Partition.blocks((4, 4), 2)).isnan().tolist() == [
        [False, True],
        [False, False],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-40, 1e-37, 1e-25, 1e-19, 1e19, 1e25, 1e37])
def test_tiny_and_huge_weights(scale, dtype):
    # The squares, their sum, and the factor 2 / sum that goes with each weight's gradient lie far outside
    # float32; E and, but for the smallest weights, the gradient do not.
    partition = random_partition((30, 20), 3)
    weight = (torch.randn(30, 20, dtype=torch.float64) * scale).to(dtype).requires_grad_()
    exact_weight = weight.detach().double().requires_grad_()
    result, exact = enmeshment(weight, partition), reference.enmeshment(exact_weight, partition)
    result.backward()
    exact.backward()
    torch.testing.assert_close(result.double(), exact, rtol=1e-7, atol=0.0)
    expected = exact_weight.grad.to(dtype)
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).tiny * 1e-5}
    torch.testing.assert_close(weight.grad, expected, **tolerance)
    grad = torch.zeros_like(weight)
    arguments = [[side] for side in (*labels_of(partition), partition.num_clusters)]
    OPS.accumulate_enmeshment_grad_([weight.detach()], [grad], *arguments, 1.0)
    torch.testing.assert_close(grad, expected, **tolerance)


def test_a_small_enmeshment_keeps_its_digits():
    weight = torch.eye(4, dtype=torch.float64) + 1e-9 * (1 - torch.eye(4, dtype=torch.float64))
    result = enmeshment(weight, Partition(range(4), range(4), 4))
    assert result.item() == pytest.approx(12e-18 / 4, rel=1e-12)


def test_half_numbers_of_every_kind():
    # All 63,488 finite halves, subnormal ones among them, squared and summed exactly, and written back.
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    halves = halves[halves.isfinite()].reshape(256, 248)
    partition = random_partition(halves.shape, 3)
    assert_sums(OPS.block_inner(halves, None, *labels_of(partition), 3), halves, None, partition)
    for factor in (1.0, 0.5, 1 / 3, 2.0**-12, 3.0):
        factors = torch.full((4, 4), factor, dtype=torch.float64)
        scaled = OPS.block_scale(halves, factors, *labels_of(partition))
        expected = (halves.float() * torch.tensor(factor, dtype=torch.float32)).half()
        assert torch.equal(scaled.view(torch.int16), expected.view(torch.int16))


def test_subnormal_halves_where_subnormal_singles_are_flushed():
    # Nine: a vector of eight and one more, which are converted by different instructions.
    halves = torch.full((1, 9), 2.0**-24, dtype=torch.float16)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        assert block_energy(halves, Partition.blocks((1, 9), 1)).item() == 9 * 2.0**-48
    finally:
        torch.set_flush_denormal(False)


def test_bfloat16_rounds_as_pytorch_does():
    weight = torch.randn(64, 64).to(torch.bfloat16)
    weight[0, :4] = torch.tensor([float("nan"), float("inf"), 3.3e38, 1e-40])
    partition = Partition.blocks((64, 64), 1)
    for factor in (1.0, 1 / 3, 1.0039, 7.0):
        scaled = block_scale(weight, torch.tensor([[factor]]), partition)
        expected = (weight.float() * factor).to(torch.bfloat16)
        torch.testing.assert_close(scaled, expected, rtol=0, atol=0, equal_nan=True)


def test_views_with_pending_negation():
    weight = torch.randn(6, 4, dtype=torch.complex64).conj().imag
    assert weight.is_neg()
    partition, factors = random_partition((6, 4), 2), torch.randn(2, 2)
    plain = weight.resolve_neg()
    assert torch.equal(
        block_inner(weight, torch.ones(6, 4), partition), block_inner(plain, torch.ones(6, 4), partition)
    )
    assert torch.equal(block_scale(weight, factors, partition), block_scale(plain, factors, partition))
