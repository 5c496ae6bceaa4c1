"""Weights, partitions and layers that others change between steps are noticed, and cost one pass."""

import copy

import pytest
import torch
from loss_models import mlp
from optim_pairs import Pair, assert_value
from torch import nn
from torch.nn.functional import cross_entropy

from modfast import EnmeshmentLoss, Partition
from modfast.optim import AdamW, energies

INPUTS, LABELS = torch.randn(32, 12, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 6


def objective(model):
    return cross_entropy(model(INPUTS.to(model[0].weight.dtype)), LABELS)


class Counted:
    """How many weights passes go over, beside those of the steps themselves."""

    def __init__(self, monkeypatch):
        self.weights, real = 0, energies.labelled_energies

        def counted(weights, *labels):
            self.weights += len(weights)
            return real(weights, *labels)

        monkeypatch.setattr(energies, "labelled_energies", counted)

    def new(self):
        given, self.weights = self.weights, 0
        return given


def in_place(model):
    with torch.no_grad():
        model[0].weight[:4].mul_(3.0)


def by_a_view(model):
    with torch.no_grad():
        model[0].weight.view(-1)[7] = 2.0


def loaded(model):
    state = {name: 2.0 * value + 0.1 for name, value in model.state_dict().items()}
    state["2.weight"][0] = 5.0
    model.load_state_dict(state)


def other_data(model):
    model[0].weight.data = model[0].weight.data.flip(0)


def another_optimiser(model):
    model[0].weight.grad = torch.ones_like(model[0].weight)
    torch.optim.SGD([model[0].weight], lr=0.1).step()


def a_fused_optimiser(model):
    """Those of PyTorch do not count what they change."""
    version = model[0].weight._version
    model[0].weight.grad = torch.ones_like(model[0].weight)
    torch.optim.AdamW([model[0].weight], lr=0.1, fused=True).step()
    assert model[0].weight._version == version


def rounded_and_back(model):
    """In the same memory perhaps, and with the same version."""
    version = model[0].weight._version
    model.half()
    model.double()
    assert model[0].weight._version == version


def another_type_and_back(model):
    model.float()
    in_place(model)
    model.double()


CHANGES = {
    function.__name__: (function, count)
    for function, count in (
        (in_place, 1),
        (by_a_view, 1),
        (loaded, 2),
        (other_data, 1),
        (another_optimiser, 1),
        (a_fused_optimiser, 1),
        (rounded_and_back, 2),
        (another_type_and_back, 2),
    )
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights(change, monkeypatch):
    function, count = CHANGES[change]
    pair, passes = Pair(mlp(12, 20, 6, dtype=torch.float64), 3), Counted(monkeypatch)
    pair.step(objective)
    assert passes.new() == 2
    pair.step(objective)
    pair.assert_alike()
    assert passes.new() == 0
    for model in pair.models:
        function(model)
    if change == "in_place":
        assert_value(pair.ours)  # read before the step
    pair.step(objective)
    assert passes.new() == count
    pair.assert_alike()
    pair.step(objective)
    pair.assert_alike()
    assert passes.new() == 0


@pytest.mark.parametrize("other", [lambda data: data[1], lambda data: data[0].t()], ids=["place", "strides"])
def test_another_place_in_the_same_memory(other):
    model = nn.Sequential(nn.Linear(8, 8).double())
    loss = EnmeshmentLoss(model, {"0": Partition([0, 0, 0, 1, 1, 1, 1, 1], [0, 1] * 4, 2)})
    optimizer = AdamW(model.parameters(), enmeshment=loss, enmeshment_weight=1.0)
    weight = model[0].weight
    data = torch.randn(2, 8, 8, dtype=torch.float64)
    weight.data = data[0]
    optimizer.step()
    version = weight._version
    before = float(optimizer.enmeshment_value)
    weight.data = other(data)
    assert weight._version == version
    assert_value(optimizer)
    assert abs(float(optimizer.enmeshment_value) - before) > 1e-3


def test_a_step_of_another_type():
    pair = Pair(mlp(12, 20, 6), 3)
    for dtype in (torch.float32, torch.float64, torch.float32, torch.bfloat16):
        pair.models[0].to(dtype)
        model, optimizer = pair.models[0], pair.ours
        for _ in range(2):
            optimizer.zero_grad()
            objective(model).backward()
            optimizer.step()
            assert_value(optimizer)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert all(state["exp_avg"].dtype == wide for state in optimizer.state.values())


def test_restored_partitions(monkeypatch):
    model = mlp(12, 20, 6, dtype=torch.float64)
    pair, passes = Pair(model, 3), Counted(monkeypatch)
    pair.step(objective)
    shuffled = {
        name: Partition(p.row_labels.flip(0), p.col_labels.roll(2), 3)
        for name, p in pair.losses[0].partitions.items()
    }
    state = EnmeshmentLoss(model, shuffled).state_dict()
    for loss in pair.losses:
        loss.load_state_dict(state)
    assert passes.new() == 2
    pair.step(objective)
    pair.assert_alike()
    assert passes.new() == 2


def test_another_loss_and_an_attached_one():
    pair = Pair(mlp(12, 20, 6, dtype=torch.float64), 3)
    pair.step(objective)
    pair.losses = [EnmeshmentLoss(model, 2, layers=["2"]) for model in pair.models]
    pair.ours.enmeshment = pair.losses[0]
    pair.step(objective)
    pair.assert_alike()
    pair.losses[0].attach(pair.models[0])
    pair.step(objective)
    pair.assert_alike()
    # Of a model that this optimiser does not train.
    pair.losses[0].attach(pair.models[1])
    with pytest.raises(ValueError, match=r"no parameter group has the weight.*'2'"):
        pair.ours.step()
    torch.testing.assert_close(pair.ours.enmeshment_value, pair.losses[0]().detach())


def test_a_replaced_parameter_raises_until_it_is_in_a_group():
    model = mlp(12, 20, 6)
    optimizer = AdamW(model.parameters(), enmeshment=EnmeshmentLoss(model, 3), enmeshment_weight=1.0)
    objective(model).backward()
    optimizer.step()
    model[0].weight = nn.Parameter(model[0].weight.detach().flip(0))
    with pytest.raises(ValueError, match=r"no parameter group has the weight.*'0'"):
        optimizer.step()
    assert_value(optimizer)
    optimizer.add_param_group({"params": [model[0].weight]})
    optimizer.step()
    assert_value(optimizer)


def test_a_weight_that_is_computed_from_now_on():
    pair = Pair(mlp(12, 20, 6, dtype=torch.float64), 3)
    pair.step(objective)
    for model in pair.models:
        nn.utils.parametrize.register_parametrization(model[2], "weight", nn.Tanh())
    pair.step(objective)
    pair.assert_alike()


def test_groups_that_users_change():
    pair = Pair(mlp(12, 20, 6, dtype=torch.float64), 3)
    pair.step(objective)
    for optimizer in (pair.ours, pair.theirs):
        optimizer.param_groups[0]["params"].reverse()
        optimizer.param_groups[0]["weight_decay"] = 0.5
    pair.step(objective)
    pair.assert_alike()


@pytest.mark.parametrize("how", ["cleared", "replaced", "values", "one"])
def test_states_that_users_change(how):
    pair = Pair(mlp(12, 20, 6, dtype=torch.float64), 3)
    for _ in range(3):
        pair.step(objective)
    for model, optimizer in zip(pair.models, (pair.ours, pair.theirs), strict=True):
        if how == "cleared":
            optimizer.state.clear()
        elif how == "replaced":
            optimizer.state = copy.copy(optimizer.state)
            optimizer.state[model[0].weight] = {
                name: value.clone() * 0.5 for name, value in optimizer.state[model[0].weight].items()
            }
        elif how == "one":
            del optimizer.state[model[2].weight]
        else:
            for state in optimizer.state.values():
                state["exp_avg"] = state["exp_avg"] * 0.25
    pair.step(objective)
    pair.assert_alike()


def test_the_versions_of_what_a_step_changes():
    model = mlp(12, 20, 6)
    optimizer = AdamW(model.parameters(), enmeshment=EnmeshmentLoss(model, 3), enmeshment_weight=1.0)
    output = objective(model)
    output.backward(retain_graph=True)
    optimizer.step()
    # So that a backward pass with the old weights is not one with the new ones.
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()
    state = optimizer.state[model[0].weight]
    before = [tensor._version for tensor in (*state.values(), model[0].bias)]
    optimizer.step()
    now = [tensor._version for tensor in (*state.values(), model[0].bias)]
    assert all(new > old for new, old in zip(now, before, strict=True))
