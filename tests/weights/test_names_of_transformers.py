"""Folders of transformers: layers are called as in the model in memory, or it is said that they are not."""

import json

import pytest
import torch

from modfast import EnmeshmentLoss, Partition
from modfast.cli import main
from modfast.layers.layer import find_layers
from modfast.weights import read_weights

transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")

TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 40,
}  # fmt: skip
IMAGE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGE))


def gpt_neox():
    sizes = {name: size for name, size in TEXT.items() if name != "num_key_value_heads"}
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes))


def llava():
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**IMAGE),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=1,
    )
    return transformers.LlavaForConditionalGeneration(config)


def mixtral():
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**TEXT, num_local_experts=2))


@pytest.mark.parametrize("make", [vit, gpt_neox, llava])
def test_partitions_of_the_folder_load_into_the_model(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    state = torch.random.get_rng_state()
    weights = read_weights(str(tmp_path))
    assert torch.equal(torch.random.get_rng_state(), state)
    known = {layer.name: layer for layer in find_layers(model)}
    for name, weight in weights.items():
        assert torch.equal(weight, known[name].weight()), name
    partitions = {name: Partition.blocks(weights.shape(name)[:2], 2) for name in weights}
    assert len(EnmeshmentLoss(model, partitions).partitions) == len(weights)
    assert not weights.unmatched


def test_a_name_of_the_file_chooses_too(tmp_path):
    vit().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    of_model = list(read_weights(str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": None}))
    of_file = list(read_weights(str(tmp_path)))
    assert set(of_model) != set(of_file)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert set(read_weights(str(tmp_path), of_file)) == set(of_model)


def test_what_transformers_puts_together_keeps_its_name_and_that_is_said(tmp_path, capsys):
    model = mixtral()
    model.save_pretrained(tmp_path / "model")
    weights = read_weights(str(tmp_path / "model"))
    known = {layer.name for layer in find_layers(model)}
    assert weights.unmatched
    assert all("experts" in name for name in weights.unmatched)
    assert set(weights) - set(weights.unmatched) <= known
    arguments = ["cluster", str(tmp_path / "model"), "-k", "2", "--shuffles", "1", "--layers", "*.experts.*"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "Under the names of the file" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"architectures": None}, "config.json names no architecture"),
        ({"architectures": ["CustomModel"]}, "transformers has no CustomModel"),
        ({"architectures": ["pipeline"]}, "transformers has no pipeline"),
        ({"hidden_size": "many"}, "transformers cannot build ViTForImageClassification"),
    ],
)
def test_a_model_that_cannot_be_had_is_said(change, why, tmp_path):
    vit().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    weights = read_weights(str(tmp_path))
    assert set(weights.unmatched) == set(weights)
    assert all(reason.startswith(why) for reason in weights.unmatched.values())


def test_a_config_of_another_model_names_nothing(tmp_path):
    """Shapes that do not fit keep the file's names."""
    vit().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    weights = read_weights(str(tmp_path))
    assert any("mlp" in name or "dense" in name for name in weights.unmatched)
    assert all(weights[name].shape == weights.shape(name) for name in weights)


def test_a_plain_file_is_of_no_model_of_transformers(tmp_path):
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps({"lr": 0.1}))
    assert not read_weights(str(tmp_path / "model.pt")).unmatched
