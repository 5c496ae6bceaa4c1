"""Casts of weights are followed in a run, and inputs that no run records are named as the reason."""

import types

import pytest
import torch
from torch import nn
from torch.nn import functional

from modfast import find_circuit, network_graph, network_nodes


class Model(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.f, self.g, self.o = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def in_half(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net.o(torch.relu(net.g(torch.relu(net.f(x))))).float()


def by_hand(net, x):
    def double(layer, values):
        return functional.linear(values, layer.weight.double(), layer.bias.double())

    return double(net.o, double(net.g, double(net.f, x.double()).relu()))


@pytest.mark.parametrize("run", [in_half, by_hand])
def test_a_cast_of_a_weight_is_followed(run):
    model = Model(run)
    found = network_graph(model, example_inputs=X)
    assert torch.equal(found.to_dense(), network_graph(model, layers=["f", "g", "o"]).to_dense())


def test_casts_around_the_call_are_followed():
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert list(network_nodes(model, example_inputs=torch.randn(2, 1, 4, 4))) == [".input", "0", "3"]


def twice_cast(net, x):
    with torch.autocast("cpu", torch.bfloat16):  # which casts a weight once
        return net.o(net.g(net.g(net.f(x))))


def twice_turned(net, x):
    turned = net.g.weight.t()
    return net.o(net.f(x) @ turned @ turned)


@pytest.mark.parametrize("run", [twice_cast, twice_turned])
def test_a_layer_that_is_used_twice_through_one_cast_is_seen(run):
    with pytest.raises(ValueError, match="model: layer 'g' is used more than once"):
        network_graph(Model(run), example_inputs=X)


def test_a_circuit_stops_before_a_layer_that_is_used_twice_through_one_turn():
    with pytest.warns(match="layer 'g', whose weight is used 2 times"):
        circuit = find_circuit(Model(twice_turned), X, 1)
    assert list(circuit.masks) == ["o"]


def chain(net, x):
    return net.o(torch.relu(net.g(torch.relu(net.f(x.float() / 255)))))


def skip(net, x):
    return net.g(torch.relu(net.f(x.float() / 255))) + x.float()


@pytest.mark.parametrize("run", [chain, skip, lambda net, x: chain(net, x["values"].x)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_inputs_that_are_not_recorded_are_the_reason(run, dtype):
    x = X.abs().mul(100).to(dtype)
    inputs = x if run in (chain, skip) else ({"values": types.SimpleNamespace(x=x.float())},)
    with pytest.raises(
        ValueError, match=r"model: what layer 'f' reads .*: give floating-point example_inputs"
    ):
        network_graph(Model(run), example_inputs=inputs)


def test_a_chain_of_tokens_is_no_matter_of_inputs():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 4))
    assert list(network_nodes(model, example_inputs=torch.arange(4)[:, None])) == [".input", "2", "3"]
