"""A model may write to its inputs: what the caller gave stays as it is, and each call sees the same."""

import types

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import modfast
from modfast import Partition, class_accuracy, cluster_accuracy, gradient_affinity
from modfast.layers.running import call_model

PARTITIONS = {"fc1": Partition.blocks((8, 8), 2)}


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x, steps=None):
        return self.fc2(torch.relu(self.fc1((x - 0.5) / 0.5)))


class Writing(Plain):
    """Normalises in place, as many models do, and counts in an integer tensor."""

    def forward(self, x, steps=None):
        if steps is not None:
            steps.add_(1)
            assert int(steps.max()) == 1
        x.sub_(0.5).div_(0.5)
        return self.fc2(torch.relu(self.fc1(x)))


@pytest.fixture
def problem():
    torch.manual_seed(0)
    plain, writing = Plain(), Writing()
    writing.load_state_dict(plain.state_dict())
    return plain, writing, torch.rand(100, 8), torch.randint(0, 4, (100,))


FORMS = {
    "in memory": lambda x, y, steps: (x, y),
    "a mapping in memory": lambda x, y, steps: {"x": x, "steps": steps, "labels": y},
    "batches": lambda x, y, steps: [(x, y)],
    "batches of several": lambda x, y, steps: [((x, steps), y)],
    "batches of mappings": lambda x, y, steps: [{"x": x, "steps": steps, "labels": y}],
}
CALLS = {
    "class_accuracy": class_accuracy,
    "cluster_accuracy": lambda model, data: cluster_accuracy(model, data, PARTITIONS, "without"),
    "gradient_affinity": lambda model, data: gradient_affinity(
        model, "fc1", data if isinstance(data, list) else [data], cross_entropy
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("call", CALLS)
def test_data_stays_as_it_is(problem, form, call):
    plain, writing, x, y = problem
    steps = torch.zeros(100, dtype=torch.int64)
    data, before = FORMS[form](x, y, steps), x.clone()
    expected = CALLS[call](plain, data)
    assert torch.equal(CALLS[call](writing, data), expected)
    assert torch.equal(x, before)
    assert not steps.any()


def test_example_inputs_and_those_of_a_circuit_stay_as_they_are(problem):
    _, writing, x, _ = problem
    before = x.clone()
    modfast.network_graph(writing, example_inputs=x)
    for method in ("compiled", "reference"):
        modfast.find_circuit(writing, x, 1, layers="fc2", method=method)
    assert torch.equal(x, before)


def test_copies_of_any_form():
    def model(*args, **kwargs):
        return args, kwargs

    weight = nn.Parameter(torch.ones(3))
    computed = weight * 2
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    cache = types.SimpleNamespace(kept=[computed])
    ((a, b, sequence, kept, word), _) = call_model(model, (computed, computed, packed, cache, "word"))
    assert a is b  # what was one tensor still is
    assert a is not computed
    assert torch.equal(a, computed)
    assert torch.autograd.grad(a.sum(), weight)[0].tolist() == [2.0] * 3  # with its record for gradients
    assert type(sequence) is type(packed)
    assert sequence.data is not packed.data
    assert kept.kept[0] is a
    assert word == "word"
    with torch.inference_mode():
        made = torch.ones(2)
    (copy,), _ = call_model(model, made)
    copy.requires_grad_()


def test_what_cannot_be_copied_is_refused():
    with pytest.raises(TypeError, match="inputs must be such as can be copied"):
        call_model(nn.Identity(), ((i for i in range(3)),))
