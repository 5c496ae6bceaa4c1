"""Small networks in which one weight is computed, in each of the usual ways."""

import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

NAME = "1"  # the layer whose weight is computed: 8 inputs, 8 outputs


def network(layer=None):
    """Three linear layers, of which ``layer`` is the second."""
    return nn.Sequential(nn.Linear(6, 8), layer or nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight * weight


class Counting(nn.Module):
    """Writes to its buffers at each use, in any mode, and is noisy in training mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("uses", torch.zeros(()))
        self.register_buffer("offset", torch.tensor(0.25))

    def forward(self, weight):
        self.uses.add_(1)
        self.offset = self.offset + 0.0
        noise = torch.randn_like(weight) if self.training else 0.0
        return weight + self.offset + noise


class LowRank(nn.Module):
    """Adds the product of two parameters of this module to the weight."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.randn(2, 8))

    def forward(self, weight):
        return weight + self.left @ self.right


def _old(function, **options):
    def make():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return network(function(nn.Linear(8, 8), **options))

    return make


def _parametrised(*makers):
    def make():
        layer = nn.Linear(8, 8)
        for maker in makers:
            parametrize.register_parametrization(layer, "weight", maker())
        return network(layer)

    return make


def _pruned_twice():
    layer = nn.Linear(8, 8)
    prune.random_unstructured(layer, "weight", 0.3)
    prune.l1_unstructured(layer, "weight", 0.3)
    prune.random_unstructured(layer, "bias", 0.5)
    return network(layer)


def _loaded_after_pruning():
    """A model whose attribute ``weight`` is that of other parameters, until the next forward pass."""
    model = _pruned_twice()
    model[1].weight_orig.data.normal_()
    return model


MAKERS = {
    "plain": network,
    "weight_norm": lambda: network(parametrizations.weight_norm(nn.Linear(8, 8))),
    "weight_norm of columns": lambda: network(parametrizations.weight_norm(nn.Linear(8, 8), dim=1)),
    "spectral_norm": lambda: network(parametrizations.spectral_norm(nn.Linear(8, 8))),
    "orthogonal": lambda: network(parametrizations.orthogonal(nn.Linear(8, 8))),
    "user-made": _parametrised(Doubled),
    "with buffers": _parametrised(Counting),
    "with parameters": _parametrised(LowRank),
    "two at once": _parametrised(Doubled, LowRank),
    "old weight_norm": _old(nn.utils.weight_norm),
    "old weight_norm of columns": _old(nn.utils.weight_norm, dim=1),
    "old spectral_norm": _old(nn.utils.spectral_norm),
    "pruned": _pruned_twice,
    "pruned, then loaded": _loaded_after_pruning,
}

PEFT_MAKERS = {}
try:
    import peft
except ImportError:  # an optional dependency of the tests
    peft = None


def lora(model, target, **options):
    """Wrap a model in a LoRA adapter whose factors are not zero, as after training."""
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=target, **options)
    wrapped = peft.get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    return wrapped


def _two_adapters():
    model = lora(network(), ["1"])
    model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["1"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])
    return model


def _merged():
    model = lora(network(), ["1"])
    model.merge_adapter()
    return model


def _switched_off():
    model = lora(network(), ["1"])
    model.base_model.disable_adapter_layers()
    return model


if peft is not None:
    PEFT_MAKERS = {
        "LoRA": lambda: lora(network(), ["1"]),
        "LoRA everywhere": lambda: lora(network(), ["0", "1", "3"]),
        "LoRA twice": _two_adapters,
        "LoRA, merged": _merged,
        "LoRA, switched off": _switched_off,
        "LoRA on pruned": lambda: lora(_pruned_twice(), ["1"]),
        "rank-stabilised LoRA": lambda: lora(network(), ["1"], use_rslora=True),
    }

ALL_MAKERS = MAKERS | PEFT_MAKERS


def make(kind):
    """A model of that kind, in evaluation mode, with weights of its own."""
    torch.manual_seed(1)
    return ALL_MAKERS[kind]().eval()


def multiplied_by(model, layer):
    """The matrix that a layer's forward pass multiplies by, from the outputs for an identity matrix."""
    inside = dict(model.named_modules())[layer] if isinstance(layer, str) else layer
    with torch.no_grad():
        return (inside(torch.eye(8)) - inside(torch.zeros(8, 8))).T
