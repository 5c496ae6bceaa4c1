"""What is measured of networks for modular addition: families of neurons, and what clusters know of them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.addition import ablated
from benchmarks.addition import measure as measuring
from benchmarks.addition.arms import ARMS, CLUSTERS, SEEDS, blocks
from benchmarks.addition.waves import Waves, families, information, logit_power, own_and_other_falls
from modfast.tasks import modular_addition, training


def tiny(name, **sizes):
    arm = ARMS[name]
    kind = replace(arm.kind, p=7, steps=30, sizes={**arm.kind.sizes, "hidden": 12, **sizes})
    return replace(arm, kind=kind, settings={"evaluate_every": 15})


def waves_of(frequency, live=None, key=(0, 1)):
    frequency = torch.tensor(frequency)
    number = 5
    is_key = torch.zeros(number, dtype=torch.bool)
    is_key[list(key)] = True
    shares = torch.nn.functional.one_hot(frequency, number).double()
    live = torch.ones(len(frequency), dtype=torch.bool) if live is None else torch.tensor(live)
    return Waves(shares, frequency, live, torch.eye(len(frequency)), is_key.double(), is_key)


def test_information_is_that_of_the_definition():
    one, other = np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])
    assert information(one, other) == pytest.approx(1.0)
    assert information(one, np.array([0, 1, 0, 1])) == pytest.approx(0.0)
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, 3, 50), generator.integers(0, 4, 50)
    expected = 0.0
    for a in range(3):
        for b in range(4):
            both = ((one == a) & (other == b)).mean()
            if both:
                expected += both * math.log2(both / ((one == a).mean() * (other == b).mean()))
    assert information(one, other) == pytest.approx(expected)


def test_clusters_that_are_families_and_clusters_that_are_not():
    waves = waves_of([0] * 8 + [1] * 8)
    whole = families(waves, torch.tensor([0] * 8 + [1] * 8), 2, 0)
    assert whole["information"] == whole["most"] == pytest.approx(1.0)
    assert whole["information"] > whole["permuted_high"]
    assert (whole["spread"], whole["mixed"]) == pytest.approx((1.0, 1.0))
    across = families(waves, torch.tensor([0, 1] * 8), 2, 0)
    assert across["information"] == pytest.approx(0.0)
    assert (across["spread"], across["mixed"]) == pytest.approx((2.0, 2.0))
    assert across["permuted_low"] <= across["permuted"] <= across["permuted_high"]
    assert whole["permuted"] == pytest.approx(across["permuted"], abs=0.02)
    assert 1.5 < whole["permuted_spread"] < 2.0


def test_dead_neurons_and_those_in_no_cluster_do_not_count():
    waves = waves_of([0, 0, 1, 1, 0, 1], [True] * 4 + [False, True])
    found = families(waves, torch.tensor([0, 0, 1, 1, 1, -1]), 2, 0)
    assert found["information"] == pytest.approx(1.0)


def test_own_frequencies_are_those_of_the_cluster_s_live_neurons():
    waves = waves_of([0, 0, 1, 1])
    falls = torch.tensor([[0.9, 0.1, 0.0, 0.0, 0.0], [0.2, 0.6, 0.0, 0.0, 0.0]])
    own, other = own_and_other_falls(waves, torch.tensor([0, 0, 1, 1]), falls)
    assert (own, other) == pytest.approx((0.75, 0.15))
    # Half of cluster 0 is of each frequency.
    own, other = own_and_other_falls(waves, torch.tensor([0, 1, 0, 1]), falls)
    assert own == pytest.approx(other)
    assert own_and_other_falls(waves_of([0, 0, 1, 1], key=(0,)), torch.tensor([0, 0, 1, 1]), falls) is None
    assert own_and_other_falls(waves, torch.full((4,), -1), falls) is None


def test_the_power_of_a_frequency_is_its_variance():
    angle = torch.arange(7, dtype=torch.float64) * 2 * math.pi / 7
    sums = angle[:, None, None] + angle[:, None] - angle
    power = logit_power(3 * torch.cos(2 * sums) + torch.cos(3 * sums) + 5)
    torch.testing.assert_close(power, torch.tensor([0.0, 4.5, 0.5], dtype=torch.float64))


def test_blocks_of_numbers_are_the_same_for_inputs_and_answers():
    arm = tiny("mlp-both-1")
    _, _, network = measuring.make(arm, 0)
    labels = blocks(network, arm.kind)
    numbers = labels[network.spaces[".input"]]
    assert torch.equal(numbers[:7], numbers[7:])
    assert torch.equal(numbers[:7], labels[network.spaces["fc2"]])
    assert sorted(numbers.unique().tolist()) == list(range(CLUSTERS))


@pytest.mark.parametrize("name", ["transformer-inside", "mlp-both-1"])
def test_a_network_is_measured(name, tmp_path, monkeypatch):
    arm = tiny(name, **({"width": 16} if name.startswith("transformer") else {}))
    monkeypatch.setattr(ablated, "ALLOWED", 10.0)
    weights = tmp_path / "some" / "0.pt"
    record = measuring.measure(arm, SEEDS[0], weights)
    json.dumps(record, allow_nan=False)
    assert record["history"]["step"] == [15, 30]
    assert record["measures"]["test_accuracy"] == record["history"]["test_accuracy"][-1]
    assert set(record["clusterability"]) == set(arm.kind.inside)
    assert len(record["shares"]) == len(record["neurons"]["live"]) == 12
    found = record["clusterings"]["blocks"]
    assert sum(found["sizes"]) == 12
    assert len(found["only"]) == len(found["without"]) == CLUSTERS
    circuit = record["circuit"]
    assert circuit["loss_before"] < 10
    assert circuit["loss_after"] <= 10 + 1e-5
    assert 0 <= circuit["size"] <= circuit["random"] <= 1
    # A trained network is measured again without being trained again. It has more loss than is allowed now.
    assert [path.name for path in weights.parent.iterdir()] == ["0.pt"]
    monkeypatch.setattr(ablated, "ALLOWED", 1e-9)
    again = measuring.measure(arm, SEEDS[0], weights)
    assert again.pop("seconds")["training"] == record.pop("seconds")["training"]
    assert again == record | {"circuit": {}}
    other = replace(arm, weight=0.5)
    with pytest.raises(ValueError, match=r"0\.pt was trained by .*: remove it"):
        measuring.measure(other, SEEDS[0], weights)


def test_arms_of_a_seed_start_from_the_same_weights_and_pairs():
    plain, modular = tiny("mlp-plain"), tiny("mlp-both-1")
    (one, first, _), (other, second, _) = (measuring.make(arm, 3) for arm in (plain, modular))
    assert torch.equal(one.is_train, other.is_train)
    assert torch.equal(first.fc1.weight, second.fc1.weight)
    another, third, _ = measuring.make(plain, 4)
    assert not torch.equal(one.is_train, another.is_train)
    assert not torch.equal(first.fc1.weight, third.fc1.weight)


def test_the_loss_is_on_the_layers_of_the_arm():
    arm = replace(tiny("mlp-both-1"), layers=("fc2",), weight=50.0)
    task, model, network = measuring.make(arm, 0)
    history, _ = measuring.train(arm, 0, task, model, network)
    inside = modular_addition(7, arm.kind.train_share, 0)
    assert task.fingerprint == inside.fingerprint
    partition = network.partitions(blocks(network, arm.kind), layers=["fc2"])["fc2"]
    squares = model.fc2.weight.detach().square()
    assert history[-1]["enmeshment"] == pytest.approx(
        1 - float(squares[partition.mask()].sum() / squares.sum()), abs=1e-5
    )


def test_a_run_that_is_stopped_goes_on(tmp_path, monkeypatch):
    arm, weights = tiny("mlp-both-1"), tmp_path / "0.pt"
    whole = measuring.measure(arm, 1)
    monkeypatch.setattr(training, "_SECONDS_BETWEEN", -1.0)
    save = training.write_state

    def stop(path, state):
        save(path, state)
        if state["step"] == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_state", stop)
    with pytest.raises(KeyboardInterrupt):
        measuring.measure(arm, 1, weights)
    record = measuring.measure(arm, 1, weights)
    assert record.pop("seconds").keys() == whole.pop("seconds").keys()
    assert record == whole
