"""Fixtures that the tests of circuits share."""

import pytest
import torch
from walked_models import make_model


@pytest.fixture
def problem():
    """A small network, inputs, and their classes; the circuits of class 1 keep some of the weights."""
    torch.manual_seed(3)
    return make_model([12, 8, 5]), torch.randn(40, 12), torch.arange(40) % 5
