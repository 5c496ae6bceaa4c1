"""Weights after many steps beside torch.optim.AdamW and the loss's own gradient."""

import copy

import pytest
import torch
from loss_models import TheirConv1D, mlp
from optim_pairs import Pair, assert_value
from torch import nn
from torch.nn.functional import cross_entropy

from modfast import EnmeshmentLoss, Partition
from modfast.optim import AdamW

INPUTS, LABELS = torch.randn(32, 12, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 6


def objective(model):
    parameter = next(model.parameters())
    return cross_entropy(model(INPUTS.to(parameter.dtype)), LABELS)


class Mixed(nn.Module):
    """Every kind of weight: embedding, transposed storage, convolutions, linear layers, a norm."""

    def __init__(self, dtype):
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.conv1d = TheirConv1D(10, 8)
        self.convolution = nn.Conv2d(3, 4, 3)
        self.up = nn.ConvTranspose2d(4, 6, 2).to(memory_format=torch.channels_last)
        self.norm = nn.LayerNorm(6)
        self.last = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.to(dtype)

    def forward(self, x):
        ids = (x.abs() * 4).long().clamp(max=11)
        hidden = self.embedding(ids) @ self.conv1d.weight + self.conv1d.bias
        hidden = self.up(torch.tanh(self.convolution(hidden[:, None].expand(-1, 3, -1, -1))))
        return self.last(self.norm(hidden.mean((2, 3)))) * self.scale


@pytest.mark.parametrize("make", [lambda dtype: mlp(12, 20, 6, dtype=dtype), Mixed], ids=["mlp", "mixed"])
def test_a_hundred_steps(make):
    layers = ["conv1d", "convolution", "up", "last"] if make is Mixed else None
    model = make(torch.float32)
    single, double = (
        Pair(each, 3, layers=layers, lr=1e-3, weight_decay=0.1)
        for each in (model, copy.deepcopy(model).double())
    )
    for _ in range(100):
        single.step(objective)
        double.step(objective)
    double.assert_alike()
    single.assert_as_exact(double)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(reduction):
    pair = Pair(mlp(12, 20, 6, dtype=torch.float64), 3, reduction=reduction, scale=5.0)
    for _ in range(10):
        pair.step(objective)
    pair.assert_alike()
    assert pair.ours.enmeshment_value.shape == (() if reduction != "none" else (2,))


def test_without_a_loss():
    pair = Pair(mlp(12, 20, 6), None)
    for _ in range(20):
        pair.step(objective)
    pair.assert_alike()
    assert pair.ours.enmeshment_value is None


def test_groups_and_schedules():
    def groups(model):
        return [
            {"params": model[0].parameters(), "lr": 1e-2, "betas": (0.8, 0.95)},
            {"params": [model[2].weight], "weight_decay": 0.3, "eps": 1e-4},
            {"params": [model[2].bias]},
        ]

    pair = Pair(mlp(12, 20, 6, dtype=torch.float64), 3, groups=groups, lr=3e-3)
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(optimizer, [1e-2, 2e-2, 1e-3], 40)
        for optimizer in (pair.ours, pair.theirs)
    ]
    for step in range(40):
        pair.scale = pair.ours.enmeshment_weight = step / 10
        pair.step(objective)
        for scheduler in schedulers:
            scheduler.step()
    pair.assert_alike()


def test_a_group_that_comes_later():
    def groups(model):
        return [model[0].weight, model[2].weight]

    pair = Pair(mlp(12, 20, 6, dtype=torch.float64), 3, groups=groups)
    for step in range(6):
        if step == 3:
            for model, optimizer in zip(pair.models, (pair.ours, pair.theirs), strict=True):
                optimizer.add_param_group({"params": [model[0].bias, model[2].bias], "lr": 0.1})
        pair.step(objective)
    pair.assert_alike()


def test_learning_rate_as_a_tensor():
    pair = Pair(mlp(12, 20, 6, dtype=torch.float64), 3, lr=torch.tensor(1e-2, dtype=torch.float64))
    for _ in range(5):
        pair.step(objective)
    pair.assert_alike()


def test_a_stack_of_matrices():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 12, 6, dtype=torch.float64))

        def forward(self, x):
            return torch.einsum("bi,eio->bo", x, self.up)

    for layers in (["up"], ["up[2]", "up[0]"]):
        pair = Pair(Experts(), 3, layers=layers, lr=1e-2)
        for _ in range(20):
            pair.step(objective)
        pair.assert_alike()
        assert float(pair.ours.state[pair.models[0].up]["step"]) == 20


def test_frozen_layers_count_and_stay():
    model = mlp(12, 20, 6, dtype=torch.float64)
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    pair = Pair(model, 3)
    for _ in range(5):
        pair.step(objective)
    pair.assert_alike()
    assert torch.equal(model[0].weight, before)
    assert model[0].weight not in pair.ours.state
    # Thawed, frozen again.
    for trained in (True, False):
        for each in pair.models:
            each[0].weight.requires_grad_(trained)
        pair.step(objective)
        pair.assert_alike()
        assert torch.equal(model[0].weight, before) is False


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_parameters_without_gradients(scale):
    """One of the loss takes the step of the loss alone; any other is skipped."""
    pair = Pair(mlp(12, 20, 6, dtype=torch.float64), 3, scale=scale)

    def of_the_bias(model):
        return model[2].bias.square().sum()

    for function in (of_the_bias, objective, of_the_bias):
        pair.step(function)
    pair.assert_alike()
    steps = {name: float(pair.ours.state[p]["step"]) for name, p in pair.models[0].named_parameters()}
    assert steps["0.bias"] == 1
    assert steps["0.weight"] == (3 if scale else 1)
    assert pair.models[0][0].weight.grad is None


def test_changing_subsets_of_gradients():
    pair = Pair(mlp(12, 20, 12, 6, dtype=torch.float64), 3, scale=0.0)
    for step in range(12):
        # As in a mixture of experts: another layer in each step.
        pair.step(lambda model: model[2 * (step % 3)].weight.square().sum())  # noqa: B023
        assert_value(pair.ours)
    pair.assert_alike()


@pytest.mark.parametrize("kind", ["parametrised", "weight_norm"])
def test_computed_weights(kind):
    model = mlp(12, 20, 6, dtype=torch.float64)
    if kind == "weight_norm":
        nn.utils.parametrizations.weight_norm(model[2])
    else:

        class Tripled(nn.Module):
            def forward(self, weight):
                return 3.0 * weight

        nn.utils.parametrize.register_parametrization(model[2], "weight", Tripled())
    pair = Pair(model, 3, lr=1e-2)
    for _ in range(10):
        pair.step(objective)
    pair.assert_alike()


def test_a_computed_weight_with_frozen_sources_counts():
    model = mlp(12, 20, 6, dtype=torch.float64)
    nn.utils.parametrizations.weight_norm(model[2])
    model[2].requires_grad_(False)
    pair = Pair(model, 3)
    pair.step(objective)
    pair.assert_alike()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_weights_have_float32_moments(dtype):
    model = nn.Linear(12, 6).to(dtype)
    wide = copy.deepcopy(model).float()
    optimizer = AdamW(model.parameters(), lr=1e-2, enmeshment=EnmeshmentLoss(model, 3), enmeshment_weight=1.0)
    peer = AdamW(wide.parameters(), lr=1e-2, enmeshment=EnmeshmentLoss(wide, 3), enmeshment_weight=1.0)
    for parameter, other in zip(model.parameters(), wide.parameters(), strict=True):
        parameter.grad = torch.randn_like(parameter)
        other.grad = parameter.grad.float()
    optimizer.step()
    peer.step()
    for parameter, other in zip(model.parameters(), wide.parameters(), strict=True):
        state, expected = optimizer.state[parameter], peer.state[other]
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32
        torch.testing.assert_close(state["exp_avg"], expected["exp_avg"], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(parameter, other.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert_value(optimizer)


def test_stochastic_rounding_moves_what_the_nearest_leaves():
    weights = [nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16)) for _ in range(2)]
    optimizers = [
        AdamW([weight], lr=1e-4, weight_decay=0.0, stochastic_rounding=rounding)
        for weight, rounding in zip(weights, (False, True), strict=True)
    ]
    for weight, optimizer in zip(weights, optimizers, strict=True):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert (weights[0] == 1).all()
    assert 0 < int((weights[1] != 1).sum()) < weights[1].numel()
    # 1 lies 2**-8 above its neighbour below, a step of 1e-4 crosses that once in 39 times.
    assert float(weights[1].detach().double().mean()) == pytest.approx(1 - 1e-4, abs=4e-5)


def test_gradients_of_another_type():
    for of_weight, of_grad in (
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ):
        weight = nn.Parameter(torch.ones(6, 12, dtype=of_weight))
        weight.grad_dtype = None
        weight.grad = torch.full((6, 12), 0.5, dtype=of_grad)
        AdamW([weight], lr=0.25, weight_decay=0.0).step()
        torch.testing.assert_close(weight.detach(), torch.full_like(weight, 0.75))


def test_a_closure_is_called_with_gradients():
    model = mlp(12, 20, 6)
    optimizer = AdamW(model.parameters(), enmeshment=EnmeshmentLoss(model, 3), enmeshment_weight=1.0)

    def closure():
        optimizer.zero_grad()
        loss = objective(model)
        loss.backward()
        return loss

    before = objective(model).item()
    with torch.no_grad():
        assert optimizer.step(closure).item() == pytest.approx(before)
    assert objective(model).item() < before


def test_steps_in_inference_mode():
    pair = Pair(mlp(12, 20, 6), 3)
    for inside in (True, False, True):
        for model, optimizer in zip(pair.models, (pair.ours, pair.theirs), strict=True):
            optimizer.zero_grad()
            objective(model).backward()
        pair.losses[1].accumulate_grad_(pair.scale)
        with torch.inference_mode(inside):
            pair.ours.step()
            value = pair.ours.enmeshment_value
        pair.theirs.step()
        pair.assert_alike()
        torch.testing.assert_close(value.clone(), pair.losses[0]().detach())


def test_weights_of_inference_mode():
    """They count no versions, so that the energies are found anew for each step."""
    with torch.inference_mode():
        model = nn.Linear(12, 6).requires_grad_()
        loss = EnmeshmentLoss(model, 3)
        optimizer = AdamW(model.parameters(), enmeshment=loss, enmeshment_weight=1.0)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        model.weight[:2] *= 3.0
        assert_value(optimizer)
    optimizer.step()
    assert_value(optimizer)


def test_empty_parameters():
    model = nn.Linear(12, 6)
    nothing = nn.Parameter(torch.zeros(0, 12))
    optimizer = AdamW([*model.parameters(), nothing], keep=0.5, keep_layers=[model, nothing])
    nothing.grad = torch.zeros_like(nothing)
    (model(INPUTS).sum()).backward()
    optimizer.step()
    assert int(model.weight.count_nonzero()) == 36


def test_rows_and_columns_in_no_cluster_meet_in_none():
    model = nn.Linear(4, 3).double()
    partition = Partition([0, -1, 1], [-1, 0, 1, -1], 2)
    pair = Pair(model, {"": partition}, scale=3.0)
    for _ in range(5):
        pair.step(lambda m: m.weight.sum())
    pair.assert_alike()
