"""Names with parts that wrappers add, or a model's own modules: they match where one layer alone is meant."""

import pytest
import torch
from torch import nn

from modfast import EnmeshmentLoss, Partition
from modfast.layers.names import bare, find_named, match_names
from modfast.weights import read_weights


class Own(nn.Module):
    """With children that are called as wrappers call theirs."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def two():
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Own(module=two()),
        lambda: Own(base_layer=nn.Linear(8, 8), head=nn.Linear(8, 4)),
        lambda: Own(base_layer=nn.Sequential(nn.Linear(8, 8)), **{"0": nn.Linear(8, 8)}),
        lambda: Own(block=Own(base_layer=nn.Linear(8, 8), norm=nn.LayerNorm(8))),
        lambda: Own(net=nn.DataParallel(two()), norm=nn.LayerNorm(4)),
        lambda: Own(net=torch.compile(two()), norm=nn.LayerNorm(4)),
        lambda: nn.DataParallel(Own(module=two())),
    ],
)
def test_partitions_of_a_file_load_into_its_model(make, tmp_path):
    model = make()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    weights = read_weights(str(tmp_path / "model.pt"))
    loss = EnmeshmentLoss(model, {name: Partition.blocks(weights.shape(name), 2) for name in weights})
    assert len(loss.partitions) == len(weights) == len(EnmeshmentLoss(model, 2).partitions)
    assert len(EnmeshmentLoss(model, 2, layers=list(weights)).partitions) == len(weights)


def test_two_layers_that_are_alike_without_wrappers_are_not_guessed():
    names = [("a.module.fc", "a.module.fc.weight"), ("a.fc", "a.fc.weight")]
    assert find_named(names, "a.fc") == [1]
    assert find_named(names, "a.module.fc") == [0]
    assert find_named(names, "a.base_model.model.fc") == []
    with pytest.raises(ValueError, match=r"layers: 'a.base_model.model.f' matches no layer"):
        match_names(names, "a.base_model.model.f", "layers")
    assert find_named(names[:1], "a.fc") == match_names(names[:1], "a.f*", "layers") == [0]


def test_bare_names():
    assert bare("module.net.module.fc.base_layer.weight") == "net.fc.weight"
    assert bare("base_model.model.fc") == "fc"
    assert bare("base_model.fc") == "base_model.fc"
    assert bare("module") == ""
