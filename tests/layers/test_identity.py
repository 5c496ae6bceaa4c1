"""Two layers have one weight if it is computed from the same parameters and has the same values."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from modfast import EnmeshmentLoss
from modfast.layers.layer import linear_layers


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, weight):
        return self.factor * weight


def tied():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    return model


def names(model):
    return [layer.name for layer in linear_layers(model)]


def _pruned(model):
    for layer in model:
        prune.l1_unstructured(layer, "weight", 0.3)


def _scaled(model, factors):
    for layer, factor in zip(model, factors, strict=True):
        parametrize.register_parametrization(layer, "weight", Scaled(factor))


ALIKE = {
    "plain": lambda model: None,
    "pruned": _pruned,
    "scaled": lambda model: _scaled(model, (2.0, 2.0)),
}
UNLIKE = {
    "pruned differently": lambda model: [
        prune.custom_from_mask(layer, "weight", torch.eye(8) == place) for place, layer in enumerate(model)
    ],
    "one pruned": lambda model: prune.l1_unstructured(model[0], "weight", 0.3),
    "scaled differently": lambda model: _scaled(model, (2.0, 3.0)),
    "weight_norm": lambda model: [parametrizations.weight_norm(layer) for layer in model],
}


@pytest.mark.parametrize("kind", ALIKE)
def test_one_weight_counts_once(kind):
    model = tied()
    ALIKE[kind](model)
    assert names(model) == ["0"]
    assert list(EnmeshmentLoss(model, 2).partitions) == ["0"]
    with pytest.raises(ValueError, match="'1' and '0' are one tied weight"):
        EnmeshmentLoss(model, 2, layers=["0", "1"])


@pytest.mark.parametrize("kind", UNLIKE)
def test_two_weights_count_twice(kind):
    model = tied()
    UNLIKE[kind](model)
    assert names(model) == ["0", "1"]
    assert list(EnmeshmentLoss(model, 2, layers=["0", "1"]).partitions) == ["0", "1"]


def test_two_adapters_on_one_base_are_two_weights():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["0", "1"], init_lora_weights=False)
    model = peft.get_peft_model(tied(), config)
    assert names(model) == ["0", "1"]
    loss = EnmeshmentLoss(model, 2, reduction="none")
    for layer, value in zip(model.base_model.model, loss(), strict=True):
        plain = copy.deepcopy(layer.base_layer)
        plain.weight.data += layer.get_delta_weight("default").detach()
        torch.testing.assert_close(value, EnmeshmentLoss(plain, 2)(), check_dtype=False)


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.fc = nn.Embedding(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 8, bias=False)
        self.head.weight = self.embedding.weight


HEADS = {
    "plain": lambda head: None,
    "pruned": lambda head: prune.l1_unstructured(head, "weight", 0.3),
    "spectral_norm": nn.utils.spectral_norm,
    "parametrized": lambda head: parametrize.register_parametrization(head, "weight", nn.Identity()),
    "scaled": lambda head: parametrize.register_parametrization(head, "weight", Scaled(2.0)),
}


@pytest.mark.parametrize("kind", HEADS)
def test_what_is_computed_from_an_embeddings_weight_is_not_chosen_by_default(kind):
    model = Language()
    HEADS[kind](model.head)
    assert names(model) == ["fc"]
    assert list(EnmeshmentLoss(model, 2, layers=["head"]).partitions) == ["head"]


def test_nor_where_the_embedding_is_parametrized():
    model = Language()
    parametrize.register_parametrization(model.embedding, "weight", Scaled(2.0))
    model.head.weight = model.embedding.parametrizations.weight.original
    assert names(model) == ["fc"]


def test_nor_where_it_has_an_adapter():
    peft = pytest.importorskip("peft")
    assert names(peft.get_peft_model(Language(), peft.LoraConfig(target_modules=["head", "fc"]))) == ["fc"]
    assert names(peft.get_peft_model(Language(), peft.LoraConfig(target_modules=["embedding"]))) == ["fc"]
