"""Clusters of units on and off, and what answers depend on: planted models and plain loops."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from planted_units import ABLATIONS, additive, deep, inside, plain_loop
from torch import nn

from modfast import accuracy, class_log_likelihood, cluster_ablation, cluster_dependence, read_network
from modfast.circuits.units.clusters import Clusters
from modfast.circuits.units.evaluation import Evaluation

EFFECTS = [1.0, 4.0, -2.0, 3.0, 10.0]


def output_of(output, batch):
    return output[:, 0]


def labelled(network, space, labels, others=-1):
    given = torch.full((network.num_units,), others)
    given[space] = torch.tensor(labels)
    return given


class TestAblation:
    @pytest.mark.parametrize(
        ("labels", "mode", "expected"),
        [
            ([0, 0, 1, 1, -1], "without", [11, 15]),
            ([0, 0, 1, 1, -1], "only", [5, 1]),
            ([0, 0, 1, 1, 1], "only", [5, 11]),
            ([0, 0, 2, 2, 2], "without", [11, 16, 5]),  # without an empty cluster nothing is missing
            ([0, 0, 2, 2, 2], "only", [5, 0, 11]),  # and with an empty one only, all is
            ([0, 0, 0, 0, 0], "without", [0]),
            ([0, 0, 0, 0, 0], "only", [16]),
        ],
    )
    def test_by_hand(self, labels, mode, expected):
        model, network, space = additive(EFFECTS)
        for others in (-1, 0):  # labels of what is not ablated do not matter
            given = labelled(network, space, labels, others)
            found = cluster_ablation(model, torch.rand(3, 1), output_of, network, given, mode)
            assert found.tolist() == expected
            assert found.dtype == torch.float64

    def test_a_number_of_clusters_means_blocks(self):
        model, network, _ = additive(EFFECTS)
        found = cluster_ablation(model, torch.rand(3, 1), output_of, network, 2)
        assert found.tolist() == [16 - (1 + 4 - 2), 16 - (3 + 10)]

    @pytest.mark.parametrize(("ablation", "reference"), ABLATIONS)
    @pytest.mark.parametrize("mode", ["without", "only"])
    def test_plain_loops(self, ablation, reference, mode):
        model, network, batches = deep()
        labels = torch.arange(network.num_units) % 3
        found = cluster_ablation(
            model,
            batches,
            class_log_likelihood,
            network,
            labels,
            mode,
            ablation=ablation,
            reference=reference,
        )
        for cluster in range(3):
            units = inside(network) & ((labels == cluster) == (mode == "without"))
            expected = plain_loop(model, network, batches, class_log_likelihood, units, ablation, reference)
            assert float(found[cluster]) == pytest.approx(float(expected.mean()), rel=1e-6)
        assert len(set(found.tolist())) == 3

    def test_spaces(self):
        model, network, batches = deep()
        found = cluster_ablation(model, batches, class_log_likelihood, network, 1, spaces=["fc1"])
        units = torch.zeros(network.num_units, dtype=torch.bool)
        units[network.spaces["fc1"]] = True
        expected = plain_loop(model, network, batches, class_log_likelihood, units)
        assert float(found[0]) == pytest.approx(float(expected.mean()), rel=1e-6)

    def test_progress(self):
        model, network, space = additive(EFFECTS)
        calls = []
        labels = labelled(network, space, [0, 1, 1, 2, 2])
        cluster_ablation(
            model, torch.rand(3, 1), output_of, network, labels, progress=lambda *call: calls.append(call)
        )
        assert calls == [(1, 3), (2, 3), (3, 3)]


def test_random_clusters_have_the_same_sizes_in_each_space():
    model, network, batches = deep()
    task = Evaluation(model, batches, accuracy, network)
    labels = torch.arange(network.num_units) % 4 - 1  # -1 is a unit in no cluster
    clusters = Clusters(task, labels)
    generator = np.random.default_rng(0)
    drawn = [clusters.shuffled(generator) for _ in range(200)]
    for each in drawn:
        assert torch.equal(each == -1, clusters.labels == -1)
        for space in network.spaces.values():
            assert torch.equal(each[space].sort().values, clusters.labels[space].sort().values)
    assert torch.equal(clusters.labels == -1, (labels == -1) | ~inside(network))
    # Each of the six neurons is as often in a cluster as it has members among those in clusters.
    space = network.spaces["fc1"]
    members = (labels[space] >= 0).nonzero().flatten() + space.start
    of_first = torch.stack([each[members] == labels[members][0] for each in drawn]).double().mean(0)
    share = float((labels[members] == labels[members][0]).double().mean())
    assert bool(((of_first - share).abs() < 4 * math.sqrt(share * (1 - share) / 200)).all())


# --- dependence

NEEDS = [(), (0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)]


@cache
def needing():
    """Two neurons for each of four clusters; the example of each kind needs all neurons of some clusters.

    The answer is 1 if all that the example switches on adds up to 1, and 0 for the kind that needs none.
    """
    first, second = nn.Linear(len(NEEDS), 8, bias=False), nn.Linear(8, 2)
    with torch.no_grad():
        first.weight.zero_()
        for kind, clusters in enumerate(NEEDS):
            for cluster in clusters:
                first.weight[2 * cluster : 2 * cluster + 2, kind] = 1 / (2 * len(clusters))
        second.weight.copy_(torch.tensor([[0.0] * 8, [1.0] * 8]))
        second.bias.copy_(torch.tensor([0.95, 0.0]))
    model = nn.Sequential(first, nn.ReLU(), second)
    network = read_network(model, torch.zeros(1, len(NEEDS)))
    kinds = torch.tensor([0, 1, 1, 2, 3, 4, 4, 4])
    targets = torch.tensor([0, 1, 0, 1, 1, 1, 1, 1])  # the third is wrong
    return model.train(), network, (torch.eye(len(NEEDS))[kinds], targets)


class TestDependence:
    def test_by_hand(self):
        model, network, batch = needing()
        found = cluster_dependence(model, batch, accuracy, network, 4)
        assert found.right.tolist() == [True, True, False, True, True, True, True, True]
        assert found.counts.tolist() == [0, 1, 2, 3, 4, 4, 4]
        assert found.needed[3].tolist() == [True, True, True, False]
        assert found.shares.tolist() == [1 / 7, 1 / 7, 1 / 7, 1 / 7, 3 / 7]
        assert found.mean == pytest.approx(18 / 7)

    def test_random_clusters_by_hand(self):
        model, network, (inputs, targets) = needing()
        found = cluster_dependence(
            model, (inputs[1:2], targets[1:2]), accuracy, network, 4, n_random=400, seed=3
        )
        assert found.shares.tolist() == [0, 1, 0, 0, 0]
        assert found.random_shares.shape == (400, 5)
        # Its two neurons are in one cluster in one of seven cases, and in two clusters else.
        mean = found.random_mean_shares.tolist()
        assert mean[0] == mean[3] == mean[4] == 0
        assert mean[1] == pytest.approx(1 / 7, abs=4 * math.sqrt(6) / 7 / 20)
        assert found.random_mean == pytest.approx(2 - mean[1])
        assert found.random_interval.tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0]]

    def test_slices_that_lie_inside_a_cluster(self):
        # As with the published borders: an answer that needs one cluster seems to need several.
        model, network, batch = needing()
        slices = labelled(network, network.spaces["0"], [0, 1, -1, -1, -1, -1, -1, -1])
        assert cluster_dependence(model, batch, accuracy, network, slices).counts[1] == 2
        assert cluster_dependence(model, batch, accuracy, network, 4).counts[1] == 1

    def test_plain_loops(self):
        model, network, batches = deep()
        labels = torch.arange(network.num_units) % 3
        for ablation, reference in ABLATIONS:
            found = cluster_dependence(
                model, batches, accuracy, network, labels,
                ablation=ablation, reference=reference, n_random=1, seed=7,
            )  # fmt: skip
            right = plain_loop(model, network, batches, accuracy, torch.zeros_like(labels).bool()) == 1
            assert torch.equal(found.right, right)
            clusters = Clusters(Evaluation(model, batches, accuracy, network), labels)
            for of_units, shares in (
                (labels, found.shares),
                (clusters.shuffled(np.random.default_rng(7)), found.random_shares[0]),
            ):
                counts = sum(
                    plain_loop(
                        model, network, batches, accuracy, inside(network) & (of_units == cluster), ablation,
                        reference,
                    )[right] == 0
                    for cluster in range(3)
                )  # fmt: skip
                expected = [int((counts == number).sum()) / len(counts) for number in range(4)]
                assert shares.tolist() == expected
            assert 0 < found.mean < 3

    def test_one_cluster_and_none_that_is_random(self):
        model, network, batch = needing()
        found = cluster_dependence(model, batch, accuracy, network, 1, n_random=0)
        assert found.counts.tolist() == [0] + [1] * 6
        assert found.random_shares.shape == (0, 2)
        assert math.isnan(found.random_mean)
        assert found.random_mean_shares.isnan().all()
        assert found.random_interval.isnan().all()
        assert len(repr(found).splitlines()) <= 10

    def test_one_cluster_is_as_random_ones(self):
        model, network, batch = needing()
        found = cluster_dependence(model, batch, accuracy, network, 1, n_random=3)
        assert torch.equal(found.random_shares, found.shares.expand(3, 2))

    def test_an_empty_cluster_is_not_needed(self):
        model, network, batch = needing()
        labels = labelled(network, network.spaces["0"], [0, 0, 2, 2, 2, 2, 2, 2])
        assert not cluster_dependence(model, batch, accuracy, network, labels).needed[:, 1].any()

    def test_seeds_passes_progress_and_repr(self):
        model, network, batch = needing()
        calls = []
        first, again, other = (
            cluster_dependence(
                model, batch, accuracy, network, 4,
                n_random=5, seed=seed, progress=lambda *call: calls.append(call),
            )
            for seed in (1, 1, 2)
        )  # fmt: skip
        assert torch.equal(first.random_shares, again.random_shares)
        assert not torch.equal(first.random_shares, other.random_shares)
        assert first.num_passes == 1 + 4 * 6
        assert calls[0] == (1, 25)
        assert calls[len(calls) // 3 - 1] == (25, 25)
        assert calls[: len(calls) // 3] == sorted(set(calls))
        assert repr(first).startswith("ClusterDependence(7 of 8 examples right, 4 clusters, zero ablation)")
        many = cluster_dependence(model, batch, accuracy, network, 8, n_random=1)
        assert len(repr(many).splitlines()) == 10
        alone = repr(cluster_dependence(model, batch, accuracy, network, 4, n_random=0))
        assert "random" not in alone
        assert "nan" not in alone

    def test_a_metric_that_cannot_run_on_many_ablations_at_once(self):
        def metric(output, batch):
            pairs = zip(output.argmax(1).tolist(), batch[1].tolist(), strict=True)
            return torch.tensor([float(found == right) for found, right in pairs])

        model, network, batch = needing()
        with pytest.warns(UserWarning, match="cannot run on many ablations at once"):
            found = cluster_dependence(model, batch, metric, network, 4, n_random=2)
        expected = cluster_dependence(model, batch, accuracy, network, 4, n_random=2)
        assert torch.equal(found.needed, expected.needed)
        assert torch.equal(found.random_shares, expected.random_shares)

    def test_a_metric_that_is_no_answer(self):
        model, network, batches = deep()
        with pytest.raises(ValueError, match="metric must be 1 for each right answer and 0 for each wrong"):
            cluster_dependence(model, batches, class_log_likelihood, network, 2)
        with pytest.raises(ValueError, match="metric must return one number per example"):
            cluster_dependence(model, batches, lambda *args: accuracy(*args).mean(), network, 2)

    def test_a_model_that_gets_nothing_right(self):
        model, network, (inputs, targets) = needing()
        with pytest.raises(ValueError, match="metric is 0 for all examples"):
            cluster_dependence(model, (inputs[2:3], targets[2:3]), accuracy, network, 2)


@pytest.mark.parametrize("function", [cluster_ablation, cluster_dependence])
@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        ([0, 1], {}, ValueError, "labels must be 14, one for each unit of the network, got 2"),
        ([-2] * 14, {}, ValueError, "labels must lie in .* got -2"),
        ([0.5] * 14, {}, ValueError, "labels must hold integers"),
        ([-1] * 14, {}, ValueError, "labels must put at least one of the 10 units that may be ablated"),
        (0, {}, ValueError, "labels must be a positive integer, got 0"),
        (15, {}, ValueError, "at most as many clusters as there are units, 14, got 15"),
        ([0] * 13 + [10**9], {}, ValueError, "at most as many clusters as there are units"),
        (True, {}, ValueError, "labels must be 1-D"),
        (torch.zeros(14, dtype=torch.int64, device="meta"), {}, ValueError, "labels must hold numbers"),
        (2, {"spaces": ["x"]}, ValueError, "spaces"),
        (2, {"ablation": "none"}, ValueError, "ablation must be one of"),
        (2, {"ablation": "mean"}, ValueError, "reference must be given"),
    ],
)
def test_bad_arguments(function, labels, options, error, message):
    model, network, batches = deep()
    assert network.num_units == 14
    with pytest.raises(error, match=message):
        function(model, batches, accuracy, network, labels, **options)


def test_bad_modes_and_seeds():
    model, network, batches = deep()
    with pytest.raises(ValueError, match=r"mode must be one of \('without', 'only'\), got 'off'"):
        cluster_ablation(model, batches, accuracy, network, 2, "off")
    with pytest.raises(ValueError, match="n_random must be an integer of at least 0, got -1"):
        cluster_dependence(model, batches, accuracy, network, 2, n_random=-1)
    with pytest.raises(ValueError, match="seed must be an integer of at least 0, got -1"):
        cluster_dependence(model, batches, accuracy, network, 2, seed=-1)
