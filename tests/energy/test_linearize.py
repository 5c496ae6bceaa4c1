"""``torch.func.linearize`` keeps constants as they were made: nothing may be written to them afterwards."""

import pytest
import torch
from torch import nn
from torch.func import grad, hessian, jvp, linearize

import modfast
from modfast import EnmeshmentLoss, Partition, reference
from modfast.layers.replaced import replaced_parameters

# PyTorch prepares forward mode with functions that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore")

PARTITION = Partition([0, 0, 1, -1], [0, 1, 1, 0, -1, 1], 2)
WEIGHT, TANGENT = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
# In plain PyTorch and nothing else: the specification could have the same fault.
INSIDE = PARTITION.mask()
MEMBERS = [
    (PARTITION.row_labels == c)[:, None] & (PARTITION.col_labels == d) for c in range(2) for d in range(2)
]


def plain_clusterability(weight):
    return (weight.square() * INSIDE).sum() / weight.square().sum()


def plain_energies(weight):
    return torch.stack([(weight.square() * member).sum() for member in MEMBERS]).reshape(2, 2)


def plain_scale(weight):
    return sum(weight * member * (c + 1.0) for c, member in enumerate(MEMBERS))


FACTORS = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
FUNCTIONS = {
    "enmeshment": (lambda of, w: of.enmeshment(w, PARTITION), lambda w: 1.0 - plain_clusterability(w)),
    "clusterability": (lambda of, w: of.clusterability(w, PARTITION), plain_clusterability),
    "block_energy": (lambda of, w: of.block_energy(w, PARTITION), plain_energies),
    "block_inner": (lambda of, w: of.block_inner(w, w, PARTITION), plain_energies),
    "block_scale": (lambda of, w: of.block_scale(w, FACTORS, PARTITION), plain_scale),
}


@pytest.mark.parametrize("of", [modfast, reference])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_linearize(name, of):
    fast, plain = FUNCTIONS[name]

    def function(weight):
        return fast(of, weight)

    value, along = linearize(function, WEIGHT)
    expected, expected_along = jvp(plain, (WEIGHT,), (TANGENT,))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(along(TANGENT), expected_along)
    gradient = linearize(grad(lambda w: function(w).sin().sum()), WEIGHT)[1](TANGENT)
    torch.testing.assert_close(gradient, jvp(grad(lambda w: plain(w).sin().sum()), (WEIGHT,), (TANGENT,))[1])
    torch.testing.assert_close(hessian(function)(WEIGHT), hessian(plain)(WEIGHT))


def test_linearize_the_loss_of_a_model():
    model = nn.Linear(6, 4, bias=False).double()
    loss = EnmeshmentLoss(model, {"": PARTITION})

    def function(weight):
        with replaced_parameters(model, {"weight": weight}, "weights"):
            return loss()

    expected = jvp(lambda w: 1.0 - plain_clusterability(w), (WEIGHT,), (TANGENT,))[1]
    torch.testing.assert_close(linearize(function, WEIGHT)[1](TANGENT), expected)
