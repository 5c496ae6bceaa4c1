"""A command that is refused changes nothing: no file becomes its own that a later one would then remove."""

import numpy as np
import pytest
from folder_helpers import call, older, tree

OTHER = {
    "train": [["--seed", "7"], ["--batch-size", "32"], ["--layers", "fc1"], ["--epochs", "1"]],
    "reproduce": [["--batch-size", "32"], ["--learning-rate", "0.1"], ["--epochs", "1"]],
    "cluster": [["--seed", "7"], ["--tol", "0.1"]],
    "circuits": [["--images", "2"], ["--seed", "7"], ["--tolerance", "0.5"]],
}
DAMAGED = {
    "train": ["checkpoint.pt", "results.json", "partitions.npz"],
    "reproduce": ["modular-seed42/checkpoint.pt", "plain-seed42/results.json", "results.json"],
    "cluster": ["layers/000.npz", "partitions.npz", "results.json"],
    "circuits": ["circuits/loss/label-1.npz", "circuits/loss/settings.json", "circuits.json"],
}


@pytest.mark.parametrize("manifests", [True, False], ids=["with manifests", "without manifests"])
@pytest.mark.parametrize(("command", "options"), [(c, o) for c in OTHER for o in OTHER[c]], ids=str)
def test_a_resume_with_other_settings_claims_nothing(command, options, manifests, trained_longer, copy):
    out = copy(trained_longer[command])
    if not manifests:
        older(out)
    before = tree(out)
    assert call(command, out, *options, "--resume") == 1
    assert tree(out) == before
    if not manifests:
        assert call(command, out, "--overwrite") == 1
        assert tree(out) == before


@pytest.mark.parametrize("damage", ["cut", "text"])
@pytest.mark.parametrize(("command", "name"), [(c, n) for c in DAMAGED for n in DAMAGED[c]], ids=str)
def test_a_resume_of_a_damaged_folder_claims_nothing(command, name, damage, trained_longer, copy):
    out = copy(trained_longer[command])
    older(out)
    contents = (out / name).read_bytes()
    (out / name).write_bytes(contents[: len(contents) // 2] if damage == "cut" else b"mine")
    before = tree(out)
    epochs = ["--epochs", "2"] if command in ("train", "reproduce") else []
    assert call(command, out, *epochs, "--resume") == 1
    assert tree(out) == before


def test_a_refused_training_of_a_compared_model_does_not_take_it(made, copy):
    out = copy(made["reproduce"])
    older(out)
    before = tree(out)
    assert call("train", out / "modular-seed42", "--seed", "7", "--resume") == 1
    assert tree(out) == before
    assert call("reproduce", out, "--resume") == 0


def test_a_comparison_is_looked_at_as_a_whole_before_its_first_model(made, copy):
    out = copy(made["reproduce"])
    older(out)
    other = copy_of_another_training(out)
    before = tree(out)
    assert call("reproduce", out, "--resume") == 1
    assert tree(out) == before, other


def copy_of_another_training(out):
    """Put a model of another seed where the comparison's last one is."""
    other = out.parent / "other"
    assert call("train", other, "--seed", "7", "--epochs", "1") == 0
    (out / "modular-seed42" / "checkpoint.pt").write_bytes((other / "checkpoint.pt").read_bytes())
    return other


@pytest.mark.parametrize("where", ["layers/000.npz"])
def test_clusters_that_cannot_be_continued_are_said_before_the_work(where, made, copy, monkeypatch, capsys):
    out = copy(made["cluster"])
    np.savez(out / where, mine=np.zeros(2))
    before = tree(out)
    monkeypatch.setattr("modfast.experiment.clusters.cluster_layer", None)
    assert call("cluster", out, "--resume") == 1
    assert where in capsys.readouterr().err
    assert tree(out) == before


def test_circuits_with_other_settings_are_said_before_the_training(tmp_path, monkeypatch, capsys):
    assert call("reproduce", tmp_path) == 0
    for kind in ("plain", "modular"):
        assert call("circuits", tmp_path / f"{kind}-seed42") == 0
    before = tree(tmp_path)
    monkeypatch.setattr("modfast.cli.reproduce.reproduce", None)
    assert call("reproduce", tmp_path, "--circuits", "loss", "--resume") == 1
    assert "images 3, not None" in capsys.readouterr().err
    assert tree(tmp_path) == before
