"""Layers are joined as the model's computation joins them, in whatever order they were registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from modfast import CannotFollowError, network_graph, network_nodes, read_network

Forward = Callable[["Network", Tensor], Any]


class Network(nn.Module):
    """Layers in an order of registration that is never the one in which they run."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.last = nn.Linear(6, 4)
        self.second = nn.Linear(6, 6)
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def nodes(forward: Forward, example: Any = None) -> list[str]:
    example = torch.randn(3, 6) if example is None else example
    return list(network_nodes(Network(forward), example_inputs=example))


CHAIN = [".input", "first", "second", "last"]


def chain(between: Callable[[Network, Tensor], Tensor]) -> Forward:
    """All layers, with something between the second and the last."""
    return lambda net, x: net.last(between(net, net.second(net.first(x).relu())))


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: x,
        lambda net, x: functional.gelu(x) * 0.5 + 1,
        lambda net, x: functional.dropout(functional.layer_norm(x, (6,)), 0.5),
        lambda net, x: net.norm(x).tanh(),
        lambda net, x: x.view(3, 1, 6).squeeze(1).unsqueeze(0).reshape(3, 6),
        lambda net, x: x * net.norm.weight + net.norm.bias,
        lambda net, x: x.detach(),
        lambda net, x: torch.where(x > 0, x, x * 0.1) if False else functional.leaky_relu(x),
    ],
)
def test_a_chain_is_followed_in_the_order_in_which_it_runs(between: Any) -> None:
    assert nodes(chain(between)) == CHAIN


def units(forward: Forward, example: Any = None) -> dict[str, tuple[list[int], list[int]]]:
    """The units of each layer's rows and columns."""
    network = read_network(Network(forward), torch.randn(3, 6) if example is None else example)
    return {
        name: (layer.row_units.tolist(), layer.col_units.tolist()) for name, layer in network.layers.items()
    }


@pytest.mark.parametrize(
    ("between", "order"),
    [
        (lambda net, x: x + x.tanh(), [0, 1, 2, 3, 4, 5]),
        (lambda net, x: x * x.sigmoid(), [0, 1, 2, 3, 4, 5]),
        (lambda net, x: x + (2 * x).detach(), [0, 1, 2, 3, 4, 5]),
        (lambda net, x: torch.cat([x[:, 3:], x[:, :3]], 1), [3, 4, 5, 0, 1, 2]),
        (lambda net, x: x[:, [5, 4, 3, 2, 1, 0]], [5, 4, 3, 2, 1, 0]),
        (lambda net, x: x.flip(1), [5, 4, 3, 2, 1, 0]),
        (lambda net, x: x.roll(1, 1), [5, 0, 1, 2, 3, 4]),
        (lambda net, x: x.view(3, 2, 3).transpose(1, 2).reshape(3, 6), [0, 3, 1, 4, 2, 5]),
        (lambda net, x: x.mean(0, keepdim=True).expand(3, 6), [0, 1, 2, 3, 4, 5]),
        (lambda net, x: functional.pad(x, (1, -1)), [None, 0, 1, 2, 3, 4]),
        (lambda net, x: functional.pad(x, (1, -1), mode="replicate"), [0, 0, 1, 2, 3, 4]),
        (lambda net, x: functional.pad(x[None], (1, 0), mode="reflect")[0, :, :6], [1, 0, 1, 2, 3, 4]),
    ],
)
def test_units_are_followed_to_the_places_where_they_are_read(between: Any, order: list[Any]) -> None:
    found = units(chain(between))
    rows, columns = found["second"][0], found["last"][1]
    assert [rows.index(unit) if unit in rows else None for unit in columns] == order
    assert len(set(rows)) == 6


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (lambda net, x: x @ torch.eye(6), r"reads what mixes several units"),
        (lambda net, x: functional.linear(x, torch.eye(6)), r"aten.linear.default: multiplies by a weight"),
        (lambda net, x: x.cumsum(1), r"aten.cumsum.default: adds up along .* units lie"),
        (
            lambda net, x: functional.max_pool1d(x, 3, 1, 1),
            r"aten.max_pool1d.default: pools .* different units",
        ),
        (
            lambda net, x: functional.avg_pool1d(x, 3, 1, 1),
            r"aten.avg_pool1d.default: pools .* different units",
        ),
        (
            lambda net, x: functional.adaptive_avg_pool1d(x, 6),
            r"adaptive_avg_pool1d.*: pools .* different units",
        ),
        (
            lambda net, x: functional.max_pool2d(x[None], 3, 1, 1)[0],
            r"max_pool2d.*: pools .* different units",
        ),
        (
            lambda net, x: functional.interpolate(x[None], size=6, mode="linear")[0],
            "pools .* different units",
        ),
    ],
)
def test_what_mixes_units_raises_and_says_where(between: Any, message: str) -> None:
    with pytest.raises(CannotFollowError, match=f"(the model .Network.|module .*): .*{message}"):
        units(chain(between))


def test_a_layer_that_is_used_twice_has_one_unit_for_each_row_and_column() -> None:
    twice = units(chain(lambda net, x: functional.linear(x, net.second.weight)))
    assert twice["second"] == (twice["first"][0], twice["first"][0])
    turned = units(chain(lambda net, x: functional.linear(x, net.second.weight.T)))
    assert turned["second"][1] == turned["first"][0] == turned["last"][1]
    assert turned["second"][0] != turned["second"][1]


def test_what_is_added_is_of_the_same_unit() -> None:
    found = units(lambda net, x: net.last(net.second(net.first(x).relu()) + net.first(x)))
    assert found["second"][0] == found["second"][1] == found["first"][0] == found["last"][1]
    # What the caller gives has units as well, once a layer reads it.
    found = units(lambda net, x: net.last(net.second(net.first(x)) + x))
    assert found["second"][0] == found["first"][1] == found["last"][1]
    assert found["first"][0] == found["second"][1] != found["first"][1]
    found = units(lambda net, x: net.last(torch.addmm(x, x.tanh(), net.first.weight.T)))
    assert found["first"][0] == found["first"][1] == found["last"][1]
    found = units(lambda net, x: torch.addmm(net.last(x), net.first(x), net.last.weight.T))
    assert found["first"][0] == found["first"][1] == found["last"][1]


def test_layers_beside_each_other_and_layers_that_are_not_used() -> None:
    found = units(lambda net, x: net.last(net.first(x)) + net.last(net.second(x)))
    assert found["first"] == found["second"]
    assert units(lambda net, x: net.last(net.first(x))).keys() == {"first", "last"}
    for forward in (lambda net, x: x, lambda net, x: torch.zeros(3, 4)):
        with pytest.raises(ValueError, match="model must multiply by a weight"):
            units(forward)


def test_what_comes_before_the_first_layer_does_not_matter() -> None:
    assert nodes(chain(lambda net, x: x), torch.randn(2, 5, 6)) == CHAIN
    turned = lambda net, x: net.last(net.second(net.first(x.T)))  # noqa: E731
    assert nodes(turned, torch.randn(6, 3)) == CHAIN


def test_outputs_of_transformers_and_other_objects() -> None:
    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    forward = chain(lambda net, x: x)
    assert nodes(lambda net, x: Output(forward(net, x))) == CHAIN
    assert nodes(lambda net, x: {"logits": forward(net, x)}) == CHAIN
    assert nodes(lambda net, x: (forward(net, x), "some words")) == CHAIN
    with pytest.raises(TypeError, match="model must return a tensor, got str"):
        nodes(lambda net, x: str(forward(net, x).shape))


def test_computed_and_frozen_weights_are_layers_too() -> None:
    model = Network(chain(lambda net, x: x))
    parametrizations.weight_norm(model.first)
    prune.random_unstructured(model.second, "weight", 0.5)
    model.last.requires_grad_(False)
    assert list(network_nodes(model, example_inputs=torch.randn(3, 6))) == CHAIN
    assert [p.requires_grad for p in model.last.parameters()] == [False, False]
    graph = network_graph(model, example_inputs=torch.randn(3, 6)).to_dense()
    torch.testing.assert_close(graph[12:18, 6:12], model.second.weight.abs().detach())


def test_a_batch_norm_is_folded_in_where_it_runs_not_where_it_is_registered() -> None:
    """It is registered after ``first``, and runs after ``second``."""
    model = Network(chain(lambda net, x: net.norm(x)))
    model.norm.weight.data.fill_(3.0)
    for options in ({}, {"layers": ["last", "first", "second"]}):
        graph = network_graph(model, example_inputs=torch.randn(3, 6), **options).to_dense()
        scale = 3.0 / (1.0 + model.norm.eps) ** 0.5
        torch.testing.assert_close(graph[6:12, :6], model.first.weight.abs().detach())
        torch.testing.assert_close(graph[12:18, 6:12], scale * model.second.weight.abs().detach())
    with pytest.raises(ValueError, match="whether the batch norm 'norm' scales the outputs of layer 'first'"):
        network_graph(model, ["first", "second", "last"])


def test_named_layers_make_a_network_of_their_own() -> None:
    model = Network(lambda net, x: net.last(net.norm(net.second(net.first(x))) + x))
    image = torch.randn(3, 6)
    assert network_graph(model, example_inputs=image).shape == (16, 16)
    assert network_nodes(model, ["last"], image) == {"second": slice(0, 6), "last": slice(6, 10)}
    whole, part = (network_graph(model, layers, image).to_dense() for layers in (None, ["first", "second"]))
    assert torch.equal(whole[:12, :12], part)
    # Without an example they are a chain, and what the model does with them beside is not known.
    with pytest.raises(ValueError, match="whether the batch norm 'norm' scales the outputs"):
        network_graph(model, ["first", "second", "last"])


class Convolutions(nn.Module):
    def __init__(self, between: Callable[[Tensor], Tensor], inputs: int = 24) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, 2)
        self.conv = nn.Conv2d(3, 6, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.between(self.conv(x)))
        return result


@pytest.mark.parametrize(
    ("between", "inputs"),
    [
        (lambda x: x.flatten(1), 24),
        (lambda x: x.reshape(5, -1), 24),
        (lambda x: x.mean((2, 3)), 6),
        (lambda x: x.mean((-1, -2), keepdim=True).flatten(1), 6),
        (lambda x: functional.adaptive_avg_pool2d(x, 1).view(5, 6), 6),
        (lambda x: functional.max_pool2d(x, 2).squeeze(), 6),
        (lambda x: functional.pad(x, (1, 1, 1, 1)).flatten(1), 96),
        (lambda x: functional.interpolate(x, scale_factor=2).flatten(2).flatten(1), 96),
    ],
)
def test_channels_reach_the_linear_layer_in_order(between: Any, inputs: int) -> None:
    model = Convolutions(between, inputs)
    image = torch.randn(5, 3, 4, 4)
    found = network_nodes(model, example_inputs=image)
    assert found == {".input": slice(0, 3), "conv": slice(3, 9), "fc": slice(9, 11)}
    assert torch.equal(
        network_graph(model, example_inputs=image).to_dense(), network_graph(model, ["conv", "fc"]).to_dense()
    )


@pytest.mark.parametrize(
    ("between", "inputs", "order"),
    [
        (lambda x: x.permute(0, 2, 3, 1).flatten(1), 24, [0, 1, 2, 3, 4, 5] * 4),
        (lambda x: x.amax((2, 3)), 6, [0, 1, 2, 3, 4, 5]),
        (lambda x: x.view(5, 2, 12)[:, 1], 12, [3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5]),
        (lambda x: functional.pad(x, (0, 0, 0, 0, 1, -1)).mean((2, 3)), 6, [None, 0, 1, 2, 3, 4]),
    ],
)
def test_channels_are_followed_to_other_places(between: Any, inputs: int, order: list[Any]) -> None:
    layers = read_network(Convolutions(between, inputs), torch.randn(5, 3, 4, 4)).layers
    rows, columns = layers["conv"].row_units.tolist(), layers["fc"].col_units.tolist()
    assert [rows.index(unit) if unit in rows else None for unit in columns] == order


def test_what_reads_several_channels_at_once_makes_them_one_unit() -> None:
    model = Convolutions(lambda x: x.view(5, 4, 6), 6)  # a column reads places of several channels
    assert len(read_network(model, torch.randn(5, 3, 4, 4)).layers["conv"].row_units.unique()) == 1
    with pytest.raises(CannotFollowError, match=r"'fc' .Linear.: .* reads what mixes several units"):
        read_network(Convolutions(lambda x: x.mean(1).flatten(1), 4), torch.randn(5, 3, 4, 4))


def test_the_model_is_left_as_it_was() -> None:
    model = Network(chain(lambda net, x: net.norm(x))).train()
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    network_graph(model, example_inputs=torch.randn(3, 6))
    model.run = chain(lambda net, x: net.norm(x).cumsum(1))
    with pytest.raises(CannotFollowError, match="cumsum"):
        network_graph(model, example_inputs=torch.randn(3, 6))
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
        assert getattr(value, "grad", None) is None
    assert model.training
    assert not model.norm._forward_hooks
