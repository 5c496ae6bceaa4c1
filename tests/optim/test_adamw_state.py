"""The state: that of torch.optim.AdamW, loadable both ways, copied, pickled, and resumed bit for bit."""

import copy
import io
import pickle

import pytest
import torch
from loss_models import mlp
from optim_pairs import Pair, assert_value
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.functional import cross_entropy

from modfast import EnmeshmentLoss
from modfast.optim import AdamW

INPUTS, LABELS = torch.randn(32, 12, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 6


def objective(model):
    return cross_entropy(model(INPUTS.to(model[0].weight.dtype)).double(), LABELS)


def trained(dtype=torch.float32, steps=3, lr=1e-2, **options):
    """A model and an optimiser after some steps."""
    model = mlp(12, 20, 6, dtype=dtype)
    optimizer = AdamW(
        model.parameters(), lr=lr, enmeshment=EnmeshmentLoss(model, 3), enmeshment_weight=1.0, **options
    )
    go_on(model, optimizer, steps)
    return model, optimizer


def go_on(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        objective(model).backward()
        optimizer.step()


def assert_same_bits(one, other):
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


def test_state_and_groups_are_those_of_pytorch():
    pair = Pair(mlp(12, 20, 6), 3)
    pair.step(objective)
    ours, theirs = pair.ours.state_dict(), pair.theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert [list(group) for group in ours["param_groups"]] == [list(g) for g in theirs["param_groups"]]
    for key, values in theirs["state"].items():
        assert list(ours["state"][key]) == list(values)
        for name, value in values.items():
            given = ours["state"][key][name]
            assert (given.dtype, given.shape, given.stride()) == (value.dtype, value.shape, value.stride())
    assert isinstance(pair.ours, torch.optim.AdamW)


def test_moments_have_the_layout_of_the_weight():
    model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    optimizer = AdamW(model.parameters(), enmeshment=EnmeshmentLoss(model, 2, layers=[""]))
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    state = optimizer.state[model.weight]
    assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == model.weight.stride()
    # After loading too, whatever the layout in the file.
    loaded = optimizer.state_dict()
    loaded["state"][0]["exp_avg"] = loaded["state"][0]["exp_avg"].contiguous()
    optimizer.load_state_dict(loaded)
    assert optimizer.state[model.weight]["exp_avg"].stride() == model.weight.stride()


@pytest.mark.parametrize("options", [{}, {"keep": 0.3}], ids=["plain", "keep"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_resumed_bit_for_bit(dtype, options):
    if dtype == torch.bfloat16:
        options = {**options, "stochastic_rounding": True}
    model, optimizer = trained(dtype, **options)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    go_on(model, optimizer, 4)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    again, other = trained(dtype, 0, **options)
    again.load_state_dict(weights)
    other.load_state_dict(state)
    go_on(again, other, 4)
    assert_same_bits(model, again)
    for one, two in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert two["exp_avg"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("fused", [True, False, None])
def test_loaded_from_pytorch_and_back(fused):
    pair = Pair(mlp(12, 20, 6, dtype=torch.float64), 3, lr=1e-2)
    pair.theirs = torch.optim.AdamW(pair.models[1].parameters(), lr=1e-2, fused=fused)
    for _ in range(3):
        pair.step(objective)
    ours, theirs = copy.deepcopy((pair.ours.state_dict(), pair.theirs.state_dict()))
    pair.ours.load_state_dict(theirs)
    pair.theirs.load_state_dict(ours)
    for optimizer in (pair.ours, pair.theirs):
        assert all(float(state["step"]) == 3 for state in optimizer.state.values())
    for _ in range(3):
        pair.step(objective)
    pair.assert_alike()
    assert all(group["fused"] is True and group["foreach"] is None for group in pair.ours.param_groups)


def test_a_loaded_state_has_memory_of_its_own():
    model, optimizer = trained()
    other = copy.deepcopy(model)
    second = AdamW(other.parameters(), lr=1e-2)
    second.load_state_dict(optimizer.state_dict())
    before = copy.deepcopy(optimizer.state_dict()["state"])
    go_on(other, second, 2)
    for key, values in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[key][name]) for name, value in values.items())


def test_hooks_of_others_see_what_is_loaded():
    model, optimizer = trained(torch.bfloat16)
    state, seen = copy.deepcopy(optimizer.state_dict()), []

    def halve(_, loaded):
        loaded["state"] = {
            key: {**values, "exp_avg": values["exp_avg"] * 0.5} for key, values in loaded["state"].items()
        }
        return loaded

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.register_load_state_dict_post_hook(
        lambda given: seen.append(given.state[model[0].weight]["exp_avg"])
    )
    optimizer.load_state_dict(state)
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], 0.5 * state["state"][0]["exp_avg"])
    assert seen[0] is optimizer.state[model[0].weight]["exp_avg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["param_groups"][0].update(amsgrad=True), "amsgrad must be False in group 0"),
        (lambda s: s["param_groups"][0].update(maximize=True), "maximize must be False in group 0"),
        (
            lambda s: s["state"][1].update(max_exp_avg_sq=torch.zeros(20)),
            "parameter 1 must hold step, exp_avg",
        ),
        (lambda s: s["state"][1].pop("exp_avg"), "parameter 1 must hold step, exp_avg"),
        (lambda s: s["state"].update({2: {"momentum_buffer": None}}), "got momentum_buffer"),
        (
            lambda s: s["state"][1].update(exp_avg=torch.zeros(7)),
            r"exp_avg of parameter 1 .* \(20,\), got \(7,\)",
        ),
    ],
)
def test_states_that_are_refused(change, message):
    model, optimizer = trained()
    state = copy.deepcopy(optimizer.state_dict())
    change(state)
    again = copy.deepcopy(model)
    other = AdamW(again.parameters(), lr=1e-2)
    go_on(again, other, 1)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
    after = other.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, values in before["state"].items():
        assert all(torch.equal(value, after["state"][key][name]) for name, value in values.items())
    go_on(again, other, 1)


def test_a_deep_copy_trains_its_own_model():
    model, optimizer = trained(keep=0.5)
    again, other = copy.deepcopy((model, optimizer))
    before = copy.deepcopy(model.state_dict())
    go_on(again, other, 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert_value(other)
    go_on(model, optimizer, 2)
    assert_same_bits(model, again)


def test_pickled_with_its_model():
    model, optimizer = trained(keep=0.5)
    again, other = pickle.loads(pickle.dumps((model, optimizer)))
    with pytest.raises(RuntimeError, match="attach"):
        other.step()
    other.enmeshment.attach(again)
    assert (other.keep, other.enmeshment_weight) == (0.5, 1.0)
    go_on(again, other, 2)
    go_on(model, optimizer, 2)
    assert_same_bits(model, again)
    assert_value(other)


@pytest.mark.parametrize("lr", [1e-2, torch.tensor(1e-2)], ids=["number", "tensor"])
def test_distributed_checkpoint(lr):
    model, optimizer = trained(lr=lr, keep=0.5)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    weights = copy.deepcopy(model.state_dict())
    go_on(model, optimizer, 2)
    again, other = trained(steps=0, lr=lr, keep=0.5)
    again.load_state_dict(weights)
    set_optimizer_state_dict(again, other, state)
    go_on(again, other, 2)
    assert_same_bits(model, again)


def test_a_distributed_checkpoint_before_the_first_step_changes_no_weight():
    # PyTorch makes the state that it saves by a step without gradients and learning rate.
    model, optimizer = trained(steps=0, keep=0.5)
    before = copy.deepcopy(model.state_dict())
    saved = get_optimizer_state_dict(model, optimizer)["state"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again, _ = trained(steps=0)
    wanted = get_optimizer_state_dict(again, torch.optim.AdamW(again.parameters(), fused=True))["state"]
    assert saved.keys() == wanted.keys()
    for name, values in wanted.items():
        assert values.keys() == saved[name].keys()
        assert all(torch.equal(value, saved[name][key]) for key, value in values.items())


@pytest.mark.parametrize("case", ["constructor", "one of two groups", "gradients"])
def test_other_steps_without_a_learning_rate_mask(case):
    torch.manual_seed(0)
    model = mlp(12, 20, 6)
    groups = [{"params": list(layer.parameters())} for layer in model if list(layer.parameters())]
    optimizer = AdamW(groups, 0.0 if case == "constructor" else 1e-3, keep=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float(case == "gradients"))
    for group in optimizer.param_groups[1:] if case == "one of two groups" else optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert int(model[0].weight.count_nonzero()) == 120


def test_named_parameters():
    model = mlp(12, 20, 6)
    optimizer = AdamW(model.named_parameters(), enmeshment=EnmeshmentLoss(model, 3), enmeshment_weight=1.0)
    go_on(model, optimizer, 1)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == [
        n for n, _ in model.named_parameters()
    ]
    with pytest.raises(ValueError, match="without names"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
