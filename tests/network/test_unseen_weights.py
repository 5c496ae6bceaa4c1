"""Weights that are used where it cannot be seen what they read: no ablation is left out in silence."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modfast import ablate_units, read_network

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def space(network, name):
    return torch.arange(network.num_units)[network.spaces[name]]


@torch.jit.script
def scripted(x, weight):
    return x @ weight.t()


class Scripted(nn.Linear):
    def forward(self, x):
        return scripted(x, self.weight) + self.bias


def test_a_layer_that_runs_a_scripted_function_raises():
    reader = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Scripted(8, 3))
    network = read_network(reader, X)
    with ablate_units(model, network, space(network, "0")), pytest.raises(ValueError, match="layer '2' ran"):
        model(X)
    with ablate_units(model, network, space(network, ".input")):
        model(X)  # what the other layer reads does not matter here
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        hidden = self.first(x)
        return self.last(self.attention(hidden, hidden, hidden, need_weights=False)[0])


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("normed", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_a_computed_weight_that_another_module_uses_raises(normed):
    """Attention does not call its last layer, but takes its weight."""
    torch.manual_seed(0)
    model = Attention().eval()
    normed(model.attention.out_proj)
    network = read_network(model, X[None])
    heads = space(network, "attention.in_proj_weight")
    refused = pytest.raises(ValueError, match=r"'attention.out_proj' is computed, and another module")
    with torch.no_grad(), ablate_units(model, network, heads), refused:
        model(X[None])
    with torch.no_grad():
        whole = model(X[None])
        with ablate_units(model, network, space(network, "first")):
            assert not torch.allclose(model(X[None]), whole)


def test_a_module_may_ask_for_the_dtype_of_an_adapted_weight():
    """As T5 does before it calls a layer."""
    peft = pytest.importorskip("peft")

    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(self.first(x).relu().to(self.last.weight.dtype))

    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["last"], init_lora_weights=False)
    model = peft.get_peft_model(Asks(), config).eval()
    network = read_network(model, X)
    with torch.no_grad():
        with ablate_units(model, network, space(network, "first")):
            found = model(X)
        torch.testing.assert_close(found, model.base_model.model.last(torch.zeros(6, 8)))


@pytest.mark.parametrize("computed", [False, True])
def test_other_threads_see_the_whole_model(computed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    if computed:
        nn.utils.parametrizations.weight_norm(model[2])
    network = read_network(model, X)
    whole, found = model(X), []
    with ablate_units(model, network, space(network, "0")):
        thread = threading.Thread(target=lambda: found.append(model(X)))
        thread.start()
        thread.join()
        assert not torch.allclose(model(X), whole)
    torch.testing.assert_close(found[0], whole, rtol=0, atol=0)


class Twice(nn.Module):
    """Runs a layer several times; may write to what the layer has read, or stop in between."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.in_place = self.stops = False

    def forward(self, x, times=2):
        hidden = self.first(x).sigmoid()
        for _ in range(times):
            added = self.again(hidden)
            if self.stops:
                raise RuntimeError("stopped")
            if self.in_place:
                hidden += added
            else:
                hidden = hidden + added
        return self.last(hidden)


def test_resampled_values_are_those_read_though_the_model_writes_to_them():
    torch.manual_seed(0)
    model = Twice().eval()
    network = read_network(model, X)
    found = []
    for model.in_place in (False, True):
        with torch.no_grad(), ablate_units(model, network, space(network, "first")[::2], "resample", OTHER):
            found.append(model(X))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.allclose(found[0], model(X))


def test_resampled_values_stay_paired_after_an_exception():
    torch.manual_seed(0)
    model = Twice().eval()
    network = read_network(model, X)
    with torch.no_grad(), ablate_units(model, network, space(network, "first")[::2], "resample", OTHER):
        first = model(X)
        model.stops = True
        with pytest.raises(RuntimeError, match="stopped"):
            model(X)
        model.stops = False
        torch.testing.assert_close(model(X), first, rtol=0, atol=0)
        with pytest.raises(ValueError, match="'again' reads 2 times"):
            model(X, times=3)
        with pytest.raises(ValueError, match="within a call of the whole model"):
            model.again(torch.zeros(6, 8))


def test_a_layer_called_alone_is_ablated():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    network = read_network(model, X)
    with torch.no_grad(), ablate_units(model, network, space(network, "0"), "resample", OTHER):
        for _ in range(2):
            torch.testing.assert_close(model[2](torch.zeros(6, 8)), model[2](F.relu(model[0](OTHER))))
