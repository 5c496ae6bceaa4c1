"""The gradient that the loss adds without autograd, and training with it."""

import copy
import itertools
import re

import pytest
import torch
from loss_models import DTYPES, TheirConv1D, mlp
from torch import nn

from modfast import EnmeshmentLoss, Partition


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accumulates_what_autograd_does(dtype, reduction):
    model = nn.ModuleDict(
        {
            "fc1": nn.Linear(130, 70, dtype=dtype),
            "conv": nn.Conv2d(8, 6, 3, dtype=dtype),
            "up": nn.ConvTranspose2d(8, 6, 3, dtype=dtype),
            "fc2": nn.Linear(70, 9, dtype=dtype),
        }
    )
    loss = EnmeshmentLoss(model, 3, layers=["*"], reduction=reduction)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    model["fc2"].weight.grad = None
    before = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    before_copy = copy.deepcopy(before)
    (50.0 * loss()).sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = before[name]
    value = loss.accumulate_grad_(50.0)
    assert not value.requires_grad
    torch.testing.assert_close(value, loss().detach(), rtol=1e-6, atol=0)
    for name, parameter in model.named_parameters():
        # Autograd rounds the product to the weight's dtype and then the sum, the fused pass the sum alone:
        # three half eps of the larger of the two. In float64 the order of the sums in E counts for more.
        old = torch.zeros_like(parameter) if before_copy[name] is None else before_copy[name]
        size = torch.maximum(old.abs(), (expected[name] - old).abs()).double()
        difference = (parameter.grad.double() - expected[name].double()).abs()
        assert (difference <= 2 * max(torch.finfo(dtype).eps, 1e-13) * size + torch.finfo(dtype).tiny).all()
        assert name.endswith("bias") or before[name] is None or parameter.grad is before[name]


def test_a_second_call_adds():
    model = mlp(6, 6)
    loss = EnmeshmentLoss(model, 2)
    loss.accumulate_grad_(1.0)
    once = model[0].weight.grad.clone()
    loss.accumulate_grad_(2.0)
    torch.testing.assert_close(model[0].weight.grad, 3.0 * once)
    loss.accumulate_grad_(-3.0)
    torch.testing.assert_close(model[0].weight.grad, torch.zeros(6, 6), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [2, torch.tensor(2.0), True + 1])
def test_scale_may_be_any_real(scale):
    model, other = mlp(6, 6), mlp(6, 6)
    other.load_state_dict(model.state_dict())
    EnmeshmentLoss(model, 2).accumulate_grad_(scale)
    EnmeshmentLoss(other, 2).accumulate_grad_(2.0)
    assert torch.equal(model[0].weight.grad, other[0].weight.grad)


def test_scale_0_and_not_finite():
    model = mlp(6, 6)
    loss = EnmeshmentLoss(model, 2)
    loss.accumulate_grad_(0.0)
    assert (model[0].weight.grad == 0.0).all()
    loss.accumulate_grad_(float("nan"))
    assert model[0].weight.grad.isnan().all()


def test_gradients_of_another_layout():
    partition = Partition([0, 1, -1, 1, 0, 0], [1, 0, 0, -1], 2)
    expected = None
    for weight_format, grad_format in itertools.product(
        (torch.contiguous_format, torch.channels_last), repeat=2
    ):
        torch.manual_seed(1)
        model = nn.Conv2d(4, 6, 3).to(memory_format=weight_format)
        model.weight.grad = torch.ones(6, 4, 3, 3).to(memory_format=grad_format)
        EnmeshmentLoss(model, {"": partition}).accumulate_grad_(10.0)
        expected = model.weight.grad.clone() if expected is None else expected
        assert model.weight.grad.is_contiguous(memory_format=grad_format)
        torch.testing.assert_close(model.weight.grad, expected)
    linear = nn.Linear(4, 6)
    linear.weight.grad = torch.zeros(4, 6).T
    loss = EnmeshmentLoss(linear, {"": partition})
    loss.accumulate_grad_(1.0)
    (expected,) = torch.autograd.grad(loss(), linear.weight)
    torch.testing.assert_close(linear.weight.grad, expected)


def test_counts_versions():
    model = mlp(6, 6, 6)
    loss = EnmeshmentLoss(model, 2)
    loss.accumulate_grad_(1.0)
    grads = [model[i].weight.grad for i in (0, 2)]
    before = [grad._version for grad in grads]
    weight_version = model[0].weight._version
    loss.accumulate_grad_(1.0)
    assert all(grad._version > version for grad, version in zip(grads, before, strict=True))
    assert model[0].weight._version == weight_version
    # So a gradient that autograd has saved is not silently another one.
    factor = torch.ones(6, 6, requires_grad=True)
    product = (factor * grads[0]).sum()
    loss.accumulate_grad_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_frozen_weights_count_and_get_nothing():
    model = mlp(6, 6, 6)
    model[0].weight.requires_grad_(False)
    loss = EnmeshmentLoss(model, 2)
    value = loss.accumulate_grad_(1.0)
    torch.testing.assert_close(value, loss().detach())
    assert model[0].weight.grad is None
    found = model[2].weight.grad.clone()
    model[2].weight.grad = None
    loss().backward()
    torch.testing.assert_close(found, model[2].weight.grad)
    model[2].weight.requires_grad_(False)
    model[2].weight.grad = None
    torch.testing.assert_close(loss.accumulate_grad_(1.0), value)
    assert model[2].weight.grad is None


def test_no_weight_at_all():
    model = mlp(6, 6)
    with torch.no_grad():
        model[0].weight.zero_()
    loss = EnmeshmentLoss(model, 2)
    assert loss.accumulate_grad_(1.0).item() == 0.0
    assert (model[0].weight.grad == 0.0).all()
    assert loss.clusterability() == {"0": 1.0}


def test_gradients_that_share_memory_are_refused():
    model = mlp(6, 6, 6)
    model[0].weight.grad = model[2].weight.grad = torch.zeros(6, 6)
    with pytest.raises(RuntimeError, match="two gradients must not share memory"):
        EnmeshmentLoss(model, 2).accumulate_grad_(1.0)
    model[0].weight.grad = model[0].weight.data
    with pytest.raises(RuntimeError, match="a gradient must not share memory with a weight"):
        EnmeshmentLoss(model, 2, layers=["0"]).accumulate_grad_(1.0)
    model[0].weight.grad = torch.zeros(1, 6).expand(6, 6)
    with pytest.raises(RuntimeError, match="a gradient's elements must not share memory"):
        EnmeshmentLoss(model, 2, layers=["0"]).accumulate_grad_(1.0)


def test_a_gradient_that_is_sparse_becomes_dense_as_by_autograd():
    grads = []
    for step in (lambda loss: (0.7 * loss()).backward(), lambda loss: loss.accumulate_grad_(0.7)):
        torch.manual_seed(0)
        model = nn.Embedding(6, 6, sparse=True)
        model(torch.tensor([1, 2])).sum().backward()
        assert model.weight.grad.is_sparse
        step(EnmeshmentLoss(model, 2, layers=[""]))
        assert model.weight.grad.layout == torch.strided
        grads.append(model.weight.grad)
    torch.testing.assert_close(*grads)


# --- in a training loop


def test_training_makes_modules():
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    loss = EnmeshmentLoss(model, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = loss.clusterability()["0"]
    for _ in range(150):
        optimizer.zero_grad()
        loss.accumulate_grad_(1.0)
        optimizer.step()
    assert before < 0.5
    assert loss.clusterability()["0"] > 0.95


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns about itself
def test_a_compiled_training_step():
    torch._dynamo.reset()
    model = nn.ModuleDict({"fc1": nn.Linear(12, 8), "fc2": nn.Linear(8, 8), "conv": nn.Conv1d(1, 4, 5)})
    model["out"] = TheirConv1D(4, 8)
    loss = EnmeshmentLoss(model, 4, layers=["fc2", "out"])
    inputs, labels = torch.randn(5, 12), torch.tensor([0, 1, 2, 3, 0])

    def step():
        hidden = torch.relu(model["fc2"](torch.relu(model["fc1"](inputs))))
        cross_entropy = nn.functional.cross_entropy(hidden @ model["out"].weight, labels)
        return cross_entropy + 0.7 * loss()

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True)):
        model.zero_grad()
        value = function()
        value.backward()
        gradients.append(
            [value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
    assert len(gradients[0]) == 6
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-7)
    explained = torch._dynamo.explain(step)()
    assert re.search(r"\b0\b", str(explained.graph_break_count))
