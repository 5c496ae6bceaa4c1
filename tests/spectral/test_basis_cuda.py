"""The solver's basis of vectors on a GPU, held to the specification.

They run on an emulated GPU as well (gpu.py), which shows nothing of speed, of the memory model, or of blocks
and streams that really run at once.
"""

import pytest
import torch
from gpu import to_device

from modfast.reference import spectral_operators as plain

pytestmark = pytest.mark.cuda

OPS = torch.ops.modfast
FLOATS = [torch.float32, torch.float64]


@pytest.mark.parametrize("compute", FLOATS, ids=str)
@pytest.mark.parametrize("length", [0, 1, 127, 129, 1500])
@pytest.mark.parametrize(
    ("widths", "width"),
    [([8], 8), ([8] * 10, 8), ([16, 8, 24], 16), ([24] * 3, 24), ([40, 8], 40), ([72, 16], 80)],
    ids=str,
)
def test_inner_products_with_a_basis(widths, width, length, compute):
    basis = [torch.randn(length, each, dtype=compute) for each in widths]
    block, weights = torch.randn(length, width, dtype=compute), torch.rand(length, dtype=compute)
    for given in (None, weights):
        found = OPS.basis_inner(to_device(torch.empty(0), *basis)[1:], *to_device(block, given))
        exact = plain.basis_inner(
            [each.double() for each in basis], block.double(), None if given is None else given.double()
        )
        sizes = plain.basis_inner([each.abs().double() for each in basis], block.abs().double(), given)
        # Every product and sum is in float64, whatever the dtype of the vectors.
        assert ((found.cpu() - exact).abs() <= length * 2.0**-52 * sizes).all()


@pytest.mark.parametrize("compute", FLOATS, ids=str)
@pytest.mark.parametrize("length", [0, 1, 63, 257, 1500])
@pytest.mark.parametrize(
    ("widths", "width"),
    [
        ([8], 8),
        ([8] * 10, 8),
        ([8] * 10, 40),
        ([16, 8, 24], 16),
        ([16, 24], 40),
        ([24] * 3, 24),
        ([72, 8], 80),
    ],
    ids=str,
)
def test_rotation_of_a_basis(widths, width, length, compute):
    basis = [torch.randn(length, each, dtype=compute) for each in widths]
    factors = torch.randn(sum(widths), width, dtype=torch.float64)
    found, expected, sizes = ([each.clone() for each in basis] for _ in range(3))
    found = to_device(torch.empty(0), *found)[1:]
    OPS.basis_rotate_(found, to_device(factors))
    expected, sizes = [each.double() for each in basis], [each.double().abs() for each in basis]
    plain.basis_rotate_(expected, factors)
    plain.basis_rotate_(sizes, factors.abs())
    covered = 0
    for one, other, size, before in zip(found, expected, sizes, basis, strict=True):
        if covered < width:
            allowed = (sum(widths) + 8) * torch.finfo(compute).eps * size
            assert ((one.double().cpu() - other).abs() <= allowed).all()
        else:
            assert torch.equal(one.cpu(), before)
        covered += one.shape[1]


def test_a_wide_rotation_waits_in_stripes():
    """More rows than the scratch memory holds at once, 2**20 numbers."""
    rows = 2**20 // 40 + 3
    basis = [torch.randn(rows, width) for width in (32, 8)]
    expected = torch.cat(basis, 1)
    found = to_device(*basis)
    # The columns change places: a row that is read after it is written shows.
    factors = torch.eye(40, dtype=torch.float64).flip(1)
    OPS.basis_rotate_(found, to_device(factors))
    assert torch.equal(torch.cat(found, 1).cpu(), expected.flip(1))
