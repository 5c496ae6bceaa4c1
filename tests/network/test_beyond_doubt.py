"""A sequence is taken without running it only where PyTorch's classes say what each part does to units."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune

from modfast import network_graph, network_nodes


class Skipping(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Named(nn.Linear):
    """A class of one's own, which changes nothing."""


class SkippingConv(nn.Conv1d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return x + super()._conv_forward(x, weight, bias)


class Called(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x.flip(-1))  # type: ignore[no-any-return]


class Flipping(nn.Identity):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


class FlippingActivation(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


class FlippingNorm(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


class FlippingFlatten(nn.Flatten):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


class FlippingSequence(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(1))  # type: ignore[no-any-return]


def replaced(module: nn.Module) -> nn.Module:
    module.forward = lambda x: type(module).forward(module, x.flip(1))  # type: ignore[method-assign]
    return module


def flipped_outputs(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda module, inputs, output: output.flip(1))
    return module


def flipped_inputs(module: nn.Module) -> nn.Module:
    module.register_forward_pre_hook(functools.partial(lambda axis, module, inputs: inputs[0].flip(axis), 1))
    return module


def mlp(between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), between, nn.Linear(8, 4))


def cnn(*between: nn.Module, inputs: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(3, 8, 3), *between, nn.Linear(inputs, 4))


OWN, HOOKS, KIND = "it has a forward pass of its own", "it has hooks", "it is of a kind that may move units"
LAST, ALONG = "it reads the last axis, not the channels", "it works along the axis of the units"


@pytest.mark.parametrize(
    ("model", "which", "why"),
    [
        (mlp(Skipping(8, 8)), r"Skipping \('1'\)", OWN),
        (Skipping(8, 8), "Skipping", OWN),
        (mlp(Called(8, 8)), r"Called \('1'\)", OWN),
        (mlp(replaced(nn.Linear(8, 8))), r"Linear \('1'\)", OWN),
        (mlp(Flipping()), r"Flipping \('1'\)", OWN),
        (mlp(FlippingActivation()), r"FlippingActivation \('1'\)", OWN),
        (mlp(FlippingNorm(8)), r"FlippingNorm \('1'\)", OWN),
        (mlp(FlippingFlatten()), r"FlippingFlatten \('1'\)", OWN),
        (mlp(FlippingSequence(nn.ReLU())), r"FlippingSequence \('1'\)", OWN),
        (mlp(replaced(nn.Tanh())), r"Tanh \('1'\)", OWN),
        (mlp(flipped_outputs(nn.ReLU())), r"ReLU \('1'\)", HOOKS),
        (mlp(flipped_inputs(nn.ReLU())), r"ReLU \('1'\)", HOOKS),
        (mlp(flipped_inputs(nn.Linear(8, 8))), r"Linear \('1'\)", HOOKS),
        (mlp(flipped_outputs(nn.Sequential(nn.ReLU()))), r"Sequential \('1'\)", HOOKS),
        (mlp(flipped_outputs(checkpoint_wrapper(nn.ReLU()))), r"ReLU \('1'\)", HOOKS),
        (mlp(flipped_outputs(checkpoint_wrapper(nn.Linear(8, 8)))), r"Linear \('1'\)", HOOKS),
        (mlp(nn.GLU()), r"GLU \('1'\)", KIND),
        (mlp(nn.ConstantPad1d((1, -1), 0.0)), r"ConstantPad1d \('1'\)", ALONG),
        (mlp(nn.MaxPool1d(3, 1, 1)), r"MaxPool1d \('1'\)", ALONG),
        (mlp(nn.Upsample(size=8)), r"Upsample \('1'\)", ALONG),
        (cnn(nn.Flatten(), nn.ReplicationPad1d((1, -1))), r"ReplicationPad1d \('2'\)", ALONG),
        (cnn(nn.MaxPool2d(3, 1, 1), nn.Flatten()), r"MaxPool2d \('1'\)", ALONG),
        (cnn(nn.ZeroPad2d((0, 0, 1, -1)), nn.Flatten()), r"ZeroPad2d \('1'\)", ALONG),
        (cnn(nn.ReLU()), r"Linear \('2'\)", LAST),
        (cnn(nn.AdaptiveAvgPool1d(1)), r"Linear \('2'\)", LAST),
        (cnn(nn.BatchNorm2d(8), nn.Flatten()), r"BatchNorm2d \('1'\)", "it normalises another axis"),
        (nn.Sequential(nn.Linear(8, 8), nn.Conv1d(8, 4, 3)), r"Conv1d \('1'\)", "it reads channels before 1"),
        (
            nn.Sequential(nn.Conv1d(3, 8, 3), nn.Conv2d(8, 4, 3)),
            r"Conv2d \('1'\)",
            "it reads channels before",
        ),
        (nn.Sequential(nn.Conv1d(3, 8, 3), SkippingConv(8, 8, 1)), r"SkippingConv \('1'\)", OWN),
    ],
)
def test_what_is_not_known_is_refused(model: nn.Module, which: str, why: str) -> None:
    with pytest.raises(ValueError, match=rf"how the ({which}) joins layers is not known: give ex.*\({why}"):
        network_graph(model)


@pytest.mark.parametrize(
    "model",
    [
        mlp(Named(8, 8)),
        mlp(nn.LeakyReLU()),
        mlp(nn.Sequential(nn.BatchNorm1d(8), nn.PReLU(8), nn.Dropout1d(0.5))),
        mlp(nn.Flatten()),
        nn.DataParallel(mlp(checkpoint_wrapper(nn.Linear(8, 8)))),
        mlp(prune.random_unstructured(nn.Linear(8, 8), "weight", 0.5)),
        mlp(nn.utils.spectral_norm(nn.Linear(8, 8))),
        mlp(parametrizations.weight_norm(nn.Linear(8, 8))),
        cnn(nn.MaxPool1d(2), nn.ConstantPad1d((1, -1), 0.0), nn.Upsample(scale_factor=2.0), nn.Flatten()),
        cnn(nn.BatchNorm1d(8), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.LayerNorm(8)),
        nn.Sequential(nn.MaxPool1d(2), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3, groups=2)),
    ],
)
def test_what_is_known_is_taken(model: nn.Module) -> None:
    assert network_graph(model).shape[0] == list(network_nodes(model).values())[-1].stop


def test_hooks_on_every_module_count() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output.flip(-1))
    try:
        with pytest.raises(ValueError, match=HOOKS):
            network_graph(mlp(nn.ReLU()))
    finally:
        handle.remove()
    assert network_graph(mlp(nn.ReLU())).shape == (20, 20)


def test_adapters_are_known() -> None:
    peft = pytest.importorskip("peft")

    def adapted(layer: nn.Module) -> Any:
        return peft.get_peft_model(mlp(layer), peft.LoraConfig(target_modules=["1"], init_lora_weights=False))

    assert list(network_nodes(adapted(nn.Linear(8, 8)))) == [".input", "0", "1", "2"]
    with pytest.raises(ValueError, match=OWN):
        network_nodes(adapted(Skipping(8, 8)))


@pytest.mark.parametrize("between", [Flipping(), flipped_outputs(nn.ReLU()), nn.ConstantPad1d((1, -1), 0.0)])
def test_a_batch_norm_after_something_unknown_is_not_left_out(between: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(8, 8), between, nn.BatchNorm1d(8), nn.Linear(8, 4))
    message = "whether the batch norm '2' scales the outputs of layer '0' is not known: give example_inputs"
    with pytest.raises(ValueError, match=message):
        network_graph(model, ["0", "3"])
    moves = isinstance(between, nn.ConstantPad1d)  # one of the zeros that it puts in has a unit
    assert network_graph(model, ["0", "3"], torch.randn(3, 8)).shape == (20 + moves, 20 + moves)


def test_a_batch_norm_after_a_flatten_is_known_by_name() -> None:
    model = cnn(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.BatchNorm1d(8))
    model[3].weight.data.uniform_(1.0, 2.0)
    assert torch.equal(network_graph(model, ["0", "4"]).to_dense(), network_graph(model).to_dense())
