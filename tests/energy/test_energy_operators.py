"""What the energy functions and their operators refuse."""

import pytest
import torch
from gpu import needs_cpu_kernels
from labelled import (
    OPS,
    labels_of,
    random_partition,
)

from modfast import Partition, block_energy, block_inner, block_scale, clusterability, enmeshment


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
        (weight, factors.to_sparse(), rows, cols),
        (weight, factors, ints(0), cols),
        (weight[0], factors, rows, cols),
        (weight.int(), factors, rows, cols),
    ]:
        with pytest.raises(RuntimeError):
            OPS.block_scale(*arguments)


@needs_cpu_kernels
@pytest.mark.parametrize("label", [2, -2, 2**40, -(2**63)])
def test_labels_out_of_range_raise(label):
    weight, grad, cols, factors = torch.ones(2, 3), torch.zeros(2, 3), ints(0, 1, -1), torch.ones(3, 3)
    for call in (
        lambda: OPS.block_inner(weight, None, ints(0, label), cols, 2),
        lambda: OPS.block_scale(weight, factors.double(), ints(0, label), cols),
        lambda: OPS.block_scale(weight, torch.ones(2, 2).double(), ints(0, 1), cols),
        lambda: OPS.accumulate_enmeshment_grad_([weight], [grad], [ints(0, label)], [cols], [2], 1.0),
    ):
        with pytest.raises(RuntimeError):
            call()
    assert (grad == 0.0).all()
    assert (weight == 1.0).all()


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
