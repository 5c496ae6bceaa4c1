"""Inputs keep their form on the way to the model: tuples, mappings, packed sequences, objects."""

import collections
import types
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import modfast
from modfast.layers.running import call_model, moved

META = torch.device("meta")
X, LABELS = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4


class Graph(NamedTuple):
    nodes: torch.Tensor
    edges: torch.Tensor


class Output(collections.OrderedDict):
    """Also reads its items as attributes, as transformers' outputs do."""

    def __getattr__(self, name):
        return self[name]


class Numbers(list):
    pass


class Movable:
    """An object that moves itself, as some do."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        self.x = self.x.to(device)
        return self


def packed():
    return pack_sequence([torch.randn(n, 8) for n in (2, 5, 4)], enforce_sorted=False)


def test_containers_keep_their_types():
    inputs = (
        X,
        [X, (X, "text")],
        Graph(X, X),
        Output(a=X),
        Numbers([X, 1]),
        collections.defaultdict(int, b=X),
    )
    on_meta = moved(inputs, META)
    plain, listed, graph, output, numbers, counted = on_meta
    assert type(on_meta) is tuple
    assert plain.is_meta
    assert type(listed) is list
    assert type(listed[1]) is tuple
    assert listed[1][0].is_meta
    assert listed[1][1] == "text"
    assert type(graph) is Graph
    assert graph.nodes.is_meta
    assert type(output) is Output
    assert output.a.is_meta
    assert type(numbers) is Numbers
    assert numbers[0].is_meta
    assert counted["b"].is_meta
    assert counted["missing"] == 0
    assert not any(value.is_meta for value in (inputs[2].nodes, inputs[3].a, inputs[4][0], inputs[5]["b"]))


def test_what_does_not_change_is_the_same_object():
    frozen = types.MappingProxyType({"size": X.shape, "x": X})
    assert moved(frozen, torch.device("cpu")) is frozen
    with pytest.raises(TypeError, match="inputs: a mappingproxy cannot be made again with other tensors"):
        moved(frozen, META)


def test_objects_are_moved_by_their_own_method():
    given = Movable(X)
    assert moved([given], META)[0].x.is_meta
    assert not given.x.is_meta
    given.to = lambda device: 1 / 0
    with pytest.raises(TypeError, match="inputs: a Movable cannot be moved to meta: division by zero"):
        moved(given, META)
    assert moved(nn.Linear, META) is nn.Linear


def test_a_packed_sequence_is_one_value():
    on_meta = moved({"x": packed()}, META)["x"]
    assert isinstance(on_meta, PackedSequence)
    assert on_meta.data.is_meta
    assert isinstance(call_model(lambda value: value, packed()), PackedSequence)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.o = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, sequences):
        return self.o(self.lstm(sequences)[1][0][-1])


class OnData(nn.Module):
    """Two layers in a chain, on the data of a packed sequence."""

    def __init__(self):
        super().__init__()
        self.f, self.o = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, sequences):
        return self.o(torch.relu(self.f(sequences.data)))


@pytest.mark.parametrize("form", [lambda p: p, lambda p: (p,), lambda p: {"sequences": p}])
def test_models_of_packed_sequences(form):
    torch.manual_seed(0)
    model, sequences, labels = Recurrent(), packed(), torch.arange(3)
    hits = model(sequences).argmax(1) == labels
    found = modfast.class_accuracy(model, [(form(sequences), labels)])
    assert found[:3].tolist() == hits.double().tolist()
    assert modfast.gradient_affinity(model, "o", [(form(sequences), labels)], cross_entropy).shape == (4, 6)
    chain = OnData()
    assert torch.equal(
        modfast.network_graph(chain, example_inputs=form(sequences)).to_dense(),
        modfast.network_graph(chain, layers=["f", "o"]).to_dense(),
    )


def test_a_packed_sequence_in_memory_is_no_tensor():
    with pytest.raises(TypeError, match=r"data must have its inputs as tensors .* got PackedSequence"):
        modfast.class_accuracy(Recurrent(), (packed(), torch.arange(3)))


class Choosy(nn.Module):
    """Does something else with a tuple, a named tuple and a list."""

    def __init__(self):
        super().__init__()
        self.f, self.o = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, value):
        if isinstance(value, Graph):
            x = value.nodes
        else:
            x = value[0] * 2 if isinstance(value, tuple) else -value[0]
        return self.o(torch.relu(self.f(x)))


@pytest.mark.parametrize("value", [(X, X), [X, X], Graph(X, X)])
def test_a_model_sees_what_was_given(value):
    torch.manual_seed(0)
    model = Choosy()
    hits = model(value).argmax(1) == LABELS
    expected = [hits[label == LABELS].double().mean() for label in range(4)]
    assert modfast.class_accuracy(model, [((value,), LABELS)]).tolist() == expected
    assert modfast.network_graph(model, example_inputs=(value,)).shape == (18, 18)


def test_outputs_of_transformers_as_inputs():
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 12}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    encoded = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=torch.randn(3, 5, 16))
    on_meta = moved({"encoder_outputs": encoded}, META)["encoder_outputs"]
    assert on_meta.last_hidden_state.is_meta
    assert not encoded.last_hidden_state.is_meta

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, **inputs):
            return self.inner(**inputs).logits[:, -1]

    inputs = {"encoder_outputs": encoded, "decoder_input_ids": torch.ones(3, 1, dtype=torch.int64)}
    assert modfast.class_accuracy(Last(), [(inputs, torch.arange(3))]).shape == (12,)
