"""Models in which the phases of training cannot do what is asked: said before training, or at that epoch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from modfast.data import load_dataset
from modfast.models import MLP
from modfast.train import CHECKPOINT, TrainConfig, TrainingError, read_checkpoint, train

SPECTRAL = TrainConfig(
    enmeshment_weight=20.0, epochs=3, warmup_epochs=1, clusters_from="spectral", batch_size=500, threads=1
)
CHAINED = replace(SPECTRAL, chained=True)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def refused(model, digits, config, tmp_path, match):
    """Train, which must be refused before anything is written."""
    with pytest.raises(ValueError, match=match):
        train(model, digits, config, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def with_zeros(digits):
    model = MLP(digits.image_shape)
    model.fc2.weight.requires_grad_(False).zero_()
    return model


@pytest.mark.parametrize("affinity", ["weights", "gradients"])
def test_a_layer_of_zeros_has_no_clusters(digits, tmp_path, affinity):
    config = replace(SPECTRAL, affinity=affinity)
    # The layer's gradients are zero as well, since the ReLU before it and that after it put out zeros.
    model = with_zeros(digits) if affinity == "weights" else dead(digits)
    with pytest.raises(
        TrainingError, match=rf"'fc2' has no clusters after epoch 1: all its {affinity} are zero"
    ):
        train(model, digits, config, out=tmp_path)
    assert len(read_checkpoint(tmp_path / CHECKPOINT)["history"]) == 1


def dead(digits):
    model = MLP(digits.image_shape)
    model.fc2.bias = nn.Parameter(torch.full((64,), -1e6))
    return model


def test_a_convolution_in_groups_cannot_be_chained(digits, tmp_path):
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(8 * 16, 10)
    )
    config = replace(CHAINED, layers=("1",), num_clusters=2)
    refused(
        model,
        digits,
        config,
        tmp_path,
        "chained must be False for layer '1', a convolution in groups, got True",
    )
    run = train(model, digits, replace(config, chained=False))
    assert run.partitions["1"].num_clusters == 2


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.unused = nn.Linear(64, 64)

    def forward(self, images):
        first = self.fc1(images.flatten(1)).relu()
        return self.fc3(first + self.fc2(first).relu())


def test_a_layer_that_is_not_used_cannot_be_chained(digits, tmp_path):
    config = replace(CHAINED, layers=("fc1", "unused"), num_clusters=2)
    refused(
        Residual(),
        digits,
        config,
        tmp_path,
        r"layers must be among .*'fc3'.* to be chained, got \['unused'\]",
    )


def test_a_model_that_is_no_chain_may_be_chained(digits):
    config = replace(CHAINED, layers=("fc1", "fc2"), num_clusters=4)
    run = train(Residual(), digits, config)
    # Both write the units that the second one reads.
    assert torch.equal(run.partitions["fc1"].row_labels, run.partitions["fc2"].row_labels)
    assert torch.equal(run.partitions["fc1"].row_labels, run.partitions["fc2"].col_labels)


class Sums(Residual):
    def forward(self, images):
        return super().forward(images.cumsum(1)) + self.fc3(self.fc1(images.flatten(1)).cumsum(1))


def test_a_model_that_cannot_be_followed_cannot_be_chained(digits, tmp_path):
    match = r"chained must be False for this model, got True \(the model \(Sums\): aten.cumsum"
    refused(Sums(), digits, replace(CHAINED, layers=("fc1", "fc2")), tmp_path, match)


def test_gradients_of_a_layer_that_is_not_used(digits, tmp_path):
    config = replace(SPECTRAL, layers=("fc1", "unused"), affinity="gradients")
    refused(Residual(), digits, config, tmp_path, "loss does not depend on the weight of layer 'unused'")


@pytest.mark.parametrize("kind", ["without", "frozen"])
def test_l1_needs_linear_layers_that_learn(digits, tmp_path, kind):
    model = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    if kind == "frozen":
        model.append(nn.Linear(10, 10).requires_grad_(False))
    config = TrainConfig(epochs=1, layers=("0",), num_clusters=1, l1_weight=1.0)
    refused(
        model, digits, config, tmp_path, "l1_weight must be 0 for a model without linear layers that learn"
    )


class Overflowing(MLP):
    def forward(self, images):
        logits = super().forward(images)
        return logits if self.training else logits * self.factor


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_test_loss_that_is_not_finite_ends_the_training(digits, factor):
    model = Overflowing(digits.image_shape)
    model.factor = factor
    # JSON has no such number: the results could not be written after the last epoch.
    with pytest.raises(TrainingError, match="the loss on the test images is nan in epoch 1"):
        train(model, digits, SPECTRAL)
