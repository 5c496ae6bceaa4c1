"""How much a loss depends on each weight, as a similarity to cluster by."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from their_layers import Conv1D
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from modfast import EnmeshmentLoss, Partition, spectral_cocluster
from modfast.models import CNN
from modfast.network import gradient_affinity, network_graph


def digits(count: int = 3, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    return [(torch.rand(size, 3, 4, 4), torch.randint(4, (size,))) for _ in range(count)]


@pytest.mark.parametrize("layer", ["conv1", "conv1.weight", "fc1", "fc2", "fc3.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_that_of_backward(layer: str, dtype: torch.dtype) -> None:
    model = CNN((3, 4, 4), num_classes=4, hidden=5).to(dtype)
    batches = [(inputs.to(dtype), targets) for inputs, targets in digits()]
    other = copy.deepcopy(model)
    for inputs, targets in batches:
        functional.cross_entropy(other(inputs), targets).backward()
    found = gradient_affinity(model, layer, iter(batches), functional.cross_entropy)
    expected = other.get_parameter(layer if layer.endswith(".weight") else f"{layer}.weight").grad.abs()
    assert not found.requires_grad
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)


def test_gradients_are_summed_before_their_absolute_value() -> None:
    model = nn.Linear(2, 1, bias=False)
    batches = [(torch.tensor([[3.0, 1.0]]), 1.0), (torch.tensor([[3.0, -1.0]]), -1.0)]
    found = gradient_affinity(model, "", batches, lambda outputs, sign: sign * outputs.sum())
    assert found.tolist() == [[0.0, 2.0]]


def test_half_gradients_are_accumulated_in_single_precision() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    batches = [(torch.ones(1, 1, dtype=torch.bfloat16), None)] * 300
    found = gradient_affinity(model, "", batches, lambda outputs, _: outputs.sum())
    assert found.dtype == torch.float32
    assert found.item() == 300.0  # in bfloat16 the sum would stay at 256


def test_gradient_of_a_weight_stored_transposed() -> None:
    model = nn.Sequential(Conv1D(3, 4), nn.Linear(3, 2))
    batches = [(torch.randn(5, 4), torch.randint(2, (5,)))]
    found = gradient_affinity(model, "0", batches, functional.cross_entropy)
    functional.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    torch.testing.assert_close(found, model[0].weight.grad.T.abs())


def test_gradient_of_a_tied_weight_is_of_both_uses() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    inputs = torch.randn(4, 3)
    found = gradient_affinity(model, "2", [(inputs, None)], lambda outputs, _: outputs.square().sum())
    model(inputs).square().sum().backward()
    torch.testing.assert_close(found, model[0].weight.grad.abs())


def test_gradient_leaves_everything_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = torch.ones(2, 4)
    parameters = list(model.parameters())
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    batches = [(torch.ones(4, 4), torch.zeros(4, dtype=torch.int64))]
    with torch.no_grad():
        found = gradient_affinity(model, "0", batches, functional.cross_entropy)
        assert not torch.is_grad_enabled()
    assert found.count_nonzero() > 0
    assert [id(parameter) for parameter in model.parameters()] == [id(each) for each in parameters]
    assert [parameter.requires_grad for parameter in parameters] == [False] + [True] * 5
    assert [parameter.grad is None for parameter in parameters] == [True] * 4 + [False, True]
    assert model[3].weight.grad.eq(1).all()
    assert [module.training for module in model] == [True, False, True, True]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    # The forward pass alone, with its dropout, draws as much.
    after = torch.get_rng_state()
    torch.set_rng_state(random)
    model(torch.ones(4, 4))
    assert torch.equal(torch.get_rng_state(), after)


def test_gradient_affinity_is_a_similarity() -> None:
    # The target of an output is made from the inputs of its half alone, and so is the gradient then.
    model = nn.Linear(8, 8, bias=False)
    model.weight.data.zero_()
    target = torch.block_diag(torch.randn(4, 4), torch.randn(4, 4))
    inputs = torch.randn(2000, 8)
    similarity = gradient_affinity(model, "", [(inputs, inputs @ target.T)], functional.mse_loss)
    partition = spectral_cocluster(similarity, 2, affinity="given")
    assert partition == Partition.blocks((8, 8), 2)
    assert EnmeshmentLoss(model, {"": partition})().isfinite()


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def total(outputs: Tensor, _: Any) -> Tensor:
    return outputs.sum()


@pytest.mark.parametrize(
    ("layer", "batches", "loss", "error", "message"),
    [
        ("fc9", [(torch.ones(1, 2), 0)], total, ValueError, "'fc9' is no layer .*: 'used', 'unused'"),
        ("used.bias", [(torch.ones(1, 2), 0)], total, ValueError, "'used.bias' is no layer"),
        ("used", [], total, ValueError, "batches holds no batch"),
        ("used", iter([]), total, ValueError, "batches holds no batch"),
        ("used", [torch.ones(2, 2)], total, TypeError, "batches must hold pairs .*, got Tensor"),
        ("used", [(torch.ones(2, 2),)], total, TypeError, "batches must hold pairs"),
        ("used", [(torch.ones(3, 2), 0)], lambda y, _: y, ValueError, r"scalar tensor, got shape \(3, 2\)"),
        ("used", [(torch.ones(3, 2), 0)], lambda y, _: 1.5, ValueError, "scalar tensor, got float"),
        ("used", [(torch.ones(3, 2), 0)], lambda y, _: y.sum().detach(), ValueError, "not depend .* 'used'"),
        ("unused", [(torch.ones(3, 2), 0)], total, ValueError, "not depend .* 'unused'"),
        ("used", [(torch.full((1, 2), math.nan), 0)], total, ValueError, "'used' must be finite"),
        ("used", [(torch.full((1, 2), math.inf), 0)], total, ValueError, "'used' must be finite"),
    ],
)  # fmt: skip
def test_bad_gradients(layer: str, batches: Any, loss: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gradient_affinity(Unused(), layer, batches, loss)


def test_the_gradient_of_a_computed_weight() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    plain = nn.Sequential(nn.Linear(2, 2), copy.deepcopy(model[1]))
    plain[0].load_state_dict({"weight": model[0].weight, "bias": model[0].bias})
    batches = [(torch.randn(3, 2), torch.tensor([0, 1, 1]))]
    found, expected = (
        gradient_affinity(each, "0", batches, functional.cross_entropy) for each in (model, plain)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.cuda
def test_on_cuda() -> None:
    model = CNN((3, 4, 4), num_classes=4, hidden=5)
    images = torch.randn(2, 3, 4, 4)
    expected_graph, batches = network_graph(model, example_inputs=images), digits()
    expected = gradient_affinity(model, "fc1", batches, functional.cross_entropy)
    model.cuda()
    graph = network_graph(model, example_inputs=images)
    assert graph.device.type == "cuda"
    torch.testing.assert_close(graph.to_dense().cpu(), expected_graph.to_dense())
    batches = [(inputs.cuda(), targets.cuda()) for inputs, targets in batches]
    found = gradient_affinity(model, "fc1", batches, functional.cross_entropy)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected)
