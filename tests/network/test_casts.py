"""Casts of weights and of inputs are followed."""

import types

import pytest
import torch
from torch import nn
from torch.nn import functional

from modfast import find_circuit, network_graph, network_nodes, read_network


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
    layers = read_network(Model(run), X).layers
    assert torch.equal(layers["g"].row_units, layers["g"].col_units)
    assert torch.equal(layers["g"].row_units, layers["f"].row_units)


def test_a_circuit_stops_before_a_layer_that_is_used_twice_through_one_turn():
    with pytest.warns(match="layer 'g', whose weight is used 2 times"):
        circuit = find_circuit(Model(twice_turned), X, 1)
    assert list(circuit.masks) == ["o"]


def chain(net, x):
    return net.o(torch.relu(net.g(torch.relu(net.f(x.float() / 255)))))


def skip(net, x):
    return net.g(torch.relu(net.f(x.float() / 255))) + x.float()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_inputs_may_be_integers_and_stand_in_objects(dtype):
    x = X.abs().mul(100).to(dtype)
    for run, inputs in (
        (chain, x),
        (lambda net, x: chain(net, x["values"].x), ({"values": types.SimpleNamespace(x=x)},)),
    ):
        layers = read_network(Model(run), inputs).layers
        assert torch.equal(layers["f"].row_units, layers["g"].col_units)
        assert torch.equal(layers["g"].row_units, layers["o"].col_units)
    layers = read_network(Model(skip), x).layers
    assert torch.equal(layers["g"].row_units, layers["f"].col_units)


def test_a_sequence_of_tokens():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 4))
    network = read_network(model, torch.arange(4)[:, None])
    assert list(network.spaces) == ["0.inputs", "0", "2", "3"]
    assert torch.equal(network.layers["0"].col_units, network.layers["2"].col_units)
