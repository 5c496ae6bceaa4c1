"""What the results of a run say of neurons: the means of the public functions, or None."""

import json
import math

import pytest
import torch
from torch import nn

from modfast import Partition, label_semanticity, live_units, search_space_reduction
from modfast.experiment.measures import neuron_measures
from modfast.models import MLP

DATA = (torch.randn(80, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(80) % 10)
CLUSTERS = {"fc2": Partition.blocks((64, 64), 4)}


def measured(model, data=DATA, partitions=CLUSTERS):
    found = neuron_measures(model, data, 10, partitions)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MLP((1, 4, 4))


def test_they_are_those_of_the_public_functions(model):
    model.fc2.weight.data[:16] = 0.0
    found = measured(model)
    shares = label_semanticity(model, DATA, "fc2", 50, num_classes=10)["fc2"]
    assert shares[:16].isnan().all()
    assert found["label_semanticity"] == {"fc2": float(shares[16:].mean())}
    share = search_space_reduction(model, CLUSTERS, example_inputs=DATA[0])
    assert found["search_space_reduction"] == share
    live, expected = found["live"]["fc2"], live_units(model.fc2.weight, CLUSTERS["fc2"])
    assert live["rows"] == 0.75
    assert live["columns"] == 1.0
    assert live["effective_rows"] == expected.effective_rows
    assert live["effective_columns"] == expected.effective_columns
    assert live["clusters"] == expected.effective_clusters == pytest.approx(3, rel=0.1)
    assert live["cluster_shares"] == expected.cluster_shares.tolist()


def test_fewer_images_than_fifty(model):
    few = (DATA[0][:9], DATA[1][:9])
    shares = label_semanticity(model, few, "fc2", 9, num_classes=10)["fc2"]
    assert measured(model, few)["label_semanticity"]["fc2"] == float(shares.mean()) == pytest.approx(0.9)


def test_dead_neurons_have_no_mean(model):
    model.fc2.weight.data.zero_()
    found = measured(model)
    assert found["label_semanticity"] == {"fc2": None}
    assert found["live"]["fc2"]["clusters"] == 0.0


def test_without_partitions(model):
    assert measured(model, partitions={}) == {
        "label_semanticity": {},
        "search_space_reduction": None,
        "live": {},
    }


class Own(nn.Module):
    """No chain: it multiplies by a stack of matrices, and runs a layer twice."""

    def __init__(self):
        super().__init__()
        self.stack, self.twice = nn.Parameter(torch.randn(2, 16, 16)), nn.Linear(16, 16)

    def forward(self, images):
        x = self.twice(images.flatten(1)) + images.flatten(1) @ self.stack[0].T
        return self.twice(x) @ self.stack[1].T


def test_a_model_with_a_stack_and_a_layer_that_runs_twice():
    blocks = Partition.blocks((16, 16), 4)
    found = measured(Own(), partitions={"stack[0]": blocks, "twice": blocks})
    assert found["label_semanticity"] == {"stack[0]": None, "twice": None}
    # All but the outputs are one space of 16 units, of which a cluster leaves 4.
    left = (4 * 4 + 4) + 4 * 4 + 16 * 4
    assert found["search_space_reduction"] == 1 - left / (3 * 16 * 16 + 16)
    assert all(math.isfinite(live["clusters"]) for live in found["live"].values())
    assert set(found["live"]) == {"stack[0]", "twice"}
