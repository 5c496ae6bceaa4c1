"""Which side of a weight is the outputs': what the file shows is followed, what it does not show is said."""

import pytest
import torch
from torch import nn

from modfast.cli import main
from modfast.layers.layer import find_layers
from modfast.weights import read_weights


def read(model, path):
    torch.save(model.state_dict(), path / "model.pt")
    return read_weights(str(path / "model.pt"))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, 3),
        nn.ConvTranspose2d(4, 6, 3),
        nn.ConvTranspose2d(8, 12, 3, groups=2),
        nn.ConvTranspose1d(8, 4, 3),
    ],
)
def test_a_bias_shows_it(layer, tmp_path):
    weights = read(nn.Sequential(layer), tmp_path)
    (known,) = find_layers(nn.Sequential(layer))
    assert weights.shape("0") == known.shape
    assert torch.equal(weights["0"], known.weight())
    assert not weights.assumed


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(4, 6, 3, bias=False),
        nn.ConvTranspose2d(6, 6, 3),
        nn.ConvTranspose2d(8, 8, 3, groups=2),
        nn.Bilinear(4, 4, 6),
        nn.Conv2d(6, 6, 3),
        nn.Conv2d(4, 6, 3, bias=False),
    ],
)
def test_what_nothing_shows_is_taken_as_it_stands_and_said(layer, tmp_path, capsys):
    weights = read(nn.Sequential(layer, nn.Linear(6, 6), nn.Linear(6, 4, bias=False)), tmp_path)
    assert weights.assumed == ["0"]
    assert torch.equal(weights["0"], layer.weight)
    arguments = ["cluster", str(tmp_path / "model.pt"), "-k", "2", "--shuffles", "1", "--layers", "0"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "Taken as (out, in)" in " ".join(capsys.readouterr().out.split())


def test_equal_sides_beside_others_that_are_turned_are_asked_about(tmp_path):
    weights = read(nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.ConvTranspose2d(6, 6, 3)), tmp_path)
    assert weights.shape("0") == (6, 4, 3, 3)
    with pytest.raises(ValueError, match=r"layer '1' has shape .* does not show"):
        weights["1"]


# --- stacks of experts


def stack(inputs, outputs, biases):
    state = {"experts.up_proj": torch.randn(3, inputs, outputs), "fc.weight": torch.randn(4, 4)}
    return state | ({"experts.up_proj_bias": torch.randn(3, outputs)} if biases else {})


@pytest.mark.parametrize("biases", [True, False])
def test_the_bias_of_a_stack_shows_it(biases, tmp_path):
    state = stack(4, 6, biases)
    torch.save(state, tmp_path / "model.pt")
    weights = read_weights(str(tmp_path / "model.pt"), ["*up_proj[*]"])
    expected = state["experts.up_proj"][1].T if biases else state["experts.up_proj"][1]
    assert weights.shape("experts.up_proj[1]") == tuple(expected.shape)
    assert torch.equal(weights["experts.up_proj[1]"], expected)
    assert bool(weights.assumed) != biases


def test_a_square_stack_beside_turned_ones_is_asked_about(tmp_path):
    state = stack(4, 6, True) | {"experts.down_proj": torch.randn(3, 6, 6)}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"layer 'experts.down_proj\[0\]' has shape"):
        read_weights(str(tmp_path / "model.pt"), ["*down_proj[0]"])["experts.down_proj[0]"]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("intermediate", [32, 64])
def test_experts_of_a_model_of_transformers(named, intermediate, tmp_path):
    """By the model, or where that is not to be had by its type."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    sizes = {"hidden_size": 32, "intermediate_size": intermediate, "num_hidden_layers": 1, "vocab_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts_per_tok": 2}
    config = transformers.GptOssConfig(**sizes, **heads, num_local_experts=4, pad_token_id=0)
    model = transformers.GptOssForCausalLM(config)
    model.save_pretrained(tmp_path)
    if not named:
        config.architectures = None
        config.save_pretrained(tmp_path)
    known = {layer.name: layer for layer in find_layers(model)}
    weights = read_weights(str(tmp_path), ["*.experts.*_proj[*]"])
    assert len(weights) == 8
    assert not weights.assumed
    for name, weight in weights.items():
        assert torch.equal(weight, known[name].weight())
    assert bool(weights.unmatched) != named
