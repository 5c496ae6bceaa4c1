"""Networks whose model has changed since it was read, threads that read them at once, models that fail."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from modfast import read_network, shuffle_test
from modfast.network.following import CannotFollowError

INPUTS = torch.zeros(1, 4)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def test_threads_leave_the_model_in_its_mode():
    model = make_model().train()
    parametrizations.spectral_norm(model[2])
    before = copy.deepcopy(model.state_dict())
    computes = model[2].parametrizations["weight"]
    own = type(computes).forward
    running = []

    class Slow(type(computes)):
        """Lets other threads run while it computes."""

        def forward(self):
            running.append(len(running))
            torch.randn(50, 50) @ torch.randn(50, 50)
            for _ in range(2000):
                pass
            return own(self)

    computes.__class__ = Slow
    network = read_network(model, INPUTS)
    expected = network.graph().to_dense()
    with ThreadPoolExecutor(8) as pool:
        graphs = list(pool.map(lambda _: network.graph().to_dense(), range(200)))
    assert all(torch.equal(graph, expected) for graph in graphs)
    shuffle_test(model, 2, 24, example_inputs=INPUTS, workers=8, n_init=1)
    assert all(module.training for module in model.modules())
    assert running
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model: model.__setitem__(2, nn.Linear(6, 9)),
            r"layer '2' was \(out, in\) \(6, 6\) .* \(9, 6\)",
        ),
        (
            lambda model: model.__setitem__(2, nn.Linear(3, 6)),
            r"layer '2' was .* has \(6, 3\) there: read it",
        ),
        (lambda model: model.__setitem__(2, nn.Identity()), "the model now has no such layer: read it again"),
    ],
)
def test_a_layer_of_another_shape_raises(change, message):
    model = make_model()
    network = read_network(model, INPUTS)
    change(model)
    with pytest.raises(ValueError, match=message):
        network.graph()
    assert network.graph(["0"])._nnz() == 2 * 4 * 6


@pytest.mark.parametrize("method", ["graph", "part", "partitions"])
def test_no_layer_at_all_raises(method):
    network = read_network(make_model(), INPUTS)
    labels = {"labels": 2} if method == "partitions" else {}
    with pytest.raises(ValueError, match="layers must name at least one layer, got none"):
        getattr(network, method)(layers=[], **labels)


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (
            nn.Identity(),
            r"a batch norm with '1\.weight' followed layer '0' when .* now has none: read it again",
        ),
        (nn.BatchNorm1d(6, affine=False), r"a batch norm with '1\.weight' followed layer '0'"),
        (
            nn.BatchNorm1d(7),
            "the batch norm that follows layer '0' must have 6 channels, .* got 7: read it again",
        ),
    ],
)
def test_another_batch_norm_raises(norm, message):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    network = read_network(model, INPUTS)
    model[1] = norm
    with pytest.raises(ValueError, match=message):
        network.graph()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer, weight: weight[:2], r"a tensor of shape \(6, 4\) for layer '0', got shape \(2, 4\)"),
        (lambda layer, weight: weight.T, r"a tensor of shape \(6, 4\) for layer '0', got shape \(4, 6\)"),
        (lambda layer, weight: None, "got NoneType"),
    ],
)
def test_what_takes_the_place_of_a_weight_must_fit(change, message):
    with pytest.raises(ValueError, match=f"change must return .*{message}"):
        read_network(make_model(), INPUTS).changed_graph(change)


def test_layers_of_networks_can_be_compared():
    network = read_network(make_model(), INPUTS)
    again = pickle.loads(pickle.dumps(network))
    assert network.layers["0"] == network.layers["0"]
    assert network.layers["0"] != again.layers["0"]
    assert torch.equal(network.graph().to_dense(), again.graph().to_dense())


def test_a_number_of_clusters_may_be_numpy_s():
    network = read_network(make_model(), INPUTS)
    assert network.partitions(np.int64(3)) == network.partitions(3)


class SideBySide(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other, self.both = nn.Linear(4, 3), nn.Linear(5, 3), nn.Linear(6, 2)

    def forward(self, x, y):
        return self.both(torch.cat([self.one(x), self.other(y)], dim=1))


def test_what_lies_side_by_side_shares_no_units():
    network = read_network(SideBySide(), (torch.zeros(1, 4), torch.zeros(1, 5)))
    assert network.apart() == [["one", "other", "both"]]
    assert network.part(["one", "other"]).apart() == [["one"], ["other"]]
    assert network.part(["one", "both"]).apart() == [["one", "both"]]


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (make_model(), torch.zeros(0, 4), r"no numbers in an input of shape \(0, 4\)"),
        (
            nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3)),
            INPUTS,
            r"no numbers in '0\.weight' of shape \(0, 4\)",
        ),
        (make_model(), INPUTS.double(), "must have the same dtype, but got Double and Float$"),
        (nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3).double()), INPUTS, "but got Float and Double$"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_computation_that_fails_says_so(model, inputs, message):
    with pytest.raises(CannotFollowError, match=f"its computation on example_inputs fails: .*{message}"):
        read_network(model, inputs)
