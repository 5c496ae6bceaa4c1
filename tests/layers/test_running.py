"""What models are called with and what they return: batches of any form, and objects with logits."""

import functools
import types

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import modfast
from modfast import Partition, class_accuracy, cluster_accuracy, find_circuit, gradient_affinity
from modfast.data import load_dataset
from modfast.layers.running import call_model, logits_of, moved, split_batch
from modfast.train import TrainConfig, train

INPUTS, LABELS = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 4
CLUSTERS = {"2": Partition([0, 1, 0, 1], torch.arange(8) % 2, 2)}


def plain_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


class Wrapped(nn.Module):
    """The same layers by the same names, called and answering as models of transformers."""

    def __init__(self, answer):
        super().__init__()
        for index, layer in enumerate(plain_model()):
            self.add_module(str(index), layer)
        self.answer = answer

    def forward(self, x, scale=1.0, labels=None):
        assert labels is None  # they would be for a loss that nobody asked for
        for layer in self.children():
            x = layer(x)
        return self.answer(x * scale if isinstance(scale, torch.Tensor) else x)


ANSWERS = {
    "object": lambda logits: types.SimpleNamespace(logits=logits, loss=None),
    "mapping": lambda logits: {"logits": logits},
    "tensor": lambda logits: logits,
}

DATA = {
    "pair of tensors": (INPUTS, LABELS),
    "pair of a mapping": ({"x": INPUTS, "scale": torch.full((50, 1), 2.0)}, LABELS),
    "mapping": {"x": INPUTS, "labels": LABELS},
    "list of pairs": [(INPUTS[:30], LABELS[:30]), (INPUTS[30:], LABELS[30:])],
    "list of lists": [[INPUTS[:30], LABELS[:30]], [INPUTS[30:], LABELS[30:]]],
    "list of mappings": [
        {"x": INPUTS[:30], "labels": LABELS[:30]},
        {"x": INPUTS[30:], "labels": LABELS[30:]},
    ],
    "positional": [((INPUTS[:30],), LABELS[:30]), ((INPUTS[30:], 1.0), LABELS[30:])],
    "loader": torch.utils.data.DataLoader(list(zip(INPUTS, LABELS, strict=True)), batch_size=7),
    "loader of mappings": torch.utils.data.DataLoader(
        [{"x": x, "labels": label} for x, label in zip(INPUTS, LABELS, strict=True)], batch_size=7
    ),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("form", DATA)
@pytest.mark.parametrize("once", [False, True])
def test_accuracy_over_batches_of_any_form(form, answer, once):
    data = DATA[form]
    if once:
        if form in ("pair of tensors", "pair of a mapping", "mapping"):
            return  # in memory, no stream
        data = (batch for batch in data)
    expected = cluster_accuracy(plain_model(), (INPUTS, LABELS), CLUSTERS, "without")
    # A stream that can be gone through but once serves all clusters.
    assert torch.equal(cluster_accuracy(Wrapped(ANSWERS[answer]), data, CLUSTERS, "without"), expected)
    if not once:
        whole = class_accuracy(plain_model(), (INPUTS, LABELS))
        assert torch.equal(class_accuracy(Wrapped(ANSWERS[answer]), data), whole)


@pytest.mark.parametrize(
    "form", [form for form in DATA if form not in ("pair of tensors", "pair of a mapping", "mapping")]
)
@pytest.mark.parametrize(
    "loss", [cross_entropy, nn.CrossEntropyLoss(), functools.partial(cross_entropy, reduction="mean")]
)
def test_gradients_over_batches_of_any_form(form, loss):
    data = list(DATA[form])
    targets = [split_batch(batch, "data") for batch in data]
    pairs = [(x["x"] if isinstance(x, dict) else x[0] if isinstance(x, tuple) else x, y) for x, y in targets]
    expected = gradient_affinity(plain_model(), "0", pairs, cross_entropy)
    for answer in ANSWERS.values():
        found = gradient_affinity(Wrapped(answer), "0", iter(data), loss)
        torch.testing.assert_close(found, expected)


def test_a_loss_of_one_s_own_gets_what_the_model_returns():
    batches = [(INPUTS, LABELS)]
    expected = gradient_affinity(plain_model(), "0", batches, cross_entropy)
    model = Wrapped(ANSWERS["object"])
    found = gradient_affinity(model, "0", batches, lambda out, labels: cross_entropy(out.logits, labels))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", ["compiled", "reference"])
@pytest.mark.parametrize("answer", ["object", "mapping"])
def test_circuits_of_models_that_return_objects(method, answer):
    found = find_circuit(Wrapped(ANSWERS[answer]), INPUTS, 1, method=method)
    expected = find_circuit(plain_model(), INPUTS, 1, method=method)
    assert all(torch.equal(mask, expected.masks[name]) for name, mask in found.masks.items())


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, images):
        return types.SimpleNamespace(logits=self.fc(images.flatten(1)))


def test_training_of_models_that_return_objects():
    run = train(Classifier(), load_dataset("digits"), TrainConfig(epochs=10, layers=None, threads=1))
    assert run.history[-1]["test_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (torch.ones(2, 2), "data must hold pairs .* got Tensor"),
        ((torch.ones(2),), "data must hold pairs .* got tuple"),
        ("ab", "data must hold pairs .* got str"),
        ({"x": torch.ones(2)}, r"data must hold pairs .* got a mapping with \['x'\]"),
        (3, "data must hold pairs .* got int"),
    ],
)
def test_other_batches_are_refused(batch, told):
    for function in (
        lambda: class_accuracy(plain_model(), [batch]),
        lambda: split_batch(batch, "data"),
    ):
        with pytest.raises(TypeError, match=told):
            function()


@pytest.mark.parametrize("output", [None, (torch.ones(2, 4),), {"other": torch.ones(2)}, "logits", 1.5])
def test_other_outputs_are_refused(output):
    with pytest.raises(TypeError, match="model must return a tensor of logits, got "):
        logits_of(output)
    with pytest.raises(TypeError, match="model must return a tensor of logits, got "):
        class_accuracy(Wrapped(lambda logits: output), (INPUTS, LABELS))


def test_logits_of_another_shape_are_refused():
    for answer in (lambda x: x[:, 0], lambda x: x[None], lambda x: x[:-1]):
        with pytest.raises(ValueError, match=r"model must give logits \(n, classes\), got shape"):
            class_accuracy(Wrapped(answer), (INPUTS, LABELS))


def test_parameters_of_other_names_are_refused():
    model = plain_model()
    ones = {"0.weight": torch.zeros(8, 6), "2.bias": torch.arange(4.0)}
    found = class_accuracy(model, (INPUTS, LABELS), ones)
    assert found.tolist() == [0.0, 0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match=r"parameters: '0\.wieght' is no parameter or buffer of the model"):
        class_accuracy(model, (INPUTS, LABELS), {"0.wieght": torch.zeros(8, 6)})


def test_calls_and_moves():
    def model(*args, **kwargs):
        return args, kwargs

    x = torch.ones(2)
    (given, two), _ = call_model(model, (x, 2))
    assert torch.equal(given, x)
    assert two == 2
    assert call_model(model, {"x": 1}) == ((), {"x": 1})
    assert len(call_model(model, x)[0]) == 1
    on_meta = moved({"x": x, "more": [x, "text", {"y": x}]}, torch.device("meta"))
    assert on_meta["x"].is_meta
    assert on_meta["more"][2]["y"].is_meta
    assert on_meta["more"][1] == "text"


def test_transformers_models_of_any_call(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, vocab_size=50, num_labels=3)
    model = transformers.BertForSequenceClassification(config)
    tokens, labels = torch.randint(1, 50, (12, 5)), torch.arange(12) % 3
    batches = [
        {"input_ids": tokens[i : i + 4], "attention_mask": torch.ones(4, 5), "labels": labels[i : i + 4]}
        for i in (0, 4, 8)
    ]
    whole = class_accuracy(model, (tokens, labels))
    assert torch.equal(class_accuracy(model, batches), whole)
    partitions = {"bert.encoder.layer.0.intermediate.dense": Partition.blocks((32, 16), 2)}
    assert cluster_accuracy(model, iter(batches), partitions, "only").shape == (2, 3)
    layer = "bert.encoder.layer.0.attention.self.query"
    assert gradient_affinity(model.eval(), layer, batches, cross_entropy).shape == (16, 16)
    assert list(find_circuit(model, tokens[labels == 1], 1).masks) == ["bert.pooler.dense", "classifier"]


def test_inputs_without_numbers_are_named():
    model, inputs = nn.Linear(3, 3), torch.ones(4, 3, device="meta")
    for call in (
        lambda: modfast.class_accuracy(model, (inputs, torch.zeros(4, dtype=torch.int64))),
        lambda: moved({"x": (inputs,)}, torch.device("cpu")),
    ):
        with pytest.raises(ValueError, match="inputs must hold numbers, got a tensor on the meta device"):
            call()
    assert moved(inputs, torch.device("meta")).is_meta
