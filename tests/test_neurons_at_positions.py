"""Neurons of linear layers that run at several positions of an input, as in transformers."""

import pytest
import torch
import transformers
from test_neurons import by_hand
from torch import nn

from modfast import label_semanticity, read_network

LABELS = torch.arange(40) % 4


@pytest.mark.parametrize("positions", [(5,), (2, 3)])
def test_a_neuron_has_its_maximum_over_positions(positions):
    torch.manual_seed(0)
    model, inputs = nn.Linear(3, 6), torch.randn(40, *positions, 3)
    with torch.no_grad():
        expected = by_hand(model(inputs).flatten(1, -2).amax(1), LABELS, 3, 4)
    for batch_size in (7, 1000):
        found = label_semanticity(model, (inputs, LABELS), "", 3, batch_size, positions="max")
        assert torch.equal(found[""], expected)


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    return model, torch.randint(0, 20, (40, 8))


def test_padding_does_not_count():
    model, ids = gpt2()
    name = "transformer.h.1.mlp.c_fc"
    mask = (torch.arange(8) < torch.arange(40)[:, None] % 8 + 1).long()
    outputs = []
    hook = model.get_submodule(name).register_forward_hook(lambda *call: outputs.append(call[2]))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    hook.remove()
    shown = [text[: int(kept.sum())].amax(0) for text, kept in zip(outputs[0], mask, strict=True)]
    expected = by_hand(torch.stack(shown), LABELS, 3, 4)
    batch = {"input_ids": ids, "attention_mask": mask}
    found = label_semanticity(model, [(batch, LABELS)], name, 3, positions="max")[name]
    assert torch.equal(found, expected)
    with_padding = label_semanticity(model, [({"input_ids": ids}, LABELS)], name, 3, positions="max")[name]
    assert not torch.equal(found, with_padding)


def test_neurons_are_units_of_the_network():
    model, ids = gpt2()
    network = read_network(model, {"input_ids": ids, "use_cache": False})
    found = label_semanticity(
        model, [({"input_ids": ids}, LABELS)], network.select("mlp_input"), 3, positions="max"
    )
    of_unit = torch.full((network.num_units,), torch.nan, dtype=torch.float64)
    for name, shares in found.items():
        of_unit[network.layers[name].row_units] = shares
    for block in range(2):
        space = network.spaces[f"transformer.h.{block}.mlp.c_fc"]
        assert torch.equal(of_unit[space], found[f"transformer.h.{block}.mlp.c_fc"])


def test_without_the_argument_it_says_so():
    with pytest.raises(ValueError, match=r'got shape \(40, 5, 6\): positions="max" allows several'):
        label_semanticity(nn.Linear(3, 6), (torch.rand(40, 5, 3), LABELS), "", 3)
    with pytest.raises(ValueError, match=r"positions must be None or one of \('max',\), got 'mean'"):
        label_semanticity(nn.Linear(3, 6), (torch.rand(40, 5, 3), LABELS), "", 3, positions="mean")


@pytest.mark.parametrize(
    ("mask", "got"),
    [(torch.ones(40, 7), r"\(40, 7\)"), (torch.zeros(40, 8), r"\(40, 8\)")],
)
def test_masks_that_do_not_fit(mask, got):
    class Masked(nn.Linear):
        def forward(self, input_ids, attention_mask):
            return super().forward(input_ids)

    batch = {"input_ids": torch.rand(40, 8, 3), "attention_mask": mask}
    with pytest.raises(ValueError, match=rf"attention_mask must have shape \(40, 8\).*got shape {got}"):
        label_semanticity(Masked(3, 6), [(batch, LABELS)], "", 3, positions="max")
