"""The compiled operators and the functions on them, held to the specification in plain PyTorch."""

import contextlib
import gc
import resource
import threading
import time
import tracemalloc

import pytest
import torch
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
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import modfast
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


# --- errors


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("function", [block_energy, enmeshment, clusterability])
def test_errors_of_the_weight(function):
    partition = Partition.blocks((4, 6), 2)
    for weight, error, told in [
        ([[1.0]], TypeError, "weight must be a torch.Tensor, got list"),
        (torch.ones(4, 6, dtype=torch.int64), TypeError, "weight must be float32.* got torch.int64"),
        (torch.ones(4, 6, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (torch.ones(4, 6).to_sparse(), ValueError, "weight must be dense, got layout torch.sparse_coo"),
        (torch.ones(4, 6).to_sparse_csr(), ValueError, "weight must be dense"),
        (torch.ones(6, 4), ValueError, r"\(4, 6\) as its partition, got \(6, 4\)"),
        (torch.ones(4), ValueError, r"got \(4,\)"),
        (torch.ones(()), ValueError, r"got \(\)"),
        (torch.ones(4, 7, 6), ValueError, r"got \(4, 7, 6\)"),
    ]:
        with pytest.raises(error, match=told):
            function(weight, partition)
    with pytest.raises(TypeError, match=r"partition must be a modfast\.Partition, got int"):
        function(torch.ones(4, 6), 2)


def test_errors_of_the_other_operand():
    weight, partition = torch.ones(4, 6), Partition.blocks((4, 6), 2)
    for other, error, told in [
        (1.0, TypeError, "other must be a torch.Tensor, got float"),
        (torch.ones(4, 6, dtype=torch.int32), TypeError, "other must be float32"),
        (torch.ones(4, 6).double(), ValueError, "other must match weight .* got .*torch.float64"),
        (torch.ones(4, 6, 1), ValueError, r"other must match weight .* got \(\(4, 6, 1\)"),
        (torch.ones(4, 5), ValueError, r"other must have shape .* got \(4, 5\)"),
        (torch.ones(4, 6, device="meta"), ValueError, "other must match weight .* meta"),
    ]:
        with pytest.raises(error, match=told):
            block_inner(weight, other, partition)
    for factors, error, told in [
        ([[1.0]], TypeError, "factors must be a torch.Tensor, got list"),
        (torch.ones(2, 2, dtype=torch.int64), TypeError, "factors must be floating, got torch.int64"),
        (torch.ones(3, 3), ValueError, r"factors must have shape \(2, 2\) .* got \(3, 3\)"),
        (torch.ones(2), ValueError, r"factors must have shape \(2, 2\) .* got \(2,\)"),
        (torch.ones(2, 2, device="meta"), ValueError, "on cpu, got .* on meta"),
    ]:
        with pytest.raises(error, match=told):
            block_scale(weight, factors, partition)


def ints(*labels, dtype=torch.int64):
    return torch.tensor(labels, dtype=dtype)


def test_operators_called_with_anything_raise():
    weight, rows, cols, factors = torch.ones(2, 3), ints(0, 1), ints(0, 1, -1), torch.ones(3, 3).double()
    for arguments in [
        (weight, None, ints(0), cols, 2),
        (weight, None, ints(0, 1, 0), cols, 2),
        (weight, None, rows, ints(0, 1), 2),
        (weight, None, ints(0, 2), cols, 2),
        (weight, None, ints(0, -2), cols, 2),
        (weight, None, ints(0, 2**40), cols, 2),
        (weight, None, ints(0, -(2**63)), cols, 2),
        (weight, None, ints(0, 1, dtype=torch.int32), cols, 2),
        (weight, None, torch.ones(2), cols, 2),
        (weight, None, ints(0, 1)[:, None], cols, 2),
        (weight, None, ints(0, 1).to_sparse(), cols, 2),
        (weight, None, rows, cols, 0),
        (weight, None, rows, cols, -1),
        (weight, None, rows, cols, 2**31 - 1),
        (weight, None, rows, cols, 2**62),
        (weight.int(), None, rows, cols, 2),
        (weight.bool(), None, rows, cols, 2),
        (weight.cfloat(), None, rows, cols, 2),
        (weight[0], None, rows, cols, 2),
        (torch.tensor(1.0), None, rows, cols, 2),
        (weight.to_sparse(), None, rows, cols, 2),
        (weight.to_mkldnn(), None, rows, cols, 2),
        (weight, weight.double(), rows, cols, 2),
        (weight, weight.T, rows, cols, 2),
        (weight, torch.ones(2, 3, 1), rows, cols, 2),
        (weight, torch.ones(6), rows, cols, 2),
        (weight, weight.to_sparse(), rows, cols, 2),
    ]:
        with pytest.raises(RuntimeError):
            OPS.block_inner(*arguments)
    for arguments in [
        (weight, factors.float(), rows, cols),
        (weight, factors[:2], rows, cols),
        (weight, factors[0], rows, cols),
        (weight, torch.ones(1, 1).double(), rows, cols),
        (weight, torch.ones(0, 0).double(), rows, cols),
        (weight, torch.ones(2, 2).double(), rows, cols),
        (weight, factors.to_sparse(), rows, cols),
        (weight, factors, ints(0, 2), cols),
        (weight, factors, ints(0), cols),
        (weight[0], factors, rows, cols),
        (weight.int(), factors, rows, cols),
    ]:
        with pytest.raises(RuntimeError):
            OPS.block_scale(*arguments)


def test_accumulation_called_with_anything_raises():
    weight, grad, rows, cols = torch.ones(2, 3), torch.zeros(2, 3), ints(0, 1), ints(0, 1, -1)
    shared = torch.zeros(4, 4)
    two = ([rows, rows], [cols, cols], [2, 2], 1.0)
    for arguments in [
        ([], [], [], [], [], 1.0),
        ([weight], [], [rows], [cols], [2], 1.0),
        ([weight], [grad], [], [cols], [2], 1.0),
        ([weight], [grad], [rows], [cols], [2, 2], 1.0),
        ([weight], [grad.double()], [rows], [cols], [2], 1.0),
        ([weight], [grad.T], [rows], [cols], [2], 1.0),
        ([weight], [torch.zeros(2, 3, 1)], [rows], [cols], [2], 1.0),
        ([weight], [grad.to_sparse()], [rows], [cols], [2], 1.0),
        ([weight], [grad], [ints(0, 5)], [cols], [2], 1.0),
        ([weight], [grad], [rows], [cols], [2**31 - 1], 1.0),
        ([weight], [grad], [rows], [cols], [0], 1.0),
        # Gradients that share memory with themselves, with a weight, with each other.
        ([weight], [torch.zeros(1, 3).expand(2, 3)], [rows], [cols], [2], 1.0),
        ([weight], [torch.zeros(2, 1).expand(2, 3)], [rows], [cols], [2], 1.0),
        ([weight], [torch.zeros(8).as_strided((2, 3), (1, 1))], [rows], [cols], [2], 1.0),
        ([weight], [weight], [rows], [cols], [2], 1.0),
        ([shared[:2, :3]], [shared[1:3, :3]], [rows], [cols], [2], 1.0),
        ([weight, weight], [grad, grad], *two),
        ([weight, weight], [shared[:2, :3], shared[1:3, :3]], *two),
        ([weight, shared[:2, :3]], [shared[1:3, :3], grad], *two),
    ]:
        before = shared.clone()
        with pytest.raises(RuntimeError):
            OPS.accumulate_enmeshment_grad_(*arguments)
        assert torch.equal(shared, before)
        assert (grad == 0.0).all()
        assert (weight == 1.0).all()


def test_any_number_of_clusters_costs_the_loss_nothing():
    weight, labels = torch.randn(2, 3), ([ints(0, 1)], [ints(0, 1, -1)])
    grads = torch.zeros(2, 2, 3)
    few = OPS.accumulate_enmeshment_grad_([weight], [grads[0]], *labels, [2], 1.0)
    many = OPS.accumulate_enmeshment_grad_([weight], [grads[1]], *labels, [2**31 - 2], 1.0)
    assert torch.equal(few, many)
    assert torch.equal(grads[0], grads[1])


def test_gradients_side_by_side_are_no_overlap():
    shared = torch.zeros(4, 3)
    weight, arguments = torch.randn(2, 3), ([ints(0, 1)] * 2, [ints(0, 1, -1)] * 2, [2, 2], 1.0)
    OPS.accumulate_enmeshment_grad_([weight, weight], [shared[2:], shared[:2]], *arguments)
    assert torch.equal(shared[2:], shared[:2])
    assert (shared != 0.0).all()


def test_labels_need_not_be_contiguous():
    weight, partition = torch.randn(5, 7), random_partition((5, 7), 3)
    spread = [torch.stack([labels, labels + 1], dim=1)[:, 0] for labels in labels_of(partition)]
    assert not spread[0].is_contiguous()
    assert torch.equal(
        OPS.block_inner(weight, None, *spread, 3), OPS.block_inner(weight, None, *labels_of(partition), 3)
    )
    same = ints(0).expand(5)
    assert OPS.block_inner(torch.ones(5, 5), None, same, same, 1).tolist() == [[25.0, 0.0], [0.0, 0.0]]


# --- PyTorch's machinery


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    weight = LAYOUTS[layout]((4, 3, 2, 2), torch.float32)
    partition = random_partition((4, 3), 2)
    rows, cols = labels_of(partition)
    for other in (None, torch.randn(4, 3, 2, 2)):
        for needs in (False, True):
            operands = [None if o is None else o.detach().requires_grad_(needs) for o in (weight, other)]
            torch.library.opcheck(OPS.block_inner.default, (*operands, rows, cols, 2))
    for needs in (False, True):
        operand, factors = weight.detach().requires_grad_(needs), torch.randn(3, 3, dtype=torch.float64)
        torch.library.opcheck(OPS.block_scale.default, (operand, factors.requires_grad_(needs), rows, cols))
    grads = [torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)]
    both = ([rows, rows], [cols, cols], [2, 2], 0.7)
    torch.library.opcheck(OPS.accumulate_enmeshment_grad_.default, ([weight, grads[0].clone()], grads, *both))
    weights, labels = [weight, grads[0].clone()], both[:3]
    torch.library.opcheck(OPS.enmeshment.default, (weights, *labels))
    _, energies = OPS.enmeshment(weights, *labels)
    slopes = torch.ones(2, dtype=torch.float64)
    torch.library.opcheck(OPS.enmeshment_grad.default, (weights, energies, slopes, *labels))
    torch.library.opcheck(OPS.add_enmeshment_grad_.default, (weights, grads, energies, slopes, *labels))


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 2)], ids=str)
def test_gradcheck(shape):
    partition = random_partition(shape, 2)

    def leaf(*size):
        return torch.randn(size, dtype=torch.float64, requires_grad=True)

    for function, operands in [
        (block_inner, (leaf(*shape), leaf(*shape))),
        (block_scale, (leaf(*shape), leaf(2, 2))),
        (block_energy, (leaf(*shape),)),
        (enmeshment, (leaf(*shape),)),
        (clusterability, (leaf(*shape),)),
    ]:

        def call(*inputs, function=function):
            return function(*inputs, partition)

        assert gradcheck(call, operands, check_batched_grad=True)
        assert gradgradcheck(call, operands, check_batched_grad=True)


def test_gradcheck_of_the_operators_themselves():
    partition = random_partition((4, 3), 2)
    weight, other = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    factors = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)

    def inner(*operands):
        return OPS.block_inner(*operands, *labels_of(partition), 2)

    def scale(*operands):
        return OPS.block_scale(*operands, *labels_of(partition))

    for function, operands in [(inner, (weight, None)), (inner, (weight, other)), (scale, (weight, factors))]:
        assert gradcheck(function, operands)
        assert gradgradcheck(function, operands)


def test_gradient_with_respect_to_one_operand_only():
    partition = random_partition((4, 3), 2)
    for fixed in (0, 1):
        operands = [torch.randn(4, 3), torch.randn(4, 3)]
        operands[1 - fixed].requires_grad_()
        block_inner(*operands, partition).sum().backward()
        assert operands[fixed].grad is None
        expected = operands[fixed] * (partition.row_labels >= 0)[:, None] * (partition.col_labels >= 0)
        torch.testing.assert_close(operands[1 - fixed].grad, expected)


def test_a_weight_with_itself():
    weight, partition = torch.randn(4, 3, requires_grad=True), random_partition((4, 3), 2)
    assert torch.equal(block_inner(weight, weight, partition), block_energy(weight, partition))
    twice, once = (
        torch.autograd.grad(value.sum(), weight)[0]
        for value in (block_inner(weight, weight, partition), block_energy(weight, partition))
    )
    torch.testing.assert_close(twice, once)


def test_second_derivative_by_hand():
    # With W = (x, y), x inside and y crossing: E = y^2 / (x^2 + y^2).
    weight = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    partition = Partition([0], [0, -1], 1)
    (first,) = torch.autograd.grad(enmeshment(weight, partition), weight, create_graph=True)
    torch.testing.assert_close(first, torch.tensor([[-8 / 25, 4 / 25]], dtype=torch.float64))
    second = torch.stack([torch.autograd.grad(first[0, i], weight, retain_graph=True)[0][0] for i in (0, 1)])
    # d2E/dx2 = y^2 (6 x^2 - 2 y^2) / s^3 and so on, s = x^2 + y^2.
    expected = torch.tensor([[-8 / 125, 24 * 1 / 125 - 0], [24 / 125, -22 / 125]], dtype=torch.float64)
    torch.testing.assert_close(second[0, 0], expected[0, 0])
    torch.testing.assert_close(second, second.T)
    # E does not change along W, so its gradient is homogeneous of degree -1: H w = -g.
    torch.testing.assert_close(second @ weight[0], -first[0])


def test_a_weight_changed_before_the_backward_pass_is_noticed():
    weight, partition = torch.randn(4, 3, requires_grad=True), random_partition((4, 3), 2)
    result = enmeshment(weight, partition)
    with torch.no_grad():
        weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


def test_functional_transforms():
    partition = random_partition((4, 3), 2)
    weights = torch.randn(5, 4, 3, dtype=torch.float64)

    def fast(weight):
        return enmeshment(weight, partition)

    def slow(weight):
        return reference.enmeshment(weight, partition)

    for function in (torch.func.grad, torch.func.jacrev, lambda f: torch.func.jacrev(torch.func.grad(f))):
        torch.testing.assert_close(function(fast)(weights[0]), function(slow)(weights[0]))
        torch.testing.assert_close(
            torch.vmap(function(fast))(weights), torch.stack([function(slow)(weight) for weight in weights])
        )
    energies = torch.vmap(lambda weight: block_energy(weight, partition), in_dims=2)(weights.permute(1, 2, 0))
    torch.testing.assert_close(energies, torch.stack([block_energy(weight, partition) for weight in weights]))
    scaled = torch.vmap(lambda factors: block_scale(weights[0], factors, partition))(torch.ones(3, 2, 2))
    torch.testing.assert_close(scaled[2], block_scale(weights[0], torch.ones(2, 2), partition))
    inner = torch.vmap(OPS.block_inner, in_dims=(0, 0, None, None, None))
    found = inner(weights, weights + 1, *labels_of(partition), 2)
    torch.testing.assert_close(
        found[3], OPS.block_inner(weights[3], weights[3] + 1, *labels_of(partition), 2)
    )


def test_autocast():
    partition = random_partition((64, 32), 4)
    layer = nn.Linear(32, 64)
    plain = enmeshment(layer.weight, partition)
    (plain_gradient,) = torch.autograd.grad(plain, layer.weight)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            result = enmeshment(layer.weight, partition)
            loss = layer(torch.randn(3, 32)).float().square().mean() + result
        assert result.dtype == torch.float32
        assert torch.equal(result, plain)
        assert torch.equal(torch.autograd.grad(result, layer.weight, retain_graph=True)[0], plain_gradient)
        loss.backward()


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns about itself
def test_compiled_functions():
    torch._dynamo.reset()
    partition = random_partition((20, 30), 3)

    def everything(weight, other, factors):
        scaled = block_scale(weight, factors, partition)
        return (
            enmeshment(weight, partition)
            + clusterability(weight.T, partition.transpose())
            + block_energy(scaled, partition).trace()
            + block_inner(weight, other, partition).square().sum()
        )

    # "aot_eager" traces forward and backward whole, as any backend does, but generates no code.
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    operands = [torch.randn(20, 30), torch.randn(20, 30), torch.randn(3, 3)]
    results = []
    for function in (everything, compiled):
        leaves = [operand.clone().requires_grad_() for operand in operands]
        value = function(*leaves)
        value.backward()
        results.append([value.detach(), *(leaf.grad for leaf in leaves)])
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)
    assert torch._dynamo.explain(everything)(*operands).graph_break_count == 0


# --- the machine


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_any_number_of_threads(set_threads, dtype):
    shapes = [(700, 1500), (64, 32, 3, 3)]
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    partitions = [random_partition(shape, 5) for shape in shapes]
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        for weight, partition in zip(weights, partitions, strict=True):
            leaf = weight.clone().requires_grad_()
            enmeshment(leaf, partition).backward()
            results.append([block_energy(weight, partition), leaf.grad])
        grads = [torch.zeros_like(weight) for weight in weights]
        labels = [[p.row_labels for p in partitions], [p.col_labels for p in partitions], [5, 5]]
        results.append([OPS.accumulate_enmeshment_grad_(weights, grads, *labels, 0.7), *grads])
    for one, two, three in zip(results[:3], results[3:6], results[6:], strict=True):
        for a, b, c in zip(one, two, three, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


# Prints one digest of everything the kernels compute, over numbers of every kind.
DIGEST = """
import hashlib, torch, modfast
ops, digest = torch.ops.modfast, hashlib.sha256()
generator = torch.Generator().manual_seed(1)
rows = torch.randint(-1, 4, (133,), generator=generator)
cols = torch.randint(-1, 4, (1031,), generator=generator)
factors = torch.randn(5, 5, dtype=torch.float64, generator=generator)
factors[0, 0] = 1e-42  # outside the normal numbers of float32
bits = torch.arange(-2**15, 2**15).repeat(3)[: 133 * 1031].to(torch.int16).reshape(1, -1)
bits = torch.nn.functional.pad(bits, (0, max(0, 133 * 1031 - bits.numel()))).reshape(133, 1031)
every_half, every_bfloat = bits.view(torch.float16), bits.view(torch.bfloat16)
wide = torch.randn(133, 1031, dtype=torch.float64, generator=generator)
wide *= 10.0 ** torch.randint(-30, 30, wide.shape, generator=generator)
wide32 = wide.float()
wide32[:, 7] *= 1e-12  # subnormal numbers among them
def note(tensor):
    number = tensor.contiguous().view(-1)
    kind = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()]
    # A sum's NaN has no bits of its own; a scaled NaN has.
    if tensor.dtype == torch.float64:
        number = torch.where(number.isnan(), float("nan"), number)
    digest.update(number.view(kind).numpy().tobytes())
for weight in (wide, wide32, every_half, every_half.nan_to_num(), wide.half(), every_bfloat,
               every_bfloat.nan_to_num(), wide32.bfloat16()):
    for view in (weight, weight[:, ::3], weight.t().contiguous().t()):
        view_cols = cols[: view.shape[1]]
        note(ops.block_inner(view, None, rows, view_cols, 4))
        note(ops.block_inner(view, view.flip(0), rows, view_cols, 4))
        for table in (factors, factors.clamp(min=0.1), torch.ones_like(factors)):
            note(ops.block_scale(view, table, rows, view_cols))
        grad = torch.ones_like(view)
        note(ops.accumulate_enmeshment_grad_([view.nan_to_num()], [grad], [rows], [view_cols], [4], 0.7))
        note(grad)
print(modfast.backend()["cpu"], modfast.backend()["threads"], digest.hexdigest())
"""


def test_same_bits_in_every_instruction_set(run_python):
    levels = modfast.backend()["cpu_available"]
    outputs = {}
    for level, threads in [*((level, "1") for level in levels), (levels[-1], "4")]:
        # OMP_NUM_THREADS alone is cut to the number of cores.
        code = f"import torch; torch.set_num_threads({threads})\n{DIGEST}"
        done = run_python(code, MODFAST_CPU=level, OMP_NUM_THREADS=threads)
        assert done.returncode == 0, done.stderr
        used, used_threads, digest = done.stdout.split()
        assert (used, used_threads) == (level, threads)
        outputs[level, threads] = digest
    assert len(set(outputs.values())) == 1, outputs


def test_the_interpreter_runs_on_during_a_kernel():
    ticks, running = 0, True

    def tick():
        nonlocal ticks
        while running:
            ticks += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        # One number, many times over: work without memory. Were the interpreter held for all of it, no amount
        # of it would let another thread run. So there may be more of it, as a faster machine needs.
        for doublings in range(8):
            shape = (20_000 * 2**doublings, 25_000)
            weight, partition = torch.ones(1, 1).expand(shape), Partition.blocks(shape, 2)
            before = ticks
            block_energy(weight, partition)
            if ticks - before >= 5:
                break
        else:
            pytest.fail("no other thread ran meanwhile")
    finally:
        running = False
        thread.join()


def test_calls_from_many_threads_at_once():
    weight, partition = torch.randn(300, 200), random_partition((300, 200), 3)
    expected, failures = block_energy(weight, partition), []

    def work():
        for _ in range(50):
            if not torch.equal(block_energy(weight, partition), expected):
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.slow
@pytest.mark.parametrize("by", ["row", "column", "number"])
def test_past_2_to_the_31_elements_without_memory(by):
    rows, cols = 65_537, 32_771
    assert rows * cols > 2**31
    source = {"row": (1, cols), "column": (rows, 1), "number": (1, 1)}[by]
    weight = torch.full(source, 2.0).expand(rows, cols)
    partition = Partition.blocks((rows, cols), 3)
    sizes = partition.sizes().double()
    expected = 4.0 * sizes[:, :1] * sizes[:, 1]
    sums = OPS.block_inner(weight, None, *labels_of(partition), 3)
    assert torch.equal(sums[:3, :3], expected)


@pytest.mark.slow
def test_past_2_to_the_31_elements_of_memory():
    rows = cols = 46_342
    assert rows * cols > 2**31
    weight = torch.zeros(rows, cols, dtype=torch.bfloat16)
    labels = torch.full((rows,), -1)
    labels[0], labels[-1], labels[-2] = 0, 1, 2
    partition = Partition(labels, labels, 3)
    corners = {(0, 0): 1.0, (0, -1): 2.0, (-1, 0): 3.0, (-1, -1): 4.0, (-2, -1): 5.0, (7, 7): 6.0}
    for place, value in corners.items():
        weight[place] = value
    assert block_energy(weight, partition).tolist() == [[1.0, 4.0, 0.0], [9.0, 16.0, 0.0], [0.0, 25.0, 0.0]]
    # The last two rows begin past 2^31 elements.
    tail = weight[-2:]
    tail_partition = Partition([0, 1], partition.col_labels, 3)
    scaled = block_scale(tail, torch.full((3, 3), 2.0), tail_partition)
    assert scaled[-1, -1] == 8.0
    assert scaled[0, -1] == 10.0
    assert scaled[-1, 0] == 6.0


@pytest.mark.slow
def test_writes_past_2_to_the_31_elements():
    rows, cols = 46_342, 46_342
    weight = torch.ones(1, 1, dtype=torch.bfloat16).expand(rows, cols)
    partition = Partition.blocks((rows, cols), 2)
    scaled = block_scale(weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), partition)
    half = rows // 2
    for i in (0, half - 1, half, rows - 1):
        for j in (0, half - 1, half, cols - 1):
            assert scaled[i, j].item() == 1 + (j >= half) + 2 * (i >= half)
    assert torch.equal(scaled[-1].float().sum(), torch.tensor(half * 7.0))


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_no_memory_is_kept():
    partition = random_partition((64, 64), 4)
    weight = torch.randn(64, 64, requires_grad=True)
    grad = torch.zeros(64, 64)
    arguments = ([partition.row_labels], [partition.col_labels], [4], 0.7)
    wrong = torch.full((64,), 9)

    def call():
        enmeshment(weight, partition).backward()
        weight.grad = None
        OPS.accumulate_enmeshment_grad_([weight.detach()], [grad], *arguments)
        with contextlib.suppress(RuntimeError):
            OPS.block_inner(weight, None, wrong, wrong, 4)

    for _ in range(500):
        call()
    tracemalloc.start()
    try:
        before, traced_before = resident_bytes(), tracemalloc.get_traced_memory()[0]
        for _ in range(3000):
            call()
        gc.collect()  # what only waits for the collector is not kept
        grown, traced = resident_bytes() - before, tracemalloc.get_traced_memory()[0] - traced_before
    finally:
        tracemalloc.stop()
    # One 64 x 64 float32 kept from each call would be 48 MiB, one 5 x 5 float64 in Python's hands 0.6 MB.
    assert grown < 8 * 2**20
    assert traced < 200_000
