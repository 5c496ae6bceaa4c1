"""Subclasses of layers whose forward pass may use the weight otherwise are refused, and only these."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import modfast
from modfast import EnmeshmentLoss, Partition, enmeshment
from modfast.layers.layer import find_layer
from modfast.layers.readable import UnsupportedWeightError

INPUTS, LABELS = torch.linspace(-1, 1, 80).reshape(10, 8), torch.arange(10) % 4


class Masked(nn.Linear):
    def __init__(self):
        super().__init__(8, 8)
        self.register_buffer("mask", torch.eye(8))

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


class LowRank(nn.Linear):
    def __init__(self):
        super().__init__(8, 8)
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


class WithinAChild(nn.Linear):
    """Keeps the factors in modules."""

    def __init__(self):
        super().__init__(8, 8)
        self.adapter = nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False))

    def forward(self, x):
        return super().forward(x) + self.adapter(x)


class GainedConvolution(nn.Conv1d):
    """Replaces a part of the forward pass only."""

    def __init__(self):
        super().__init__(8, 8, 1)
        self.gain = nn.Parameter(torch.ones(8, 1, 1))

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * self.gain, bias)


class Own(nn.Linear):
    """Has a forward pass of its own and nothing besides, as Falcon's layers in transformers."""

    def __init__(self):
        super().__init__(8, 8)

    def forward(self, x):
        return x @ self.weight.T + self.bias


class Counted(nn.Linear):
    """Has a buffer of its own, but PyTorch's forward pass."""

    def __init__(self):
        super().__init__(8, 8)
        self.register_buffer("uses", torch.zeros(()))


def network(layer):
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 4))


def _patched():
    """A layer whose own forward pass is an attribute."""
    layer = Counted()
    layer.forward = lambda x: F.linear(x, layer.weight * layer.uses, layer.bias)
    return layer


REFUSED = {
    "mask": (Masked, "'mask'"),
    "low rank": (LowRank, "'down', 'up'"),
    "modules": (WithinAChild, r"'adapter\.0\.weight', 'adapter\.1\.weight'"),
    "patched": (_patched, "'uses'"),
    "pruned": (lambda: prune.l1_unstructured(Masked(), "weight", 0.5), "'mask'"),
    "normed": (lambda: parametrizations.weight_norm(Masked()), "'mask'"),
}
USES = {
    "loss": lambda model: EnmeshmentLoss(model, 2),
    "loss by partitions": lambda model: EnmeshmentLoss(model, {"0": Partition.blocks((8, 8), 2)}),
    "network_graph": lambda model: modfast.network_graph(model, layers=["0", "2"]),
    "network_graph of inputs": lambda model: modfast.network_graph(model, example_inputs=INPUTS),
    "gradient_affinity": lambda model: modfast.gradient_affinity(
        model, "0", [(INPUTS, LABELS)], F.cross_entropy
    ),
    "cluster_accuracy": lambda model: modfast.cluster_accuracy(
        model, (INPUTS, LABELS), {"0": Partition.blocks((8, 8), 2)}, "only"
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", REFUSED)
def test_other_tensors_in_a_forward_pass_of_its_own_are_refused(kind, use):
    make, others = REFUSED[kind]
    with pytest.raises(
        UnsupportedWeightError,
        match=rf"^layer '0' \(\w+\) cannot be read: its weight may not be .* weight and bias {others}$",
    ):
        USES[use](network(make()))


def test_a_convolution_that_is_changed_in_part_is_refused():
    with pytest.raises(UnsupportedWeightError, match=r"layer '0' .* besides weight and bias 'gain'"):
        EnmeshmentLoss(nn.Sequential(GainedConvolution()), {"0": Partition.blocks((8, 8), 2)})


@pytest.mark.parametrize("kind", REFUSED)
def test_the_other_layers_are_read(kind):
    model = network(REFUSED[kind][0]())
    expected = enmeshment(model[2].weight, Partition.blocks((4, 8), 2))
    assert EnmeshmentLoss(model, 2, layers=["2"])() == expected
    assert EnmeshmentLoss(model, 2, exclude=model[0])() == expected
    assert modfast.network_graph(model, layers=["2"]).shape == (12, 12)
    partitions = {"2": Partition.blocks((4, 8), 2)}
    assert modfast.cluster_accuracy(model, (INPUTS, LABELS), partitions, "only").shape == (2, 4)
    assert modfast.gradient_affinity(model, "2", [(INPUTS, LABELS)], F.cross_entropy).shape == (4, 8)


@pytest.mark.parametrize(
    "make",
    [
        Own,
        Counted,
        lambda: prune.l1_unstructured(Own(), "weight", 0.5),
        lambda: parametrizations.weight_norm(Own()),
        lambda: parametrizations.spectral_norm(Own()),
        lambda: nn.utils.parametrizations.orthogonal(Counted()),
    ],
)
def test_a_layer_with_nothing_besides_is_read(make):
    model = network(make()).eval()
    expected = enmeshment(model[0].weight, Partition.blocks((8, 8), 2))
    torch.testing.assert_close(EnmeshmentLoss(model, 2, layers=["0"])(), expected)


def test_layers_of_transformers():
    falcon = pytest.importorskip("transformers.models.falcon.modeling_falcon")
    idefics = pytest.importorskip("transformers.models.idefics.modeling_idefics")
    for layer in (falcon.FalconLinear(8, 8), idefics.IdeficsDecoupledLinear(8, 8, 2)):
        assert find_layer(network(layer), "0", "layer").source.tensor() is layer.weight
