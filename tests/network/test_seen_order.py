"""The order of layers seen in a run: chains are followed, and whatever is none raises and says where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from modfast import network_graph, network_nodes

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


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (lambda net, x: x + x.tanh(), "'Add' after layer 'second' joins several paths"),
        (lambda net, x: x * x.sigmoid(), "'Mul' after layer 'second' joins several paths"),
        (lambda net, x: x + (2 * x).detach(), "'Add' after layer 'second' joins several paths"),
        (lambda net, x: torch.cat([x[:, :3], x[:, 3:]], 1), "'Cat' after layer 'second'"),
        (
            lambda net, x: x[:, [5, 4, 3, 2, 1, 0]],
            "'Index' after layer 'second' may put units in other places",
        ),
        (lambda net, x: x.flip(1), "'Flip' after layer 'second' may put units"),
        (lambda net, x: x.roll(1, 1), "'Roll' after layer 'second' may put units"),
        (lambda net, x: x.view(3, 2, 3).transpose(1, 2).reshape(3, 6), "'Transpose' after layer 'second'"),
        (lambda net, x: x @ torch.eye(6), "'Mm' after layer 'second'"),
        (lambda net, x: functional.linear(x, net.second.weight), "layer 'second' is used more than once"),
        (lambda net, x: x.mean(0, keepdim=True).expand(3, 6), "'Expand' after layer 'second'"),
        (lambda net, x: functional.linear(x, torch.eye(6)), "'Mm' after layer 'second'"),
        (lambda net, x: x.cumsum(1), "'Cumsum' after layer 'second'"),
    ],
)
def test_what_is_no_chain_raises_and_says_where(between: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"model: .*{message}"):
        nodes(chain(between))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda net, x: net.last(net.second(net.first(x)) + x), "'Add' .* joins several paths"),
        (
            lambda net, x: net.last(net.first(x)),
            r"the layers 'second' are not among those .* 'first', 'last'",
        ),
        (lambda net, x: net.last(net.first(x)) + net.last(net.second(x)), "'Add' .*joins several paths"),
        (lambda net, x: x, "does not depend on a linear layer or a convolution"),
        (lambda net, x: torch.zeros(3, 4), "does not depend on a linear layer or a convolution"),
    ],
)
def test_layers_beside_each_other_are_no_chain(forward: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nodes(forward)


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
    with pytest.raises(TypeError, match="model must return a tensor of logits, got tuple"):
        nodes(lambda net, x: (forward(net, x),))


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
    for options in ({}, {"layers": ["first", "second", "last"]}):
        graph = network_graph(model, example_inputs=torch.randn(3, 6), **options).to_dense()
        scale = 3.0 / (1.0 + model.norm.eps) ** 0.5
        torch.testing.assert_close(graph[6:12, :6], model.first.weight.abs().detach())
        torch.testing.assert_close(graph[12:18, 6:12], scale * model.second.weight.abs().detach())
    with pytest.raises(ValueError, match="whether the batch norm 'norm' scales the outputs of layer 'first'"):
        network_graph(model, ["first", "second", "last"])


def test_named_layers_may_be_part_of_more_than_a_chain() -> None:
    model = Network(lambda net, x: net.last(net.norm(net.second(net.first(x))) + x))
    found = network_graph(model, ["first", "second", "last"], example_inputs=torch.randn(3, 6))
    assert found.shape == (22, 22)


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
    ("between", "inputs", "message"),
    [
        (lambda x: x.permute(0, 2, 3, 1).flatten(1), 24, "'Permute' after layer 'conv'"),
        (lambda x: x.mean(1).flatten(1), 4, "'Mean' after layer 'conv' may put units"),
        (lambda x: x.amax((2, 3)), 6, "'Amax' after layer 'conv'"),
        (lambda x: x.view(5, 2, 12)[:, 0], 12, "after layer 'conv' may put units"),
        (
            lambda x: functional.pad(x, (0, 0, 0, 0, 1, 1)).flatten(1),
            32,
            "'ConstantPadNd' after layer 'conv'",
        ),
        (lambda x: x.view(5, 4, 6), 6, "'View' after layer 'conv' may put units"),
    ],
)
def test_channels_in_another_order_raise(between: Any, inputs: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network_nodes(Convolutions(between, inputs), example_inputs=torch.randn(5, 3, 4, 4))


def test_the_model_is_left_as_it_was() -> None:
    model = Network(chain(lambda net, x: net.norm(x))).train()
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    network_graph(model, example_inputs=torch.randn(3, 6))
    with pytest.raises(ValueError, match="joins several paths"):
        network_graph(Network(chain(lambda net, x: x + x.tanh())), example_inputs=torch.randn(3, 6))
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
        assert getattr(value, "grad", None) is None
    assert model.training
    assert not model.norm._forward_hooks
