"""Small networks whose circuits are found, for the tests of walks."""

import torch
from torch import nn

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}
CRITERIA = ["loss", "loss_and_accuracy", "balanced"]


def make_model(sizes, activation="relu", bias=False, scale=2.0):
    parts = []
    for rows, cols in zip(sizes[1:], sizes, strict=False):
        parts += [nn.Linear(cols, rows, bias=bias), ACTIVATIONS[activation]()]
    model = nn.Sequential(*parts[:-1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def assert_same_masks(found, expected):
    assert list(found.masks) == list(expected.masks)
    for name in expected.masks:
        assert torch.equal(found.masks[name], expected.masks[name]), name
