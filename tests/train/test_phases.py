"""The phases of training: plain epochs, clusters found in the network, a rising weight; and L1."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from modfast import (
    EnmeshmentLoss,
    Partition,
    clusterability,
    gradient_affinity,
    network_graph,
    network_partitions,
    spectral_cluster,
    spectral_cocluster,
)
from modfast.data import load_dataset
from modfast.models import MLP
from modfast.train import CHECKPOINT, TrainConfig, TrainingError, read_checkpoint, train

SPECTRAL = TrainConfig(
    enmeshment_weight=20.0, epochs=4, warmup_epochs=2, clusters_from="spectral", batch_size=200, threads=1
)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def make(digits):
    torch.manual_seed(0)
    return MLP(digits.image_shape)


def trained(digits, config, **more):
    return train(make(digits), digits, config, **more)


def same(one, other):
    assert one.history == [
        dict(record, seconds=mine["seconds"]) for record, mine in zip(other.history, one.history, strict=True)
    ]
    assert one.partitions == other.partitions
    assert one.measured == other.measured
    for first, second in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_warm_up_is_plain_training(digits):
    plain = trained(digits, replace(SPECTRAL, epochs=3, enmeshment_weight=0.0))
    modular = trained(digits, replace(SPECTRAL, epochs=3))
    for first, second in zip(plain.history[:2], modular.history[:2], strict=True):
        assert first["cross_entropy"] == second["cross_entropy"] == first["loss"] == second["loss"]
    # The plain network gets the same clusters, so that both are measured by the same.
    assert plain.partitions == modular.partitions
    assert plain.history[2]["clusterability"]["fc2"] < modular.history[2]["clusterability"]["fc2"]


def test_spectral_clusters_are_those_of_the_weights_after_the_warm_up(digits):
    run = trained(digits, SPECTRAL)
    weight = trained(digits, replace(SPECTRAL, epochs=2, warmup_epochs=1)).model.fc2.weight
    assert "found" not in run.history[1]
    warm = trained(digits, TrainConfig(enmeshment_weight=0.0, epochs=2, batch_size=200, threads=1))
    assert not torch.equal(weight, warm.model.fc2.weight)
    expected = spectral_cocluster(warm.model.fc2.weight.detach(), 4, seed=42)
    assert run.partitions == {"fc2": expected}
    share = float(clusterability(warm.model.fc2.weight.detach(), expected))
    assert run.history[2]["found"] == {"fc2": pytest.approx(share)}
    assert run.history[3]["clusterability"]["fc2"] > share + 0.1
    # Before that, nothing is said of the clusters that do not exist.
    assert [record["enmeshment"] is None for record in run.history] == [True, True, False, False]
    assert [set(record["clusterability"]) for record in run.history] == [{"fc1", "fc3"}] * 2 + [
        {"fc1", "fc2", "fc3"}
    ] * 2


def test_clusters_of_gradients(digits):
    run = trained(digits, replace(SPECTRAL, affinity="gradients"))
    warm = trained(digits, TrainConfig(enmeshment_weight=0.0, epochs=2, batch_size=200, threads=1)).model
    batches = zip(
        digits.normalize(digits.train_images).split(200), digits.train_labels.split(200), strict=True
    )
    # Each image counts once, also in the last batch, which has 37.
    affinity = gradient_affinity(warm, "fc2", batches, partial(cross_entropy, reduction="sum"))
    whole = [(digits.normalize(digits.train_images), digits.train_labels)]
    torch.testing.assert_close(
        affinity / len(digits.train_images), gradient_affinity(warm, "fc2", whole, cross_entropy)
    )
    assert run.partitions["fc2"] == spectral_cocluster(affinity, 4, affinity="given", seed=42)
    assert run.partitions != trained(digits, SPECTRAL).partitions


@pytest.mark.parametrize("affinity", ["weights", "gradients"])
def test_chained_clusters_are_shared_by_consecutive_layers(digits, affinity):
    config = replace(SPECTRAL, layers=("fc2", "fc1", "fc3"), chained=True, affinity=affinity)
    run = trained(digits, config)
    assert torch.equal(run.partitions["fc1"].row_labels, run.partitions["fc2"].col_labels)
    assert torch.equal(run.partitions["fc2"].row_labels, run.partitions["fc3"].col_labels)
    if affinity == "weights":
        warm = trained(digits, TrainConfig(enmeshment_weight=0.0, epochs=2, batch_size=200, threads=1)).model
        order = ["fc1", "fc2", "fc3"]
        labels = spectral_cluster(network_graph(warm, order), 4, seed=42)
        assert run.partitions == network_partitions(warm, labels, order)


def test_layers_that_do_not_follow_each_other_cannot_be_chained(digits):
    with pytest.raises(ValueError, match=r"layers must have units in common .* \[\['fc1'\], \['fc3'\]\]"):
        trained(digits, replace(SPECTRAL, layers=("fc1", "fc3"), chained=True))


def test_clusters_are_found_anew(digits):
    run = trained(digits, replace(SPECTRAL, epochs=6, recluster_every=2, enmeshment_weight=0.0))
    assert ["found" in record for record in run.history] == [False, False, True, False, True, False]
    before = trained(digits, replace(SPECTRAL, epochs=4, enmeshment_weight=0.0)).model.fc2.weight.detach()
    assert run.partitions["fc2"] == spectral_cocluster(before, 4, seed=42)


def test_the_weight_rises_step_by_step(digits):
    config = TrainConfig(enmeshment_weight=8.0, epochs=1, ramp_epochs=2, batch_size=500, threads=1)
    run = trained(digits, config)
    model = make(digits)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    loss = EnmeshmentLoss(model, 4, layers=["fc2"])
    order = torch.randperm(
        len(digits.train_images), generator=torch.Generator().manual_seed(42 * 1_000_003 + 1)
    )
    for step, batch in enumerate(order.split(500), start=1):
        optimizer.zero_grad()
        logits = model(digits.normalize(digits.train_images[batch]))
        (cross_entropy(logits, digits.train_labels[batch]) + 8.0 * step / 6 * loss()).backward()
        optimizer.step()
    for mine, expected in zip(run.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


def test_l1_is_the_gradient_of_the_sum_of_magnitudes(digits):
    config = TrainConfig(enmeshment_weight=0.0, l1_weight=1e-3, epochs=1, batch_size=500, threads=1)
    run = trained(digits, config)
    model = make(digits)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    order = torch.randperm(
        len(digits.train_images), generator=torch.Generator().manual_seed(42 * 1_000_003 + 1)
    )
    losses = []
    for batch in order.split(500):
        optimizer.zero_grad()
        logits = model(digits.normalize(digits.train_images[batch]))
        penalty = 1e-3 * sum(parameter.abs().sum() for parameter in model.parameters())
        losses.append(float(penalty))
        (cross_entropy(logits, digits.train_labels[batch]) + penalty).backward()
        optimizer.step()
    for mine, expected in zip(run.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)
    record = run.history[0]
    assert record["loss"] - record["cross_entropy"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_the_test_loss_is_recorded(digits):
    run = trained(digits, replace(SPECTRAL, epochs=3))
    logits = run.model(digits.normalize(digits.test_images)).double()
    expected = float(cross_entropy(logits, digits.test_labels))
    assert run.history[-1]["test_cross_entropy"] == pytest.approx(expected, rel=1e-6)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("at", [(1, 3), (2, 8), (3, 1), (3, 5), (4, 8), (5, 2), (6, 1)], ids=str)
@pytest.mark.parametrize("affinity", ["weights", "gradients"])
def test_a_run_stopped_in_any_phase_goes_on_as_if_it_had_not_been(digits, tmp_path, at, affinity):
    config = replace(
        SPECTRAL,
        epochs=6,
        layers=("fc1", "fc2"),
        chained=True,
        recluster_every=2,
        ramp_epochs=2,
        l1_weight=1e-5,
        affinity=affinity,
    )

    def stop(epoch, step, steps):
        if (epoch, step) == at:
            raise StoppedError

    with pytest.raises(StoppedError):
        trained(digits, config, out=tmp_path, on_step=stop)
    same(trained(digits, config, out=tmp_path, resume=True), trained(digits, config))


def test_partitions_are_in_the_checkpoint(digits, tmp_path):
    run = trained(digits, SPECTRAL, out=tmp_path)
    rows, cols, count = read_checkpoint(tmp_path / CHECKPOINT)["partitions"]["fc2"]
    assert Partition(rows, cols, count) == run.partitions["fc2"]


def test_a_checkpoint_of_other_phases_is_refused(digits, tmp_path):
    trained(digits, SPECTRAL, out=tmp_path)
    with pytest.raises(TrainingError, match="warmup_epochs 2, not 1"):
        trained(digits, replace(SPECTRAL, warmup_epochs=1), out=tmp_path, resume=True)
    with pytest.raises(TrainingError, match="clusters_from 'spectral', not 'blocks'"):
        trained(digits, replace(SPECTRAL, clusters_from="blocks"), out=tmp_path, resume=True)


def test_a_checkpoint_from_before_there_were_phases_resumes(digits, tmp_path):
    config = TrainConfig(epochs=1, threads=1)
    trained(digits, config, out=tmp_path)
    state = read_checkpoint(tmp_path / CHECKPOINT)
    later = ("warmup_epochs", "affinity", "chained", "recluster_every", "ramp_epochs", "l1_weight")
    for name in later:
        del state["identity"]["config"][name]
    del state["partitions"], state["clustered"]
    torch.save(state, tmp_path / CHECKPOINT)
    for path in tmp_path.glob("manifest-*"):
        path.unlink()
    same(
        trained(digits, replace(config, epochs=2), out=tmp_path, resume=True),
        trained(digits, replace(config, epochs=2)),
    )


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"warmup_epochs": 4}, r"warmup_epochs must be below epochs \(4\), got 4"),
        ({"warmup_epochs": 0}, "warmup_epochs must be at least 1 for spectral clusters"),
        ({"warmup_epochs": -1}, "warmup_epochs must be an integer of at least 0, got -1"),
        ({"clusters_from": "weights"}, "clusters_from must be one of"),
        ({"affinity": "abs"}, "affinity must be one of"),
        ({"chained": 1}, "chained must be True or False, got 1"),
        ({"recluster_every": 0}, "recluster_every must be"),
        ({"ramp_epochs": 0.5}, "ramp_epochs must be"),
        ({"l1_weight": -1.0}, "l1_weight must be"),
        ({"clusters_from": "blocks", "affinity": "gradients"}, "affinity must be 'weights' unless"),
        ({"clusters_from": "blocks", "chained": True}, "chained must be False unless"),
        ({"clusters_from": "blocks", "recluster_every": 1}, "recluster_every must be None unless"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_named(settings, match):
    with pytest.raises(ValueError, match=match):
        replace(SPECTRAL, **settings)


def test_partitions_belong_to_clusters_from_a_file(digits):
    partitions = {"fc2": Partition.blocks((64, 64), 4)}
    with pytest.raises(ValueError, match="partitions must be None, as clusters_from is 'spectral'"):
        trained(digits, SPECTRAL, partitions=partitions)
    with pytest.raises(ValueError, match="partitions must be given, as clusters_from is 'file'"):
        trained(digits, TrainConfig(clusters_from="file"))
    assert trained(digits, TrainConfig(epochs=1), partitions=partitions).config.clusters_from == "file"


def test_too_many_spectral_clusters_are_refused_before_the_warm_up(digits):
    with pytest.raises(ValueError, match="num_clusters"):
        trained(digits, replace(SPECTRAL, layers=("fc3",), num_clusters=11))
