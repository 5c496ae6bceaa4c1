"""A neuron that is off is off with its bias, whatever the two are called."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from modfast import Partition, class_accuracy, cluster_accuracy
from modfast.layers.bias import bias_of
from modfast.layers.layer import find_layer, find_layers
from modfast.layers.plain_copy import plain_copy

torch.manual_seed(0)
INPUTS, LABELS = torch.randn(60, 5, 4), torch.arange(60) % 3


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attn, self.fc = nn.MultiheadAttention(4, 1, batch_first=True, **options), nn.Linear(4, 3)
        nn.init.normal_(self.attn.in_proj_bias, std=3)

    def forward(self, x):
        return self.fc(self.attn(x, x, x)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.RNN, **options):
        super().__init__()
        self.rnn, self.fc = kind(4, 6, batch_first=True, **options), nn.LazyLinear(3)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, 6, 4))
        self.up_bias = nn.Parameter(3 * torch.randn(2, 6))
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(sum(torch.relu(x.mean(1) @ self.up[i].T + self.up_bias[i]) for i in range(2)))


class Pruned(Experts):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 6)
        for name in ("weight", "bias"):
            prune.l1_unstructured(self.linear, name, 0.3)

    def forward(self, x):
        return self.fc(self.linear(x.mean(1)))


# A model, its weights in question, and what belongs to them.
MODELS = {
    "attention": (Attention, ["attn.in_proj_weight"], ["attn.in_proj_bias"]),
    "recurrent": (Recurrent, ["rnn.weight_ih_l0"], ["rnn.bias_ih_l0"]),
    "recurrent, both": (
        lambda: Recurrent(nn.GRU),
        ["rnn.weight_ih_l0", "rnn.weight_hh_l0"],
        ["rnn.bias_ih_l0", "rnn.bias_hh_l0"],
    ),
    "projected": (lambda: Recurrent(nn.LSTM, proj_size=2), ["rnn.weight_hr_l0"], []),
    "stack": (Experts, ["up"], ["up_bias"]),
    "pruned": (Pruned, ["linear.weight"], ["linear.bias"]),
}


def switched_off(model, names):
    off = plain_copy(model)
    for name in names:
        off.get_parameter(name).data.zero_()
    return off


@pytest.mark.parametrize("kind", MODELS)
def test_neurons_are_off_with_their_biases(kind):
    torch.manual_seed(1)
    make, weights, biases = MODELS[kind]
    model = make().eval()
    model(INPUTS)
    partitions = {}
    for name in weights:
        for layer in find_layers(model):
            if name in layer.names:
                partitions[layer.name] = Partition([0] * layer.shape[0], [0] * layer.shape[1], 2)
    before = copy.deepcopy(model.state_dict())
    got = cluster_accuracy(model, (INPUTS, LABELS), partitions, "without")[0]
    assert torch.equal(got, class_accuracy(switched_off(model, weights + biases), (INPUTS, LABELS)))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_only_the_neurons_of_one_matrix_are_off():
    torch.manual_seed(2)
    model = Experts().eval()
    rows = [0] * 3 + [1] * 3
    got = cluster_accuracy(model, (INPUTS, LABELS), {"up[1]": Partition(rows, [0] * 4, 2)}, "without")
    off = copy.deepcopy(model)
    off.up.data[1] = 0
    off.up_bias.data[1, :3] = 0
    assert torch.equal(got[0], class_accuracy(off, (INPUTS, LABELS)))
    assert bias_of(find_layer(model, "up[1]", "layer")).place == 1


class Custom(nn.Module):
    def __init__(self, name, *shape):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 4))
        self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x):
        return x.mean(1) @ self.matrix.T


@pytest.mark.parametrize(("name", "shape"), [("offset", (3,)), ("bias", (3,)), ("all_biases", (9,))])
def test_what_may_be_a_bias_is_not_guessed(name, shape):
    partitions = {"matrix": Partition.blocks((3, 4), 2)}
    with pytest.raises(ValueError, match=f"which bias belongs .*layer 'matrix' .*Custom.*{name!r}"):
        cluster_accuracy(Custom(name, *shape), (INPUTS, LABELS), partitions, "only")


@pytest.mark.parametrize(("name", "shape"), [("offset", (4,)), ("scale", ()), ("other", (5, 5))])
def test_what_cannot_be_its_bias_does_not_matter(name, shape):
    model = Custom(name, *shape)
    assert bias_of(find_layer(model, "matrix", "layer")) is None


def test_an_attention_with_weights_of_their_own_is_refused():
    model = Attention(kdim=3, vdim=3)
    with pytest.raises(ValueError, match=r"which bias belongs .*'attn.q_proj_weight'.*'in_proj_bias'"):
        cluster_accuracy(model, (INPUTS, LABELS), {"attn.q_proj_weight": Partition.blocks((4, 4), 2)}, "only")
