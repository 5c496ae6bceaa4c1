"""Circuits that go through a convolution, from the command line."""

import torch
from circuit_helpers import CPU

from modfast.circuit import Circuit
from modfast.circuits import find_circuit
from modfast.circuits.folder import read_circuits
from modfast.cli import main
from modfast.data import load_dataset
from modfast.models import CNN
from modfast.train import read_checkpoint


def test_the_papers_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("modfast.experiment.runs.draw_run", lambda folder: [])
    training = ["--data", "digits", "--model", "cnn", "--epochs", "1", *CPU]
    assert main(["train", *training, "--out", str(tmp_path / "run")]) == 0
    few = ["--images", "5", "--labels", "1", "--criterion", "loss", *CPU]
    layers = ["conv1", "fc1", "fc3"]
    assert main(["circuits", str(tmp_path / "run"), "--layers", *layers, *few]) == 0
    results = read_circuits(tmp_path / "run")
    assert results["config"]["layers"] == layers
    found = Circuit.load(tmp_path / "run" / "circuits" / "loss" / "label-1.npz")
    assert found.masks["conv1"].shape == (16, 1, 3, 3)

    dataset = load_dataset("digits")
    model = CNN((1, 8, 8))
    model.load_state_dict(read_checkpoint(tmp_path / "run" / "checkpoint.pt")["model"])
    images = dataset.normalize(dataset.test_images[dataset.test_labels == 1][:5])
    expected = find_circuit(model, images, 1, layers=layers)
    assert all(torch.equal(found.masks[name], mask) for name, mask in expected.masks.items())
    assert (tmp_path / "run" / "circuits.html").read_text().startswith("<!DOCTYPE html>")
    # What was found for other layers is not taken for this.
    assert main(["circuits", str(tmp_path / "run"), "--resume", "--layers", "fc1", *few]) != 0
    assert "conv1" in capsys.readouterr().err
