"""Which convolutions and what between them may belong to a tail, and what may not."""

import copy
from dataclasses import replace

import pytest
import torch
from conv_models import random_network, weights_of
from torch import nn
from torch.func import functional_call
from torch.nn import functional

import modfast.circuits.linear_tail
from modfast.circuits.linear_tail import read_tail
from modfast.models import CNN

# An even kernel with the padding "same" is padded by an operation of its own; PyTorch warns of that.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


class Net(nn.Module):
    """Two convolutions of two dimensions and a linear layer, with an operation between them."""

    def __init__(self, operation, **modules):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 2)
        self.operation = operation
        for name, module in modules.items():
            self.add_module(name, module)
        with torch.no_grad():
            size = self.features(torch.zeros(1, 2, 9, 8)).shape[1]
        self.head = nn.Linear(size, 3)

    def features(self, images):
        return self.conv2(functional.relu(self.operation(self, self.conv1(images)))).tanh().flatten(1)

    def forward(self, images):
        return self.head(self.features(images))


def check_exact(model, inputs, tail):
    """Check that the tail gives the model's logits, whole and with a random half of its weights at zero."""
    plain = copy.deepcopy(model).double().eval()
    for share in (1.0, 0.5):
        values, state = tail.features, {}
        for layer in tail.layers:
            assert torch.equal(layer.weight, plain.state_dict()[layer.parameter])
            mask = torch.rand(layer.weight.shape) < share
            masked = replace(layer, weight=layer.weight.where(mask, 0.0))
            state[layer.parameter] = masked.weight
            values = masked.run(values)
        with torch.no_grad():
            expected = functional_call(plain, state, (inputs.double(),))
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-12)


def names(tail):
    return [layer.name for layer in tail.layers]


def test_the_papers_network():
    model, images = CNN((3, 8, 8), hidden=7), torch.rand(12, 3, 8, 8)
    tail = read_tail(model, images, "*")
    assert names(tail) == ["conv1", "fc1", "fc2", "fc3"]
    assert torch.equal(tail.features, images.flatten(1).double())
    # ReLU comes after the pooling, and is that of the layer.
    assert [stage.kind for stage in tail.layers[0].stages] == ["max"]
    assert tail.layers[0].activation == "relu"
    assert (tail.layers[0].places, tail.layers[0].held_places) == (64, 16)
    check_exact(model, images, tail)
    # By default the tail is what it always was.
    tail = read_tail(model, images)
    assert names(tail) == ["fc1", "fc2", "fc3"]
    assert tail.earlier == ("conv1",)
    assert tail.obstacle == "MaxPool2DWithIndices at or after layer 'conv1'"


@pytest.mark.parametrize("seed", range(0, 90, 3))
def test_random_networks(seed):
    model, inputs = random_network(seed)
    tail = read_tail(model, inputs[:20], weights_of(model))
    assert names(tail) == weights_of(model)
    check_exact(model, inputs[:20], tail)


@pytest.mark.parametrize(
    ("operation", "modules", "kinds"),
    [
        (lambda model, x: x, {}, []),
        (lambda model, x: model.norm(x), {"norm": nn.BatchNorm2d(4)}, ["affine"]),
        (lambda model, x: model.norm(x), {"norm": nn.BatchNorm2d(4, affine=False)}, ["affine"]),
        (lambda model, x: model.norm(x.relu_()), {"norm": nn.BatchNorm2d(4)}, ["relu", "affine"]),
        (lambda model, x: functional.max_pool2d(x, 2), {}, ["max"]),
        (lambda model, x: functional.max_pool2d(x, 3, 2, 1, ceil_mode=True), {}, ["max"]),
        (lambda model, x: functional.max_pool2d(x, (2, 3), 1, dilation=2), {}, ["max"]),
        (lambda model, x: functional.max_pool2d(x.tanh(), 2, return_indices=True)[0], {}, ["tanh", "max"]),
        (lambda model, x: functional.avg_pool2d(x, (3, 2), 2, 1), {}, ["mean"]),
        (lambda model, x: functional.avg_pool2d(x, 2, count_include_pad=False), {}, ["mean"]),
        (lambda model, x: functional.avg_pool2d(x, 2, divisor_override=3), {}, ["mean"]),
        (lambda model, x: functional.adaptive_avg_pool2d(x, (7, 3)), {}, ["mean"]),
        (lambda model, x: functional.adaptive_max_pool2d(x, (4, 4)), {}, ["max"]),
        (lambda model, x: functional.pad(x.sigmoid(), (1, 2, 0, 1)), {}, ["sigmoid", "mean"]),
        (lambda model, x: functional.pad(x, (-1, 2, 1, -2)), {}, ["mean"]),
        (lambda model, x: nn.ZeroPad2d(2)(x), {}, ["mean"]),
        (lambda model, x: functional.dropout2d(x, 0.5, model.training), {}, []),
        (lambda model, x: functional.gelu(x.contiguous(memory_format=torch.channels_last)), {}, ["gelu"]),
        (lambda model, x: functional.leaky_relu(functional.leaky_relu(x, 0.2), 0.3), {}, ["leaky_relu"] * 2),
        (lambda model, x: model.extra(x), {"extra": nn.Conv2d(4, 4, 2, padding="same")}, ["mean"]),
    ],
)
def test_what_may_lie_between(operation, modules, kinds):
    model, inputs = Net(operation, **modules), torch.randn(20, 2, 9, 8)
    for _ in range(3):
        model(inputs)
    tail = read_tail(model, inputs, "*")
    assert [stage.kind for stage in tail.layers[0].stages] == kinds
    check_exact(model, inputs, tail)


def sequential(*parts):
    return nn.Sequential(*parts)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (
            sequential(nn.Conv1d(2, 3, 3, 2, 1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(6, 2)),
            (2, 8),
        ),
        (
            sequential(nn.Conv1d(2, 3, 3), nn.AvgPool1d(3, 1), nn.SiLU(), nn.Flatten(), nn.Linear(12, 2)),
            (2, 8),
        ),
        (sequential(nn.Conv1d(2, 3, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 2)), (2, 8)),
        (sequential(nn.Conv1d(2, 3, 3), nn.AdaptiveMaxPool1d(4), nn.Flatten(), nn.Linear(12, 2)), (2, 8)),
        (
            sequential(
                nn.Conv3d(1, 2, 2),
                nn.BatchNorm3d(2),
                nn.MaxPool3d(2, 1),
                nn.Conv3d(2, 3, 1),
                nn.AvgPool3d(2),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(3, 2),
            ),
            (1, 4, 5, 4),
        ),
        (sequential(nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)), (4, 4, 4)),
        # A convolution of one place, and a batch norm of a linear layer.
        (
            sequential(
                nn.Conv2d(2, 5, 4),
                nn.Flatten(),
                nn.Linear(5, 4),
                nn.BatchNorm1d(4),
                nn.ReLU(),
                nn.Linear(4, 2),
            ),
            (2, 4, 4),
        ),
        # Rows of places that become channels.
        (
            sequential(
                nn.Conv2d(2, 3, 2), nn.Flatten(1, 2), nn.Conv1d(9, 2, 2), nn.Flatten(), nn.Linear(4, 2)
            ),
            (2, 4, 4),
        ),
        # Logits that are means over places.
        (sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (1, 4, 4)),
        (sequential(nn.Conv2d(1, 3, 4), nn.BatchNorm2d(3), nn.Flatten()), (1, 4, 4)),
    ],
)
def test_whole_networks(model, shape):
    inputs = torch.randn(20, *shape)
    for _ in range(3):
        model(inputs)
    tail = read_tail(model, inputs, weights_of(model))
    assert names(tail) == weights_of(model)
    check_exact(model, inputs, tail)


class Means(Net):
    def features(self, images):
        return self.operation(self, self.conv2(self.conv1(images).relu()))


@pytest.mark.parametrize("dimensions", [(2, 3), (-1, -2)])
def test_a_mean_over_all_places(dimensions):
    model, inputs = Means(lambda model, x: x.mean(dimensions)), torch.randn(9, 2, 9, 8)
    tail = read_tail(model, inputs, "*")
    assert names(tail) == ["conv1", "conv2", "head"]
    check_exact(model, inputs, tail)


def test_a_fixed_part_before_is_run_in_batches(monkeypatch):
    monkeypatch.setattr(modfast.circuits.linear_tail, "_BATCH_SIZE", 10)
    model, inputs = Net(lambda model, x: model.norm(x), norm=nn.BatchNorm2d(4)), torch.randn(33, 2, 9, 8)
    model(inputs)
    tail = read_tail(model, inputs, ["conv2"])
    assert names(tail) == ["conv2", "head"]
    assert [layer.pruned for layer in tail.layers] == [True, False]
    check_exact(model, inputs, tail)


@pytest.mark.parametrize(
    ("operation", "modules", "obstacle"),
    [
        (lambda model, x: x + x, {}, "Add at or after layer 'conv1'"),
        (lambda model, x: x + model.extra(x), {"extra": nn.Conv2d(4, 4, 1)}, "Add"),
        (lambda model, x: x * 2, {}, "Mul"),
        (lambda model, x: functional.elu(x), {}, "Elu"),
        (lambda model, x: model.norm(x), {"norm": nn.GroupNorm(2, 4)}, "NativeGroupNorm"),
        (
            lambda model, x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
            {},
            "AvgPool2D whose windows",
        ),
        (
            lambda model, x: functional.avg_pool2d(x, 2, ceil_mode=True),
            {},
            "AvgPool2D whose windows have several",
        ),
        (lambda model, x: functional.adaptive_avg_pool2d(x, 4), {}, "AdaptiveAvgPool2D whose windows have"),
        (lambda model, x: functional.lp_pool2d(x, 2, 2), {}, "Pow"),
        (lambda model, x: x - x.mean(1, keepdim=True), {}, "Sub"),
        (lambda model, x: x.mean(2, keepdim=True).expand(-1, -1, 3, -1), {}, "Expand"),
        (lambda model, x: x.mean(2, keepdim=True).repeat(1, 1, 2, 1), {}, "Repeat"),
        (lambda model, x: functional.interpolate(x, scale_factor=2), {}, "UpsampleNearest2D"),
        (lambda model, x: x.transpose(2, 3), {}, "Transpose"),
        (lambda model, x: x.flip(2), {}, "Flip"),
        (lambda model, x: functional.pad(x, (0, 0, 0, 0, 1, -1)), {}, "ConstantPadNd that adds channels"),
        (lambda model, x: functional.pad(x, (1, 1, 1, 1), mode="reflect"), {}, "ReflectionPad2D"),
        (
            lambda model, x: model.extra(x),
            {"extra": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")},
            "ReflectionPad2D",
        ),
        (
            lambda model, x: model.extra(x),
            {"extra": nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate")},
            "ReplicationPad2D",
        ),
        (
            lambda model, x: model.extra(x),
            {"extra": nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")},
            "CopySlices",
        ),
        (
            lambda model, x: model.extra(x),
            {"extra": nn.ConvTranspose2d(4, 4, 2)},
            "layer 'extra', a transposed convolution",
        ),
        (
            lambda model, x: model.extra(model.extra(x)),
            {"extra": nn.Conv2d(4, 4, 1)},
            "layer 'extra', whose weight is used 2 times",
        ),
        (
            lambda model, x: functional.conv2d(x, 2 * model.extra.weight),
            {"extra": nn.Conv2d(4, 4, 1)},
            "a convolution with a kernel that is no layer's weight",
        ),
        (
            lambda model, x: functional.conv2d(x, model.extra.weight, model.extra.bias * 2),
            {"extra": nn.Conv2d(4, 4, 1)},
            r"layer 'extra', whose bias is no parameter of shape \(4,\)",
        ),
        (
            lambda model, x: functional.max_pool2d(x.flatten(1, 2)[:, None], (1, 2)).view(len(x), 4, 7, 3),
            {},
            "an operation on other channels than those of layer 'conv1'",
        ),
        (
            lambda model, x: x.view(len(x), 2, 14, 6),
            {"conv2": nn.Conv2d(2, 6, 2)},
            "layer 'conv1', whose outputs layer 'conv2' reads as other channels",
        ),
        (
            lambda model, x: model.extra(x.view(-1, 1, 7, 6)).view(len(x), 4, 7, 6),
            {"extra": nn.Conv2d(1, 1, 1)},
            r"layer 'extra', which reads shape \(64, 1, 7, 6\) for 16 inputs",
        ),
    ],
)
def test_the_tail_begins_after_anything_else(operation, modules, obstacle):
    model, inputs = Net(operation, **modules), torch.randn(20, 2, 9, 8)
    tail = read_tail(model, inputs, ["conv2"])
    assert names(tail) == ["conv2", "head"]
    check_exact(model, inputs, tail)
    with pytest.raises(
        ValueError, match=rf"layers: 'conv1' is not among .* comes {obstacle}.*method=\"reference\""
    ):
        read_tail(model, inputs, ["conv1"])


def test_a_batch_norm_without_statistics_of_its_own():
    model = Net(lambda model, x: model.norm(x), norm=nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(
        ValueError, match="comes NativeBatchNorm that uses the statistics of the batch at or after"
    ):
        read_tail(model, torch.randn(20, 2, 9, 8), "conv1")


def test_what_is_padded_with_is_not_recorded_but_noticed():
    model = Net(lambda model, x: functional.pad(x, (1, 1), value=2.0))
    with pytest.raises(ValueError, match=r"that PyTorch does not record .* at or after layer 'conv1'"):
        read_tail(model, torch.randn(5, 2, 9, 8), "*")


def test_a_batch_norm_of_other_channels():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.BatchNorm1d(18), nn.Linear(18, 2)).eval()
    with pytest.raises(ValueError, match="comes an operation on other channels than those of layer '0'"):
        read_tail(model, torch.randn(5, 1, 4, 4), "*")


def test_a_layer_that_gives_each_class_several_numbers():
    model = nn.Sequential(nn.Conv1d(2, 3, 5), nn.Flatten())
    with pytest.raises(ValueError, match="ends in layer '0', which gives 2 numbers for each class"):
        read_tail(model, torch.randn(5, 2, 6), "0")


def test_what_can_be_named_is_said():
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(
        ValueError, match=r"ends in Mean at or after layer '0'; layers=\['0'\] names what can be"
    ):
        read_tail(model, torch.randn(5, 1, 4, 4))


def test_a_batch_norm_must_be_finite():
    model = Net(lambda model, x: model.norm(x), norm=nn.BatchNorm2d(4))
    model.norm.running_var[1] = -1.0
    with pytest.raises(ValueError, match=r"the batch norm after layer 'conv1' must be finite|must be finite"):
        read_tail(model, torch.randn(5, 2, 9, 8), "*")
