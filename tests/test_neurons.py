"""What activates neurons, and which of them a weight uses, against plain loops."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from modfast import LiveUnits, Partition, clusterability, label_semanticity, live_units


@pytest.fixture
def problem():
    """Convolutions, linear layers, activations in place, dropout; and data."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(6 * 16, 12),
        nn.ReLU(inplace=True),
        nn.Linear(12, 5),
    )
    return model, (torch.randn(203, 1, 6, 6), torch.randint(0, 5, (203,)))


def by_hand(outputs, labels, top, classes):
    """Shares of classes from the outputs of a layer, (n, neurons), in plain Python."""
    shares = []
    for neuron in outputs.double().T.tolist():
        order = sorted(range(len(neuron)), key=lambda place: (-neuron[place], place))
        share = len({int(labels[place]) for place in order[:top]}) / classes
        shares.append(math.nan if len(set(neuron)) == 1 else share)
    return torch.tensor(shares, dtype=torch.float64)


# --- label semanticity


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("top", [1, 3, 7, 203])
def test_it_is_that_of_a_plain_loop(problem, top, dtype):
    model, (inputs, labels) = problem
    model, inputs = model.to(dtype), inputs.to(dtype)
    whole = copy.deepcopy(model).eval()
    with torch.no_grad():
        expected = {
            "0": by_hand(whole[0](inputs).amax((2, 3)), labels, top, 5),
            "4": by_hand(whole[:5](inputs), labels, top, 5),
            "6": by_hand(whole(inputs), labels, top, 5),
        }
    found = label_semanticity(model, (inputs, labels), ["6", "0", "4"], top)
    assert list(found) == ["0", "4", "6"]  # in the model's order
    assert all(torch.equal(found[name], shares) for name, shares in expected.items())
    assert all(shares.dtype == torch.float64 for shares in found.values())
    assert top not in (3, 7) or 0 < found["4"].min() < found["4"].max() < 1 + 1e-9


def test_batches_of_any_size_and_form_give_the_same(problem):
    model, (inputs, labels) = problem
    model.double()  # so that no two activations are equal for one size of batch and different for another
    inputs = inputs.double()
    expected = label_semanticity(model, (inputs, labels), ["0", "6"], 9)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=17)
    empty = iter([(inputs[:0], labels[:0]), (inputs, labels)])
    others = [
        label_semanticity(model, (inputs, labels), ["0", "6"], 9, batch_size=size) for size in (1, 8, 202)
    ]
    others += [label_semanticity(model, data, ["0", "6"], 9) for data in (loader, empty)]
    for other in others:
        assert all(torch.equal(other[name], shares) for name, shares in expected.items())


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_of_equal_activations_the_earlier_comes_first(batch_size):
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    inputs = torch.tensor([0.0, 2, 1, 2, 1, 1, 0, 2]).view(-1, 1)
    labels = torch.tensor([4, 0, 0, 0, 0, 3, 9, 0])  # among the equal ones, the new class comes last
    for top, distinct in ((3, 1), (4, 1), (5, 1), (6, 2), (7, 3), (8, 4)):
        found = label_semanticity(model, (inputs, labels), "", top, batch_size)[""]
        assert found.tolist() == [distinct / 10]


class Negated(nn.Module):
    def forward(self, inputs):
        return inputs.neg_()


def test_it_is_the_output_of_the_layer_whatever_is_written_to_it():
    model = nn.Sequential(nn.Linear(1, 1, dtype=torch.float64), Negated())
    model[0].weight.data.fill_(1.0)
    inputs = torch.tensor([[3.0], [2.0], [1.0], [0.0]], dtype=torch.float64)
    found = label_semanticity(model, (inputs, torch.tensor([0, 0, 1, 2])), "0", 2)
    assert found["0"].tolist() == [1 / 3]


def test_a_dead_neuron_is_nan(problem):
    model, (inputs, labels) = problem
    model[4].weight.data[3] = 0.0
    found = label_semanticity(model, (inputs, labels), "4", 10, batch_size=50)["4"]
    assert found.isnan().nonzero().flatten().tolist() == [3]
    # One that differs only between batches is alive.
    line = nn.Linear(1, 1, bias=False)
    steps = torch.arange(4.0).div(2, rounding_mode="floor").view(-1, 1)
    found = label_semanticity(line, (steps, torch.tensor([0, 0, 1, 1])), "", 2, batch_size=2)
    assert found[""].tolist() == [0.5]


def test_the_number_of_classes(problem):
    model, (inputs, labels) = problem
    shares = label_semanticity(model, (inputs, labels), "6", 10)["6"]
    wider = label_semanticity(model, (inputs, labels), "6", 10, num_classes=np.int64(50))["6"]
    torch.testing.assert_close(wider * 10, shares)
    with pytest.raises(ValueError, match=r"data: labels must lie in \[0, 3\], got \[0, 1, 2, 3, 4\]"):
        label_semanticity(model, (inputs, labels), "6", 10, num_classes=4)
    with pytest.raises(ValueError, match="data: labels must be at least 0, got"):
        label_semanticity(model, (inputs, labels - 1), "6", 10)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d])
def test_a_channel_has_its_maximum_over_positions(kind):
    torch.manual_seed(0)
    model = kind(2, 4, 2, groups=2)
    inputs = torch.randn(40, 2, *[3] * len(model.kernel_size))
    labels = torch.arange(40) % 4
    with torch.no_grad():
        expected = by_hand(model(inputs).flatten(2).amax(2), labels, 3, 4)
    assert torch.equal(label_semanticity(model, (inputs, labels), "", 3)[""], expected)


def test_the_model_is_left_as_it_was(problem):
    model, data = problem
    model.train()
    model[3].eval()
    hook = model[4].register_forward_hook(lambda module, inputs, output: 2 * output)
    before = copy.deepcopy(model.state_dict())
    inputs = data[0].clone()
    label_semanticity(model, data, ["0", "4"])
    assert [list(module._forward_hooks) for module in model] == [[], [], [], [], [hook.id], [], []]
    assert [module.training for module in model] == [True, True, True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(data[0], inputs)
    assert torch.is_grad_enabled()


class Broken(nn.Linear):
    def forward(self, inputs):
        raise OSError("no weights today")


def test_hooks_are_gone_after_an_error(problem):
    model, data = problem
    model[6] = Broken(12, 5)
    for chosen in (["0", "4"], model[4], "6"):
        with pytest.raises(OSError, match="no weights today"):
            label_semanticity(model, data, chosen)
        assert not any(module._forward_hooks for module in model)
        assert model.training


class Twice(nn.Module):
    """Runs one layer twice, and another one never."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
        self.stack = nn.Parameter(torch.zeros(2, 4, 4))

    def forward(self, inputs):
        return self.used(self.used(inputs))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("used", "'used' must run once for a batch, .* got 2 runs"),
        ("unused", "'unused' must run once for a batch, .* got 0 runs"),
        ("stack[1]", r"'stack\[1\]' of a Twice must be a linear layer or a convolution"),
        ("nowhere", "layers: 'nowhere'"),
        ([], "layers must name at least one layer, got none"),
    ],
)
def test_layers_without_one_output_for_an_input(layers, message):
    model, data = Twice(), (torch.randn(9, 4), torch.arange(9) % 3)
    with pytest.raises(ValueError, match=message):
        label_semanticity(model, data, layers, 2)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Linear(4, 3), (6, 2, 4), r"outputs \(n, neurons\), got shape \(6, 2, 3\)"),
        (nn.Conv1d(6, 6, 1), (6, 4), r"outputs \(n, channels, \*positions\), got shape \(6, 4\)"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(24, 3)), (6, 4), r"outputs \(n, neurons\), got shape \(3,\)"),
        (nn.Sequential(nn.Unflatten(0, (3, 2)), nn.Flatten(1), nn.Linear(8, 3)), (6, 4), "got 3 for 6"),
    ],
)
def test_outputs_of_other_shapes(model, shape, message):
    with pytest.raises(ValueError, match=message):
        label_semanticity(model, (torch.randn(shape), torch.arange(6) % 2), lambda name, shape: True, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top": 204}, "top must be at most the number of inputs, 203, got 204"),
        ({"top": 0}, "top must be a positive integer, got 0"),
        ({"top": 5.0}, "top must be a positive integer, got 5.0"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"batch_size": True}, "batch_size must be a positive integer, got True"),
        ({"num_classes": 0}, "num_classes must be None or a positive integer, got 0"),
        ({"data": []}, "top must be at most the number of inputs, 0, got 50"),
    ],
)
def test_bad_arguments(problem, arguments, message):
    model, data = problem
    with pytest.raises(ValueError, match=message):
        label_semanticity(**{"model": model, "data": data, "layers": "4", **arguments})


def test_other_bad_arguments(problem):
    model, (inputs, labels) = problem
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        label_semanticity(by_hand, (inputs, labels), "4")
    with pytest.raises(TypeError, match="labels must be integers"):
        label_semanticity(model, (inputs, labels.double()), "4")
    with pytest.raises(ValueError, match=r"'4' must give numbers, .* got NaN"):
        label_semanticity(model, (inputs * math.nan, labels), "4")


# --- live units


def effective(parts):
    """The exponential of the entropy of parts, in plain Python."""
    total = math.fsum(parts)
    if total == 0:
        return 0.0
    return math.exp(-math.fsum(p / total * math.log(p / total) for p in parts if p > 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", [(), (3,), (2, 3)])
def test_live_units_are_those_of_a_plain_loop(dtype, kernel):
    torch.manual_seed(0)
    weight = torch.randn(8, 6, *kernel).to(dtype)
    weight[2], weight[5] = weight[2] * 0.05, 0.0
    weight[:, 1] *= 0.01
    rows, columns = [0, 0, 1, 1, 2, -1, 2, 0], [0, 1, 2, -1, 0, 1]
    energy = [[math.fsum(float(w) ** 2 for w in weight[i, j].flatten()) for j in range(6)] for i in range(8)]
    by_row = [math.fsum(energy[i]) for i in range(8)]
    by_column = [math.fsum(energy[i][j] for i in range(8)) for j in range(6)]
    total = math.fsum(by_row)
    inside = [
        math.fsum(energy[i][j] for i in range(8) for j in range(6) if rows[i] == columns[j] == c)
        for c in range(3)
    ]
    found = live_units(weight, Partition(rows, columns, 3))
    assert found.rows.tolist() == [each >= 0.01 * total / 8 for each in by_row]
    assert found.columns.tolist() == [each >= 0.01 * total / 6 for each in by_column]
    assert found.rows.tolist() == [True, True, False, True, True, False, True, True]
    assert found.columns.tolist() == [True, False, True, True, True, True]
    assert found.effective_rows == pytest.approx(effective(by_row), rel=1e-12)
    assert found.effective_columns == pytest.approx(effective(by_column), rel=1e-12)
    assert found.cluster_shares.dtype == torch.float64
    assert found.cluster_shares.tolist() == pytest.approx([each / total for each in inside], rel=1e-12)
    assert found.effective_clusters == pytest.approx(effective(inside), rel=1e-12)
    share = float(clusterability(weight.double(), Partition(rows, columns, 3)))
    assert float(found.cluster_shares.sum()) == pytest.approx(share, rel=1e-12)


def test_a_collapsed_weight_is_told_from_one_in_clusters():
    clusters = Partition.blocks((8, 8), 4)
    whole = live_units(clusters.mask().double(), clusters)
    assert whole.cluster_shares.tolist() == [0.25] * 4
    assert whole.effective_clusters == pytest.approx(4)
    assert whole.effective_rows == whole.effective_columns == pytest.approx(8)
    weight = torch.zeros(8, 8)
    weight[2:4, 2:4] = 1.0
    assert float(clusterability(weight, clusters)) == 1.0
    collapsed = live_units(weight, clusters)
    assert collapsed.cluster_shares.tolist() == [0, 1, 0, 0]
    assert collapsed.effective_clusters == 1.0
    assert collapsed.effective_rows == pytest.approx(2)
    assert (
        collapsed.rows.nonzero().flatten().tolist()
        == collapsed.columns.nonzero().flatten().tolist()
        == [2, 3]
    )


@pytest.mark.parametrize("factor", [1e-300, 1e-160, 1e160, 1e300])
def test_the_scale_does_not_matter(factor):
    torch.manual_seed(0)
    weight, clusters = torch.randn(6, 4, dtype=torch.float64), Partition.blocks((6, 4), 2)
    found, expected = live_units(weight * factor, clusters), live_units(weight, clusters)
    assert torch.equal(found.rows, expected.rows)
    assert found.effective_rows == pytest.approx(expected.effective_rows)
    torch.testing.assert_close(found.cluster_shares, expected.cluster_shares)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (0, 3), (4, 0), (4, 3, 0)])
def test_nothing_lives_in_a_weight_of_zeros(shape):
    found = live_units(torch.zeros(shape), Partition([0] * shape[0], [0] * shape[1], 2))
    assert found.rows.tolist() == [False] * shape[0]
    assert found.columns.tolist() == [False] * shape[1]
    assert (found.effective_rows, found.effective_columns, found.effective_clusters) == (0.0, 0.0, 0.0)
    assert found.cluster_shares.tolist() == [0.0, 0.0]


def test_all_weight_may_lie_between_clusters():
    found = live_units(torch.eye(2).flip(0), Partition([0, 1], [0, 1], 2))
    assert found.cluster_shares.tolist() == [0.0, 0.0]
    assert found.effective_clusters == 0.0
    assert found.effective_rows == pytest.approx(2)


def test_the_threshold_and_no_partition():
    weight = torch.tensor([[1.0, 1.0], [0.5, 0.5]], requires_grad=True)  # shares of rows 0.8 and 0.2
    assert live_units(weight, threshold=0.4).rows.tolist() == [True, True]
    assert live_units(weight, threshold=0.41).rows.tolist() == [True, False]
    found = live_units(weight)
    assert isinstance(found, LiveUnits)
    assert found.cluster_shares is None
    assert found.effective_clusters is None
    assert found.columns.tolist() == [True, True]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight": [[1.0]]}, TypeError, r"weight must be a torch\.Tensor, got list"),
        (
            {"weight": torch.ones(2, 2, dtype=torch.int64)},
            TypeError,
            r"weight must be float32.* got torch\.int64",
        ),
        ({"weight": torch.ones(2)}, ValueError, r"weight must have shape \(out, in, \*kernel\), got \(2,\)"),
        ({"weight": torch.eye(2).to_sparse()}, ValueError, "weight must be dense, got layout"),
        ({"weight": torch.eye(2, device="meta")}, ValueError, "weight must hold numbers"),
        ({"weight": torch.eye(2) / 0}, ValueError, "weight must be finite, got NaN or infinity"),
        ({"weight": torch.eye(2) * math.inf}, ValueError, "weight must be finite"),
        ({"partition": 2}, TypeError, r"partition must be None or a modfast\.Partition, got int"),
        ({"partition": Partition([0], [0, 1], 2)}, ValueError, r"\(out, in\), \(2, 2\), got \(1, 2\)"),
        ({"threshold": 0}, ValueError, "threshold must be a finite number above 0, got 0"),
        ({"threshold": math.nan}, ValueError, "threshold must be a finite number above 0, got nan"),
        ({"threshold": "low"}, ValueError, "threshold must be a finite number above 0, got 'low'"),
    ],
)
def test_bad_arguments_of_live_units(arguments, error, message):
    with pytest.raises(error, match=message):
        live_units(**{"weight": torch.eye(2), **arguments})
