"""Models with weights set by hand, so that one knows which units their tasks need."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import modfast
from modfast import Network
from modfast.tasks import Transformer

Batch = tuple[Tensor, Tensor]


@dataclass
class Known:
    """A model, its task, and what its task needs.

    Attributes:
        model: the model.
        network: its units.
        batches: pairs of inputs and targets.
        metric: of an output and a batch, one number for each example; higher is better.
        asked: bool ``(num_units,)``: neurons, heads and channels.
        matters: bool ``(num_units,)``: those that the task needs; all others write next to nothing of it.
        classes: int64 ``(num_units,)``: of planted models the class whose signal a unit carries; else -1.
        tolerance: more than what all that does not matter changes together, less than any unit that matters.
    """

    model: nn.Module
    network: Network
    batches: list[Batch]
    metric: Callable[[Tensor, Batch], Tensor]
    asked: Tensor
    matters: Tensor
    classes: Tensor
    tolerance: float


def readers(network: Network, layer: str) -> Tensor:
    """The units that the columns of a layer read."""
    return network.layers[layer].col_units


# --- the same words for all models


def class_metric(output: Tensor, batch: Batch) -> Tensor:
    return output.log_softmax(-1).gather(-1, batch[1][:, None])[:, 0]


IGNORED = -100


def token_metric(output: Tensor, batch: Batch) -> Tensor:
    """The mean log-likelihood of each example's targets, but for those that are ignored."""
    counts = batch[1] != IGNORED
    likelihood = output.log_softmax(-1).gather(-1, batch[1].clamp(min=0)[..., None])[..., 0]
    return (likelihood * counts).sum(1) / counts.sum(1)


def noise(*shape: int, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=generator)


def finish(
    model: nn.Module,
    batches: list[Batch],
    metric: Callable[[Tensor, Batch], Tensor],
    needed: dict[str, list[int]],
    inside: list[str],
    dtype: torch.dtype,
    tolerance: float,
) -> Known:
    """Read the network; ``needed`` are the columns that matter, ``inside`` the layers that are asked for."""
    model = model.to(dtype).eval()
    if batches[0][0].is_floating_point():
        batches = [(inputs.to(dtype), targets) for inputs, targets in batches]
    network = modfast.read_network(model, batches[0][0])
    asked, matters = (torch.zeros(network.num_units, dtype=torch.bool) for _ in range(2))
    for layer in inside:
        asked[readers(network, layer)] = True
    classes = torch.full((network.num_units,), -1)
    for layer, columns in needed.items():
        matters[readers(network, layer)[columns]] = True
        if metric is class_metric:  # the columns are in the order of the classes
            classes[readers(network, layer)[columns]] = torch.arange(CLASSES)
    return Known(model, network, batches, metric, asked, matters, classes, tolerance)


# --- transformers

TOKENS, LENGTH, WIDTH, HEADS, HIDDEN = 8, 11, 60, 4, 24
SIZE = WIDTH // HEADS
START = 0  # the token that every example begins with
# Where in the residual stream what is written.
CURRENT = torch.arange(0, 8)
PLACE = torch.arange(8, 19)
PREVIOUS = torch.arange(19, 27)
COPIED = torch.arange(27, 35)
ANSWER = torch.arange(35, 43)
NOISE = torch.arange(43, 60)

SHARPNESS = 6.0  # of attention: a score of 6 where it belongs, 0 elsewhere
CONFIDENCE = 4.0  # of the logits
WEAK = 0.01


def blank_transformer(layers: int) -> Transformer:
    model = Transformer(
        TOKENS, LENGTH, width=WIDTH, heads=HEADS, hidden=HIDDEN, layers=layers, norm=False
    ).requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    model.tokens.weight[:, CURRENT] = torch.eye(TOKENS)
    model.positions.weight[:, PLACE] = torch.eye(LENGTH)
    return model


def add_distractors(model: Transformer, generator: torch.Generator) -> None:
    """All heads and neurons compute something, write it into the noise, and a little of it anywhere."""
    for block in model.blocks:
        attention = block.attention
        for layer in (attention.query, attention.key, attention.value):
            layer.weight.copy_(noise(*layer.weight.shape, generator=generator, scale=0.3))
        block.mlp_in.weight.copy_(noise(HIDDEN, WIDTH, generator=generator, scale=0.3))
        block.mlp_in.bias.copy_(noise(HIDDEN, generator=generator, scale=0.3))
        for layer in (attention.output, block.mlp_out):
            layer.weight.copy_(noise(*layer.weight.shape, generator=generator, scale=WEAK))
            layer.weight[NOISE] = noise(len(NOISE), layer.weight.shape[1], generator=generator, scale=0.3)


def set_head(block: nn.Module, head: int, query: Tensor, key: Tensor, value: Tensor, written: Tensor) -> None:
    """Let a head attend where its query's dimensions meet its key's, and copy what is at ``value``.

    Args:
        block: of a transformer.
        head: which.
        query: the stream's dimension whose meeting with ``key[i]`` counts, for each i.
        key: dimensions of the stream.
        value: dimensions that are copied.
        written: where to.
    """
    rows = slice(head * SIZE, (head + 1) * SIZE)
    attention = block.attention
    for layer in (attention.query, attention.key, attention.value):
        layer.weight[rows] = 0
    attention.output.weight[:, rows] = 0
    first = head * SIZE
    for place, (one, other) in enumerate(zip(query.tolist(), key.tolist(), strict=True)):
        attention.query.weight[first + place, one] = SHARPNESS * SIZE**0.5
        attention.key.weight[first + place, other] = 1
    for place, (read, write) in enumerate(zip(value.tolist(), written.tolist(), strict=True)):
        attention.value.weight[first + place, read] = 1
        attention.output.weight[write, first + place] = 1


def set_neuron(
    block: nn.Module, neuron: int, reads: list[int], bias: float, writes: dict[int, float]
) -> None:
    block.mlp_in.weight[neuron] = 0
    block.mlp_in.weight[neuron, reads] = 1
    block.mlp_in.bias[neuron] = bias
    block.mlp_out.weight[:, neuron] = 0
    for place, value in writes.items():
        block.mlp_out.weight[place, neuron] = value


def insides(layers: int) -> list[str]:
    return [f"blocks.{i}.{name}" for i in range(layers) for name in ("attention.output", "mlp_out")]


def copying(seed: int = 0, dtype: torch.dtype = torch.float64) -> Known:
    """Say the previous token; but if the current one is the same, say START.

    One head copies the previous token. A neuron for each token sees that it is there twice, and changes the
    answer. All other heads and neurons are distractors.
    """
    generator = torch.Generator().manual_seed(seed)
    model = blank_transformer(1)
    add_distractors(model, generator)
    head = int(torch.randint(HEADS, (1,), generator=generator))
    neurons = torch.randperm(HIDDEN, generator=generator)[: TOKENS - 1].tolist()
    block = model.blocks[0]
    set_head(block, head, query=PLACE[1:], key=PLACE[:-1], value=CURRENT, written=PREVIOUS)
    for token, neuron in enumerate(neurons, start=1):
        both = [int(CURRENT[token]), int(PREVIOUS[token])]
        set_neuron(block, neuron, both, -1, {int(ANSWER[token]): -1.0, int(ANSWER[START]): 1.0})
    for read in (PREVIOUS, ANSWER):
        model.unembed.weight[:, read] = CONFIDENCE * torch.eye(TOKENS)

    tokens = torch.randint(1, TOKENS, (96, LENGTH), generator=generator)
    for place in range(1, LENGTH):
        again = torch.rand(len(tokens), generator=generator) < 0.4
        tokens[again, place] = tokens[again, place - 1]
    tokens[:, 0] = START
    targets = tokens.roll(1, 1)
    targets[targets == tokens] = START
    targets[:, 0] = IGNORED
    batches = list(zip(tokens.split(40), targets.split(40), strict=True))
    needed = {"blocks.0.attention.output": [head * SIZE], "blocks.0.mlp_out": neurons}
    return finish(model, batches, token_metric, needed, insides(1), dtype, tolerance=0.05)


def induction(seed: int = 0, dtype: torch.dtype = torch.float64) -> Known:
    """In ``START a b c d e a b c d e`` say at each place of the second half the number after the next one.

    A head of the first block writes to each place the token before it. A head of the second block attends
    from a token to where the token before is the same, and copies what is there: induction. A neuron of the
    second block for each token turns it into its successor. All other heads and neurons are distractors.
    """
    generator = torch.Generator().manual_seed(seed)
    model = blank_transformer(2)
    add_distractors(model, generator)
    first, second = torch.randint(HEADS, (2,), generator=generator).tolist()
    neurons = torch.randperm(HIDDEN, generator=generator)[: TOKENS - 1].tolist()
    set_head(model.blocks[0], first, query=PLACE[1:], key=PLACE[:-1], value=CURRENT, written=PREVIOUS)
    set_head(model.blocks[1], second, query=CURRENT, key=PREVIOUS, value=CURRENT, written=COPIED)
    for token, neuron in enumerate(neurons, start=1):
        successor = token % (TOKENS - 1) + 1
        set_neuron(model.blocks[1], neuron, [int(COPIED[token])], -0.3, {int(ANSWER[successor]): 1.4})
    model.unembed.weight[:, ANSWER] = CONFIDENCE * torch.eye(TOKENS)

    half = LENGTH // 2
    said = torch.rand(96, TOKENS - 1, generator=generator).argsort(1)[:, :half] + 1
    tokens = torch.cat([torch.full((96, 1), START), said, said], dim=1)
    targets = torch.full_like(tokens, IGNORED)
    targets[:, -half:] = said.roll(-1, 1) % (TOKENS - 1) + 1
    batches = list(zip(tokens.split(40), targets.split(40), strict=True))
    needed = {
        "blocks.0.attention.output": [first * SIZE],
        "blocks.1.attention.output": [second * SIZE],
        "blocks.1.mlp_out": neurons,
    }
    return finish(model, batches, token_metric, needed, insides(2), dtype, tolerance=0.05)


# --- planted MLPs and CNNs

CLASSES = 4


def planted_weight(
    outputs: int, inputs: int, rows: list[int], cols: list[int], gain: Tensor, generator: torch.Generator
) -> Tensor:
    """Random numbers between what is not planted; ``gain`` on planted pairs, and little between the two."""
    weight = noise(outputs, inputs, generator=generator, scale=(2 / inputs) ** 0.5)
    weight[rows] *= WEAK
    weight[:, cols] *= WEAK
    weight[rows, cols] = gain
    return weight


def planted_mlp(seed: int = 0, dtype: torch.dtype = torch.float64) -> Known:
    """Three hidden layers; in each one neuron for each class, at random places, carries the class's signal.

    The signal is one input for each class; the other inputs, and all other neurons, are noise.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [16, 20, 24, 20]
    places = [torch.randperm(size, generator=generator)[:CLASSES].tolist() for size in sizes]
    layers: list[nn.Module] = []
    scale = torch.ones(CLASSES)
    for inputs, outputs, cols, rows in zip(sizes[:-1], sizes[1:], places[:-1], places[1:], strict=True):
        linear = nn.Linear(inputs, outputs).requires_grad_(False)
        gain = 0.5 + torch.rand(CLASSES, generator=generator)
        scale = scale * gain
        linear.weight.copy_(planted_weight(outputs, inputs, rows, cols, gain, generator))
        linear.bias.copy_(noise(outputs, generator=generator, scale=0.1))
        linear.bias[rows] = 0
        layers += [linear, nn.ReLU()]
    head = nn.Linear(sizes[-1], CLASSES).requires_grad_(False)
    gain = CONFIDENCE / scale
    head.weight.copy_(planted_weight(CLASSES, sizes[-1], list(range(CLASSES)), places[-1], gain, generator))
    head.bias.zero_()
    labels = torch.arange(96) % CLASSES
    inputs = noise(96, sizes[0], generator=generator)
    inputs[:, places[0]] = functional.one_hot(labels, CLASSES) + noise(
        96, CLASSES, generator=generator, scale=0.1
    )
    batches = list(zip(inputs.split(40), labels.split(40), strict=True))
    needed = {str(2 * i): places[i] for i in (1, 2, 3)}
    return finish(
        nn.Sequential(*layers, head), batches, class_metric, needed, list(needed), dtype, tolerance=0.05
    )


class SmallCNN(nn.Module):
    """Two convolutions, the second with stride 2 and batch norm, a mean over places, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.conv1(images))
        features = functional.relu(self.bn(self.conv2(features)))
        return self.fc(functional.adaptive_avg_pool2d(features, 1).flatten(1))


def planted_cnn(seed: int = 0, dtype: torch.dtype = torch.float64) -> Known:
    """In each of two convolutions one channel for each class, at random places, carries the class's signal.

    The signal is a bright square in one of the input's channels; the other channels are noise.
    """
    generator = torch.Generator().manual_seed(seed)
    model = SmallCNN().requires_grad_(False)
    sizes = [8, 12, 16]
    places = [torch.randperm(size, generator=generator)[:CLASSES].tolist() for size in sizes]
    for layer, cols, rows in ((model.conv1, *places[:2]), (model.conv2, *places[1:])):
        outputs, inputs = layer.weight.shape[:2]
        gain = 0.5 + torch.rand(CLASSES, generator=generator)
        flat = planted_weight(outputs, inputs, rows, cols, gain, generator)
        kernel = noise(3, 3, generator=generator, scale=0.2) + 0.3
        layer.weight.copy_(flat[:, :, None, None] * kernel)
        layer.bias.copy_(noise(outputs, generator=generator, scale=0.1))
        layer.bias[rows] = 0
    model.bn.running_var.copy_(0.5 + torch.rand(16, generator=generator))
    labels = torch.arange(96) % CLASSES
    images = noise(96, 8, 8, 8, generator=generator)
    images[:, places[0]] = noise(96, CLASSES, 8, 8, generator=generator, scale=0.05)
    corners = torch.randint(5, (96, 2), generator=generator).tolist()
    for image, label, (top, left) in zip(images, labels.tolist(), corners, strict=True):
        image[places[0][label], top : top + 4, left : left + 4] += 1
    model.fc.weight.copy_(
        planted_weight(CLASSES, 16, list(range(CLASSES)), places[2], torch.ones(CLASSES), generator)
    )
    model.fc.bias.zero_()
    # Each class's logit, by what its channel carries on average: that is as large as of the other classes.
    with torch.no_grad():
        logits = model.eval()(images)
    for label in range(CLASSES):
        model.fc.weight[label] *= CONFIDENCE / float(logits[labels == label, label].mean())
    batches = list(zip(images.split(40), labels.split(40), strict=True))
    needed = {"conv2": places[1], "fc": places[2]}
    return finish(model, batches, class_metric, needed, list(needed), dtype, tolerance=0.05)


MAKERS = {
    "copying": copying,
    "induction": induction,
    "planted mlp": planted_mlp,
    "planted cnn": planted_cnn,
}
