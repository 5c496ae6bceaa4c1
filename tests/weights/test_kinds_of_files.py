"""What a file holds beside plain matrices: read, refused by name, or told; never left out in silence."""

import argparse
import json

import pytest
import torch
from torch import nn

from modfast.weights import read_weights

safetensors = pytest.importorskip("safetensors.torch")

PLAIN = {"b.weight": torch.ones(3, 3)}


def saved(state, path, kind):
    """A state_dict in one file, or in a shard beside its index."""
    if kind == "single":
        torch.save(state, path / "model.pt")
        return str(path / "model.pt")
    torch.save(state, path / "pytorch_model-1.bin")
    index = {"weight_map": dict.fromkeys(state, "pytorch_model-1.bin")}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return str(path)


# --- which entry is the model


class WithState(nn.Linear):
    """Keeps a mapping of tensors as its extra state, as layers for eight-bit floats do."""

    def get_extra_state(self):
        return {"amax": torch.ones(4), "weight": torch.eye(3)}

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 1}])
def test_extra_state_is_no_model(wrap, tmp_path):
    model = nn.Sequential(WithState(8, 8), nn.Linear(8, 4))
    torch.save(wrap(model.state_dict()), tmp_path / "model.pt")
    weights = read_weights(str(tmp_path / "model.pt"))
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {"0": (8, 8), "1": (4, 8)}


def test_a_mapping_of_other_tensors_is_no_model(tmp_path):
    torch.save({"fc.weight": torch.ones(4, 4), "meta": {"mean": torch.ones(3)}}, tmp_path / "model.pt")
    assert list(read_weights(str(tmp_path / "model.pt"))) == ["fc"]
    state = {"model": {"fc.weight": torch.ones(4, 4)}, "scaler": {"scale": torch.ones(1)}}
    torch.save({**state, "mean": torch.ones(2, 2)}, tmp_path / "model.pt")
    assert list(read_weights(str(tmp_path / "model.pt"))) == ["fc"]


@pytest.mark.parametrize("name", ["fc.weight", "weight"])
def test_two_that_may_be_the_model_are_asked_about(name, tmp_path):
    torch.save({name: torch.ones(4, 4), "ema": {name: torch.ones(4, 4)}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=rf"tensors of its own \('{name}'\) and mappings .*'ema'"):
        read_weights(str(tmp_path / "model.pt"))


# --- what cannot be read


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_of_pytorch_are_named(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Conv1d(8, 4, 1))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    torch.save(quantised.state_dict(), tmp_path / "model.pt")
    weights = read_weights(str(tmp_path / "model.pt"))
    assert list(weights) == ["0", "2"]
    with pytest.raises(ValueError, match="layer '0' is packed: a tuple of tensors"):
        weights["0"]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.complex64, torch.bool])
def test_weights_of_other_dtypes_are_named(dtype, tmp_path):
    torch.save({"a.weight": torch.zeros(4, 4, dtype=dtype), **PLAIN}, tmp_path / "model.pt")
    weights = read_weights(str(tmp_path / "model.pt"))
    whole = dtype in (torch.int64, torch.bool)  # which pack nothing, and are in nobody's way
    assert list(weights) == (["b"] if whole else ["a", "b"])
    assert weights.left_out == (["a"] if whole else [])
    with pytest.raises(ValueError, match=rf"layer 'a' is packed or quantised \({dtype}\)"):
        read_weights(str(tmp_path / "model.pt"), ["a"])["a"]


def test_float8_in_safetensors_has_its_own_name(tmp_path):
    state = {"a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), **PLAIN}
    safetensors.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"layer 'a' is packed or quantised .torch.float8_e4m3fn"):
        read_weights(str(tmp_path / "model.safetensors"))["a"]


def test_blocks_with_scales_are_a_stack_that_is_named(tmp_path):
    state = {
        "experts.gate_up_proj_blocks": torch.zeros(4, 4, 4, 16, dtype=torch.uint8),
        "experts.gate_up_proj_scales": torch.zeros(4, 4, 4, dtype=torch.uint8),
        "position_ids": torch.zeros(1, 8, dtype=torch.int64),
        **PLAIN,
    }
    safetensors.save_file(state, tmp_path / "model.safetensors")
    weights = read_weights(str(tmp_path / "model.safetensors"))
    assert list(weights) == ["b"]
    assert weights.left_out == ["experts.gate_up_proj"]  # as a stack of floats would be
    with pytest.raises(ValueError, match=r"layer 'experts.gate_up_proj' is packed or quantised .blocks of"):
        read_weights(str(tmp_path / "model.safetensors"), ["experts.*"])["experts.gate_up_proj"]


@pytest.mark.parametrize("kind", ["single", "sharded"])
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: torch.eye(4).to_sparse(), r"is not dense \(torch.sparse_coo\)"),
        (lambda: torch.eye(4).to_sparse_csr(), r"is not dense \(torch.sparse_csr\)"),
        (lambda: torch.empty(4, 4, device="meta"), "has no numbers: it was saved from the meta device"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_dense_are_named(kind, make, told, tmp_path):
    weights = read_weights(saved({"a.weight": make(), **PLAIN}, tmp_path, kind))
    assert list(weights) == ["a", "b"]
    with pytest.raises(ValueError, match=f"layer 'a' {told}"):
        weights["a"]
    assert torch.equal(weights["b"], PLAIN["b.weight"])


@pytest.mark.parametrize("kind", ["single", "sharded"])
@pytest.mark.filterwarnings("ignore")
def test_nested_tensors_are_refused(kind, tmp_path):
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(3, 3)])
    path = saved({"a.weight": nested, **PLAIN}, tmp_path, kind)
    # PyTorch 2.15 loads no file that holds one; with earlier ones the other layers can be read.
    with pytest.raises(ValueError, match=r"layer 'a' is a nested tensor|_rebuild_nested_tensor"):
        read_weights(path)["a"]


@pytest.mark.filterwarnings("ignore")
def test_pieces_that_are_not_dense_are_named(tmp_path):
    state = {"a.weight_orig": torch.eye(4).to_sparse(), "a.weight_mask": torch.ones(4, 4), **PLAIN}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"'a.weight_orig' is not dense"):
        read_weights(str(tmp_path / "model.pt"))["a"]


# --- files in pieces


def test_a_tied_weight_is_one_in_shards_as_in_a_single_file(tmp_path):
    shared = torch.randn(6, 4)
    state = {
        "wte.weight": shared,
        "layers.10.weight": torch.randn(4, 4),
        "layers.2.weight": torch.randn(4, 4),
        "head.weight": shared,
    }
    names = []
    for kind in ("single", "sharded"):
        (tmp_path / kind).mkdir()
        weights = read_weights(saved(state, tmp_path / kind, kind))
        names.append(list(weights))
        assert all(torch.equal(weights[name], state[f"{name}.weight"]) for name in weights)
    assert names[0] == names[1] == ["wte", "layers.10", "layers.2"]


def test_what_is_no_tensor_in_a_shard_is_no_weight(tmp_path):
    state = {"a.weight": torch.ones(2, 2), "a._extra_state": {"amax": torch.ones(2, 2)}, "steps": 3}
    weights = read_weights(saved(state, tmp_path, "sharded"))
    assert list(weights) == ["a"]
    assert weights.left_out == []


def test_names_with_digits_of_other_kinds(tmp_path):
    safetensors.save_file({"1²3.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    assert list(read_weights(str(tmp_path / "model.safetensors"))) == ["1²3"]


# --- advice that can work


@pytest.mark.parametrize(
    "contents", [nn.Linear(2, 2), {"model": nn.Linear(2, 2).state_dict(), "args": argparse.Namespace(a=1)}]
)
def test_objects_are_to_be_taken_out_by_who_trusts_them(contents, tmp_path):
    torch.save(contents, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"more than a state_dict \(.*\)\. If you trust it.*under one of"):
        read_weights(str(tmp_path / "model.pt"))


def test_damaged_files_and_torchscript_get_no_advice_that_cannot_work(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(PLAIN, path)
    for contents in (b"", b"no pickle", path.read_bytes()[:-100]):
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=r"is damaged, or nothing that torch\.save wrote") as raised:
            read_weights(str(path))
        assert "weights_only=False" not in str(raised.value)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_named(tmp_path):
    torch.jit.script(nn.Sequential(nn.Linear(2, 2))).save(str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match=r"is a TorchScript archive: .*torch.jit.load\(path\)"):
        read_weights(str(tmp_path / "model.pt"))
