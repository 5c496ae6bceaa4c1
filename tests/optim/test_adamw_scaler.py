"""Steps under GradScaler, torch.compile and hooks."""

import copy

import pytest
import torch
from loss_models import mlp
from optim_pairs import Pair, assert_value
from torch import nn
from torch.nn.functional import cross_entropy

INPUTS, LABELS = torch.randn(32, 12, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 6


def objective(model):
    return cross_entropy(model(INPUTS), LABELS)


@pytest.mark.parametrize("unscaled", [True, False])
@pytest.mark.parametrize("computed", [True, False])
def test_scaled_gradients(unscaled, computed):
    model = mlp(12, 20, 6)
    if computed:
        nn.utils.parametrizations.weight_norm(model[2])
    pair = Pair(model, 3, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(10):
        for each, optimizer in zip(pair.models, (pair.ours, pair.theirs), strict=True):
            optimizer.zero_grad()
            loss = objective(each)
            (scaler.scale(loss) if each is pair.models[0] else loss).backward()
        if unscaled:
            scaler.unscale_(pair.ours)
        scaler.step(pair.ours)
        scaler.update()
        pair.losses[1].accumulate_grad_(pair.scale)
        pair.theirs.step()
        assert_value(pair.ours)
    pair.assert_alike()


@pytest.mark.parametrize("keep", [None, 0.5, lambda step: 1 / step])
@pytest.mark.parametrize("unscaled", [True, False])
def test_nothing_changes_if_a_gradient_is_infinite(unscaled, keep):
    pair = Pair(mlp(12, 20, 6), 3)
    model, optimizer = pair.models[0], pair.ours
    optimizer.keep = keep
    pair.step(objective)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    optimizer.zero_grad()
    scaler.scale(objective(model)).backward()
    model[0].bias.grad[3] = float("inf")
    if unscaled:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())
    for key, values in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[1][key][name]) for name, value in values.items())
    assert_value(optimizer)
    assert scaler.get_scale() == 2.0
    optimizer.zero_grad()
    scaler.scale(objective(model)).backward()
    scaler.step(optimizer)
    assert_value(optimizer)
    assert all(float(state["step"]) == 2 for state in optimizer.state.values())


def test_a_scaler_without_any_gradient():
    pair = Pair(mlp(12, 20, 6), 3)
    pair.ours.found_inf = 0  # what GradScaler sums up of no gradients
    pair.ours.step()
    pair.losses[1].accumulate_grad_(pair.scale)
    pair.theirs.step()
    pair.assert_alike()


def test_a_compiled_training_step():
    pair = Pair(mlp(12, 20, 6), 3, lr=1e-2)

    def step(model, optimizer):
        optimizer.zero_grad()
        objective(model).backward()
        optimizer.step()

    compiled = torch.compile(step, backend="eager")
    for _ in range(4):
        compiled(pair.models[0], pair.ours)
        pair.theirs.zero_grad()
        objective(pair.models[1]).backward()
        pair.losses[1].accumulate_grad_(pair.scale)
        pair.theirs.step()
    pair.assert_alike()


def test_hooks_run_around_a_step():
    pair = Pair(mlp(12, 20, 6), 3)
    seen = []
    pair.ours.register_step_pre_hook(lambda *_: seen.append("before"))
    pair.ours.register_step_post_hook(lambda *_: seen.append("after"))
    pair.step(objective)
    assert seen == ["before", "after"]
    pair.assert_alike()
