"""Layers may have any name, also one that means something else to us, or that no file can have."""

import json
import shutil

import pytest
import torch
from circuit_helpers import CPU
from torch import nn

from modfast.circuit import Circuit
from modfast.circuits import circuit_overlap, cluster_information
from modfast.circuits.folder import read_circuits
from modfast.circuits.keys import layer_key, layer_of
from modfast.cli import main
from modfast.files import file_name
from modfast.partition import Partition
from modfast.report.circuits.summary import describe_circuits, run_measures
from modfast.report.circuits.words import describe
from modfast.results import as_lists

NAMES = ["all", "regularised", "layer:all", "random_size", "model", "size:fc", "a/b", "a_b", "loss"]


class Named(nn.Module):
    """Linear layers with the names of keys, paths and each other."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        for name in NAMES:
            self.add_module(name, nn.Linear(4, 4))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.last = nn.Linear(4, num_classes)

    def forward(self, images):
        hidden = self.pool(images).flatten(1)
        for name in NAMES:
            hidden = torch.tanh(getattr(self, name)(hidden))
        return self.last(hidden)


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    out = tmp_path_factory.mktemp("named") / "out"
    model = ["--data", "digits", "--model", "test_layer_names:Named", "--clusters", "2", "--epochs", "3"]
    assert main(["train", *model, "--layers", *NAMES, *CPU, "--out", str(out)]) == 0
    circuits = ["circuits", str(out), "--criterion", "loss", "--labels", "0", "1", "2", "--images", "5"]
    assert main([*circuits, *CPU]) == 0
    return out


def test_measures_of_a_layer_are_not_taken_for_those_of_all():
    generator = torch.Generator().manual_seed(0)
    circuits = [
        Circuit(
            label,
            {name: torch.rand(6, 6, generator=generator) < 0.3 for name in NAMES},
            *("loss", 0.0, 1, 0.5, 0.4, 1.0, 1.0),
        )
        for label in range(3)
    ]
    partitions = {name: Partition.blocks((6, 6), 2) for name in NAMES}
    found = describe_circuits(circuits, partitions, seed=0)
    assert found["overlap"]["all"] == as_lists(circuit_overlap(circuits))
    assert found["information"]["all"] == cluster_information(circuits, partitions)
    assert len(found["overlap"]) == len(NAMES) + 1
    for name in NAMES:
        assert found["overlap"][layer_key(name)] == as_lists(circuit_overlap(circuits, name))
        assert found["information"][layer_key(name)] == cluster_information(circuits, partitions, name)

    shares = {name: {mode: [[0.5], [0.25]] for mode in ("only", "without")} for name in NAMES}
    run = {"accuracy": 0.5, "clusterability": dict.fromkeys(NAMES, 0.25), "cluster_accuracy": shares}
    measures = run_measures(run | {"criteria": {"loss": found}}, NAMES[:2])
    # Each measure of each layer beside those over all of them.
    for group, names in (("model", ["clusterability", "specialisation_only"]), ("loss", ["size", "inside"])):
        for measure in names:
            assert {f"{measure}:{layer_key(name)}" for name in NAMES} <= set(measures[group])
    loss = measures["loss"]
    assert loss["size"] == pytest.approx(sum(found["size"]) / 3)
    for name in NAMES:
        assert loss[f"size:{layer_key(name)}"] == pytest.approx(sum(found["sizes"][name]) / 3)
        assert loss[f"information:{layer_key(name)}"] == found["information"][layer_key(name)]
    bits = [found["information"][layer_key(name)] for name in NAMES[:2]]
    assert loss["information:regularised"] == pytest.approx(sum(bits) / 2)


def test_the_table_holds_them_all(examined):
    (run,) = read_circuits(examined)["runs"]
    circuits = [Circuit.load(examined / f"circuits/loss/label-{label}.npz") for label in (0, 1, 2)]
    overlap = run["criteria"]["loss"]["overlap"]
    assert overlap["all"] == as_lists(circuit_overlap(circuits))
    assert list(overlap) == ["all", *map(layer_key, NAMES), "last"]


def test_the_report_names_them(examined, capsys):
    assert main(["report", str(examined)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    page = (examined / "circuits.html").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"Circuit size, {name}" in page
        assert f"Clusterability of {name} *" in shown


def test_a_table_that_took_one_for_the_other_is_refused(examined, tmp_path, capsys):
    """As a version without :func:`layer_key` wrote it."""
    out = shutil.copytree(examined, tmp_path / "out")
    results = read_circuits(out)
    for found in results["runs"][0]["criteria"].values():
        for measure in ("overlap", "random_overlap", "information", "random_information"):
            found[measure]["all"] = found[measure].pop("layer:all")
    (out / "circuits.json").write_text(json.dumps(results))
    (out / "manifest-circuits.json").unlink()
    assert main(["report", str(out)]) == 1
    assert "takes the layer 'all' for all layers together" in capsys.readouterr().err
    arguments = ["--criterion", "loss", "--labels", "0", "1", "2", "--images", "5", *CPU]
    assert main(["circuits", str(out), *arguments, "--resume"]) == 0
    assert read_circuits(out)["runs"] == [
        run | {"criteria": {"loss": run["criteria"]["loss"] | {"seconds": [None] * 3}}}
        for run in read_circuits(examined)["runs"]
    ]


def test_a_layer_without_a_name():
    """As of a model that is nothing but an ``nn.Linear``."""
    masks = {"": torch.tensor([[True, False], [False, True]])}
    circuits = [Circuit(label, masks, "loss", 0.0, 1, 0.5, 0.4, 1.0, 1.0) for label in (0, 1)]
    found = describe_circuits(circuits, {"": Partition([0, 1], [0, 1], 2)}, seed=0)
    run = {"accuracy": 0.5, "clusterability": {"": 0.25}, "cluster_accuracy": {}, "criteria": {"loss": found}}
    measures = run_measures(run, [""])
    assert measures["model"]["clusterability:layer:"] == 0.25
    assert measures["loss"]["size:layer:"] == measures["loss"]["size"] == 0.5
    assert describe("size:layer:").title == "Circuit size, ''"


@pytest.mark.parametrize("layer", ["", *NAMES, "layer:", "layer:layer:all", "fc1", "a.b[3]"])
def test_keys_lead_back_to_layers(layer):
    assert layer_of(layer_key(layer)) == layer
    assert layer_key(layer) not in ("", "all", "regularised")
    assert describe(f"size:{layer_key(layer)}").title == f"Circuit size, {layer or repr(layer)}"


def test_each_layer_has_a_picture_of_its_own(examined):
    pictures = [path for path in examined.iterdir() if path.name.startswith("class_accuracy_")]
    assert len(pictures) == len(NAMES)
    assert {"class_accuracy_all.png", "class_accuracy_a_b.png"} < {path.name for path in pictures}


def test_file_names_are_harmless_short_and_different():
    plain = ["fc1", "blocks.0.fc1", "a_b", "A_B", "experts.up_proj[3]", "_orig-mod", "x" * 100]
    assert [file_name(name) for name in plain] == plain
    wild = ["", ".", "..", "a/b", "a\\b", "a b", "a\0b", "a\nb", "../../etc", "слой", "層" * 300, "\ud800"]
    wild += ["x" * 101, "x" * 102, "x" * 5000, "a_b~c14cddc033f64b9d", "~", "*?", "-rf"]
    names = [file_name(name) for name in [*plain, *wild]]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(f"class_accuracy_{name}.png".encode()) <= 128
        assert not set(name) & set("/\\\0\n *?")
