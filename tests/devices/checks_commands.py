"""Training, commands and machines on a device without kernels.

``test_other_devices.py`` runs this file; see there.
"""

import json
import warnings

import numpy as np
import pytest
import torch
from circuit_helpers import Tiny
from stood_in import DEVICE, WIDEST

import modfast
from modfast import without_kernels
from modfast.cli import main
from modfast.data import load_dataset
from modfast.library import BACKEND
from modfast.machine import choose_device
from modfast.spectral import graph_embedding
from modfast.tasks import modular_addition
from modfast.train import TrainConfig, train

SMALL = ["--data", "digits", "--model", "circuit_helpers:Tiny", "--layers", "fc2", "--clusters", "2"]


def test_the_device_can_be_chosen():
    assert choose_device("standin").type == choose_device("standin:0").type == "standin"
    assert "standin" not in modfast.backend()["kernels"]
    with pytest.raises(ValueError, match="device must be 'auto' or one that computes, got 'meta'"):
        choose_device("meta")


def test_results_are_where_the_weights_are():
    weight = torch.rand(12, 9, device=DEVICE)
    graph = weight @ weight.T
    partition = modfast.spectral_cocluster(weight, 3)
    assert partition.device == DEVICE
    assert modfast.normalized_cut(weight, partition) == pytest.approx(
        modfast.normalized_cut(weight.cpu(), partition.to("cpu"))
    )
    assert modfast.spectral_cluster(graph, 2).device == DEVICE
    assert modfast.laplacian_eigenvalues(weight, 2).device == DEVICE
    assert graph_embedding(graph, 2).device == DEVICE
    assert graph_embedding(graph, 2).dtype == WIDEST
    assert graph_embedding(graph.cpu(), 2).dtype == torch.float64


@pytest.mark.parametrize("options", [{}, {"keep": 0.5}, {"optimizer": "adam"}], ids=str)
def test_training(options):
    data = load_dataset("digits")
    records = []
    for device in ("cpu", "standin"):
        torch.manual_seed(0)
        config = TrainConfig(epochs=1, device=device, num_clusters=2, layers=("fc2",), **options)
        run = train(Tiny((1, 8, 8), 10), data, config)
        records.append(run.history[-1])
        kept = run.model.fc2.weight.count_nonzero() / run.model.fc2.weight.numel()
        assert float(kept) == pytest.approx(options.get("keep", 1.0), abs=0.01)
    for name in ("cross_entropy", "enmeshment", "test_cross_entropy"):
        assert records[1][name] == pytest.approx(records[0][name], rel=1e-3)


def test_a_task_is_learnt():
    task, losses = modular_addition(7), []
    for device in ("cpu", DEVICE):
        model = task.model("mlp", hidden=6, device=device)
        loss = modfast.EnmeshmentLoss(model, 2, layers=["fc2"])
        losses.append(
            [record["loss"] for record in task.train(model, 4, enmeshment=loss, enmeshment_weight=0.1)]
        )
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_commands(tmp_path, capsys):
    out = str(tmp_path / "run")
    for arguments in (
        ["train", *SMALL, "--epochs", "1", "--out", out],
        ["train", *SMALL, "--epochs", "2", "--out", out, "--resume"],
        ["circuits", out, "--criterion", "loss", "--images", "3"],
        ["cluster", out, "--clusters", "2", "--out", f"{out}/clustered"],
    ):
        assert main([*arguments, "--device", "standin", "--threads", "1"]) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["history"]) == 2
    assert 0 < results["accuracy"] <= 100


def test_only_a_gpu_without_its_kernels_is_warned_of(monkeypatch):
    monkeypatch.setattr(without_kernels, "_warned", [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        modfast.enmeshment(torch.rand(4, 4, device=DEVICE), modfast.Partition.blocks((4, 4), 2))
        modfast.spectral_cocluster(torch.rand(4, 4, device=DEVICE), 2)
    if BACKEND == "reference":
        without_kernels.warn_without_kernels(torch.device("cuda"))  # it was asked for, or told before
        return
    with pytest.warns(
        without_kernels.MissingKernelsWarning, match=r"no CUDA kernels.*MODFAST_CUDA=1 pip install"
    ):
        without_kernels.warn_without_kernels(torch.device("cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without_kernels.warn_without_kernels(torch.device("cuda"))
