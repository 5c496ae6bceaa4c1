"""Networks of convolutions whose circuits are found, for the tests of tails and of walks."""

import random
from itertools import pairwise

import torch
from torch import nn
from walked_models import ACTIVATIONS

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


def pooling(draw, dimensions, size):
    """A random pooling of channels of this size, whose windows have one size if it takes means."""
    smallest = min(size)
    kernel = draw.choice([side for side in (1, 2, 3) if side <= smallest])
    kinds = {
        1: (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d),
        2: (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
    }[dimensions]
    kind = draw.randrange(5)
    stride, padding = draw.choice([1, 2, kernel]), draw.choice([0, kernel // 2])
    if kind == 0:
        return kinds[0](kernel, stride, padding, ceil_mode=draw.random() < 0.5)
    if kind == 1:
        return kinds[1](kernel, stride, padding)
    if kind == 2:
        return kinds[2](draw.randint(1, smallest))
    # A divisor of the size.
    return kinds[3](1 if kind == 3 else tuple(side // 2 if side % 2 == 0 else side for side in size))


def random_network(seed, dimensions=None, classes=3):
    """A small network of convolutions and linear layers with everything that a tail may hold; and inputs.

    Its batch norms have statistics and parameters of their own, and it answers with several classes.
    """
    draw = random.Random(seed)
    torch.manual_seed(seed)
    dimensions = dimensions or draw.choice([1, 2, 2])
    channels = draw.choice([1, 2, 4])
    shape = (channels, *(draw.randint(4, 7) for _ in range(dimensions)))
    parts, values = [], torch.randn(16, *shape)

    def add(module):
        nonlocal values
        parts.append(module)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        with torch.no_grad():
            values = module(values)

    for _ in range(draw.randint(1, 3)):
        size = values.shape[2:]
        kernel = tuple(draw.choice([side for side in (1, 2, 3) if side <= least]) for least in size)
        groups = draw.choice([group for group in (1, 2, 4) if channels % group == 0])
        rows = groups * draw.randint(1, 3)
        padding = draw.choice(["same", 0, 1, tuple(draw.randint(0, 2) for _ in kernel)])
        dilation = tuple(
            draw.choice([1, 1, 2]) if (side - 1) * 2 < least else 1
            for side, least in zip(kernel, size, strict=True)
        )
        stride = 1 if padding == "same" else tuple(draw.choice([1, 1, 2]) for _ in kernel)
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        add(CONVOLUTIONS[dimensions](channels, rows, kernel, bias=draw.random() < 0.5, **options))
        channels = rows
        after = [ACTIVATIONS[draw.choice(list(ACTIVATIONS))]]
        if draw.random() < 0.6:
            after.append(lambda rows=rows: BATCH_NORMS[dimensions](rows, affine=draw.random() < 0.7))
        if draw.random() < 0.6:
            after.append(lambda: pooling(draw, dimensions, values.shape[2:]))
        draw.shuffle(after)
        for make in after:
            add(make())
        add(nn.Dropout(0.3).eval())
    add(nn.Flatten())
    for _ in range(draw.randint(0, 2)):
        width = draw.randint(2, 5)
        add(nn.Linear(values.shape[1], width, bias=draw.random() < 0.5))
        if draw.random() < 0.4:
            add(nn.BatchNorm1d(width))
        add(ACTIVATIONS[draw.choice(list(ACTIVATIONS))]())
    parts.append(nn.Linear(values.shape[1], classes))
    model, inputs = nn.Sequential(*parts).eval(), torch.randn(150, *shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
        parts[-1].bias -= model(inputs).mean(0)
    return model, inputs


def case_of(seed, criterion):
    """A random network with the arguments of a walk; inputs are of the class that it answers with."""
    model, inputs = random_network(seed)
    with torch.no_grad():
        logits = model(inputs)
    label, count = int(logits.argmax(1).bincount().argmax()), 3 + seed % 60
    options = {"criterion": criterion, "tolerance": (0.0, 0.01, 0.3)[seed // 3 % 3]}
    if criterion == "balanced":
        # The half of the inputs that are most of the class.
        inputs, margins = inputs[:count], (logits[:, label] - logits.mean(1))[:count]
        options["labels"] = torch.full((count,), label)
        options["labels"][margins.argsort()[: count // 2]] = label + 1
    else:
        inputs = inputs[logits.argmax(1) == label][:count]
    return model, inputs, label, options


def weights_of(model):
    """The names of all layers with a weight to walk along."""
    modules = model.named_modules()
    return [name for name, module in modules if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))]


def small_vgg(channels=(1, 4, 6), size=8, classes=3):
    """A small VGG: pairs of convolution, batch norm and ReLU, each pair with a pooling after it."""
    parts = []
    for before, after in pairwise(channels):
        for inside in (before, after):
            parts += [nn.Conv2d(inside, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        parts.append(nn.MaxPool2d(2))
        size //= 2
    parts += [nn.Flatten(), nn.Linear(channels[-1] * size**2, 8), nn.ReLU(), nn.Linear(8, classes)]
    return nn.Sequential(*parts)
