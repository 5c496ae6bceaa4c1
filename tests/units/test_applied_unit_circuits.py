"""Models with a unit circuit applied: complete or refused, copied and stored; and attention of matrices."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from modfast import find_unit_circuit, read_network
from modfast.circuits.units.candidates import Candidates
from modfast.circuits.units.evaluation import Evaluation

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def first_logit(output, batch):
    return output[:, 0]


def found(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    return model, find_unit_circuit(model, X, first_logit, read_network(model, X), tolerance=1.0, **options)


@pytest.mark.parametrize("options", [{}, {"ablation": "mean", "reference": [X.flip(0) + 1]}])
def test_applied_models_can_be_copied_and_stored(options):
    model, circuit = found(**options)
    applied = circuit.apply(model)
    expected = applied(X)
    assert float(expected[:, 0].detach().double().mean()) == pytest.approx(circuit.metric_after, rel=1e-6)
    assert not torch.allclose(expected, model(X))
    for other in (copy.deepcopy(applied), pickle.loads(pickle.dumps(applied))):
        torch.testing.assert_close(other(X), expected, rtol=0, atol=0)


def test_a_circuit_that_does_not_know_its_readers_cannot_be_applied():
    model, circuit = found(ablation="mean", reference=[X.flip(0) + 1])
    with pytest.raises(ValueError, match="reads must say which layers read the units outside"):
        dataclasses.replace(circuit, reads={}).apply(model)
    with pytest.raises(ValueError, match="means must hold"):
        dataclasses.replace(circuit, means={}).apply(model)
    whole = dataclasses.replace(circuit, kept=torch.ones_like(circuit.kept), reads={}, means={})
    torch.testing.assert_close(whole.apply(model)(X), model(X), rtol=0, atol=0)


class OverExamples(nn.Module):
    """Attends from each example to all others: attention of matrices, without a batch dimension."""

    def __init__(self, by_hand):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.by_hand = by_hand
        self.double()

    def forward(self, x):
        hidden = self.first(x).relu()
        query, key, value = self.query(hidden), self.key(hidden), self.value(hidden)
        if self.by_hand:
            return self.last((query @ key.mT / 8**0.5).softmax(-1) @ value)
        return self.last(functional.scaled_dot_product_attention(query, key, value))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_attention_of_matrices_keeps_sets_apart():
    x = X.double()
    network = read_network(OverExamples(True), x)
    task = Evaluation(OverExamples(False), [x], first_logit, network)
    candidates = Candidates(task)
    sets = (torch.rand(12, network.num_units, generator=torch.Generator().manual_seed(0)) < 0.3) & task.asked
    values = candidates.metrics(torch.zeros_like(task.asked), sets)
    assert candidates.at_once > 1
    expected = [Evaluation(OverExamples(True), [x], first_logit, network).metric(each) for each in sets]
    assert values == pytest.approx(expected, rel=1e-12)
