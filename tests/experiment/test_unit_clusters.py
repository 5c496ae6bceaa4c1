"""The clusters of a run's units, from those of its layers."""

from __future__ import annotations

import torch
from torch import nn

from modfast.experiment.unit_models import unit_clusters
from modfast.network.reading import read_network
from modfast.partition import Partition


def test_layers_that_decide() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    network = read_network(model, torch.zeros(1, 2))
    partitions = {
        "0": Partition([0, 0, 1, 1], [0, 1], 2),
        "2": Partition([1, 0], [0, 1, 1, 0], 2),
    }
    spaces = network.spaces

    def of(first: list[str], name: str) -> list[int]:
        return unit_clusters(network, partitions, first)[spaces[name]].tolist()

    # Where both speak and disagree, a unit is in no cluster; unless one of them decides.
    assert of([], "0") == [0, -1, 1, -1]
    assert of(["0"], "0") == [0, 0, 1, 1]
    assert of(["2"], "0") == [0, 1, 1, 0]
    assert of(["2"], "2") == [1, 0]
    assert unit_clusters(network, {}, []) is None
    assert unit_clusters(network, {"elsewhere": Partition([0], [0], 1)}, ["elsewhere"]) is None


def test_others_are_not_asked_where_those_that_decide_disagree() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    network = read_network(model, torch.zeros(1, 2))
    partitions = {
        "0": Partition([0, 1, 1], [0, 1], 2),
        "2": Partition([0, 0, 1], [0, 0, 1], 2),
        "4": Partition([0, 1], [1, 0, 1], 2),
    }
    found = unit_clusters(network, partitions, ["0", "2"])
    assert found[network.spaces["0"]].tolist() == [0, -1, 1]
    assert found[network.spaces["2"]].tolist() == [0, 0, 1]
    # Without the second layer nobody contradicts the first.
    assert unit_clusters(network, partitions, ["0"])[network.spaces["0"]].tolist() == [0, 1, 1]


def test_channels_that_a_flatten_repeats() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2, bias=False)
    )
    network = read_network(model, torch.zeros(1, 1, 2, 2))
    partitions = {"3": Partition([0, 1], [0] * 4 + [1] * 4 + [0, 1, 0, 1] + [1] * 4, 2)}
    assert unit_clusters(network, partitions, ["3"])[network.spaces["0"]].tolist() == [0, 1, -1, 1]
