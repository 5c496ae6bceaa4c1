"""Modular addition: its pairs, its networks, and what they compute."""

import pytest
import torch
from torch import nn

import modfast
from modfast.tasks import AdditionMLP, AdditionTransformer, Transformer, modular_addition


def test_pairs_and_targets():
    task = modular_addition(7, 0.6, seed=3)
    assert task.pairs.shape == (49, 2)
    for place, ((a, b), target) in enumerate(zip(task.pairs.tolist(), task.targets.tolist(), strict=True)):
        assert (place, target) == (a * 7 + b, (a + b) % 7)
    ((train, train_targets),), ((test, test_targets),) = task.train_batches, task.test_batches
    assert (len(train), len(test)) == (29, 20)
    both = torch.cat([train, test])
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, task.pairs.tolist()))
    assert torch.equal(both.sum(1) % 7, torch.cat([train_targets, test_targets]))


def test_the_seed_decides_the_pairs():
    one, same, other = (modular_addition(11, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.is_train, same.is_train)
    assert not torch.equal(one.is_train, other.is_train)
    assert one.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2,), "p must be an integer of at least 3, got 2"),
        ((7.0,), "p must be an integer of at least 3, got 7.0"),
        ((7, 0), "train_share must be a number between 0 and 1, both excluded, got 0"),
        ((7, 1.0), "train_share must be a number between 0 and 1"),
        ((3, 0.01), "train_share must leave pairs to train on and to hold out, of 9 it takes 0"),
        ((7, 0.5, -1), "seed must be an integer in"),
    ],
)
def test_bad_tasks(arguments, message):
    with pytest.raises(ValueError, match=message):
        modular_addition(*arguments)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_models_depend_on_their_seed_alone(kind):
    task, weights = modular_addition(5), []
    for noise, seed in ((0, 0), (1, 0), (1, 1)):
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        model = task.model(kind, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
        logits = model(task.pairs)
        assert logits.shape == (25, 5)
        assert logits.dtype == torch.float32
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_mlp_adds_one_column_for_each_number():
    model = AdditionMLP(5, hidden=6)
    pairs = torch.tensor([[3, 1], [0, 4]])
    hidden = torch.relu(model.fc1.weight[:, pairs[:, 0]] + model.fc1.weight[:, 5 + pairs[:, 1]])
    torch.testing.assert_close(model(pairs), (model.fc2.weight @ hidden).T)


def test_the_transformer_sees_no_later_token():
    torch.manual_seed(0)
    model = Transformer(tokens=10, length=6, width=16)
    tokens = torch.randint(10, (4, 6))
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 10
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(2).min() > 1e-3


def test_the_addition_transformer_answers_after_the_equals_sign():
    model = AdditionTransformer(5, width=8, hidden=12)
    pairs = torch.tensor([[3, 1], [0, 4]])
    tokens = torch.tensor([[3, 1, 5], [0, 4, 5]])
    torch.testing.assert_close(model(pairs), model.transformer(tokens)[:, 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Transformer(5, 4, width=10, heads=4), r"width must be a multiple of heads \(4\), got 10"),
        (lambda: Transformer(5, 0), "length must be a positive integer, got 0"),
        (lambda: Transformer(5, 4, norm=1), "norm must be True or False, got 1"),
        (lambda: Transformer(5, 4)(torch.zeros(1, 5, dtype=torch.int64)), "tokens must be at most 4 of each"),
        (lambda: AdditionMLP(5, 0), "hidden must be a positive integer, got 0"),
        (lambda: modular_addition(5).model("cnn"), "kind must be one of"),
        (lambda: modular_addition(5).model("mlp", seed=-1), "seed must be an integer in"),
    ],
)
def test_bad_models(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_networks_have_heads_and_neurons(kind):
    task = modular_addition(7)
    sizes = {"hidden": 20} if kind == "mlp" else {"hidden": 20, "width": 16, "heads": 2}
    network = modfast.read_network(task.model(kind, **sizes), task.pairs)
    if kind == "mlp":
        assert [space.stop - space.start for space in network.spaces.values()] == [14, 20, 7]
        return
    sizes = {name: space.stop - space.start for name, space in network.spaces.items()}
    assert sizes["residual"] == 16
    assert sizes["transformer.blocks.0.attention.query"] == 2
    assert sizes["transformer.blocks.0.mlp_in"] == 20


def test_activations_are_what_the_layer_reads():
    task = modular_addition(5)
    model = task.model("mlp", hidden=6)
    found = task.activations(model, "fc2")
    assert found.dtype == torch.float64
    for a in range(5):
        for b in range(5):
            expected = torch.relu(model.fc1.weight[:, a] + model.fc1.weight[:, 5 + b])
            torch.testing.assert_close(found[a, b], expected.detach().double())
    assert torch.equal(task.logits(model), model(task.pairs).detach().double().reshape(5, 5, 5))
    assert not model.fc2._forward_pre_hooks


def test_activations_of_a_transformer_are_those_of_the_last_place():
    task = modular_addition(5)
    model = task.model("transformer", width=8, hidden=12)
    block = model.transformer.blocks[0]
    kept = []
    hook = block.mlp_in.register_forward_hook(lambda *given: kept.append(given[2]))
    model(task.pairs)
    hook.remove()
    expected = torch.relu(kept[0][:, -1]).detach().double().reshape(5, 5, 12)
    assert torch.equal(task.activations(model, "transformer.blocks.0.mlp_out"), expected)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(5, 4), nn.Linear(4, 4)

    def forward(self, pairs):
        return self.linear(self.linear(self.embedding(pairs).sum(1)))


@pytest.mark.parametrize(
    ("model", "layer", "message"),
    [
        (Twice(), "linear", "layer must run once, 'linear' ran 2 times"),
        (Twice(), "embedding", "layer must name a linear layer, got 'embedding' of a Embedding"),
        (Twice(), "fc9", "fc9"),
        (
            nn.Sequential(nn.Flatten(0), nn.Embedding(5, 5), nn.Linear(5, 5)),
            "2",
            "one row of numbers for each",
        ),
    ],
)
def test_activations_that_there_are_not(model, layer, message):
    with pytest.raises(ValueError, match=message):
        modular_addition(5).activations(model, layer)
    assert all(not module._forward_pre_hooks for module in model.modules())
