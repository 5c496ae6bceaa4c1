"""Networks as graphs, the partitions of their layers, and gradients as similarities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from their_layers import Conv1D
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from modfast import EnmeshmentLoss, Partition
from modfast.models import CNN, MLP
from modfast.network import gradient_affinity, network_graph, network_nodes, network_partitions
from modfast.partition import load_partitions, save_partitions


class Doubled(nn.Module):
    """Elementwise, which its class does not tell."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def adjacency(*blocks: Tensor) -> Tensor:
    """The dense graph of (out, in) similarities in a chain, node by node."""
    sizes = [blocks[0].shape[1]] + [len(block) for block in blocks]
    graph = torch.zeros(sum(sizes), sum(sizes), dtype=blocks[0].dtype)
    for place, block in enumerate(blocks):
        for i in range(block.shape[0]):
            for j in range(block.shape[1]):
                out, into = sum(sizes[: place + 1]) + i, sum(sizes[:place]) + j
                graph[out, into] = graph[into, out] = block[i, j]
    return graph


def assert_graph(graph: Tensor, expected: Tensor) -> None:
    assert graph.layout == torch.sparse_csr
    assert graph.crow_indices().dtype == graph.col_indices().dtype == torch.int64
    assert not graph.requires_grad
    dense = graph.to_dense()
    torch.testing.assert_close(dense, expected)
    assert torch.equal(dense, dense.T)
    # Nothing is stored that is zero, and the indices are those of a valid, sorted CSR tensor.
    assert graph.values().numel() == (expected != 0).sum()
    torch.sparse_csr_tensor(
        graph.crow_indices(), graph.col_indices(), graph.values(), graph.shape, check_invariants=True
    )


def l1(conv: nn.Module) -> Tensor:
    return conv.weight.detach().abs().flatten(2).sum(2)


# --- the graph


def test_mlp() -> None:
    model = MLP((1, 2, 3), num_classes=4, hidden=5)
    model.fc2.weight.data[2, 3] = 0.0
    model.fc2.weight.data[:, 1] = 0.0
    blocks = [layer.weight.detach().abs() for layer in (model.fc1, model.fc2, model.fc3)]
    images = torch.randn(2, 1, 2, 3)
    assert_graph(network_graph(model, example_inputs=images), adjacency(*blocks))
    nodes = network_nodes(model, example_inputs=images)
    assert nodes == {
        ".input": slice(0, 6),
        "fc1": slice(6, 11),
        "fc2": slice(11, 16),
        "fc3": slice(16, 20),
    }
    assert list(nodes) == [".input", "fc1", "fc2", "fc3"]
    graph = network_graph(model, ["fc1", "fc2", "fc3"])
    torch.testing.assert_close(graph.to_dense()[nodes["fc3"], nodes["fc2"]], blocks[2])


def test_cnn_with_flatten() -> None:
    model = CNN((3, 8, 6), num_classes=4, hidden=5)
    by_channel = torch.zeros(5, 16)
    for column in range(model.fc1.in_features):
        by_channel[:, column // 12] += model.fc1.weight.detach()[:, column].abs()
    blocks = [l1(model.conv1), by_channel, model.fc2.weight.detach().abs(), model.fc3.weight.detach().abs()]
    images = torch.randn(2, 3, 8, 6)
    assert_graph(network_graph(model, example_inputs=images), adjacency(*blocks))
    assert network_nodes(model, example_inputs=(images,))["conv1"] == slice(3, 19)
    assert network_nodes(model, example_inputs={"images": images})["conv1"] == slice(3, 19)


def test_a_flattened_channel_is_one_node() -> None:
    """A weight that reads one channel only is tied to that channel, as the running network sees it."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(12, 1, bias=False))
    for channel in range(3):
        shown = torch.zeros(1, 3, 2, 2)
        shown[0, channel] = 1.0
        model[2].weight.data = model[1](shown)
        nodes = network_nodes(model)
        assert network_graph(model).to_dense()[nodes["2"], nodes["0"]].nonzero().tolist() == [[0, channel]]


def test_kernels_of_any_dimension() -> None:
    for conv, kernel in ((nn.Conv1d, 3), (nn.Conv2d, (2, 3)), (nn.Conv3d, 2)):
        model = nn.Sequential(conv(2, 4, kernel), conv(4, 3, kernel))
        assert_graph(network_graph(model), adjacency(*map(l1, model)))
    last = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)).to(memory_format=torch.channels_last)
    assert_graph(network_graph(last), adjacency(*map(l1, last)))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_convolution(groups: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, groups=groups))
    # A grouped convolution is the full one whose weights between groups are zero.
    full = torch.zeros(8, 4, 3, 3)
    for row in range(8):
        start = (row * groups // 8) * (4 // groups)
        full[row, start : start + 4 // groups] = model[1].weight.detach()[row]
    image = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(model[1](image), functional.conv2d(image, full, model[1].bias))
    assert_graph(network_graph(model), adjacency(l1(model[0]), full.abs().flatten(2).sum(2)))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
def test_batch_norm_is_folded_in(affine: bool, tracked: bool) -> None:
    options = {"affine": affine, "track_running_stats": tracked}
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, **options), nn.Flatten(),
        nn.Linear(8, 3, bias=False), nn.ReLU(), nn.BatchNorm1d(3, **options), nn.Linear(3, 2),
    )  # fmt: skip
    for norm in (model[1], model[5]):
        if affine:
            norm.weight.data.normal_()
        if tracked:
            norm.running_mean.uniform_()
            norm.running_var.uniform_(0.5, 2.0)
    scales = []
    for norm in (model[1], model[5]):
        scale = norm.weight.detach().abs() if affine else torch.ones(norm.num_features)
        scales.append(scale / torch.sqrt(norm.running_var + norm.eps) if tracked else scale)
    by_channel = model[3].weight.detach().abs().unflatten(1, (4, 2)).sum(2)
    expected = adjacency(
        scales[0][:, None] * l1(model[0]), scales[1][:, None] * by_channel, model[6].weight.detach().abs()
    )
    assert_graph(network_graph(model), expected)
    if tracked:
        # What the norm multiplies by is what it does to a difference of two inputs.
        model.eval()
        rise = model[5](torch.ones(1, 3)) - model[5](torch.zeros(1, 3))
        torch.testing.assert_close(rise.abs()[0].detach(), scales[1])


def test_batch_norms_that_follow_no_layer_are_left_out() -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(4), nn.Linear(4, 3), nn.BatchNorm1d(6), nn.Linear(3, 2), nn.LayerNorm(2)
    )
    for norm in (model[0], model[2], model[4]):
        norm.weight.data.fill_(7.0)
    expected = adjacency(model[1].weight.detach().abs(), model[3].weight.detach().abs())
    assert_graph(network_graph(model), expected)


def test_a_silenced_feature_is_isolated() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].weight.data = torch.tensor([0.0, 1.0])
    graph = network_graph(model).to_dense()
    assert graph[2].count_nonzero() == 0
    assert graph[3].count_nonzero() == 2


def test_weights_stored_transposed() -> None:
    model = nn.Sequential(Conv1D(6, 4), Conv1D(2, 6))
    assert_graph(network_graph(model), adjacency(*(layer.weight.detach().T.abs() for layer in model)))
    flattened = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), Conv1D(3, 8))
    by_channel = flattened[2].weight.detach().T.abs().unflatten(1, (2, 4)).sum(2)
    assert_graph(network_graph(flattened), adjacency(l1(flattened[0]), by_channel))


def test_computed_and_tied_weights() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].weight = model[1].weight
    assert_graph(network_graph(model), adjacency(*(layer.weight.detach().abs() for layer in model)))


def test_a_bare_layer() -> None:
    layer = nn.Linear(3, 2)
    assert_graph(network_graph(layer), adjacency(layer.weight.detach().abs()))
    assert network_nodes(layer) == {".input": slice(0, 3), "": slice(3, 5)}


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float64, torch.float64], torch.float64),
        ([torch.float32, torch.float64], torch.float64),
        ([torch.float16, torch.float32], torch.float32),
        ([torch.bfloat16, torch.bfloat16], torch.float32),
    ],
)
def test_dtype(dtypes: list[torch.dtype], expected: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 2, dtype=dtypes[0]), nn.Linear(2, 4, dtype=dtypes[1]))
    graph = network_graph(model)
    assert graph.dtype == expected
    assert_graph(graph, adjacency(*(layer.weight.detach().to(expected).abs() for layer in model)))


def test_half_kernels_are_summed_in_single_precision() -> None:
    conv = nn.Conv2d(1, 1, 4, dtype=torch.float16)
    conv.weight.data.fill_(60000.0)
    assert network_graph(conv).values().tolist() == [16 * conv.weight[0, 0, 0, 0].item()] * 2


# --- which layers


def test_layers_in_the_order_given() -> None:
    model = nn.ModuleDict({"b": nn.Linear(3, 2), "a": nn.Linear(4, 3), "other": nn.Linear(9, 9)})
    assert list(network_nodes(model, ["a", "b"])) == [".input", "a", "b"]
    expected = adjacency(model["a"].weight.detach().abs(), model["b"].weight.detach().abs())
    assert_graph(network_graph(model, ["a.weight", "b"]), expected)
    with pytest.raises(ValueError, match=r"'\[ab\]' matches several layers \('b', 'a'\), in which order"):
        network_nodes(model, ["a", "[ab]"])
    assert list(network_nodes(model, "other")) == [".input", "other"]


def test_a_glob_may_stand_for_the_layers_of_a_sequence() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)  # registered first, run last
            self.features = nn.Sequential(nn.Linear(3, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 4)))

    assert list(network_nodes(Classifier(), ["features.*", "head"])) == [
        ".input", "features.0", "features.1.1", "head",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (nn.Embedding(7, 3), r"how the Embedding \(\'1\'\) joins layers is not known: give example_inputs"),
        (nn.ConvTranspose2d(3, 3, 2), r"how the ConvTranspose2d \(\'1\'\) joins layers"),
        (nn.Bilinear(3, 3, 3), r"how the Bilinear \(\'1\'\) joins layers"),
        (nn.MultiheadAttention(3, 1), r"how the MultiheadAttention \(\'1\'\) joins layers"),
        (nn.Unflatten(1, (3, 1)), r"how the Unflatten \(\'1\'\) joins layers"),
        (nn.Flatten(0), r"how the Flatten \(\'1\'\) joins layers"),
        (Doubled(), r"how the Doubled \(\'1\'\) joins layers"),
    ],
)
def test_no_module_is_passed_over_in_a_sequence(between: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network_graph(nn.Sequential(nn.Linear(4, 3), between, nn.Linear(3, 2)))


@pytest.mark.parametrize(
    ("model", "layers", "message"),
    [
        (nn.ReLU(), None, "model must have an nn.Linear or a convolution, got a ReLU"),
        (nn.Embedding(4, 4), None, "model must have an nn.Linear or a convolution"),
        (nn.Linear(2, 2), [], "nothing selected"),
        (nn.Linear(2, 2), ["fc9"], "'fc9' matches no layer with a weight matrix; there are: ''"),
        (nn.Sequential(nn.Embedding(4, 4)), ["0"], "'0' is of a Embedding"),
        (nn.Sequential(nn.ConvTranspose1d(4, 4, 1)), ["0"], "'0' is of a ConvTranspose1d"),
        (nn.MultiheadAttention(4, 2), "in_proj_weight", "'in_proj_weight' is of a MultiheadAttention"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)), None, "'1' takes 5 inputs.* 4 outputs of '0'"),
        # Features are last in a linear layer's output: flattened, a feature's columns are not in a row.
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(8, 2)), None, "'1' takes 8 inputs.* 4 outputs of '0'"),
        (nn.Sequential(nn.Conv1d(3, 4, 1), nn.Conv1d(8, 2, 1)), None, "'1' takes 8 inputs.* 4 outputs"),
        (nn.Sequential(nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(9, 2)), None, "'2' takes 9 inputs.* 4 o"),
        (nn.Sequential(nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(2, 2)), None, "'2' takes 2 inputs.* 4 o"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2)),
            None,
            "2 batch norms follow layer '1'",
        ),
    ],
)  # fmt: skip
def test_what_is_no_chain_raises(model: nn.Module, layers: Any, message: str) -> None:
    for function in (
        network_graph,
        network_nodes,
        lambda *given: network_partitions(given[0], [0], given[1]),
    ):
        with pytest.raises(ValueError, match=message):
            function(model, layers)


def test_models_only() -> None:
    for function in (
        network_graph,
        network_nodes,
        lambda model: gradient_affinity(model, "0", [], torch.sub),
    ):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got Tensor"):
            function(torch.ones(2, 2))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_an_empty_weight_raises() -> None:
    with pytest.raises(ValueError, match=r"'1' must have a weight, got shape \(0, 2\)"):
        network_graph(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 0)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_raise(value: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].weight.data[1, 1] = value
    with pytest.raises(ValueError, match=r"layer '0' .* must be finite"):
        network_graph(model)
    model[0].weight.data[1, 1] = 1.0
    model[2].weight.data[0] = value
    with pytest.raises(ValueError, match=r"layer '1' .* must be finite"):
        network_graph(model)


# --- partitions


def test_partitions_fit_their_layers(tmp_path: Any) -> None:
    model = CNN((3, 4, 4), num_classes=4, hidden=5)
    images = torch.randn(2, 3, 4, 4)
    nodes = network_nodes(model, example_inputs=images)
    labels = torch.randint(-1, 3, (nodes["fc3"].stop,))
    labels[0] = 2
    partitions = network_partitions(model, labels, example_inputs=images)
    assert list(partitions) == ["conv1", "fc1", "fc2", "fc3"]
    assert EnmeshmentLoss(model, partitions).partitions == partitions
    assert {partition.num_clusters for partition in partitions.values()} == {3}
    before = ".input"
    for name, partition in partitions.items():
        positions = 4 if name == "fc1" else 1
        assert partition.row_labels.tolist() == labels[nodes[name]].tolist()
        expected = [label for label in labels[nodes[before]].tolist() for _ in range(positions)]
        assert partition.col_labels.tolist() == expected
        before = name
    save_partitions(tmp_path / "partitions.npz", partitions)
    assert load_partitions(tmp_path / "partitions.npz") == partitions
    for given in (labels.numpy()[::-1][::-1], labels.tolist()):
        assert network_partitions(model, given, ["conv1", "fc1", "fc2", "fc3"]) == partitions


def test_partitions_of_chosen_layers_and_transposed_weights() -> None:
    model = nn.ModuleDict({"b": Conv1D(2, 3), "a": nn.Linear(4, 3)})
    partitions = network_partitions(model, [0, 0, 1, 1, 0, 1, 0, -1, -1], layers=["a", "b"])
    assert partitions["a"] == Partition([0, 1, 0], [0, 0, 1, 1], 2)
    assert partitions["b"] == Partition([-1, -1], [0, 1, 0], 2)
    assert list(EnmeshmentLoss(model, partitions).partitions) == ["b", "a"]


def test_grouped_convolutions_have_no_partition() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Conv1d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(4, 2))
    partitions = network_partitions(model, [0, 1, 1, 1, 0, 0, 0, 1, 0, 1, 0, 1])
    assert list(partitions) == ["0", "3"]
    # Unless a column stands for channels of one cluster.
    partitions = network_partitions(model, [0, 1] * 6)
    assert partitions["1"] == Partition([0, 1, 0, 1], [0, 1], 2)
    assert EnmeshmentLoss(model, partitions)().isfinite()


def test_no_cluster_at_all() -> None:
    assert network_partitions(nn.Linear(2, 1), [-1] * 3) == {"": Partition([-1], [-1, -1], 1)}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "labels must be 3, one for each unit of the network, got 2"),
        ([0, 1, 0, 1], "labels must be 3, .*, got 4"),
        ([0.0, 1.0, 0.0], "labels must hold integers, got dtype"),
        ([0, 1, -2], r"labels must lie in \[-1, .*\], got -2"),
        ([[0, 1, 0]], "labels must be 1-D"),
        ("abc", "labels must be"),
        (None, "labels must be"),
    ],
)
def test_bad_labels(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network_partitions(nn.Linear(2, 1), labels)
