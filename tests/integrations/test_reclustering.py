"""Clusters that training finds anew: as many for each layer as before, over a network or layer by layer."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from modfast import Partition, read_network, spectral_cocluster
from modfast.integrations.reclustering import found_partitions
from modfast.train.distributed import RankError


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(12, 12) for _ in range(3)))


def blocks(*names, clusters=3):
    return {name: Partition.blocks((12, 12), clusters) for name in names}


def test_layers_that_share_no_unit_have_all_clusters_each():
    model = make_model()
    network = read_network(model, torch.zeros(1, 12))
    found = found_partitions(model, blocks("0", "2"), network, 0)
    for name, partition in found.items():
        assert partition.num_clusters == 3
        assert partition.row_labels.unique().tolist() == [0, 1, 2]
        assert partition.col_labels.unique().tolist() == [0, 1, 2], name
    together = found_partitions(model, blocks("0", "1", "2"), network, 0)
    assert torch.equal(together["0"].row_labels, together["1"].col_labels)
    assert torch.equal(together["1"].row_labels, together["2"].col_labels)


def test_layers_have_clusters_of_their_own_without_a_network():
    model = make_model()
    found = found_partitions(model, blocks("0") | blocks("2", clusters=5), None, 0)
    assert found == {
        "0": spectral_cocluster(model[0].weight.detach(), 3),
        "2": spectral_cocluster(model[2].weight.detach(), 5),
    }


def test_the_global_random_numbers_are_left_alone():
    model = make_model()
    before = torch.get_rng_state()
    found_partitions(model, blocks("0"), read_network(model, torch.zeros(1, 12)), 0)
    assert torch.equal(torch.get_rng_state(), before)


def sharded_with_a_network():
    model = make_model()
    network = read_network(model, torch.zeros(1, 12))
    model[0].weight = nn.Parameter(
        distribute_tensor(model[0].weight.detach(), init_device_mesh("cpu", (2,)), [Shard(0)])
    )
    alone = found_partitions(model, blocks("0"), None, 0)
    with pytest.raises(RankError, match="DTensor") as raised:
        found_partitions(model, blocks("0"), network, 0)
    return alone, str(raised.value)


def test_weights_that_are_spread_over_processes(processes):
    whole = spectral_cocluster(make_model()[0].weight.detach(), 3)
    for alone, message in processes(2).run(sharded_with_a_network):
        assert alone == {"0": whole}
        assert "rank 0" in message
