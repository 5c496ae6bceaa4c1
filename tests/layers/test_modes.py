"""A module whose ``train`` and ``eval`` do more than set the mode is left as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import modfast
from modfast import Partition
from modfast.layers.source import in_evaluation_mode, in_mode

INPUTS, LABELS = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 4


class Merging(nn.Module):
    """Adds its adapter to its weight in evaluation mode and takes it out in training mode."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8), requires_grad=False)
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged is mode:
            change = (self.up @ self.down).detach()
            self.weight.data += -change if mode else change
            self.merged = not mode
        return self

    def forward(self, x):
        x = x @ self.weight.T
        return x if self.merged else x + x @ self.down.T @ self.up.T


class Replacing(Merging):
    """Makes another parameter instead, in a method of its own that only ``eval`` calls."""

    def train(self, mode=True):
        nn.Module.train(self, mode)
        if self.merged is mode:
            change = (self.up @ self.down).detach()
            self.weight = nn.Parameter(self.weight.detach() + (-change if mode else change), False)
            self.merged = not mode
        return self

    def eval(self):
        return self.train(False)


class Frozen(nn.Sequential):
    """Keeps its batch norm in evaluation mode."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


def network(kind):
    torch.manual_seed(0)
    inner = Frozen(nn.Linear(8, 8), nn.BatchNorm1d(8)) if kind is Frozen else kind()
    return nn.Sequential(nn.Linear(6, 8), inner, nn.ReLU(), nn.Linear(8, 4))


CALLS = {
    "class_accuracy": lambda model: modfast.class_accuracy(model, [(INPUTS, LABELS)] * 3),
    "cluster_accuracy": lambda model: modfast.cluster_accuracy(
        model, (INPUTS, LABELS), {"3": Partition.blocks((4, 8), 2)}, "only"
    ),
    "network_graph": lambda model: modfast.network_graph(model, ["0"], example_inputs=INPUTS),
    "gradient_affinity": lambda model: modfast.gradient_affinity(
        model, "3", [(INPUTS, LABELS)], cross_entropy
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [Merging, Replacing, Frozen])
def test_a_module_that_switches_itself_is_left_as_it_was(kind, call, training):
    model = network(kind).train(training)
    held = dict(model.named_parameters())
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    merged = getattr(model[1], "merged", None)
    CALLS[call](model)
    assert all(parameter is held[name] for name, parameter in model.named_parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert [module.training for module in model.modules()] == modes
    assert getattr(model[1], "merged", None) == merged
    cross_entropy(model(INPUTS), LABELS).backward()
    if training and kind is not Frozen:
        assert model[1].up.grad is not None


def test_each_module_gets_its_own_mode_back():
    model = nn.Sequential(Merging(), nn.Sequential(Merging(), nn.Dropout())).train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    for training in (True, False):
        with in_mode(model, training=training):
            assert all(module.training is training for module in model.modules())
            assert model[0].merged is model[1][0].merged is not training
        assert [module.training for module in model.modules()] == [True, True, False, False, False]
        assert (model[0].merged, model[1][0].merged) == (False, True)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_it_is_left_as_it_was_after_an_error():
    model = network(Merging).train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="not today"), in_evaluation_mode(model):
        raise RuntimeError("not today")
    assert not model[1].merged
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
