"""What one cluster leaves of a network, against a loop over all of its weights, and as published."""

import pytest
import torch
from test_units import gpt2
from torch import nn

from modfast import Partition, read_network, search_space_reduction
from modfast.models import CNN


def by_hand(links, partitions, clusters):
    """The share by a loop over weights.

    `links` are, in order: name, rows, columns, columns for each node, numbers for each pair, bias or not.
    """
    left = total = 0
    for cluster in range(clusters):

        def fed(place, row, cluster=cluster):
            partition = partitions.get(links[place][0])
            return partition is None or int(partition.row_labels[row]) == cluster

        def read(place, column, cluster=cluster):
            partition = partitions.get(links[place][0])
            return partition is None or int(partition.col_labels[column]) == cluster

        def is_left(place, node):
            """Whether an output of the layer at this place is left; the inputs are at -1."""
            if place >= 0 and not fed(place, node):
                return False
            if place + 1 == len(links):
                return True
            width = links[place + 1][3]
            return any(read(place + 1, node * width + position) for position in range(width))

        for place, (_, rows, columns, width, numbers, biased) in enumerate(links):
            for row in range(rows):
                total += biased + columns * numbers
                if is_left(place, row):
                    left += biased
                    for column in range(columns):
                        if read(place, column) and is_left(place - 1, column // width):
                            left += numbers
    return 1 - left / total


def test_it_is_that_of_a_plain_loop():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.ReLU(),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, 3, bias=False),
    )
    links = [
        ("0", 4, 2, 1, 9, False),
        ("3", 6, 16, 4, 1, True),
        ("5", 5, 6, 1, 1, True),
        ("7", 3, 5, 1, 1, False),
    ]
    shapes = {"0": (4, 2), "3": (6, 16), "5": (5, 6), "7": (3, 5)}
    found = set()
    for names in (["0"], ["3"], ["5"], ["7"], ["3", "5"], ["0", "3", "7"], ["0", "3", "5", "7"]):
        for low in (0, -1):  # with neurons in no cluster
            partitions = {
                name: Partition(*(torch.randint(low, 3, (size,)) for size in shapes[name]), 3)
                for name in names
            }
            share = search_space_reduction(model, partitions)
            assert share == pytest.approx(by_hand(links, partitions, 3), rel=1e-12)
            found.add(round(share, 9))
    assert len(found) > 10


@pytest.mark.parametrize("k", [2, 4])
def test_equal_clusters_of_all_rows_and_columns(k):
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 8, bias=False))
    partitions = {"0": Partition.blocks((16, 8), k), "2": Partition.blocks((8, 16), k)}
    assert search_space_reduction(model, partitions) == 1 - 1 / k**2
    assert search_space_reduction(nn.Linear(8, 8), {"": Partition.blocks((8, 8), k)}) == 1 - (
        8 * 8 / k**2 + 8 / k
    ) / (8 * 8 + 8)


class Four(CNN):
    """The published network with four linear layers."""

    def __init__(self):
        super().__init__()
        self.fc3, self.fc4 = nn.Linear(64, 64, bias=False), nn.Linear(64, 10, bias=False)

    def forward(self, images):
        return self.fc4(super().forward(images).relu())


def test_the_published_number():
    partitions = {"fc2": Partition.blocks((64, 64), 4)}
    left = 3 * 16 * 3 * 3 + 16 + 4096 * 16 + 16 * 16 + 16 * 10
    images = torch.randn(2, 3, 32, 32)
    three, four = CNN(), Four()
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (three, four)]
    found = search_space_reduction(three, partitions, example_inputs=images)
    assert found == (sizes[0] - left) / sizes[0]
    assert round(100 * found, 2) == 75.16
    assert round(100 * search_space_reduction(four, partitions, example_inputs=images), 2) == 74.98
    assert round(100 * (sizes[1] - left) / sizes[1], 2) == 75.54  # one network's weights of the other's


def test_clusters_of_any_labels_leave_the_same():
    """It is a matter of sizes: of numbers of clusters, and of their order, it knows nothing."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))
    sizes = {"0": Partition([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], 2)}
    # Cluster 0 leaves 4 x 3 and 2 x 4 weights, cluster 1 2 x 3 and 2 x 2, of 48.
    assert search_space_reduction(model, sizes) == 1 - (20 + 10) / 96
    empty = {"0": Partition([0] * 6, [0] * 6, 2)}
    assert search_space_reduction(model, empty) == 0.5


def test_a_grouped_convolution_among_others():
    model = nn.Sequential(
        nn.Conv1d(2, 4, 1, bias=False),
        nn.Conv1d(4, 4, 3, groups=2, bias=False),
        nn.Conv1d(4, 2, 1, bias=False),
    )
    partitions = {"2": Partition([0, 1], [0, 0, 0, 1], 2)}
    # Cluster 0 leaves the two channels of one group and one of the other group, cluster 1 one channel.
    expected = 1 - ((8 + 3 * (2 * 2 + 1 * 2) + 3) + (8 + 3 * (1 * 2) + 1)) / (2 * (8 + 24 + 8))
    assert search_space_reduction(model, partitions) == pytest.approx(expected)
    with pytest.raises(ValueError, match="'1' must be no grouped convolution"):
        search_space_reduction(model, {"1": Partition([0, 0, 1, 1], [0, 1], 2)})


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.fc2(self.fc1(x))


@pytest.mark.parametrize(
    ("partitions", "arguments", "error", "message"),
    [
        ({}, {}, ValueError, r"one number of clusters, got \[\]"),
        ({"fc1": 2, "fc2": 4}, {}, ValueError, r"one number of clusters, got \[2, 4\]"),
        ({"fc9": 2}, {}, ValueError, "'fc9' is no layer"),
        ({"fc1": 2}, {"layers": ["fc2"]}, ValueError, "'fc1' must be a layer of the network, 'fc2'"),
        ({"fc1": 2}, {"layers": None}, ValueError, "give example_inputs"),
        ({"fc1": None}, {}, TypeError, "must be a Partition, got NoneType"),
    ],
)
def test_bad_arguments(partitions, arguments, error, message):
    made = {name: k if k is None else Partition.blocks((4, 4), k) for name, k in partitions.items()}
    with pytest.raises(error, match=message):
        search_space_reduction(Skip(), made, **{"layers": ["fc1", "fc2"], **arguments})


def test_a_model_that_is_no_chain():
    blocks = {"fc1": Partition.blocks((4, 4), 2)}
    with pytest.raises(ValueError, match="give example_inputs"):
        search_space_reduction(Skip(), blocks)
    model = Skip()
    found = search_space_reduction(model, blocks, example_inputs=torch.randn(3, 4))
    # Both layers read and write the same four units.
    assert found == 1 - 2 * (2 * 2 + 2) / (2 * (4 * 4 + 4))


@pytest.mark.parametrize("has_run", [True, False])
def test_a_compiled_model_is_that_which_was_compiled(has_run):
    model, images = CNN().eval(), torch.randn(2, 3, 32, 32)
    partitions = {"fc2": Partition.blocks((64, 64), 4)}
    expected = search_space_reduction(model, partitions, example_inputs=images)
    compiled = torch.compile(model, backend="aot_eager")  # records one operation in place of all layers
    if has_run:
        with torch.no_grad():
            compiled(images)
    assert search_space_reduction(compiled, partitions, example_inputs=images) == expected


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.head = (
            nn.Embedding(7, 4),
            nn.Linear(4, 4, bias=False),
            nn.Linear(4, 7),
        )
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.hidden(self.embedding(tokens)))


def test_the_bias_of_a_tied_layer_counts():
    partitions = {"hidden": Partition.blocks((4, 4), 2)}
    found = search_space_reduction(Tied(), partitions, example_inputs=torch.arange(5)[None])
    # All seven logits are left, with their biases; of the embedding and the hidden layer half and a quarter.
    assert found == 1 - (28 / 2 + 16 / 4 + 7) / (28 + 16 + 7)
    model = Tied()
    model.shared = nn.Linear(4, 7)
    model.shared.weight, model.shared.bias = model.head.weight, model.head.bias
    model.forward = lambda tokens: (
        model.shared(model.hidden(model.embedding(tokens)))
        + model.head(model.hidden(model.embedding(tokens)))
    )
    assert search_space_reduction(model, partitions, example_inputs=torch.arange(5)[None]) == found


def test_a_transformer_by_hand():
    """GPT-2 of width 32, four blocks of the stream and of hidden neurons: all heads and tokens are left."""
    model, inputs = gpt2()
    partitions = read_network(model, inputs).partitions(4, layers="*.c_fc")
    embeddings = 50 * 32 + 16 * 32
    attention = 96 * 32 + 96 + 32 * 32 + 32
    mlp = 128 * 32 + 128 + 32 * 128 + 32
    left = 50 * 8 + 16 * 8 + 2 * (96 * 8 + 96 + 8 * 32 + 8 + 32 * 8 + 32 + 8 * 32 + 8)
    expected = 1 - left / (embeddings + 2 * (attention + mlp))
    found = search_space_reduction(model, partitions, example_inputs=inputs)
    assert found == pytest.approx(expected, rel=1e-12)
