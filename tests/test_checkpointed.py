"""Everything that has a derivative has it under ``torch.utils.checkpoint`` as well, of either kind."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import modfast
from modfast import EnmeshmentLoss, Partition

PARTITION = Partition([0, 1, 1, -1], [0, 1, 1], 2)
FUNCTIONS = {
    "laplacian_eigenvalues": lambda weight: modfast.laplacian_eigenvalues(weight, 3).sum(),
    "laplacian_eigenvalues of two": lambda weight: modfast.laplacian_eigenvalues([weight, weight.T], 3).sum(),
    "enmeshment": lambda weight: modfast.enmeshment(weight, PARTITION),
    "block_energy": lambda weight: modfast.block_energy(weight, PARTITION).sin().sum(),
    "block_inner": lambda weight: modfast.block_inner(weight, weight.sin(), PARTITION).sum(),
    "block_scale": lambda weight: modfast.block_scale(weight, weight[:2, :2], PARTITION).sin().sum(),
}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_the_same(name, use_reentrant):
    weight = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(FUNCTIONS[name](weight), weight)
    checkpoint(FUNCTIONS[name], weight, use_reentrant=use_reentrant).backward()
    torch.testing.assert_close(weight.grad, expected)


def test_the_loss_of_a_model():
    model = nn.Sequential(nn.Linear(6, 6), nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)))
    loss = EnmeshmentLoss(model, 2)
    loss().backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    checkpoint(loss, use_reentrant=False).backward()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        if grad is not None:
            torch.testing.assert_close(parameter.grad, grad)
