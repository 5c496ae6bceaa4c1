"""The peers of the walk for a circuit: loops that run the network for every weight."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from modfast.circuits.linear_tail import read_tail

OURS = "modfast"
ALL = "modfast, all classes"
FLOOR = "floor"


class Loop:
    """The greedy walk as a loop over weights; a call makes the next trial.

    Args:
        model: changed as the walk goes on.
        inputs: inputs of the class.
        label: the class.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, label: int) -> None:
        self.model, self.inputs = model.eval(), inputs
        self.targets = torch.full((len(inputs),), label, device=inputs.device)
        modules = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self.weights = [module.weight.detach() for module in modules]
        self.highest = self.look()
        self.left = self.places()

    def places(self) -> Iterator[tuple[Tensor, int]]:
        for weight in reversed(self.weights):
            for index in range(weight.numel()):
                yield weight.view(-1), index

    @torch.no_grad()
    def look(self) -> float:
        return functional.cross_entropy(self.model(self.inputs), self.targets).item()

    def __call__(self) -> None:
        weight, index = next(self.left)
        value = weight[index].item()
        weight[index] = 0.0
        if self.look() > self.highest:
            weight[index] = value


class Published(Loop):
    """Two passes of the whole network for each weight, one for the loss and one for the accuracy."""

    @torch.no_grad()
    def look(self) -> float:
        loss = super().look()
        self.accuracy = (self.model(self.inputs).argmax(1) == self.targets).float().mean().item()
        return loss


def published(model: nn.Module, inputs: Tensor, label: int) -> Loop:
    return Published(copy.deepcopy(model), inputs, label)


def tail_only(model: nn.Module, inputs: Tensor, label: int) -> Loop:
    """One pass of the linear layers alone, for each weight; what comes before them runs once."""
    tail = read_tail(model, inputs)
    parts: list[nn.Module] = []
    for layer in tail.layers:
        linear = nn.Linear(*reversed(layer.weight.shape), bias=layer.bias is not None)
        linear.load_state_dict(
            {"weight": layer.weight} | ({} if layer.bias is None else {"bias": layer.bias})
        )
        parts += [linear, nn.ReLU() if layer.activation == "relu" else nn.Identity()]
    like = next(model.parameters())
    return Loop(nn.Sequential(*parts).to(like), tail.features.to(like), label)


PEERS: dict[str, Callable[[nn.Module, Tensor, int], Loop]] = {
    "published": published,
    "tail only": tail_only,
}
