"""The energy functions within PyTorch: derivatives, transforms, autocast, compilation."""

import pytest
import torch
from labelled import (
    LAYOUTS,
    OPS,
    labels_of,
    random_partition,
)
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from modfast import Partition, block_energy, block_inner, block_scale, clusterability, enmeshment, reference


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
