"""Models of which it is known by hand what each unit does, and plain loops over ablations to compare with."""

from functools import cache

import torch
from torch import nn

from modfast import read_network
from modfast.batches import each_batch, inputs_of
from modfast.network.ablation import ablate_units


def additive(effects):
    """A model whose output is the sum of what its hidden neurons add, for each example.

    Returns it, its network, and where its neurons are.
    """
    return _additive(tuple(effects))


@cache  # nothing may change a model, so that tests can share one
def _additive(effects):
    model = nn.Sequential(nn.Linear(1, len(effects)), nn.ReLU(), nn.Linear(len(effects), 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(0)
        model[0].bias.fill_(1)
        model[2].weight.copy_(torch.tensor([effects]))
    network = read_network(model, torch.zeros(1, 1))
    return model.train(), network, network.spaces["0"]


class Deep(nn.Module):
    """A convolution, a batch norm, dropout, and two linear layers: channels and neurons inside."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc1 = nn.Linear(4 * 4, 6)
        self.drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        x = nn.functional.max_pool2d(x, 2).flatten(1)
        return self.fc2(self.drop(torch.relu(self.fc1(x))))


@cache
def deep(seed=0):
    """A random model in training mode, its network, and batches of images with classes."""
    torch.manual_seed(seed)
    model = Deep()
    network = read_network(model, torch.rand(2, 1, 4, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    images = torch.randn(24, 1, 4, 4)
    with torch.no_grad():
        model.eval().fc2.bias -= model(images).mean(0)  # so that each class is an answer
        labels = model(images).argmax(1)
    labels[::3] = (labels[::3] + 1) % 3  # the model gets two of three right
    batches = [(images[:10], labels[:10]), (images[10:], labels[10:])]
    return model.train(), network, batches


def plain_loop(model, network, batches, metric, units, ablation="zero", reference=None):
    """The metric of each example with some units ablated, as a reader would write it with ablate_units."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    found = []
    others = list(each_batch(reference, "reference")) if ablation == "resample" else None
    for place, batch in enumerate(each_batch(batches, "batches")):
        other = reference if others is None else [others[place]]
        with torch.no_grad(), ablate_units(model, network, units, ablation, other):
            found.append(metric(model(inputs_of(batch)), batch))
    for module, mode in modes.items():
        module.training = mode
    return torch.cat(found).double()


ABLATIONS = [
    ("zero", None),
    ("mean", torch.randn(7, 1, 4, 4, generator=torch.Generator().manual_seed(1))),
    (
        "resample",
        [torch.randn(size, 1, 4, 4, generator=torch.Generator().manual_seed(2)) for size in (10, 14)],
    ),
]


def inside(network):
    """The units that are ablated by default: channels and neurons."""
    units = torch.zeros(network.num_units, dtype=torch.bool)
    for name in ("conv", "fc1"):
        units[network.spaces[name]] = True
    return units
