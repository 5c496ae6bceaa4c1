"""Protocols on the command line: named settings that single options override."""

import argparse
from dataclasses import asdict, replace

import pytest
import torch

from benchmarks.rivals.arms import ARMS as RIVALS
from benchmarks.rivals.recipe import RECIPE
from modfast import Partition, save_partitions
from modfast.cli import main
from modfast.cli.parsers.options import training_options
from modfast.cli.train import chosen_protocol
from modfast.data import load_dataset
from modfast.experiment.protocols import PROTOCOLS, RECOMMENDED
from modfast.experiment.runs import train_run
from modfast.results import read_results
from modfast.train import TrainConfig
from modfast.train.distributed import Ranks


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture
def partitions(tmp_path):
    given = {"fc2": Partition(torch.arange(64) % 2, torch.arange(64) // 32, 2)}
    save_partitions(tmp_path / "clusters.npz", given)
    return given


def chosen(digits, *arguments, partitions=None, protocol="published-2025"):
    parser = argparse.ArgumentParser(parents=[training_options(protocol)])
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--epochs", type=int)
    options = parser.parse_args(["--out", "unused", *arguments])
    return chosen_protocol(options, Ranks(), digits, partitions)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_without_other_options_the_protocols_settings_hold(digits, name):
    made = chosen(digits, "--protocol", name)
    expected = PROTOCOLS[name].for_data("digits")
    assert made == expected
    assert made.config.epochs == made.plain_epochs == 60


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--epochs", "8"], {"epochs": 8, "warmup_epochs": 2}),
        (["--epochs", "8", "--warmup-epochs", "5"], {"epochs": 8, "warmup_epochs": 5}),
        (["--warmup-epochs", "5"], {"warmup_epochs": 5}),
        (["--clusters-from", "blocks"], {"clusters_from": "blocks"}),
        (
            ["--clusters-from", "blocks", "--warmup-epochs", "0"],
            {"clusters_from": "blocks", "warmup_epochs": 0},
        ),
        (["--affinity", "gradients", "--chained"], {"affinity": "gradients", "chained": True}),
        (["--no-chained"], {}),
        (["--layers", "fc1", "fc3", "--clusters", "2"], {"layers": ("fc1", "fc3"), "num_clusters": 2}),
        (["--ramp-epochs", "3", "--l1-weight", "0.5"], {"ramp_epochs": 3, "l1_weight": 0.5}),
        (["--enmeshment-weight", "0"], {"enmeshment_weight": 0.0}),
        (["--model", "mlp"], {}),
        (["--model", "modfast.models:MLP"], {"layers": None}),
    ],
    ids=" ".join,
)
def test_an_option_changes_its_own_setting_alone(digits, arguments, changed):
    expected = asdict(PROTOCOLS["published-2025"].for_data("digits").config) | changed
    assert asdict(chosen(digits, *arguments).config) == expected


def test_partitions_stand_in_for_clusters_that_would_be_found(digits, partitions):
    config = chosen(digits, partitions=partitions).config
    assert (config.clusters_from, config.layers, config.num_clusters) == ("file", None, 2)
    assert config.warmup_epochs == 15


@pytest.mark.parametrize("where", ["blocks", "spectral"])
def test_partitions_contradict_other_clusters(digits, partitions, where):
    with pytest.raises(ValueError, match=f"clusters_from must be 'file' or left out .*, got '{where}'"):
        chosen(digits, "--clusters-from", where, partitions=partitions, protocol="published-2024")


@pytest.mark.parametrize("command", ["train", "reproduce"])
def test_results_say_that_clusters_were_given(tmp_path, partitions, command):
    arguments = [command, "--epochs", "1", "--batch-size", "500", "--out", str(tmp_path / "out")]
    arguments += ["--partitions", str(tmp_path / "clusters.npz")]
    assert main([*arguments, *(["--seeds", "1"] if command == "reproduce" else [])]) == 0
    folders = ["."] if command == "train" else [".", "plain-seed42", "modular-seed42"]
    for folder in folders:
        assert read_results(tmp_path / "out" / folder)["config"]["clusters_from"] == "file"


def test_results_say_it_also_where_python_gives_them(digits, tmp_path, partitions):
    config = TrainConfig(epochs=1, batch_size=500)  # whose clusters_from is the default, "blocks"
    results = train_run(digits, "mlp", config, tmp_path / "out", partitions=partitions)
    assert results["config"]["clusters_from"] == "file"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "1"], "epochs must be at least 2 for the protocol 'published-2025'"),
        (["--layers", "fc9"], "'fc9'"),
        (["--layers", "fc1", "fc3", "--chained"], "layers must have units in common"),
        (["--layers", "fc4", "--clusters", "11"], "num_clusters must be at most 10"),
        (["--clusters-from", "blocks", "--chained"], "chained must be False unless"),
        (["--clusters-from", "file"], "partitions must be given"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("command", ["train", "reproduce"])
def test_what_does_not_fit_is_said_before_training(tmp_path, capsys, command, arguments, message):
    assert main([command, "--protocol", "published-2025", "--out", str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_plain_model_within_the_warm_up_is_refused_by_name(tmp_path, capsys):
    arguments = ["reproduce", "--data", "fake", "--protocol", "published-2025", "--warmup-epochs", "12"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    message = r"plain_epochs, those of the plain model, must be above warmup_epochs (12), got 10"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_recommended_protocol_is_what_is_recommended():
    config = PROTOCOLS[RECOMMENDED].config
    assert (config.enmeshment_weight, config.layers, config.clusters_from) == (20.0, ("fc2", "fc3"), "blocks")
    assert config.epochs == PROTOCOLS[RECOMMENDED].plain_epochs == 10
    # It is the arm whose evidence stands on the page of rivals.
    evidence = replace(RIVALS[RECIPE].config, clusters_from="blocks")
    assert evidence == config


def test_the_recommended_protocol_has_the_blocks_of_its_evidence():
    shapes = {"fc2": (64, 64), "fc3": (10, 64)}
    blocks = {name: Partition.blocks(shape, 4) for name, shape in shapes.items()}
    assert torch.equal(blocks["fc2"].row_labels, blocks["fc3"].col_labels)
