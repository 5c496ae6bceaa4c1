"""Neurons of models that are compiled, scripted, or whose layers give something else than outputs."""

import pytest
import torch
from torch import nn

from modfast import label_semanticity


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 4, generator=generator), torch.arange(40) % 5


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def with_compiled_layers(model):
    for layer in model:
        layer.compile(backend="eager")
    return model


@pytest.mark.parametrize("make", [compiled, compiled_in_place, with_compiled_layers])
@pytest.mark.parametrize("has_run", [True, False])
def test_a_compiled_model_is_that_which_was_compiled(network, data, make, has_run):
    expected = label_semanticity(network, data, "*", 5)
    model = make(network)
    if has_run:  # the code is made, without the hooks
        with torch.no_grad():
            model(data[0])
    found = label_semanticity(model, data, "*", 5)
    assert list(found) == ["0", "2"]
    assert all(torch.equal(found[name], shares) for name, shares in expected.items())


def test_compiling_goes_on_afterwards(network, data):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = torch.compile(network, backend=count)
    label_semanticity(model, data, "*", 5)
    assert not graphs
    with torch.no_grad():
        model(data[0])
    assert graphs


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(1, 4))])
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_torchscript_hides_its_layers(network, data, make):
    with pytest.raises(ValueError, match=r"layers: '0' must be no TorchScript"):
        label_semanticity(make(network), data, "0", 5)


class Pair(nn.Linear):
    """Gives its output with something else, as layers of some libraries do."""

    def forward(self, inputs):
        return super().forward(inputs), None


def test_outputs_that_have_no_order(data):
    with pytest.raises(ValueError, match="layers: '' must give a tensor, got a tuple"):
        label_semanticity(Pair(4, 3), data, "", 5)
    inputs, labels = data
    with pytest.raises(ValueError, match=r"layers: '' must give real numbers, .*complex64"):
        label_semanticity(nn.Linear(4, 3, dtype=torch.complex64), (inputs + 0j, labels), "", 5)
