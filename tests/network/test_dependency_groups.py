"""torch-pruning finds by itself which channels go together; where it can trace a model it finds the same."""

import pytest
import torch
import torch_pruning
import torchvision
from torch import nn

from modfast.models import CNN
from modfast.network.reading import read_network


class UNet(nn.Module):
    """Two scales, with a skip connection and a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(6, 10, 3, 2, 1), nn.ReLU())
        self.up = nn.ConvTranspose2d(10, 7, 2, 2)
        self.out = nn.Sequential(nn.Conv2d(13, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 2, 1))

    def forward(self, x):
        x = self.down(x)
        return self.out(torch.cat([self.up(self.deep(x)), x], 1))


MODELS = {
    "resnet": lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 2, 1, 1]),
    "mobilenet": lambda: torchvision.models.MobileNetV2(
        inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 1]]
    ),
    "densenet": lambda: torchvision.models.DenseNet(4, (2, 3), 8),
    "squeezenet": torchvision.models.squeezenet1_1,
    "cnn": lambda: CNN((3, 32, 32), hidden=7),
    "unet": UNet,
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 9), nn.ReLU(), nn.Linear(9, 4)),
}


def coupled(network, name, row):
    """The rows and columns of layers that are of the unit of this row."""
    unit = network.layers[name].row_units[row]
    found = set()
    for layer in network.layers.values():
        found |= {(layer.name, "out", i) for i in torch.nonzero(layer.row_units == unit).flatten().tolist()}
        if layer.col_units.dim() == 1:
            places = torch.nonzero(layer.col_units == unit).flatten().tolist()
            found |= {(layer.name, "in", i) for i in places}
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_units_are_the_dependency_groups_of_torch_pruning(kind):
    torch.manual_seed(0)
    model, inputs = MODELS[kind]().eval(), torch.rand(1, 3, 32, 32)
    network = read_network(model, inputs)
    graph = torch_pruning.DependencyGraph().build_dependency(model, inputs)
    names = {module: name for name, module in model.named_modules()}
    compared = 0
    for name in network.layers:
        module = model.get_submodule(name)
        channels = network.layers[name].shape[0]
        depthwise = network.layers[name].col_units.dim() == 2
        prune = graph.get_pruner_of_module(module).prune_out_channels
        for row in (0, channels - 1):
            theirs = set()
            for dependency, places in graph.get_pruning_group(module, prune, [row]):
                target = names.get(dependency.target.module)
                if target in network.layers:
                    outward = graph.is_out_channel_pruning_fn(dependency.handler)
                    theirs |= {(target, "out" if outward else "in", place) for place in places}
            ours = coupled(network, name, row)
            assert ours == theirs, (name, row, depthwise)
            compared += len(ours) > 1
    assert compared >= 2
