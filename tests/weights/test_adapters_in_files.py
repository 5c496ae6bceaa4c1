"""Adapters of peft in files: plain LoRA is added as the layer keeps its weight, other kinds are refused."""

import copy
import json

import pytest
import torch
from torch import nn

from modfast.layers.layer import find_layers
from modfast.weights import read_weights

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.fc1, self.fc2 = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.fc2(self.fc1(self.emb(x)).relu())


FC1 = {"target_modules": ["fc1"]}
KINDS = {
    "LoRA of an embedding": (lambda: peft.LoraConfig(target_modules=["emb"]), "emb"),
    "trainable tokens": (lambda: peft.LoraConfig(**FC1, trainable_token_indices={"emb": [1]}), "emb"),
    "IA3": (lambda: peft.IA3Config(**FC1, feedforward_modules=[]), "fc1"),
    "LoHa": (lambda: peft.LoHaConfig(**FC1), "fc1"),
    "LoKr": (lambda: peft.LoKrConfig(**FC1), "fc1"),
    "OFT": (lambda: peft.OFTConfig(**FC1, r=0, oft_block_size=4), "fc1"),
    "FourierFT": (lambda: peft.FourierFTConfig(**FC1, n_frequency=10), "fc1"),
    "HRA": (lambda: peft.HRAConfig(**FC1), "fc1"),
    "VeRA": (lambda: peft.VeraConfig(**FC1), "fc1"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.filterwarnings("ignore")
def test_other_adapters_are_refused_by_the_layer_and_its_keys(kind, prefix, tmp_path):
    make_config, layer = KINDS[kind]
    model = peft.get_peft_model(Net(), make_config())
    torch.save({prefix + name: each for name, each in model.state_dict().items()}, tmp_path / "model.pt")
    weights = read_weights(str(tmp_path / "model.pt"))
    assert list(weights) == ["emb", "fc1", "fc2"]
    assert not weights.left_out
    with pytest.raises(ValueError, match=rf"layer '{layer}' has an adapter of another kind than plain LoRA"):
        weights[layer]
    assert torch.equal(weights["fc2"], model.base_model.model.fc2.weight)
    # Of the adapter alone there is no made-up layer.
    model.save_pretrained(tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    said = json.loads(settings.read_text())["peft_type"]
    if said != "LORA":
        with pytest.raises(ValueError, match=rf"adapters of peft's kind {said} \(adapter_config.json\)"):
            read_weights(str(tmp_path / "adapter"))
        settings.unlink()
    alone = read_weights(str(tmp_path / "adapter"))
    assert set(alone) <= {"emb", "fc1"}
    assert not alone.left_out
    for name in alone:
        with pytest.raises(ValueError, match=f"layer '{name}' (has an adapter of|is not in the file)"):
            alone[name]


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_unknown_kind_is_refused(tmp_path):
    state = {
        "fc.base_layer.weight": torch.ones(4, 4),
        "fc.novel_u.default": torch.ones(4),
        "head.weight": torch.ones(2, 4),
    }
    torch.save(state, tmp_path / "model.pt")
    weights = read_weights(str(tmp_path / "model.pt"))
    assert list(weights) == ["fc", "head"]
    with pytest.raises(ValueError, match=r"layer 'fc' has an adapter of another kind .*novel_u.default"):
        weights["fc"]
    torch.save({"base_model.model.fc.base_layer.weight": torch.ones(4, 4)}, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="layer 'fc' has an adapter, of which nothing is in the file"):
        read_weights(str(tmp_path / "bare.pt"))["fc"]


@pytest.mark.parametrize(
    "keys",
    [
        ("fc.lora_A", "fc.lora_B"),
        ("fc.lora_a.weight", "fc.lora_b.weight"),
        ("fc.lora.down.weight", "fc.lora.up.weight"),
    ],
)
def test_lora_of_other_packages_is_refused(keys, tmp_path):
    state = {"fc.weight": torch.ones(4, 4), keys[0]: torch.ones(2, 4), keys[1]: torch.ones(4, 2)}
    torch.save(state, tmp_path / "model.pt")
    weights = read_weights(str(tmp_path / "model.pt"))
    assert list(weights) == ["fc"]
    with pytest.raises(ValueError, match="layer 'fc' has an adapter of another kind than plain LoRA of peft"):
        weights["fc"]


# --- LoRA where layers are kept in both ways


@pytest.fixture
def adapted_gpt2(tmp_path):
    """GPT-2 with LoRA on layers kept as (in, out) and as (out, in), of equal sides too."""
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 32, "n_positions": 32}
    config = transformers.GPT2Config(**sizes, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    plain = transformers.GPT2LMHeadModel(config)
    model = peft.get_peft_model(plain, peft.LoraConfig(target_modules=["c_proj", "lm_head"], r=4))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    return model, config


@pytest.mark.filterwarnings("ignore")
def test_each_change_is_turned_as_its_own_layer_is_kept(adapted_gpt2, tmp_path):
    model, config = adapted_gpt2
    config.save_pretrained(tmp_path)
    expected = {layer.name: layer for layer in find_layers(copy.deepcopy(model).merge_and_unload())}
    weights = read_weights(str(tmp_path / "whole.pt"))
    assert {"transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj", "lm_head"} <= set(weights)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name].weight().detach())


@pytest.mark.filterwarnings("ignore")
def test_without_config_the_factors_show_it_or_it_is_asked_about(adapted_gpt2, tmp_path):
    model, _ = adapted_gpt2
    expected = {layer.name: layer for layer in find_layers(copy.deepcopy(model).merge_and_unload())}
    weights = read_weights(str(tmp_path / "whole.pt"))
    name = "transformer.h.0.mlp.c_proj"
    torch.testing.assert_close(weights[name], expected[name].weight().detach())
    with pytest.raises(ValueError, match=r"layer 'transformer.h.0.attn.c_proj' has shape \(32, 32\)"):
        weights["transformer.h.0.attn.c_proj"]


def test_factors_that_fit_no_way_are_named(tmp_path):
    state = {
        "base_model.model.fc.base_layer.weight": torch.ones(4, 6),
        "base_model.model.fc.lora_A.default.weight": torch.ones(2, 5),
        "base_model.model.fc.lora_B.default.weight": torch.ones(4, 2),
    }
    torch.save(state, tmp_path / "model.pt")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "fan_in_fan_out": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"layer 'fc' has an adapter of rank 2 that does not fit .*\(2, 5\)"):
        read_weights(str(tmp_path / "model.pt"))["fc"]
    # One that peft has fan_in_fan_out for may be kept either way.
    square = {name: torch.ones(4, 4) for name in state}
    settings["r"] = 4
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    torch.save(square, tmp_path / "model.pt")
    read_weights(str(tmp_path / "model.pt"))["fc"]
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "fan_in_fan_out": True}))
    with pytest.raises(ValueError, match=r"layer 'fc' has shape .* does not show"):
        read_weights(str(tmp_path / "model.pt"))["fc"]
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "alora_invocation_tokens": [1]}))
    with pytest.raises(ValueError, match=r"other settings than plain LoRA's \(alora_invocation_tokens\)"):
        read_weights(str(tmp_path / "model.pt"))["fc"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"r": 0}, "whose r, 0, and lora_alpha, 2, give no scaling"),
        ({"r": "2"}, "whose r, '2', and lora_alpha, 2, give no scaling"),
        ({"lora_alpha": None}, "whose r, 2, and lora_alpha, None, give no scaling"),
        ({"r": 3}, "of rank 3 that does not fit"),
    ],
)
def test_settings_that_are_not_the_adapters_are_named(change, told, tmp_path):
    state = {
        "fc.weight": torch.ones(4, 6),
        "fc.lora_A.default.weight": torch.ones(2, 6),
        "fc.lora_B.default.weight": torch.ones(4, 2),
    }
    torch.save(state, tmp_path / "model.pt")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert torch.equal(read_weights(str(tmp_path / "model.pt"))["fc"], torch.full((4, 6), 3.0))
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(ValueError, match=f"layer 'fc' has an adapter {told}"):
        read_weights(str(tmp_path / "model.pt"))["fc"]


def test_a_square_convolution_with_lora_is_no_transposed_one(tmp_path):
    state = {
        "c.weight": torch.randn(6, 6, 3, 3),
        "c.bias": torch.ones(6),
        "c.lora_A.default.weight": torch.randn(2, 6, 3, 3),
        "c.lora_B.default.weight": torch.randn(6, 2, 1, 1),
        "up.weight": torch.randn(4, 6, 3, 3),
        "up.bias": torch.ones(6),
    }
    torch.save(state, tmp_path / "model.pt")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    down, up = state["c.lora_A.default.weight"], state["c.lora_B.default.weight"]
    expected = state["c.weight"] + torch.einsum("or,rikl->oikl", up.flatten(1), down)
    torch.testing.assert_close(read_weights(str(tmp_path / "model.pt"))["c"], expected)
