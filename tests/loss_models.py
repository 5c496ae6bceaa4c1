"""Models for the tests of the loss: layers of other libraries, and small networks."""

import itertools

import torch
from torch import nn

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


class Conv1D(nn.Module):
    """As in transformers: y = x W + b, with W of (in, out)."""

    def __init__(self, out, into):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(into, out))
        self.bias = nn.Parameter(torch.zeros(out))


class TheirConv1D(Conv1D):
    pass


TheirConv1D.__module__ = "transformers.pytorch_utils"
TheirConv1D.__name__ = "Conv1D"


class TheirOwnConv1D(TheirConv1D):
    """A subclass by the user, as adapters make them."""


def mlp(*sizes, dtype=torch.float32):
    layers = [nn.Linear(a, b, dtype=dtype) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x * x
