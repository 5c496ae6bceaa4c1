"""Weight-sparse training: the largest magnitudes of each matrix stay, beside torch.topk and a mask."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from loss_models import TheirConv1D, mlp
from optim_pairs import Pair, assert_value
from torch import nn
from torch.nn.functional import cross_entropy

from modfast import EnmeshmentLoss
from modfast.optim import AdamW
from modfast.optim.keep import kept_counts

INPUTS, LABELS = torch.randn(32, 12, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 6


def objective(model):
    return cross_entropy(model(INPUTS.to(model[0].weight.dtype)), LABELS)


@torch.no_grad()
def mask(weight, count):
    kept = torch.topk(weight.abs().flatten(), count).indices
    weight.copy_(
        torch.zeros_like(weight).flatten().index_put((kept,), weight.flatten()[kept]).view_as(weight)
    )


@pytest.mark.parametrize("clusters", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_beside_topk_and_a_mask(dtype, clusters):
    pair = Pair(mlp(12, 20, 6, dtype=dtype), clusters, lr=1e-2)
    pair.ours.keep = 0.3
    for _ in range(30):
        pair.step(objective)
        for layer, size in ((0, 240), (2, 120)):
            mask(pair.models[1][layer].weight, math.ceil(0.3 * size))
    pair.assert_alike()
    assert int(pair.models[0][0].weight.count_nonzero()) == 72
    assert int(pair.models[0][0].bias.count_nonzero()) == 20
    # The moments of what became 0 live on.
    assert (pair.ours.state[pair.models[0][0].weight]["exp_avg_sq"] > 0).sum() > 72


def test_a_bare_list_of_parameters():
    model = mlp(12, 20, 6)
    optimizer = AdamW(model.parameters(), keep=0.1)
    objective(model).backward()
    optimizer.step()
    assert [int(model[i].weight.count_nonzero()) for i in (0, 2)] == [24, 12]


def test_of_equal_magnitudes_the_first_stay():
    weight = nn.Parameter(torch.tensor([[1.0, -1.0, 2.0], [1.0, 0.5, -1.0]]))
    weight.grad = torch.zeros_like(weight)
    AdamW([weight], lr=0.0, keep=0.5).step()
    assert weight.tolist() == [[1.0, -1.0, 2.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("share", "size", "count"),
    [
        (0.1, 30, 3),
        (0.1, 31, 4),
        (0.7, 10, 7),
        (0.29, 100, 29),
        (1, 17, 17),
        (1e-9, 5, 1),
        (0.3, 0, 0),
        (Fraction(1, 3), 9, 3),
        (np.float32(0.1), 30, 3),
    ],
)
def test_counts_are_exact(share, size, count):
    assert kept_counts(share, [size]) == [count]


def test_annealing():
    model = mlp(12, 20, 6)
    asked = []

    def keep(step):
        asked.append(step)
        return 1.0 if step < 3 else 1.0 / step

    optimizer = AdamW(
        model.parameters(), keep=keep, enmeshment=EnmeshmentLoss(model, 3), enmeshment_weight=1.0
    )
    for step in range(1, 6):
        optimizer.zero_grad()
        objective(model).backward()
        optimizer.step()
        expected = 240 if step < 3 else math.ceil(240 / step)
        assert int(model[0].weight.count_nonzero()) == expected
        assert_value(optimizer)
    assert asked == [1, 2, 3, 4, 5]


def test_annealing_of_a_parameter_that_came_later():
    first, second = nn.Parameter(torch.randn(10, 10)), nn.Parameter(torch.randn(10, 10))
    optimizer = AdamW([first, second], keep=lambda step: step / 10)
    for both in (False, True):
        first.grad = torch.zeros_like(first)
        second.grad = torch.zeros_like(second) if both else None
        optimizer.step()
    assert (int(first.count_nonzero()), int(second.count_nonzero())) == (10, 10)


def test_the_first_step_after_a_resume_masks():
    model = mlp(12, 20, 6)
    optimizer = AdamW(model.parameters(), keep=0.25)
    objective(model).backward()
    optimizer.step()
    again = AdamW(model.parameters(), keep=0.25)
    again.load_state_dict(optimizer.state_dict())
    again.step()
    assert int(model[0].weight.count_nonzero()) == 60


def test_choices():
    def kept(choices, **options):
        model = nn.Sequential(
            nn.Embedding(20, 10), TheirConv1D(10, 10), nn.Linear(10, 10), nn.Conv2d(2, 5, 2)
        )
        optimizer = AdamW(
            model.parameters(),
            keep=0.5,
            keep_layers=choices(model),
            **({"enmeshment": EnmeshmentLoss(model, 2, layers=["1", "2"])} if options else {}),
        )
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return [i for i, m in enumerate(model) if int(m.weight.count_nonzero()) <= m.weight.numel() // 2]

    assert kept(lambda model: model) == [1, 2]
    assert kept(lambda model: [model[3], model[0]]) == [0, 3]
    assert kept(lambda model: model[2].weight) == [2]
    assert kept(lambda model: iter([model[1].weight, model[3].weight])) == [1, 3]
    assert kept(lambda model: None, loss=True) == [1, 2]
    assert kept(lambda model: "1", loss=True) == [1]
    assert kept(lambda model: lambda name, shape: name == "2", loss=True) == [2]
    assert kept(lambda model: ["2", model[3]], loss=True) == [2, 3]


def test_other_choices_between_steps():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    optimizer = AdamW(model.parameters(), keep=0.5, keep_layers=[model[0]])

    def counts():
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        return [int(layer.weight.count_nonzero()) for layer in model]

    assert counts() == [50, 100]
    optimizer.keep_layers = iter([model[1]])
    assert counts() == [100, 50]
    optimizer.keep_layers = "0"
    with pytest.raises(ValueError, match="keep_layers must be a model, modules or parameters"):
        optimizer.step()


def test_stacks_keep_a_share_of_each_matrix():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 6, 6) * torch.tensor([1.0, 10.0, 100.0])[:, None, None])

    model = Experts()
    loss = EnmeshmentLoss(model, 2, layers=["up"])
    optimizer = AdamW(model.parameters(), keep=0.25, enmeshment=loss, enmeshment_weight=1.0)
    optimizer.step()
    assert model.up.count_nonzero(dim=(1, 2)).tolist() == [9, 9, 9]
    assert_value(optimizer)


def test_kernels_with_gradients_of_another_layout():
    model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    model.weight.grad = torch.zeros(6, 4, 3, 3)
    AdamW(model.parameters(), lr=0.0, keep=0.25, keep_layers=model).step()
    assert int(model.weight.count_nonzero()) == 54


def test_layouts_that_are_refused():
    model = nn.Linear(6, 4)
    model.weight = nn.Parameter(torch.randn(4, 6, 2)[..., 0])
    model.weight.grad = torch.zeros_like(model.weight)
    before = model.weight.detach().clone()
    optimizer = AdamW(model.parameters(), keep=0.5, keep_layers=model)
    with pytest.raises(ValueError, match=r"rows follow one another in memory.*strides \(12, 2\)"):
        optimizer.step()
    assert torch.equal(model.weight.detach(), before)


@pytest.mark.parametrize(
    ("keep", "error"),
    [(0, ValueError), (1.5, ValueError), (float("nan"), ValueError), (True, TypeError), ("0.1", TypeError)],
)
def test_shares_that_are_refused(keep, error):
    with pytest.raises(error, match=r"keep must be .*\(0, 1\]"):
        AdamW(mlp(4, 4).parameters(), keep=keep)
    model = mlp(4, 4)
    model[0].weight.grad = torch.zeros(4, 4)
    with pytest.raises(error, match=r"keep\(1\) must be a number in \(0, 1\]"):
        AdamW(model.parameters(), keep=lambda step: keep).step()


def test_choices_that_are_refused():
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.Conv1d(4, 4, 2))

    def refused(error, message, params=None, **options):
        with pytest.raises(error, match=message):
            AdamW(params or model.parameters(), keep=0.5, **options)

    named = {"embedding": nn.Embedding(4, 4), "fc": nn.Linear(4, 4)}
    refused(ValueError, "embedding's by its name", nn.ModuleDict(named).named_parameters())
    refused(ValueError, "no parameter has two dimensions", [nn.Parameter(torch.ones(3))])
    refused(ValueError, "no parameter group has a parameter of shape", keep_layers=nn.Linear(4, 4).weight)
    refused(ValueError, "no parameter group has the weight of layer", keep_layers=nn.Linear(4, 4))
    refused(ValueError, "must choose matrices", keep_layers=model[1].bias)
    refused(ValueError, "stack of matrices or the kernel", keep_layers=model[2].weight)
    refused(ValueError, "holds no linear layer", keep_layers=nn.Sequential(model[0]))
    refused(ValueError, "must be a model, modules or parameters", keep_layers="1")
    with pytest.raises(ValueError, match="keep_layers needs keep"):
        AdamW(model.parameters(), keep_layers=model)
    nn.utils.parametrizations.weight_norm(model[1])
    refused(ValueError, "is computed from others", keep_layers=model)
