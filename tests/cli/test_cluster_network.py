"""``modfast cluster --network``: clusters that all layers of a model share, from the options to the files."""

import json
import sys

import pytest
import safetensors.torch
import torch
import transformers
from PIL import Image
from torch import nn

import modfast
from modfast import EnmeshmentLoss, load_partitions
from modfast.cli import main
from modfast.experiment import network_clusters
from modfast.experiment.network_clusters import shuffled_graph
from modfast.experiment.network_files import load_labels
from modfast.layers.layer import find_layers
from modfast.network.reading import read_network
from modfast.weights.whole_models import example_for, whole_model

CPU = ["--device", "cpu", "--threads", "1"]
SIZES = {"vocab_size": 60, "n_positions": 16, "n_embd": 48, "n_layer": 2, "n_head": 6}
FILES = ["curve.png", "labels.npz", "layers.png", "manifest-cluster.json", "partitions.npz", "results.json"]


class Gated(nn.Module):
    """A model that no config describes."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(12, 24), nn.Linear(12, 24), nn.Linear(24, 12)
        self.unused = nn.Linear(3, 3)

    def forward(self, x, *, scale):
        return x + self.down(torch.sigmoid(self.gate(x)) * self.up(x)) * scale


def gated_inputs():
    return {"x": torch.zeros(2, 12), "scale": 2.0}


def no_inputs():
    return "text"


def run(model, out, *arguments):
    options = ["-k", "2..4", "--shuffles", "3", "--n-init", "2", *CPU]
    return main(["cluster", str(model), "--network", "--out", str(out), *options, *map(str, arguments)])


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder of transformers whose units form three clusters, and the cluster of each unit."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES))
    network = read_network(model, {"input_ids": torch.arange(8)[None], "use_cache": False})
    truth = torch.randint(0, 3, (network.num_units,))
    with torch.no_grad():
        for layer in find_layers(model):
            read = network.layers[layer.name]
            if read.tied_to is None:
                inside = truth[read.row_units][:, None] == truth[read.col_units]
                random = torch.randn(inside.shape)
                layer.weight().copy_(random.where(inside, 0.05 * random))
    folder = tmp_path_factory.mktemp("planted")
    model.save_pretrained(folder)
    return folder, truth


@pytest.fixture(scope="module")
def clustered(planted, tmp_path_factory):
    out = tmp_path_factory.mktemp("clustered") / "out"
    assert run(planted[0], out) == 0
    return out


def test_planted_clusters_are_found_in_a_folder_of_transformers(planted, clustered, capsys):
    folder, truth = planted
    assert sorted(path.name for path in clustered.iterdir()) == FILES
    results = results_of(clustered)
    record = results["network_clustering"]
    assert results["finished"]
    assert record["chosen"] == 3
    labels = load_labels(clustered)
    assert list(labels) == [2, 3, 4]
    assert torch.unique(torch.stack([labels[3], truth]), dim=1).shape[1] == 3
    assert record["units"] == len(truth)
    (best,) = [each for each in record["clusters"] if each["num_clusters"] == 3]
    assert sorted(best["sizes"]) == sorted(torch.bincount(truth).tolist())
    assert [sum(each.values()) for each in record["members"]] == best["sizes"]
    assert best["gap"] > max(shuffled["largest_gap"] for shuffled in record["shuffled"].values())
    cuts = [shuffled["normalized_cuts"]["3"] for shuffled in record["shuffled"].values()]
    assert best["normalized_cut"] < 0.5 * min(cuts)
    model = whole_model(str(folder))
    graph = read_network(model, example_for(model)).graph()
    assert best["normalized_cut"] == pytest.approx(modfast.normalized_cut(graph, labels[3]))


def test_the_partitions_fit_the_model_and_the_loss(planted, clustered):
    model = whole_model(str(planted[0]))
    partitions = load_partitions(clustered / "partitions.npz")
    assert "lm_head" not in partitions
    assert results_of(clustered)["network_clustering"]["without_partition"] == ["lm_head"]
    assert float(EnmeshmentLoss(model, partitions)()) < 0.01
    first, second = (partitions[f"transformer.h.0.mlp.{name}"] for name in ("c_fc", "c_proj"))
    assert torch.equal(first.row_labels, second.col_labels)
    shares = results_of(clustered)["network_clustering"]["clusterability"]
    assert EnmeshmentLoss(model, {"transformer.h.0.mlp.c_fc": first}).clusterability() == pytest.approx(
        {"transformer.h.0.mlp.c_fc": shares["transformer.h.0.mlp.c_fc"]["clusterability"]}
    )
    assert shares["transformer.h.0.mlp.c_fc"]["by_chance"] < 0.5


def test_pictures_are_pictures_and_report_draws_them_again(clustered, capsys):
    for name in ("curve.png", "layers.png"):
        with Image.open(clustered / name) as image:
            assert image.size[0] == 1440
    before = {name: (clustered / name).read_bytes() for name in ("curve.png", "layers.png", "results.json")}
    assert main(["report", str(clustered)]) == 0
    printed = capsys.readouterr().out
    assert "3 *" in printed
    assert "left as it was" not in printed
    assert {name: (clustered / name).read_bytes() for name in before} == before
    assert (clustered / "manifest-report.json").exists()


def test_a_report_says_why_layers_are_not_drawn_again(planted, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in planted[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert run(folder, tmp_path / "out", "-k", "3") == 0
    model = whole_model(str(folder))
    with torch.no_grad():
        model.transformer.wpe.weight.add_(1.0)
    model.save_pretrained(folder)
    capsys.readouterr()
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "holds other weights now" in capsys.readouterr().out.replace("\n", " ")


def test_a_run_that_was_stopped_resumes_to_the_same_results(
    planted, clustered, tmp_path, monkeypatch, capsys
):
    graphs = []

    def stops(*arguments):
        graphs.append(arguments)
        if len(graphs) == 2:
            raise KeyboardInterrupt
        return shuffled_graph(*arguments)

    monkeypatch.setattr(network_clusters, "shuffled_graph", stops)
    assert run(planted[0], tmp_path / "out") == 130
    assert len(results_of(tmp_path / "out")["network_clustering"]["shuffled"]) == 1
    assert not results_of(tmp_path / "out")["finished"]
    assert run(planted[0], tmp_path / "out") == 1
    assert "--resume" in capsys.readouterr().err
    assert run(planted[0], tmp_path / "out", "--resume", "--seed", "5") == 1
    assert "was made with another seed: 0, not 5" in capsys.readouterr().err
    graphs.clear()
    graphs += [None] * 2  # no further stop
    assert run(planted[0], tmp_path / "out", "--resume") == 0
    assert len(graphs) == 2 + 2
    resumed, whole = (results_of(each)["network_clustering"] for each in (tmp_path / "out", clustered))
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    assert load_partitions(tmp_path / "out" / "partitions.npz") == load_partitions(
        clustered / "partitions.npz"
    )


def test_the_result_does_not_depend_on_how_many_shuffles_run_at_a_time(planted, clustered, tmp_path):
    assert run(planted[0], tmp_path / "out", "--threads", "2") == 0
    one, two = (results_of(each)["network_clustering"] for each in (tmp_path / "out", clustered))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_overwrite_replaces_what_the_command_wrote_and_nothing_else(planted, tmp_path):
    out = tmp_path / "out"
    assert run(planted[0], out, "-k", "2", "--layers", "transformer.h.0.*") == 0
    assert set(load_partitions(out / "partitions.npz")) == {
        f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    (out / "notes.txt").write_text("mine")
    assert run(planted[0], out, "-k", "3", "--layers", "transformer.h.*", "--overwrite") == 0
    assert len(load_partitions(out / "partitions.npz")) == 8
    assert (out / "notes.txt").read_text() == "mine"
    # A clustering of single layers has other files; both are this command's own.
    layers = [
        "cluster",
        str(planted[0]),
        "-k",
        "2",
        "--layers",
        "transformer.h.0.mlp.c_fc",
        "--shuffles",
        "1",
        *CPU,
    ]
    assert main([*layers, "--out", str(out), "--overwrite"]) == 0
    assert not (out / "layers.png").exists()
    assert (out / "layers" / "000.npz").exists()
    (out / "layers" / "notes.txt").write_text("mine")
    assert run(planted[0], out, "-k", "2", "--layers", "transformer.h.0.*", "--overwrite") == 0
    assert (out / "layers.png").exists()
    assert not (out / "layers" / "000.npz").exists()
    assert (out / "layers" / "notes.txt").read_text() == "mine"


def test_shuffles_permute_each_weight_and_leave_the_model(planted):
    model = whole_model(str(planted[0]))
    network = read_network(model, example_for(model))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, again, other = (shuffled_graph(network, "abs", 0, number) for number in (0, 0, 1))
    assert torch.equal(one.values(), again.values())
    assert not torch.equal(one.values(), other.values())
    assert float(one.values().sum()) == pytest.approx(float(network.graph().values().sum()), rel=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_callable_and_inputs_of_its_own(tmp_path, capsys):
    assert run(f"{__name__}:Gated", tmp_path / "out", "--example", f"{__name__}:gated_inputs") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Not used on the example, so not in the network: unused (1 matrices)" in printed
    assert set(load_partitions(tmp_path / "out" / "partitions.npz")) == {"gate", "up", "down"}


def test_clusters_of_a_run_and_of_a_callable_with_data_train_another(tmp_path):
    train = ["train", "--data", "digits", "--epochs", "1", *CPU, "--out"]
    assert main([*train, str(tmp_path / "run")]) == 0
    assert run(tmp_path / "run", tmp_path / "of-run", "--data", "digits") == 0
    weights = results_of(tmp_path / "of-run")["config"]["weights"]
    assert run("modfast.models:MLP", tmp_path / "made", "--data", "digits", "-k", "3") == 0
    assert weights.keys() == results_of(tmp_path / "made")["config"]["weights"].keys()
    assert weights != results_of(tmp_path / "made")["config"]["weights"]
    partitions = str(tmp_path / "made" / "partitions.npz")
    assert main([*train, str(tmp_path / "second"), "--partitions", partitions, "--clusters", "3"]) == 0
    assert set(results_of(tmp_path / "second")["clusterability"]) == {"fc1", "fc2", "fc3"}


def test_pixels_come_from_the_config_of_an_image_model():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, image_size=12, patch_size=4, num_channels=2)
    inputs = example_for(transformers.ViTForImageClassification(config))
    assert {name: tensor.shape for name, tensor in inputs.items()} == {"pixel_values": (1, 2, 12, 12)}
    half = transformers.ViTModel(config).to(torch.bfloat16)
    assert example_for(half, sizes=((2, 8, 4), 10))["pixel_values"].dtype == torch.bfloat16


def test_tokens_fit_the_vocabulary_and_the_positions():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(**sizes, vocab_size=5, max_position_embeddings=3, pad_token_id=0)
    assert example_for(transformers.BertModel(config))["input_ids"].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: transformers.ResNetModel(transformers.ResNetConfig(hidden_sizes=[4] * 4)),
            "no image_size and num_channels",
        ),
        (lambda: Gated(), "needed to follow the computation of a Gated"),
        (
            lambda: transformers.WhisperModel(
                transformers.WhisperConfig(
                    d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                    decoder_attention_heads=2, vocab_size=60, encoder_ffn_dim=16, decoder_ffn_dim=16,
                    pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
                )
            ),
            "WhisperModel",
        ),
    ],
)  # fmt: skip
def test_inputs_that_are_not_certain_are_asked_for(make, message):
    with pytest.raises(ValueError, match=f"{message}.*--example package.module:callable"):
        example_for(make())


def test_what_holds_no_computation_or_no_inputs_is_refused(tmp_path, capsys):
    safetensors.torch.save_file({"fc.weight": torch.rand(4, 4)}, tmp_path / "model.safetensors")

    def error(*arguments):
        assert run(*arguments) == 1
        return capsys.readouterr().err

    assert "holds weights, but not how they are computed with" in error(
        tmp_path / "model.safetensors", tmp_path / "out"
    )
    assert "needs a config.json" in error(tmp_path, tmp_path / "out")
    assert "must return a tensor" in error(
        f"{__name__}:Gated", tmp_path / "out", "--example", f"{__name__}:no_inputs"
    )
    example = ("--example", f"{__name__}:gated_inputs")
    assert "'fc9' matches no layer" in error(
        f"{__name__}:Gated", tmp_path / "out", *example, "--layers", "fc9"
    )
    assert "at most 36, the units of the network" in error(
        f"{__name__}:Gated", tmp_path / "out", *example, "-k", "37"
    )
    assert main(["cluster", f"{__name__}:Gated", "--out", str(tmp_path / "out"), *example]) == 1
    assert "example needs --network" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_lacks_weights_is_refused(planted, tmp_path):
    for path in planted[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights of GPT2LMHeadModel.*transformer\.h\.1\.mlp\.c_fc"):
        whole_model(str(tmp_path))


def test_a_batch_norm_that_is_lacking_is_named(tmp_path):
    sizes = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))
    model.save_pretrained(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del tensors["resnet.embedder.embedder.normalization.running_var"]
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"made up: resnet\.embedder\.embedder\.normalization\.running_var"):
        whole_model(str(tmp_path))


def test_one_cluster_alone_has_pictures(tmp_path):
    example = ["--example", f"{__name__}:gated_inputs"]
    assert run(f"{__name__}:Gated", tmp_path / "out", *example, "-k", "1") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    assert results_of(tmp_path / "out")["network_clustering"]["chosen"] == 1


class Changing(nn.Module):
    """Joins other units on other examples, and has a batch norm."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Linear(12, 12)
        with torch.no_grad():
            self.norm.running_var.fill_(variance)

    def forward(self, x):
        h = self.norm(self.first(x))
        return self.second(h) + (h if len(x) > 2 else 0.0)


variance = 1.0


def two_rows():
    return torch.zeros(2, 8)


def three_rows():
    return torch.zeros(3, 8)


def test_other_units_and_norms_are_not_resumed(tmp_path, monkeypatch, capsys):
    out, model = tmp_path / "out", f"{__name__}:Changing"
    two, three = (["--example", f"{__name__}:{name}"] for name in ("two_rows", "three_rows"))
    assert run(model, out, *two) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert run(model, out, *three, "--resume") == 1
    assert "was made with other units, by another example" in capsys.readouterr().err.replace("\n", " ")
    monkeypatch.setattr(sys.modules[__name__], "variance", 2.0)
    assert run(model, out, *two, "--resume") == 1
    assert "was made with other batch norms" in capsys.readouterr().err.replace("\n", " ")
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.undo()
    assert run(model, out, *two, "--resume") == 0


class Nothing(Gated):
    """All weights have one value."""

    def __init__(self):
        super().__init__()
        for parameter in self.parameters():
            nn.init.constant_(parameter, value)


value = 0.0


@pytest.mark.parametrize(
    ("given", "message"), [(0.0, "no two units are joined"), (torch.nan, "must be finite")]
)
def test_weights_that_cannot_be_clustered_cost_no_earlier_results(
    given, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys.modules[__name__], "value", given)
    out, example = tmp_path / "out", ["--example", f"{__name__}:gated_inputs"]
    assert run(f"{__name__}:Gated", out, *example, "-k", "2") == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert run(f"{__name__}:Nothing", out, *example, "-k", "2", "--overwrite") == 1
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before
