"""The table of a model's weights says what the loss takes, and what is tied, computed or cannot be read."""

import html.parser

import pytest
import torch
import transformers
from computed_models import lora
from torch import nn
from torch.nn.utils import parametrizations, prune

import modfast
from modfast import EnmeshmentLoss, describe_layers
from modfast.network.description import LayerTable

SIZES = {"vocab_size": 50, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}


@pytest.fixture(scope="module")
def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES))


TOKENS = {"input_ids": torch.arange(8)[None], "use_cache": False}


def by_name(table):
    return {row.name: row for row in table.rows}


def test_it_selects_what_the_loss_selects(gpt2):
    table = describe_layers(gpt2)
    assert {row.name for row in table if row.selected} == set(EnmeshmentLoss(gpt2, 4).partitions)
    rows = by_name(table)
    assert rows["transformer.wte"].kind == rows["transformer.wpe"].kind == "embedding"
    assert rows["lm_head"].tied_to == "transformer.wte"
    assert not rows["lm_head"].selected
    assert rows["transformer.h.0.mlp.c_fc"].shape == (128, 32)
    assert rows["transformer.h.0.mlp.c_fc"].kind == "linear"
    assert {row.role for row in table} == {""}


def test_roles_are_those_of_the_network(gpt2):
    before = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}
    rows = by_name(describe_layers(gpt2, TOKENS))
    assert rows["transformer.wte"].role == "embedding"
    assert rows["transformer.h.1.attn.c_attn"].role == "attention_qkv"
    assert rows["transformer.h.1.mlp.c_proj"].role == "mlp_output"
    assert all(torch.equal(tensor, before[name]) for name, tensor in gpt2.state_dict().items())


def test_a_weight_that_the_example_does_not_use_has_no_role():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    rows = by_name(describe_layers(Unused(), torch.zeros(1, 4)))
    assert (rows["used"].role, rows["unused"].role) == ("linear", "")


def test_computed_weights_are_marked():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    parametrizations.orthogonal(model[0])
    prune.l1_unstructured(model[1], "weight", 0.5)
    computed = [row.computed for row in describe_layers(model)]
    assert computed == ["a parametrization (Orthogonal)", "a hook (L1Unstructured)", None]


def test_adapters_are_marked_and_their_factors_left_out():
    model = lora(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4)), ["0"])
    rows = describe_layers(model).rows
    assert [row.name for row in rows] == ["0", "1"]
    assert [row.computed for row in rows] == ["an adapter (LoRA)", None]


def test_what_cannot_be_read_says_why():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.eye(4).to_sparse())
    (row,) = describe_layers(model)
    assert (row.selected, row.shape, row.computed) == (True, None, None)
    assert row.unreadable == "is not dense (torch.sparse_coo)"
    assert "cannot be read: is not dense" in repr(describe_layers(model))
    with pytest.raises(ValueError, match="cannot be read"):
        EnmeshmentLoss(model, 2)


def test_kinds():
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 8, 3),
            "up": nn.ConvTranspose2d(8, 3, 3),
            "lstm": nn.LSTM(4, 3),
            "embed": nn.EmbeddingBag(5, 4),
        }
    )
    model.stack = nn.Parameter(torch.rand(2, 3, 4))
    rows = by_name(describe_layers(model))
    assert rows["conv"].shape == (8, 3, 3, 3)
    kinds = {name: rows[name].kind for name in ("conv", "up", "lstm.weight_ih_l0", "embed", "stack[1]")}
    assert kinds == {
        "conv": "convolution",
        "up": "transposed convolution",
        "lstm.weight_ih_l0": "recurrent",
        "embed": "embedding",
        "stack[1]": "stack",
    }


def test_a_repr_has_at_most_ten_lines_and_print_shows_all(gpt2):
    table = describe_layers(gpt2, TOKENS)
    assert len(repr(table).splitlines()) <= 10
    assert f"... and {len(table) - 7} more" in repr(table)
    lines = str(table).splitlines()
    assert len(lines) == len(table) + 2
    assert all(row.name in line and row.role in line for row, line in zip(table, lines[2:], strict=True))
    # Columns are aligned.
    place = lines[1].index("shape")
    assert all(line[place - 1] == " " and line[place].isdigit() for line in lines[2:])
    assert len(repr(LayerTable([])).splitlines()) == 2


def test_a_notebook_gets_a_table_without_markup_of_the_model_s():
    model = nn.Sequential()
    model.add_module("<script>&", nn.Linear(2, 3))

    class Cells(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.texts = [], []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)

        def handle_data(self, data):
            self.texts.append(data)

    read = Cells()
    read.feed(describe_layers(model)._repr_html_())
    assert "<script>&" in read.texts
    assert "script" not in read.tags
    assert read.tags.count("tr") == 2


def test_it_refuses_what_is_no_module():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got dict"):
        describe_layers({})
    assert modfast.describe_layers is describe_layers
