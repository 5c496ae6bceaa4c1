"""Clusters that were planted in whole networks are found, as units, and partition every layer."""

import pytest
import torch
import torchvision
from sklearn.metrics import adjusted_rand_score
from small_transformers import gpt2, llama, vit

from modfast import EnmeshmentLoss, read_network, shuffle_test, spectral_cluster
from modfast.layers.layer import find_layers


def resnet18():
    return torchvision.models.resnet18(num_classes=10), torch.rand(1, 3, 32, 32)


def planted(make, clusters, between=0.02):
    """A model, its network, and the cluster of each unit; weights between clusters are small."""
    torch.manual_seed(0)
    model, inputs = make()
    network = read_network(model, inputs)
    truth = torch.randint(0, clusters, (network.num_units,))
    with torch.no_grad():
        for layer in find_layers(model):
            joined = network.layers.get(layer.name)  # a token that is learned is no layer
            if joined is not None and joined.tied_to is None:
                inside = truth[joined.row_units][:, None] == truth[joined.col_units]
                weight = torch.randn(layer.weight().shape)
                weight *= torch.where(inside, 1.0, between).reshape(*inside.shape, *[1] * (weight.dim() - 2))
                layer.weight().copy_(weight)
    return model, inputs, network, truth


@pytest.mark.parametrize("make", [gpt2, llama, vit, resnet18])
def test_planted_clusters_are_found_and_partition_every_layer(make):
    model, _, network, truth = planted(make, 3)
    graph = network.graph()
    assert torch.equal(graph.to_dense(), graph.to_dense().T)
    found = spectral_cluster(graph, 3)
    assert adjusted_rand_score(truth, found) >= 0.99
    partitions = network.partitions(found)
    with torch.no_grad():
        assert float(EnmeshmentLoss(model, partitions)()) < 0.01


def test_indices_may_be_short():
    model, inputs = gpt2()
    network = read_network(model, inputs)
    long, short = (network.graph(index_dtype=dtype) for dtype in (torch.int64, torch.int32))
    assert short.crow_indices().dtype == short.col_indices().dtype == torch.int32
    assert torch.equal(short.to_dense(), long.to_dense())
    assert torch.equal(spectral_cluster(short, 3), spectral_cluster(long, 3))
    with pytest.raises(ValueError, match=r"index_dtype must be torch.int64 or torch.int32, got torch.int16"):
        network.graph(index_dtype=torch.int16)


def test_blocks_of_each_space_are_shared_by_all_layers():
    model, inputs = gpt2()
    network = read_network(model, inputs)
    every = network.partitions(4)
    assert set(every) == set(network.layers) - {"lm_head"}  # whose weight is the embedding's
    for name, partition in network.partitions(4, network.select("mlp_input")).items():
        assert torch.equal(partition.row_labels, every[name.replace("c_fc", "c_proj")].col_labels)
        assert torch.equal(partition.col_labels, every["transformer.wte"].col_labels)
        assert partition == every[name]


@pytest.mark.parametrize(("between", "modular"), [(0.3, True), (1.0, False)])
def test_the_shuffle_test_tells_a_planted_network_from_a_random_one(between, modular):
    model, inputs, _, _ = planted(gpt2, 3, between)
    result = shuffle_test(model, 3, 9, example_inputs=inputs, n_init=2)
    assert (result.z_score < -5) if modular else (abs(result.z_score) < 3)
