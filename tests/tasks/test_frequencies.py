"""The frequencies of neurons and logits, against least squares on the waves themselves."""

import math

import pytest
import torch
from torch import Tensor

from modfast.tasks import logit_frequencies, neuron_frequencies


def waves(p: int, k: int) -> Tensor:
    """The eight waves of a frequency, and no constant: ``(p * p, 8)``."""
    angle = 2 * math.pi * k / p * torch.arange(p, dtype=torch.float64)
    of_one = [torch.ones(p, dtype=torch.float64), angle.cos(), angle.sin()]
    return torch.stack([torch.outer(x, y).flatten() for x in of_one for y in of_one][1:], dim=1)


@pytest.mark.parametrize("p", [3, 5, 9, 13])
def test_shares_are_those_of_least_squares(p):
    values = torch.randn(p, p, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(p))
    values[..., 0] += 1000  # the constant does not count
    values[..., 1] *= 1e-6
    found = neuron_frequencies(values)
    centred = values.flatten(0, 1) - values.flatten(0, 1).mean(0)
    for k in range(1, (p - 1) // 2 + 1):
        design = waves(p, k)
        fitted = design @ torch.linalg.lstsq(design, centred).solution
        expected = fitted.square().sum(0) / centred.square().sum(0)
        torch.testing.assert_close(found[:, k - 1], expected, rtol=1e-6, atol=1e-9)
    assert (found.sum(1) <= 1 + 1e-9).all()


def test_float32_and_shifted_neurons():
    a = 2 * math.pi * torch.arange(11) / 11
    neuron = torch.relu(torch.cos(4 * a[:, None] + 1) + torch.cos(4 * a[None, :] - 2))
    shares = neuron_frequencies(neuron[..., None])
    assert shares.argmax() == 3
    assert shares[0, 3] > 0.8
    torch.testing.assert_close(
        shares, neuron_frequencies(neuron.roll((3, 5), (0, 1))[..., None]), rtol=0, atol=1e-6
    )


def test_dead_neurons_are_nan():
    values = torch.zeros(5, 5, 3)
    values[..., 1] = 0.1
    values[2, 3, 2] = 1.0
    found = neuron_frequencies(values)
    assert found.isnan().all(1).tolist() == [True, True, False]
    assert logit_frequencies(torch.full((5, 5, 5), 0.1)).isnan().all()


@pytest.mark.parametrize("p", [5, 11])
def test_logit_shares_are_those_of_least_squares(p):
    logits = torch.randn(p, p, p, dtype=torch.float64, generator=torch.Generator().manual_seed(p))
    shift = torch.randn(p, p, 1, dtype=torch.float64)
    found = logit_frequencies(logits + 100 * shift)
    torch.testing.assert_close(found, logit_frequencies(logits), rtol=1e-6, atol=1e-9)
    centred = (logits - logits.mean(2, keepdim=True)).flatten()
    numbers = torch.arange(p, dtype=torch.float64)
    sums = numbers[:, None, None] + numbers[:, None] - numbers
    for k in range(1, (p - 1) // 2 + 1):
        wave = torch.cos(2 * math.pi * k / p * sums).flatten()
        expected = (wave @ centred).square() / (wave @ wave) / (centred @ centred)
        torch.testing.assert_close(found[k - 1], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([[[1.0]]], TypeError, "must be a tensor of floating-point numbers, got list"),
        (torch.zeros(5, 5, 5, dtype=torch.int64), TypeError, "floating-point numbers, got torch.int64"),
        (torch.zeros(5, 5), ValueError, r"must have shape \(p, p, n\), got \(5, 5\)"),
        (torch.zeros(5, 4, 5), ValueError, r"must have shape \(p, p, n\), got \(5, 4, 5\)"),
        (torch.zeros(4, 4, 4), ValueError, "an odd p of at least 3, got p = 4"),
        (torch.zeros(1, 1, 1), ValueError, "an odd p of at least 3, got p = 1"),
        (torch.full((5, 5, 5), torch.nan), ValueError, "must be finite, got NaN or infinity"),
    ],
)
@pytest.mark.parametrize("function", [neuron_frequencies, logit_frequencies])
def test_bad_values(function, values, error, message):
    with pytest.raises(error, match=message):
        function(values)


def test_logits_of_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"logits must have shape \(p, p, p\), got \(5, 5, 7\)"):
        logit_frequencies(torch.zeros(5, 5, 7))
