"""A weight is read as its layer reads it, and what lies between two layers moves units as it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from modfast import CannotFollowError, network_graph, network_nodes, read_network

Run = Callable[["Model", Tensor], Tensor]


class Conv1D(nn.Module):
    """As in transformers: y = x W + b, with W of (in, out)."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(into, out)), nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


Conv1D.__module__ = "transformers.pytorch_utils"


class Model(nn.Module):
    def __init__(self, run: Run, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8) if first is None else first
        self.norm = nn.BatchNorm1d(8)
        self.scale = nn.Parameter(torch.rand(1, 8))
        self.last = nn.Linear(8, 4)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


CHAIN = [".input", "first", "last"]
X = torch.randn(8, 8)


def nodes(run: Run, first: nn.Module | None = None, x: Tensor = X) -> list[str]:
    return list(network_nodes(Model(run, first), example_inputs=x))


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_a_square_weight_may_be_read_the_wrong_way_round(kind: type[nn.Module], computed: bool) -> None:
    def layer() -> nn.Module:
        made = kind(8, 8)
        return parametrizations.weight_norm(made) if computed else made

    assert nodes(lambda net, x: net.last(net.first(x).relu()), layer()) == CHAIN
    kept_as_read = kind is Conv1D
    right = lambda w: w if kept_as_read else w.T  # noqa: E731
    assert nodes(lambda net, x: net.last((x @ right(net.first.weight)).relu()), layer()) == CHAIN
    twice = lambda w: w.t().transpose(0, -1).permute(1, 0).T.permute(0, 1).transpose(1, 1)  # noqa: E731
    assert nodes(lambda net, x: net.last((x @ twice(right(net.first.weight))).relu()), layer()) == CHAIN
    # Its rows are then what it reads, and its columns what it writes.
    turned = read_network(Model(lambda net, x: net.last((x @ right(net.first.weight).T).relu()), layer()), X)
    assert torch.equal(turned.layers["first"].col_units, turned.layers["last"].col_units)
    assert turned.spaces == {".input": slice(0, 8), "first": slice(8, 16), "last": slice(16, 20)}
    assert torch.equal(turned.layers["first"].row_units, torch.arange(8))
    with pytest.raises(CannotFollowError, match=r"aten.matmul.default: multiplies .*'last.weight'"):
        nodes(lambda net, x: net.first(x) @ net.last.weight.reshape(8, 4), layer())


def test_the_edges_are_those_of_the_run() -> None:
    model = Model(lambda net, x: net.last(net.first(x).relu()), Conv1D(8, 8))
    with torch.no_grad():
        model.first.weight.zero_()
        model.first.weight[0, 5] = 1.0
    graph = network_graph(model, example_inputs=X).to_dense()
    assert graph[:8, 8:16].nonzero().tolist() == [[0, 5]]


def test_the_weight_of_a_convolution_is_read_by_a_convolution() -> None:
    ordinary = lambda net, x: net.last(net.first(x[None]).mean(2))  # noqa: E731
    assert nodes(ordinary, nn.Conv1d(8, 8, 1)) == CHAIN

    def transposed(net: Model, x: Tensor) -> Tensor:
        return net.last(functional.conv_transpose1d(x[None], net.first.weight).mean(2))

    def turned(net: Model, x: Tensor) -> Tensor:
        return net.last(functional.conv1d(x[None], net.first.weight.transpose(0, 1)).mean(2))

    for run in (transposed, turned):
        layers = read_network(Model(run, nn.Conv1d(8, 8, 1)), X).layers
        assert torch.equal(layers["first"].col_units, layers["last"].col_units)
        assert torch.equal(layers["first"].row_units, torch.arange(8))


@pytest.mark.parametrize(
    "along",
    [
        lambda h: functional.pad(h, (1, -1)),
        lambda h: functional.pad(h, (1, 1, 0, 0)),
        lambda h: functional.pad(h, (1, -1), mode="replicate"),
        lambda h: functional.max_pool1d(h, 3, 1, 1),
        lambda h: functional.avg_pool1d(h, 2),
        lambda h: functional.adaptive_avg_pool1d(h, 3),
        lambda h: functional.interpolate(h, scale_factor=2.0),
    ],
)
def test_positions_may_be_padded_and_pooled(along: Callable[[Tensor], Tensor]) -> None:
    run = lambda net, x: net.last(along(net.first(x.expand(2, 8, 8))).mean(2))  # noqa: E731
    assert nodes(run, nn.Conv1d(8, 8, 3)) == CHAIN


@pytest.mark.parametrize("parameters", [1, 8])
def test_activations_with_parameters_are_followed(parameters: int) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.PReLU(parameters), nn.Linear(8, 4))
    assert network_nodes(model, example_inputs=X) == network_nodes(model)


def test_parameters_in_any_shape_join_no_path() -> None:
    assert nodes(lambda net, x: net.last(net.first(x) * net.scale.view(8))) == CHAIN
    assert nodes(lambda net, x: net.last(net.first(x[:, None]) * net.scale.view(1, 1, 8))) == CHAIN


def test_a_computed_bias_is_followed() -> None:
    first = nn.Linear(8, 8)
    torch.nn.utils.parametrize.register_parametrization(first, "bias", nn.Tanh())
    assert nodes(lambda net, x: net.last(net.first(x)), first) == CHAIN


def test_a_batch_norm_of_another_axis_is_not_folded_in() -> None:
    def run(net: Model, x: Tensor) -> Tensor:
        return net.last(net.norm(net.first(x)))  # of (n, 8 positions, 8 units) it scales positions

    x = torch.randn(2, 8, 8)
    model = Model(run)
    model.norm.weight.data.fill_(3.0)
    found = network_graph(model, example_inputs=x).to_dense()
    torch.testing.assert_close(found[8:16, :8], model.first.weight.detach().abs())
    scaled = network_graph(model, example_inputs=X).to_dense()
    torch.testing.assert_close(
        scaled[8:16, :8], model.first.weight.detach().abs() * 3.0 / (1.0 + model.norm.eps) ** 0.5
    )


def test_inputs_that_are_one_tensor_are_the_same_units():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x, y):
            return self.a(x), self.b(y)

    x, model = torch.randn(2, 4), Two()
    joined, apart = (read_network(model, inputs).layers for inputs in ((x, x), (x, x.clone())))
    assert torch.equal(joined["a"].col_units, joined["b"].col_units)
    assert not set(apart["a"].col_units.tolist()) & set(apart["b"].col_units.tolist())
