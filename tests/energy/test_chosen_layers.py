"""Which layers are chosen: by default, by name, by module, by function, and those that are left out."""

import pytest
import torch
from torch import nn

from modfast import EnmeshmentLoss, Partition

transformers = pytest.importorskip("transformers")


def gpt2(**options):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 16}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends, **options))


def test_gpt2_by_default_is_its_linear_layers_and_not_its_embedding():
    model = gpt2()
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    loss = EnmeshmentLoss(model, 4)
    assert list(loss.partitions) == [f"transformer.h.{i}.{part}" for i in range(2) for part in parts]
    # As (out, in), however Conv1D keeps it.
    assert loss.partitions["transformer.h.0.mlp.c_fc"].shape == (64, 16)
    untied = EnmeshmentLoss(gpt2(tie_word_embeddings=False), 4)
    assert list(untied.partitions) == [*loss.partitions, "lm_head"]
    # The embedding is there for whoever asks for it.
    assert list(EnmeshmentLoss(model, 4, layers="lm_head").partitions) == ["lm_head"]


@pytest.mark.parametrize("tied_first", [True, False])
def test_a_weight_that_an_embedding_shares_is_left_out(tied_first):
    layers = [nn.Embedding(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)]
    layers[2].weight = layers[0].weight
    model = nn.Sequential(*(layers if tied_first else layers[::-1]))
    assert list(EnmeshmentLoss(model, 2).partitions) == ["1"]


@pytest.fixture
def model():
    inner = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1))
    return nn.ModuleDict({"first": nn.Linear(4, 6), "inner": inner, "last": nn.Linear(6, 4)})


@pytest.mark.parametrize(
    ("layers", "exclude", "chosen"),
    [
        (None, "last", ["first", "inner.0"]),
        (None, ["inner*", "last"], ["first"]),
        (None, lambda name, shape: shape == (4, 6), ["first", "inner.0"]),
        ("*", "inner.0", ["first", "inner.1", "last"]),
        (["first", "last"], "first.weight", ["last"]),
        (lambda name, shape: len(shape) == 3, None, ["inner.1"]),
        (lambda name, shape: name.startswith("inner"), lambda name, shape: len(shape) == 3, ["inner.0"]),
        (["last", lambda name, shape: shape[0] == 6], None, ["first", "last"]),
    ],
)
def test_by_name_and_function(model, layers, exclude, chosen):
    assert list(EnmeshmentLoss(model, 2, layers=layers, exclude=exclude).partitions) == chosen


def test_by_module(model):
    assert list(EnmeshmentLoss(model, 2, layers=model["inner"]).partitions) == ["inner.0", "inner.1"]
    assert list(EnmeshmentLoss(model, 2, layers=[model["last"], "first"]).partitions) == ["first", "last"]
    assert list(EnmeshmentLoss(model, 2, exclude=model["inner"][0]).partitions) == ["first", "last"]
    assert list(EnmeshmentLoss(model, 2, layers=model).partitions) == ["first", "inner.0", "inner.1", "last"]


def test_exclude_narrows_a_mapping(model):
    partitions = {name: Partition.blocks(model[name].weight.shape, 2) for name in ("first", "last")}
    assert list(EnmeshmentLoss(model, partitions, exclude="first").partitions) == ["last"]


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        (
            {"exclude": "lsat"},
            ValueError,
            "exclude: 'lsat' matches no layer .* there are: 'first', 'inner.0'",
        ),
        ({"exclude": "*"}, ValueError, r"exclude: nothing is left .* without '\*'; there are: 'first'"),
        (
            {"layers": lambda name, shape: False},
            ValueError,
            "layers: nothing selected by .*; there are: 'first'",
        ),
        ({"layers": nn.Linear(2, 2)}, ValueError, "layers: the module Linear holds no layer of the model"),
        ({"layers": 3}, TypeError, "layers must hold names, globs, modules or functions .* got int"),
        ({"layers": [3]}, TypeError, "layers must hold names, globs, modules or functions .* got int"),
        (
            {"exclude": [None]},
            TypeError,
            "exclude must hold names, globs, modules or functions .* got NoneType",
        ),
    ],
)
def test_errors(model, options, error, told):
    with pytest.raises(error, match=told):
        EnmeshmentLoss(model, 2, **options)


def test_nothing_left_by_default_says_what_there_is():
    embedding = nn.Embedding(8, 8)
    head = nn.Linear(8, 8, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "head": head, "conv": nn.Conv1d(4, 4, 1)})
    with pytest.raises(
        ValueError, match=r"nothing selected; by default .* there are: 'embedding', 'head', 'conv'"
    ):
        EnmeshmentLoss(model, 2)
    with torch.no_grad():
        assert float(EnmeshmentLoss(model, 2, layers="head")()) > 0
