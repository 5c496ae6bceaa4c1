"""Small trained networks to find circuits in, and inputs for each class."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modfast.data import Dataset, load_dataset
from modfast.models import build_model
from modfast.train import CHECKPOINT, TrainConfig, read_checkpoint, train


class CircuitCase(NamedTuple):
    """A network and the inputs of its classes, ``per_class`` of each."""

    name: str
    model: nn.Module
    inputs: Tensor
    labels: Tensor

    def of_class(self, label: int) -> Tensor:
        return self.inputs[self.labels == label]

    def on(self, device: str) -> CircuitCase:
        """Return the case on a device."""
        model = copy.deepcopy(self.model).to(device)
        return CircuitCase(self.name, model, self.inputs.to(device), self.labels.to(device))


def digits() -> CircuitCase:
    """The MLP 64 -> 64 -> 64 -> 10 on the test images of scikit-learn's digits."""
    dataset = load_dataset("digits")
    inputs = dataset.normalize(dataset.test_images)
    return CircuitCase("digits, MLP", trained(dataset, "mlp", 10), inputs, dataset.test_labels)


def noisy_patterns(per_class: int = 1000) -> CircuitCase:
    """The paper's CNN on images like those of the data set ``fake``: one pattern for each class, and noise.

    It is trained on few images, so that it does not get all of them right.
    """
    dataset = load_dataset("fake")
    means = torch.stack(
        [dataset.train_images[dataset.train_labels == label].float().mean(0) for label in range(10)]
    )
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(10).repeat_interleave(per_class)
    inputs = means[labels] / 255 + 0.5 * torch.randn(len(labels), *means.shape[1:], generator=generator)
    return CircuitCase("noisy patterns, CNN", trained(dataset, "cnn", 4), inputs, labels)


def trained(dataset: Dataset, model: str, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    network = build_model(model, dataset.image_shape, dataset.num_classes)
    config = TrainConfig(enmeshment_weight=0.0, epochs=epochs, seed=0, device="cpu")
    return train(network, dataset, config).model


def of_run(folder: Path, data: str) -> CircuitCase:
    """The model of a run of ``modfast train`` or ``reproduce``, on the test images of its data."""
    dataset = load_dataset(data)
    model = build_model("auto", dataset.image_shape, dataset.num_classes)
    model.load_state_dict(read_checkpoint(folder / CHECKPOINT)["model"])
    inputs = dataset.normalize(dataset.test_images)
    return CircuitCase(folder.name, model, inputs, dataset.test_labels)
