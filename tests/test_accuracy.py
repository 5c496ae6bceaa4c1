"""Class accuracy, whole and with clusters on and off, against masks applied by hand."""

import copy

import pytest
import torch
from torch import nn

from modfast import Partition, class_accuracy, cluster_accuracy


@pytest.fixture
def problem():
    """A small network with biases, a convolution and dropout, and data to run it on."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(6 * 16, 12),
        nn.ReLU(),
        nn.Linear(12, 5),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # so that clusters differ in what they answer
    return model, (torch.randn(203, 1, 6, 6), torch.randint(0, 5, (203,)))


def by_hand(model, inputs, labels, classes):
    model = copy.deepcopy(model).eval()
    predicted = model(inputs).argmax(1)
    return torch.stack([(predicted[labels == c] == c).double().mean() for c in range(classes)])


def test_class_accuracy_counts_each_class(problem):
    model, (inputs, labels) = problem
    expected = by_hand(model, inputs, labels, 5)
    assert torch.equal(class_accuracy(model, (inputs, labels)), expected)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=17)
    assert torch.equal(class_accuracy(model, loader), expected)


def test_a_class_without_inputs_is_nan(problem):
    model, (inputs, labels) = problem
    result = class_accuracy(model, (inputs, labels.clamp(max=3)))
    assert torch.isnan(result[4])
    assert not torch.isnan(result[:4]).any()


@pytest.mark.parametrize("mode", ["only", "without"])
def test_cluster_accuracy_is_that_of_a_model_masked_by_hand(problem, mode):
    model, (inputs, labels) = problem
    partitions = {
        "0": Partition([0, 0, 1, 1, 2, -1], [0], 3),
        "4": Partition(torch.arange(12) % 3, torch.randint(-1, 3, (96,)), 3),
    }
    result = cluster_accuracy(model, (inputs, labels), partitions, mode)
    assert result.shape == (3, 5)
    for cluster in range(3):
        masked = copy.deepcopy(model)
        for name, partition in partitions.items():
            layer = masked.get_submodule(name)
            row_on, col_on = (
                each == cluster if mode == "only" else each != cluster
                for each in (partition.row_labels, partition.col_labels)
            )
            layer.weight.data[~row_on] = 0
            layer.weight.data[:, ~col_on] = 0
            layer.bias.data[~row_on] = 0
        torch.testing.assert_close(result[cluster], by_hand(masked, inputs, labels, 5), equal_nan=True)
    assert not torch.equal(result[0], result[1])


def test_weights_stored_transposed_are_masked_in_place(problem):
    torch.manual_seed(1)
    model = nn.Sequential(nn.ConvTranspose1d(4, 6, 1), nn.Flatten())
    inputs, labels = torch.randn(50, 4, 1), torch.randint(0, 6, (50,))
    partition = Partition([0, 0, 0, 1, 1, 1], [0, 0, 1, 1], 2)
    result = cluster_accuracy(model, (inputs, labels), {"0": partition}, "only")
    masked = copy.deepcopy(model)
    masked[0].weight.data *= partition.mask().T[..., None] & (partition.row_labels == 0)[None, :, None]
    masked[0].bias.data[3:] = 0
    torch.testing.assert_close(result[0], by_hand(masked, inputs, labels, 6), equal_nan=True)


def test_the_model_is_left_as_it_was(problem):
    model, data = problem
    model.train()
    model[3].eval()
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    cluster_accuracy(model, data, {"6": Partition.blocks((5, 12), 2)}, "only")
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
    assert [module.training for module in model] == [True, True, True, False, True, True, True]


def test_the_mode_returns_also_after_an_error(problem):
    model, (inputs, labels) = problem
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\]"):
        class_accuracy(model, (inputs, labels + 1))
    assert model.training


@pytest.mark.parametrize(
    ("partitions", "mode", "message"),
    [
        ({"6": Partition.blocks((5, 12), 2)}, "alone", "mode must be one of"),
        ({"nowhere": Partition.blocks((5, 12), 2)}, "only", "'nowhere' is no layer"),
        ({"6": Partition.blocks((12, 5), 2)}, "only", r"has \(out, in\) \(5, 12\)"),
        (
            {"6": Partition.blocks((5, 12), 2), "4": Partition.blocks((12, 96), 3)},
            "only",
            "one number of clusters",
        ),
        ({}, "only", "one number of clusters"),
    ],
)
def test_bad_arguments(problem, partitions, mode, message):
    model, data = problem
    with pytest.raises(ValueError, match=message):
        cluster_accuracy(model, data, partitions, mode)


def test_no_data():
    with pytest.raises(ValueError, match="no batch"):
        class_accuracy(nn.Identity(), [])
    with pytest.raises(ValueError, match="3 inputs and 2 labels"):
        class_accuracy(nn.Identity(), (torch.eye(3), torch.zeros(2, dtype=torch.int64)))
