"""Model files as people have them: whatever holds a layer's weight, in whatever form, gives that weight."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from computed_models import ALL_MAKERS, lora, make, peft
from torch import nn
from torch.nn.utils import parametrizations

from modfast import EnmeshmentLoss, load_partitions
from modfast.cli import main
from modfast.layers.layer import find_layers
from modfast.results import read_results
from modfast.weights import read_weights

safetensors = pytest.importorskip("safetensors.torch")
transformers = pytest.importorskip("transformers")


def assert_weights(found, model):
    """Those of the model's layers, by their names in it."""
    expected = {layer.name: layer.weight().detach() for layer in find_layers(model)}
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert found.shape(name) == tuple(weight.shape)
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)


# --- weights that are computed

BY_NAMES = [
    "plain", "weight_norm", "weight_norm of columns", "spectral_norm", "old weight_norm",
    "old weight_norm of columns", "old spectral_norm", "pruned", "pruned, then loaded",
]  # fmt: skip


@pytest.mark.parametrize("kind", BY_NAMES)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_gives_what_the_layer_multiplies_by(kind, suffix, tmp_path):
    model = make(kind)
    # The old spectral_norm begins with random vectors; those after a step show its dimension.
    model.train()(torch.randn(3, 6))
    model.eval()(torch.randn(3, 6))
    path = tmp_path / f"model.{suffix}"
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    torch.save(state, path) if suffix == "pt" else safetensors.save_file(state, path)
    assert_weights(read_weights(str(path)), model)
    assert list(read_weights(str(path), ["1"])) == list(read_weights(str(path), ["1.weight"])) == ["1"]


@pytest.mark.parametrize(
    "kind", ["orthogonal", "user-made", "with buffers", "with parameters", "two at once"]
)
def test_what_a_file_does_not_tell_is_named(kind, tmp_path):
    torch.save(make(kind).state_dict(), tmp_path / "model.pt")
    weights = read_weights(str(tmp_path / "model.pt"))
    assert list(weights) == ["0", "1", "3"]
    assert weights["0"].shape == (8, 6)
    with pytest.raises(
        ValueError, match=r"model.pt: the weight of layer '1' is computed by a parametrization"
    ):
        weights["1"]
    # Chosen without it, the others are clustered; else nothing is begun.
    arguments = ["cluster", str(tmp_path / "model.pt"), "-k", "2", "--shuffles", "1", "--out"]
    assert main([*arguments, str(tmp_path / "all")]) == 1
    assert not (tmp_path / "all").exists()
    assert main([*arguments, str(tmp_path / "some"), "--layers", "0", "3"]) == 0


@pytest.mark.parametrize("function", [parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(6, 6, 3), nn.ConvTranspose2d(6, 6, 3), nn.ConvTranspose2d(4, 6, 3)]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_spectral_norm_of_convolutions(function, layer, tmp_path):
    """A transposed one is normalised along its second dimension, which nothing but the vectors shows."""
    model = nn.Sequential(function(copy.deepcopy(layer)))
    for _ in range(20):  # forward passes in training mode are steps of the power iteration
        model(torch.randn(1, layer.in_channels, 5, 5))
    torch.save(model.eval().state_dict(), tmp_path / "model.pt")
    (known,) = find_layers(model)
    # That a square one is kept as (in, out) shows in nothing.
    expected = known.stored() if layer.in_channels == layer.out_channels else known.weight()
    torch.testing.assert_close(read_weights(str(tmp_path / "model.pt"))["0"], expected.detach())


# --- adapters


@pytest.mark.skipif(peft is None, reason="needs peft")
@pytest.mark.parametrize("kind", ["LoRA", "LoRA everywhere", "rank-stabilised LoRA"])
def test_an_adapter_beside_its_settings(kind, tmp_path):
    model = ALL_MAKERS[kind]()
    model.save_pretrained(tmp_path)  # adapter_config.json, and the adapter alone
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    assert_weights(read_weights(str(tmp_path / "whole.pt")), model)
    with pytest.raises(ValueError, match="layer '1' is not in the file, which holds only its adapter"):
        read_weights(str(tmp_path))["1"]
    (tmp_path / "adapter_config.json").unlink()
    weights = read_weights(str(tmp_path / "whole.pt"))
    with pytest.raises(
        ValueError, match="layer '1' has an adapter, whose scaling is not in the file: merge it"
    ):
        weights["1"]


@pytest.mark.skipif(peft is None, reason="needs peft")
def test_adapters_of_other_kinds_and_trained_copies(tmp_path):
    dora = lora(make("plain"), ["1"], use_dora=True)
    torch.save(dora.state_dict(), tmp_path / "dora.pt")
    with pytest.raises(ValueError, match="layer '1' has an adapter of another kind than plain LoRA"):
        read_weights(str(tmp_path / "dora.pt"))["1"]
    model = lora(make("plain"), ["1"], modules_to_save=["3"])
    model.base_model.model[3].modules_to_save["default"].weight.data.normal_()
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert_weights(read_weights(str(tmp_path / "model.pt")), model)


# --- what else is in a checkpoint


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 1, "optimizer_states": [{"state": {}}]},
        lambda state: {
            "model": state,
            "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
            "args": None,
        },
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}},
        lambda state: {
            **{f"module.{name}": tensor for name, tensor in state.items()},
            "n_averaged": torch.tensor(3),
        },
    ],
)
def test_the_one_state_dict_of_a_checkpoint(wrap, tmp_path):
    model = make("plain")
    torch.save(wrap(model.state_dict()), tmp_path / "epoch=1.ckpt")
    assert_weights(read_weights(str(tmp_path / "epoch=1.ckpt")), model)


def test_a_checkpoint_of_several_models_is_asked_about(tmp_path):
    state = make("plain").state_dict()
    torch.save({"model": state, "model_ema": state, "epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"holds several: 'model', 'model_ema'. Take one out: torch.save"):
        read_weights(str(tmp_path / "model.pt"))


def test_two_forms_of_one_weight_are_asked_about(tmp_path):
    state = make("plain").state_dict()
    torch.save({**state, "_orig_mod.1.weight": state["1.weight"]}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"holds '1.weight' and '_orig_mod.1.weight', of which only one"):
        read_weights(str(tmp_path / "model.pt"))


class Hyper:
    pass


def test_a_checkpoint_with_objects_is_not_run(tmp_path):
    torch.save({"state_dict": make("plain").state_dict(), "hyper": Hyper()}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"holds more than a state_dict .*Hyper.* take that out: torch.load"):
        read_weights(str(tmp_path / "model.ckpt"))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("1.weight", torch.zeros(8, 8, dtype=torch.uint8)),
        ("1.weight", torch.zeros(8, 8, dtype=torch.int8)),
        ("1.weight", torch.zeros(8, 8).to(torch.float8_e4m3fn)),
        ("1.qweight", torch.zeros(1, 8, dtype=torch.int32)),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_packed_and_quantised_weights_are_named(name, tensor, suffix, tmp_path):
    state = {key: value for key, value in make("plain").state_dict().items() if key != "1.weight"} | {
        name: tensor
    }
    path = tmp_path / f"model.{suffix}"
    torch.save(state, path) if suffix == "pt" else safetensors.save_file(state, path)
    weights = read_weights(str(path))
    with pytest.raises(ValueError, match=r"layer '1' is packed or quantised"):
        weights["1"]
    assert list(read_weights(str(path), ["0", "3"])) == ["0", "3"]


def test_stacks_of_matrices_are_said_and_read_one_by_one(tmp_path, capsys):
    state = {
        "experts.up_proj": torch.randn(3, 6, 4),
        "fc.weight": torch.randn(5, 4),
        "pos": torch.randn(7, 4),
    }
    safetensors.save_file(state, tmp_path / "model.safetensors")
    weights = read_weights(str(tmp_path / "model.safetensors"))
    assert list(weights) == ["fc"]
    assert weights.left_out == ["experts.up_proj[0]", "experts.up_proj[1]", "experts.up_proj[2]", "pos"]
    chosen = read_weights(str(tmp_path / "model.safetensors"), ["*up_proj"])
    assert {name: tuple(weight.shape) for name, weight in chosen.items()} == {
        f"experts.up_proj[{place}]": (6, 4) for place in range(3)
    }
    assert torch.equal(chosen["experts.up_proj[1]"], state["experts.up_proj"][1])
    arguments = ["cluster", str(tmp_path / "model.safetensors"), "-k", "2", "--shuffles", "1", "--out"]
    assert main([*arguments, str(tmp_path / "out")]) == 0
    assert "experts.up_proj[0]" in capsys.readouterr().out


# --- folders of transformers


def gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 50, "n_positions": 16}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    return model


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, vocab_size=50))


@pytest.mark.parametrize("make_model", [gpt2, bert])
@pytest.mark.parametrize("shard", ["10GB", "8KB"])
def test_a_folder_of_transformers(make_model, shard, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "8KB")
    weights = read_weights(str(tmp_path))
    layers = {layer.name: layer for layer in find_layers(model) if layer.attribute == "weight"}
    if make_model is gpt2:
        del layers["lm_head"]  # the embedding's, kept once
    assert set(weights) == set(layers)
    for name, layer in layers.items():
        assert torch.equal(weights[name], layer.weight()), name
    if shard == "8KB":
        by_index = read_weights(str(tmp_path / "model.safetensors.index.json"))
        assert list(by_index) == list(weights)


@pytest.mark.parametrize("shard", ["10GB", "8KB"])
def test_partitions_of_a_folder_load_into_the_model(shard, tmp_path):
    model = gpt2()
    model.save_pretrained(tmp_path / "model", max_shard_size=shard)
    out = tmp_path / "out"
    arguments = ["cluster", str(tmp_path / "model"), "-k", "2..3", "--shuffles", "2", "--layers", "*.mlp.*"]
    assert main([*arguments, "--out", str(out)]) == 0
    loss = EnmeshmentLoss(model, load_partitions(out / "partitions.npz"))
    assert list(loss.partitions) == [
        f"transformer.h.{i}.mlp.{part}" for i in range(3) for part in ("c_fc", "c_proj")
    ]
    assert loss.partitions["transformer.h.0.mlp.c_fc"].shape == (64, 16)
    found = loss.clusterability()
    for name, record in read_results(out)["clustering"].items():
        (best,) = [each for each in record["clusters"] if each["num_clusters"] == record["chosen"]]
        assert best["clusterability"] == pytest.approx(found[name], abs=1e-6)


def test_a_sharded_folder_and_a_single_file_give_the_same_results(tmp_path):
    model = gpt2()
    results = []
    for name, shard in (("single", "10GB"), ("sharded", "8KB")):
        model.save_pretrained(tmp_path / name, max_shard_size=shard)
        out = tmp_path / f"{name}-out"
        assert main(["cluster", str(tmp_path / name), "-k", "2", "--shuffles", "1", "--out", str(out)]) == 0
        results.append((read_results(out), load_partitions(out / "partitions.npz")))
    (one, partitions), (other, same) = results
    assert one["config"]["weights"] == other["config"]["weights"]
    assert list(partitions.items()) == list(same.items())


def test_older_shards_of_torch_save(tmp_path):
    model = bert()
    state = model.state_dict()
    names = list(state)
    where = {name: f"pytorch_model-{i % 3 + 1:05}-of-00003.bin" for i, name in enumerate(names)}
    for file in set(where.values()):
        torch.save({name: state[name] for name in names if where[name] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    model.config.save_pretrained(tmp_path)
    weights = read_weights(str(tmp_path))
    for layer in find_layers(model):
        assert torch.equal(weights[layer.name], layer.weight()), layer.name


@pytest.mark.parametrize(
    ("index", "error", "told"),
    [
        (
            {"weight_map": {"a.weight": "../secret.safetensors"}},
            ValueError,
            "'../secret.safetensors' is no name of a file",
        ),
        ({"weight_map": {"a.weight": "/etc/passwd"}}, ValueError, "is no name of a file beside it"),
        ({"weight_map": {"a.weight": 3}}, ValueError, "3 is no name of a file"),
        ({"weight_map": {}}, ValueError, r"must map names to files \(weight_map\)"),
        ([], ValueError, r"must map names to files \(weight_map\)"),
        (
            {"weight_map": {"a.weight": "gone.safetensors"}},
            FileNotFoundError,
            "names gone.safetensors, which is not",
        ),
        ({"weight_map": {"b.weight": "one.safetensors"}}, ValueError, "one.safetensors holds no 'b.weight'"),
    ],
)
def test_damaged_indices(index, error, told, tmp_path):
    safetensors.save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(error, match=told):
        read_weights(str(tmp_path))


def test_without_a_config_the_biases_tell_and_what_they_leave_open_is_asked_about(tmp_path):
    model = gpt2()
    state = {name: tensor for name, tensor in model.transformer.state_dict().items() if "wte" not in name}
    safetensors.save_file(state, tmp_path / "model.safetensors")
    weights = read_weights(str(tmp_path / "model.safetensors"))
    assert torch.equal(weights["h.0.mlp.c_fc"], model.transformer.h[0].mlp.c_fc.weight.T)
    # Of a square one it cannot be known; every other matrix here is kept as (in, out).
    with pytest.raises(
        ValueError, match=r"layer 'h.0.attn.c_proj' has shape \(16, 16\): .* does not show. Give the folder"
    ):
        weights["h.0.attn.c_proj"]
    model.config.save_pretrained(tmp_path)
    square = read_weights(str(tmp_path / "model.safetensors"))["h.0.attn.c_proj"]
    assert torch.equal(square, model.transformer.h[0].attn.c_proj.weight.T)


def test_about_one_shard_is_in_memory(tmp_path):
    """Eight shards of 32 MiB, read by a process that tells how much memory it held at most."""
    names = [f"layer.{i}.weight" for i in range(8)]
    for i, name in enumerate(names):
        safetensors.save_file({name: torch.randn(2048, 4096)}, tmp_path / f"model-{i}.safetensors")
    where = {name: f"model-{i}.safetensors" for i, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    code = (
        "import resource, sys\n"
        "from modfast.weights import read_weights\n"
        "def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "import safetensors, torch; torch.randn(10, 10) @ torch.randn(10, 10)\n"
        "weights = read_weights(sys.argv[1])\n"
        "before = most()\n"
        "total = sum(float(weight.abs().sum()) for weight in weights.values())\n"
        "print(most() - before)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    shard = 32 * 2**20
    # A shard as the file's own pages, a copy, and the absolute values: not eight of them.
    assert int(shown.stdout) < 4.5 * shard
