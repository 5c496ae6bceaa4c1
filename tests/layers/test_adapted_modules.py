"""An adapter of peft around more than one matrix: what can be read is, the rest raises when it is used."""

import pytest
import torch
from torch import nn

from modfast import EnmeshmentLoss, Partition, class_accuracy, cluster_accuracy, enmeshment
from modfast.layers.layer import find_layers
from modfast.layers.readable import UnsupportedWeightError

peft = pytest.importorskip("peft")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(self.attn(x, x, x)[0])


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(4, 16, 8)), nn.Parameter(torch.randn(4, 8, 16))

    def forward(self, x):
        return sum(x @ self.up[i].T @ self.down[i].T for i in range(4))


def adapted(model, **options):
    return peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **options)).eval()


def names(model):
    return [layer.name for layer in find_layers(model)]


@pytest.mark.parametrize("targets", [["attn", "fc"], ["attn"]])
def test_no_layer_of_an_attention_is_left_out(targets):
    plain, model = Block(), adapted(Block(), target_modules=targets)
    assert names(model) == names(plain) == ["attn.in_proj_weight", "attn.out_proj", "fc"]
    partitions = EnmeshmentLoss(plain, 2).partitions
    for call in (lambda: EnmeshmentLoss(model, 2), lambda: EnmeshmentLoss(model, partitions)):
        with pytest.raises(UnsupportedWeightError, match=r"layer 'attn.out_proj' .*nn.MultiheadAttention"):
            call()
    with pytest.raises(UnsupportedWeightError, match=r"layer 'attn.in_proj_weight' .*adapter"):
        EnmeshmentLoss(model, 2, layers=["attn.in_proj_weight"])
    assert list(EnmeshmentLoss(model, 2, exclude=["attn.*"]).partitions) == ["fc"]


def test_an_attention_is_read_again_without_its_adapter():
    plain = Block()
    expected = EnmeshmentLoss(plain, 2, layers=["attn.*"])()
    model = adapted(plain, target_modules=["attn"])
    model.base_model.disable_adapter_layers()
    assert EnmeshmentLoss(model, 2, layers=["attn.*"])() == expected


def test_a_stack_under_target_parameters():
    plain = nn.ModuleDict({"experts": Experts()})
    down = plain["experts"].down.detach().clone()
    model = adapted(plain, target_parameters=["experts.up"])
    assert names(model) == ["experts.up", *(f"experts.down[{i}]" for i in range(4))]
    with pytest.raises(UnsupportedWeightError, match=r"layer 'experts.up' .*adapter"):
        EnmeshmentLoss(model, 2, layers=["experts.up"])
    loss = EnmeshmentLoss(model, 2, layers=["experts.down"], reduction="none")
    expected = [enmeshment(down[i], loss.partitions[f"experts.down[{i}]"]) for i in range(4)]
    torch.testing.assert_close(loss(), torch.stack(expected))


def test_a_stack_that_no_adapter_changes_is_switched_off():
    model = adapted(nn.Sequential(Experts()), target_parameters=["0.up"])
    x, y = torch.randn(40, 8), torch.arange(40) % 8
    stored = model.base_model.model[0].base_layer.down
    before = stored.detach().clone()
    partitions = {"0.down[1]": Partition([0] * 8, [0] * 16, 2)}
    got = cluster_accuracy(model, (x, y), partitions, "without")[0]
    assert torch.equal(stored, before)
    stored.data[1] = 0
    assert torch.equal(got, class_accuracy(model, (x, y)))
