"""Models that end in linear layers, and a check that a tail computes what they do."""

import copy

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

BY_HAND = {
    "identity": lambda x, slope: x,
    "relu": lambda x, slope: x.clamp(min=0),
    "leaky_relu": lambda x, slope: torch.where(x < 0, slope * x, x),
    "gelu": lambda x, slope: x * torch.special.ndtr(x),
    "gelu_tanh": lambda x, slope: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "silu": lambda x, slope: x / (1 + torch.exp(-x)),
    "tanh": lambda x, slope: torch.tanh(x),
    "sigmoid": lambda x, slope: 1 / (1 + torch.exp(-x)),
}


class Model(nn.Module):
    """Four linear layers, 6 -> 5 -> 5 -> 5 -> 3, called as ``function`` says."""

    def __init__(self, function, **modules):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, inputs):
        return self.function(self, inputs)


def between(operation, **modules):
    """A model with an operation between its second and its third layer."""

    def forward(model, x):
        x = functional.relu(model.fc2(functional.relu(model.fc1(x))))
        return model.head(functional.relu(model.fc3(operation(model, x))))

    return Model(forward, **modules)


def names(tail):
    return [layer.name for layer in tail.layers]


def check_exact(model, inputs, tail):
    """Check that the tail gives the model's logits, whole and with a random half of its weights at zero."""
    plain = copy.deepcopy(model).to("cpu", torch.float64).eval()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    state = {}
    for share in (1.0, 0.5):
        values = tail.features
        for layer in tail.layers:
            assert torch.equal(layer.weight, plain.state_dict()[layer.parameter])
            mask = torch.rand(layer.weight.shape) < (share if layer.pruned else 1.0)
            state[layer.parameter] = torch.where(mask, layer.weight, 0.0)
            bias = 0.0 if layer.bias is None else layer.bias
            values = BY_HAND[layer.activation](values @ state[layer.parameter].T + bias, layer.slope)
        with torch.no_grad():
            logits = functional_call(plain, state, (inputs.clone(),))
        torch.testing.assert_close(values, logits.double(), rtol=1e-9, atol=1e-12)
        if share == 1.0:
            torch.testing.assert_close(tail.logits, logits.double(), rtol=1e-12, atol=1e-12)
    everything = [tail.features, tail.logits, *(layer.weight for layer in tail.layers)]
    for tensor in everything:
        assert tensor.dtype == torch.float64
        assert tensor.device.type == "cpu"
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
    assert tail.layers[-1].activation == "identity"
