"""Within ``torch.inference_mode`` everything is as outside, gradients included, and usable afterwards."""

import pytest
import torch
from computed_models import ALL_MAKERS
from torch import nn
from torch.nn.functional import cross_entropy

import modfast
from modfast import EnmeshmentLoss, Partition

INPUTS, LABELS = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4
CLUSTERS = {"3": Partition([0, 1, 0, 1], torch.arange(8) % 2, 2)}


def normed():
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


MAKERS = {**ALL_MAKERS, "batch norm": normed}
CALLS = {
    "class_accuracy": lambda model, x, y: modfast.class_accuracy(model, (x, y)),
    "cluster_accuracy": lambda model, x, y: modfast.cluster_accuracy(model, (x, y), CLUSTERS, "only"),
    "find_circuit": lambda model, x, y: modfast.find_circuit(model, x, 1, layers="3").masks["3"],
    "gradient_affinity": lambda model, x, y: modfast.gradient_affinity(model, "3", [(x, y)], cross_entropy),
    "network_graph": lambda model, x, y: modfast.network_graph(model, example_inputs=x).to_dense(),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", MAKERS)
def test_results_are_the_same(kind, call):
    torch.manual_seed(0)
    model = MAKERS[kind]().eval()
    expected = CALLS[call](model, INPUTS, LABELS)
    with torch.inference_mode():
        found = CALLS[call](model, INPUTS.clone(), LABELS.clone())
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", MAKERS)
def test_gradients_are_the_same_and_can_be_changed(kind):
    torch.manual_seed(0)
    model = MAKERS[kind]().eval()
    value = EnmeshmentLoss(model, 2).accumulate_grad_(0.7)
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    with torch.inference_mode():
        assert EnmeshmentLoss(model, 2).accumulate_grad_(0.7) == value
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (expected[name] is None), name
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, expected[name])
            parameter.grad.add_(1.0)  # as an optimiser or clipping would
