"""Whatever the tensor is called that a layer computes, a file with its pieces gives that tensor."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from modfast.layers.layer import find_layers
from modfast.weights import read_weights


class Model(nn.Module):
    """Layers whose weights have names of their own."""

    def __init__(self):
        super().__init__()
        self.recurrent = nn.LSTM(8, 6)
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(6, 4)


class Stack(nn.Module):
    """Matrices in one parameter."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Module()
        self.experts.up = nn.Parameter(torch.randn(3, 4, 5))


def saved(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


KINDS = {
    "pruned": lambda module, name: prune.random_unstructured(module, name, 0.5),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_tensors_that_the_model_has_in_memory(kind, tmp_path):
    torch.manual_seed(0)
    model = Model()
    KINDS[kind](model.recurrent, "weight_hh_l0")
    KINDS[kind](model.attention, "in_proj_weight")
    expected = {layer.name: layer.weight().detach() for layer in find_layers(model)}
    found = read_weights(saved(model, tmp_path), ["*"])
    assert set(found) == set(expected)
    for name, weight in found.items():
        assert found.shape(name) == weight.shape
        torch.testing.assert_close(weight, expected[name])
    by_default = read_weights(saved(model, tmp_path))
    assert set(by_default) == {"attention.out_proj", "head"}
    assert set(by_default.left_out) == set(expected) - set(by_default)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["pruned", "weight_norm", "old weight_norm"])
def test_a_stack_in_pieces_is_a_stack(kind, tmp_path):
    model = Stack()
    KINDS[kind](model.experts, "up")
    expected = model.experts.up.detach()
    found = read_weights(saved(model, tmp_path), ["*"])
    assert list(found) == [f"experts.up[{place}]" for place in range(3)]
    for place, weight in enumerate(found.values()):
        torch.testing.assert_close(weight, expected[place])


def test_the_pieces_of_vectors_are_no_weights(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    prune.random_unstructured(model[0], "bias", 0.5)
    prune.random_unstructured(model[1], "weight", 0.5)
    assert list(read_weights(saved(model, tmp_path), ["*"])) == ["0"]


def test_a_computed_bias_shows_how_its_weight_is_stored(tmp_path):
    for kind in ("pruned", "weight_norm"):
        model = nn.Sequential(nn.ConvTranspose1d(4, 6, 2))
        KINDS[kind](model[0], "bias")
        found = read_weights(saved(model, tmp_path))
        assert (found.shape("0"), found.assumed) == ((6, 4, 2), [])


@pytest.mark.parametrize(
    "parameters",
    [
        {"gate_g": (4, 5), "gate_v": (4, 5)},  # weight_norm has one length for each row or column
        {"gate_g": (5, 1), "gate_v": (4, 5)},
        {"gate": (4, 5), "gate_g": (4, 1), "gate_v": (4, 5)},  # no hook stores what it computes
        {"gate_orig": (4, 5), "gate_mask": (4, 4)},
        {"gate_orig": (4, 5)},
        {"gate_orig": (4, 5), "gate_u": (4, 2), "gate_v": (5, 2)},
    ],
)
def test_parameters_that_only_sound_like_pieces_are_weights(parameters, tmp_path):
    state = {f"layer.{name}": torch.randn(shape) for name, shape in parameters.items()}
    torch.save(state, tmp_path / "model.pt")
    assert list(read_weights(str(tmp_path / "model.pt"), ["*"])) == list(state)


def test_a_plain_module_may_be_called_parametrizations(tmp_path):
    model = nn.Module()
    model.parametrizations = nn.ModuleDict({"first": nn.Linear(3, 2)})
    assert list(read_weights(saved(model, tmp_path), ["*"])) == ["parametrizations.first.weight"]


class Halved(nn.Module):
    """A parametrization of one's own."""

    def forward(self, tensor):
        return tensor / 2


@pytest.mark.filterwarnings("ignore")
def test_what_a_file_does_not_tell_is_refused_under_its_name(tmp_path):
    model = nn.Module()
    model.inner = nn.LSTM(8, 6)
    parametrize.register_parametrization(model.inner, "weight_hh_l0", Halved())
    found = read_weights(saved(model, tmp_path), ["*"])
    assert list(found) == ["inner.weight_ih_l0", "inner.weight_hh_l0"]
    with pytest.raises(
        ValueError, match=r"'inner.weight_hh_l0' is computed by a parametrization that the file"
    ):
        found["inner.weight_hh_l0"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hook", [nn.utils.spectral_norm, nn.utils.weight_norm])
def test_a_piece_that_is_computed_itself_is_refused(hook, tmp_path):
    model = nn.Sequential(hook(nn.Linear(5, 4)))
    piece = "weight_v" if hook is nn.utils.weight_norm else "weight_orig"
    prune.random_unstructured(model[0], piece, 0.5)
    found = read_weights(saved(model, tmp_path), ["*"])
    assert list(found) == ["0"]
    with pytest.raises(ValueError, match=rf"'0' is computed from a computed tensor \({piece}\)"):
        found["0"]


@pytest.mark.parametrize("name", ["weight", "gate"])
def test_pieces_of_several_hooks_are_refused(name, tmp_path):
    pieces = {"g": (4, 1), "v": (4, 5), "orig": (4, 5), "mask": (4, 5)}
    torch.save({f"a.{name}_{key}": torch.ones(shape) for key, shape in pieces.items()}, tmp_path / "model.pt")
    found = read_weights(str(tmp_path / "model.pt"), ["*"])
    with pytest.raises(ValueError, match=rf"has pieces of several hooks \({name}_g, {name}_v, {name}_orig"):
        list(found.values())


def test_a_weight_stored_beside_its_pieces_is_not_taken_for_them(tmp_path):
    pieces = {"weight": (4, 5), "weight_orig": (4, 5), "weight_u": (4,)}  # as in files of PyTorch before 1.0
    torch.save({f"a.{key}": torch.ones(shape) for key, shape in pieces.items()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"something that the file lacks \(weight_v\)"):
        read_weights(str(tmp_path / "model.pt"))["a"]
