"""The partitions of a loss: every way of looking one up agrees, and checkpoints may hold them."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from modfast import EnmeshmentLoss, Partition, search_space_reduction
from modfast.layers.partitioned import PartitionsByName

FIRST, SECOND = Partition.blocks((4, 4), 2), Partition.blocks((4, 4), 4)
PARTITIONS = PartitionsByName(
    {"0": FIRST, "up[0]": FIRST, "up[1]": FIRST, "down[0]": FIRST, "down[1]": SECOND}
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0", FIRST),
        ("0.weight", FIRST),
        ("module._orig_mod.0.weight", FIRST),
        ("up", FIRST),
        ("down[1]", SECOND),
        ("down", None),  # its matrices have several
        ("1", None),
        ("weight", None),
        (0, None),
        (None, None),
    ],
)
def test_every_way_of_looking_one_up_agrees(name, expected):
    assert PARTITIONS.get(name) is expected
    assert PARTITIONS.get(name, SECOND) is (SECOND if expected is None else expected)
    assert (name in PARTITIONS) is (expected is not None)
    if expected is None:
        with pytest.raises(KeyError):
            PARTITIONS[name]
    else:
        assert PARTITIONS[name] is expected


def test_a_model_that_is_a_layer_itself():
    found = EnmeshmentLoss(nn.Linear(4, 4), 2).partitions
    assert list(found) == [""]
    assert found["weight"] is found.get("") is found.get("module.weight")
    assert "weight" in found


def test_checkpoints_hold_them():
    file = io.BytesIO()
    torch.save({"hyper_parameters": {"partitions": PARTITIONS}}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["hyper_parameters"]["partitions"]
    for found in (loaded, copy.deepcopy(PARTITIONS), pickle.loads(pickle.dumps(PARTITIONS))):
        assert found == PARTITIONS
        assert list(found) == list(PARTITIONS)
        assert found["0.weight"] == FIRST


def test_they_are_a_dict():
    assert dict(PARTITIONS) == PARTITIONS
    assert len(PARTITIONS) == len(list(PARTITIONS.items())) == 5
    assert PARTITIONS | {} == PARTITIONS
    assert isinstance(PARTITIONS, dict)


@pytest.mark.parametrize("partitions", ["2", [FIRST], FIRST, None], ids=lambda value: type(value).__name__)
def test_what_is_no_mapping_is_refused(partitions):
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(TypeError, match="partitions must be a mapping of layer names to Partition, got "):
        search_space_reduction(model, partitions)
