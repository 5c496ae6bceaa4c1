"""What a circuit is, and its files."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from modfast.circuit import Circuit, load_circuits, save_circuits
from modfast.partition import Partition, save_partitions


def make_circuit(label=1, **changes):
    generator = torch.Generator().manual_seed(int(label))
    masks = {"fc1": torch.rand(7, 9, generator=generator) < 0.3, "fc/2": torch.rand(3, 7) < 0.5}
    return Circuit(label, changes.pop("masks", masks), "balanced", 0.25, 100, 0.5, 0.625, 0.75, 0.875)


def test_sizes_are_shares():
    masks = {"a": torch.tensor([[True, False], [True, True]]), "b": torch.tensor([[False, False]])}
    circuit = make_circuit(masks=masks)
    assert circuit.size == 3 / 6
    assert circuit.sizes == {"a": 3 / 4, "b": 0.0}
    assert circuit.num_weights == 3


def test_equal_are_those_with_the_same_masks_and_numbers():
    masks = {"a": torch.tensor([[True, False]]), "b": torch.tensor([[True]])}
    circuit = make_circuit(masks=masks)
    same = pickle.loads(pickle.dumps(circuit))
    assert circuit == same == copy.deepcopy(circuit)
    assert len({circuit, same}) == 1
    others = [
        make_circuit(masks=masks, label=2),
        make_circuit(masks={"a": ~masks["a"], "b": masks["b"]}),
        make_circuit(masks={"a": masks["a"]}),
        make_circuit(masks={"a": masks["a"], "c": masks["b"]}),
        replace(circuit, loss_after=0.1),
        replace(circuit, criterion="loss"),
        "circuit",
    ]
    assert circuit not in others


def test_numbers_are_pythons_own(tmp_path):
    circuit = replace(make_circuit(np.int64(3)), num_inputs=np.int32(7), loss_after=np.float32(0.5))
    assert [type(each) for each in (circuit.label, circuit.num_inputs, circuit.loss_after)] == [
        int,
        int,
        float,
    ]
    circuit.save(tmp_path / "circuit.npz")
    assert Circuit.load(tmp_path / "circuit.npz") == circuit
    for name, bad in (("label", "1"), ("label", 1.5), ("num_inputs", None), ("loss_before", "high")):
        with pytest.raises(TypeError, match=f"{name} must be a number, got {bad!r}"):
            replace(circuit, **{name: bad})


def test_masks_are_its_own():
    masks = {"a": torch.ones(2, 2, dtype=torch.bool)}
    circuit = make_circuit(masks=masks)
    masks["b"] = torch.ones(1, 1, dtype=torch.bool)
    masks["a"].zero_()
    assert list(circuit.masks) == ["a"]
    assert circuit.num_weights == 4


def test_apply_masks_a_copy():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf
    before = copy.deepcopy(model.state_dict())
    mask = torch.tensor([[False, True, True], [True, False, True]])
    masked = make_circuit(masks={"0": mask}).apply(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(masked[0].weight, model[0].weight.where(mask, torch.tensor(0.0)))
    assert torch.equal(masked[0].bias, model[0].bias)
    assert torch.equal(masked[2].weight, model[2].weight)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        make_circuit(masks={"0": mask}).apply("model")
    for bad, message in (({"1": mask}, "'1' is no layer"), ({"2": mask}, r"must have shape \(2, 3\)")):
        with pytest.raises(ValueError, match=message):
            make_circuit(masks=bad).apply(model)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, "masks must hold at least one layer"),
        ({"a": torch.ones(2, 2)}, "masks must map names to bool tensors"),
        ({3: torch.ones(2, 2, dtype=torch.bool)}, "masks must map names to bool tensors"),
        ({"a": torch.ones(0, 2, dtype=torch.bool)}, "masks must not be empty"),
    ],
)
def test_bad_masks(masks, message):
    with pytest.raises(TypeError, match="masks must be a mapping, got list"):
        make_circuit(masks=list(masks))
    with pytest.raises(ValueError, match=message):
        make_circuit(masks=masks)


def test_unknown_criterion():
    with pytest.raises(ValueError, match="criterion must be one of"):
        Circuit(0, {"a": torch.ones(1, 1, dtype=torch.bool)}, "size", 0.0, 1, 0.0, 0.0, 0.0, 0.0)


def assert_equal(a, b):
    assert a.masks.keys() == b.masks.keys()
    assert all(torch.equal(a.masks[name], b.masks[name]) for name in a.masks)
    for name in ("label", "criterion", "tolerance", "num_inputs", "loss_before", "loss_after"):
        assert getattr(a, name) == getattr(b, name)
    assert (a.accuracy_before, a.accuracy_after) == (b.accuracy_before, b.accuracy_after)


def test_files_keep_everything(tmp_path):
    path = tmp_path / "circuits.npz"
    circuits = [make_circuit(label) for label in (4, 0)]
    save_circuits(path, circuits)
    for found, saved in zip(load_circuits(path), circuits, strict=True):
        assert_equal(found, saved)
    circuits[1].save(path)
    assert_equal(Circuit.load(path), circuits[1])
    assert [each.name for each in tmp_path.iterdir()] == ["circuits.npz"]
    save_circuits(path, [])
    assert load_circuits(path) == []
    with pytest.raises(ValueError, match="must hold one circuit, it holds 0"):
        Circuit.load(path)
    with pytest.raises(TypeError, match="circuits must hold Circuit, got str"):
        save_circuits(path, ["a"])
    assert load_circuits(path) == []


def test_bad_files_are_errors(tmp_path):
    path = tmp_path / "circuits.npz"
    with pytest.raises(FileNotFoundError):
        Circuit.load(path)
    make_circuit().save(path)
    contents = path.read_bytes()
    for end in range(0, len(contents) - 1, 97):
        path.write_bytes(contents[:end])
        with pytest.raises(ValueError, match="is no circuits file, or a damaged one"):
            Circuit.load(path)
    save_partitions(path, {"fc": Partition.blocks((4, 4), 2)})
    with pytest.raises(ValueError, match="expected 'modfast circuits 1'"):
        Circuit.load(path)
    np.savez(path, contents=np.array([{"pickled": 1}], dtype=object))
    with pytest.raises(ValueError, match="is no circuits file"):
        Circuit.load(path)


def test_flipped_bytes_are_errors_or_harmless(tmp_path):
    path = tmp_path / "circuits.npz"
    circuit = make_circuit()
    circuit.save(path)
    contents = bytearray(path.read_bytes())
    for place in range(0, len(contents), 53):
        path.write_bytes(contents[:place] + bytes([contents[place] ^ 0x55]) + contents[place + 1 :])
        try:
            found = Circuit.load(path)
        except ValueError:
            continue
        assert_equal(found, circuit)
