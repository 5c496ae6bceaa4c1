"""Importance and coherence of clusters: planted models, plain loops, and statistics by other means."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from planted_units import ABLATIONS, additive, deep, inside, plain_loop
from scipy.stats import combine_pvalues
from torch import nn

from modfast import accuracy, class_log_likelihood, cluster_lesions, read_network
from modfast.circuits.units.clusters import Clusters
from modfast.circuits.units.evaluation import Evaluation


@cache
def serving():
    """Twelve neurons: four for each of two classes, and four that do nothing.

    An example of class c switches on the four neurons of c, whose sum is above the other logit.
    """
    first, second = nn.Linear(2, 12, bias=False), nn.Linear(12, 2)
    with torch.no_grad():
        first.weight.zero_()
        second.weight.zero_()
        for each in range(2):
            first.weight[4 * each : 4 * each + 4, each] = 1
            second.weight[each, 4 * each : 4 * each + 4] = 1
        first.weight[8:] = 1
        # Class 0 answers wrongly without all four neurons, class 1 without any.
        second.bias.copy_(torch.tensor([0.0, 0.5]))
    model = nn.Sequential(first, nn.ReLU(), second)
    inputs, targets = torch.eye(2).repeat(3, 1), torch.arange(2).repeat(3)
    network = read_network(model, inputs)
    return model.train(), network, (inputs, targets)


def shown(output, batch):
    """How far the logit of the right class is above the other one."""
    targets = batch[1][:, None]
    return (output.gather(1, targets) - output.gather(1, 1 - targets))[:, 0]


def hidden(network, labels):
    given = torch.full((network.num_units,), -1)
    given[network.spaces["0"]] = torch.tensor(labels)
    return given


class TestPlanted:
    def test_by_hand(self):
        model, network, batch = serving()
        # Cluster 0 serves class 0 alone, cluster 1 half of each, cluster 2 nothing.
        labels = hidden(network, [0, 0, 1, 1, 1, 1, -1, -1, 2, 2, 2, 2])
        found = cluster_lesions(model, batch, shown, network, labels, n_random=99)
        assert found.class_drops.tolist() == [[2, 0], [2, 2], [0, 0]]
        assert found.importance.tolist() == [1, 2, 0]
        assert found.coherence.nan_to_num(-1).tolist() == [2, 0, -1]
        assert found.metric_before == (3.5 + 4.5) / 2
        assert found.sizes.tolist() == [2, 4, 4]
        assert found.clusters.tolist() == [0, 1, 2]
        assert found.spaces == ("0", "0", "0")
        assert found.classes.tolist() == [0, 1]
        # Of ten neurons in clusters six do something, one for the mean over classes of one half each.
        assert float(found.random_importance[:, 1].mean()) == pytest.approx(4 * 0.6 / 2, abs=0.15)
        assert found.importance_p[2] == 1
        assert found.coherence_p[2].isnan()
        # Some random pairs are of neurons that do nothing: their coherence is unknown, and they do not count.
        known = ~found.random_coherence[:, 0].isnan()
        assert 50 < known.sum() < 99
        as_coherent = int((found.random_coherence[known, 0] >= 2).sum())
        assert float(found.coherence_p[0]) == (1 + as_coherent) / (1 + int(known.sum()))
        assert found.coherence_p[1] == 1
        assert found.coherence_effect[1] == 0
        assert found.importance_effect[2] == 0

    def test_accuracy(self):
        model, network, batch = serving()
        found = cluster_lesions(
            model, batch, accuracy, network, hidden(network, [0] * 4 + [1] * 4 + [2] * 4), n_random=20
        )
        assert found.metric_before == 1
        assert found.class_drops.tolist() == [[1, 0], [0, 0], [0, 0]]
        # Only all four neurons of the first class together matter, so that random clusters hardly ever do.
        assert found.importance_p[0] < 0.15
        assert found.importance_p[1:].tolist() == [1, 1]

    def test_a_cluster_that_does_nothing_is_not_more_important_than_others_that_do_nothing(self):
        model, network, batch = serving()
        labels = hidden(network, [-1] * 8 + [0, 0, 1, 1])
        found = cluster_lesions(model, batch, accuracy, network, labels, n_random=9)
        assert found.importance_p.tolist() == [1, 1]
        assert found.importance_effect.isnan().all()
        assert found.importance_combined_p > 0.9

    def test_one_cluster_is_as_random_ones(self):
        model, network, batch = serving()
        found = cluster_lesions(model, batch, shown, network, hidden(network, [0] * 4 + [-1] * 8), n_random=4)
        assert found.importance_p.tolist() == found.coherence_p.tolist() == [1]
        assert found.importance_effect.tolist() == found.coherence_effect.tolist() == [1]
        assert found.tested.tolist() == [False]
        assert math.isnan(found.importance_combined_p)
        assert math.isnan(found.coherence_combined_p)

    def test_clusters_without_units_are_left_out(self):
        model, network, batch = serving()
        for by_space in (True, False):
            found = cluster_lesions(
                model, batch, shown, network, hidden(network, [0] * 6 + [3] * 6), by_space=by_space
            )
            assert found.clusters.tolist() == [0, 3]

    def test_small_and_nearly_whole_parts_are_not_tested(self):
        model, network, batch = serving()
        found = cluster_lesions(model, batch, shown, network, hidden(network, [0] + [1] * 11), n_random=2)
        assert found.sizes.tolist() == [1, 11]
        assert found.tested.tolist() == [False, True]

    def test_one_class_has_no_coherence(self):
        model, network, batch = serving()
        labels = hidden(network, [0] * 6 + [1] * 6)
        found = cluster_lesions(model, batch, shown, network, labels, classes=[7] * 6, n_random=3)
        assert found.classes.tolist() == [7]
        assert found.coherence.isnan().all()
        assert found.coherence_effect.isnan().all()
        assert math.isnan(found.coherence_combined_p)
        assert found.importance.tolist() == [3, 1]

    def test_changes_that_cancel_out(self):
        # A cluster that helps one class as much as it harms another has no importance and infinite coherence.
        model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
        with torch.no_grad():
            model[0].weight.fill_(1)
            model[1].weight.fill_(1)
        network = read_network(model, torch.zeros(1, 1))
        found = cluster_lesions(
            model, torch.tensor([[1.0], [-1.0]]), lambda output, batch: output[:, 0], network, 2,
            classes=[0, 1], n_random=3,
        )  # fmt: skip
        assert found.importance.tolist() == [0, 0]
        assert found.coherence.tolist() == [math.inf] * 2
        assert found.coherence_p.tolist() == [1, 1]

    def test_a_harmful_part_has_no_effect_and_none_is_due_to_harmful_random_ones(self):
        model, network, space = additive([3.0, 3.0, -1.0, -1.0])
        labels = torch.full((network.num_units,), -1)
        labels[space] = torch.tensor([0, 0, 1, 1])
        for sign in (1, -1):
            found = cluster_lesions(
                model, torch.rand(2, 1), lambda output, batch, sign=sign: sign * output[:, 0], network,
                labels, classes=[0, 0],
            )  # fmt: skip
            assert found.importance.tolist() == [6 * sign, -2 * sign]
            chance = found.random_importance.mean(0)
            if sign == 1:
                assert found.importance_effect[0] == pytest.approx(12 / (6 + float(chance[0])))
                assert found.importance_effect[1] == 0
            else:
                assert bool((chance < 0).all())
                assert found.importance_effect[0].isnan()
                assert found.importance_effect[1] == 2


class TestPlainLoops:
    @pytest.mark.parametrize(("ablation", "reference"), ABLATIONS)
    @pytest.mark.parametrize("by_space", [True, False])
    def test_drops(self, ablation, reference, by_space):
        model, network, batches = deep()
        labels = torch.arange(network.num_units) % 2
        found = cluster_lesions(
            model, batches, class_log_likelihood, network, labels,
            by_space=by_space, ablation=ablation, reference=reference, n_random=2, seed=4,
        )  # fmt: skip
        generator = np.random.default_rng(4)
        clusters = Clusters(Evaluation(model, batches, accuracy, network), labels)
        classes = torch.cat([targets for _, targets in batches])
        spaces = ["conv", "fc1"] if by_space else [None]
        assert list(zip(found.clusters.tolist(), found.spaces, strict=True)) == [
            (cluster, space) for cluster in range(2) for space in spaces
        ]

        def means(units):
            values = plain_loop(model, network, batches, class_log_likelihood, units, ablation, reference)
            return torch.stack([values[classes == each].mean() for each in range(3)])

        before = means(torch.zeros_like(labels).bool())
        sets = [clusters.labels, clusters.shuffled(generator), clusters.shuffled(generator)]
        for of_units, drops in zip(sets, [found.class_drops, *found.random_class_drops], strict=True):
            for row, (cluster, space) in enumerate(zip(found.clusters.tolist(), found.spaces, strict=True)):
                units = inside(network) & (of_units == cluster)
                if space is not None:
                    only = torch.zeros_like(units)
                    only[network.spaces[space]] = True
                    units &= only
                torch.testing.assert_close(drops[row], before - means(units), rtol=1e-5, atol=1e-6)
        assert bool((found.class_drops != 0).any())

    def test_statistics_as_the_source_defines_them(self):
        model, network, batches = deep()
        labels = torch.arange(network.num_units) % 3
        found = cluster_lesions(model, batches, class_log_likelihood, network, labels, n_random=19)
        own, others = found.class_drops.numpy(), found.random_class_drops.numpy()
        for part in range(len(own)):
            drop, random_drops = own[part].mean(), others[:, part].mean(1)
            p_value = (1 + sum(each >= drop for each in random_drops)) / 20
            assert float(found.importance_p[part]) == pytest.approx(p_value)
            chance = random_drops.mean()
            if drop > 0 and chance > 0:
                assert float(found.importance_effect[part]) == pytest.approx(2 * drop / (drop + chance))
            normalised, random_normalised = own[part] / drop, others[:, part] / random_drops[:, None]
            spread, random_spread = np.ptp(normalised), np.ptp(random_normalised, axis=1)
            assert float(found.coherence[part]) == pytest.approx(spread)
            p_value = (1 + sum(each >= spread * (1 - 1e-12) for each in random_spread)) / 20
            assert float(found.coherence_p[part]) == pytest.approx(p_value)
            assert float(found.coherence_effect[part]) == pytest.approx(
                2 * spread / (spread + random_spread.mean())
            )
        tested = found.tested.numpy()
        assert 1 < tested.sum() <= len(tested)
        for combined, p_values in (
            (found.importance_combined_p, found.importance_p),
            (found.coherence_combined_p, found.coherence_p),
        ):
            expected = combine_pvalues(p_values.numpy()[tested] - 1 / 40, method="fisher").pvalue
            assert combined == pytest.approx(expected, rel=1e-9)


class TestRounding:
    """Six neurons that all do the same to each of three classes, but for the last bits."""

    nearly_one = 1 + torch.arange(6, dtype=torch.float64) * 1e-15

    def found(self, change):
        first, second = nn.Linear(3, 6, bias=False).double(), nn.Linear(6, 3, bias=False).double()
        with torch.no_grad():
            first.weight.fill_(1.0)
            second.weight.copy_(change)
        model = nn.Sequential(first, nn.ReLU(), second)
        inputs = torch.eye(3, dtype=torch.float64).repeat(4, 1)
        targets = torch.tensor([0, 1, 2] * 4)
        network = read_network(model, inputs)

        def logit(output, batch):
            return output.gather(1, batch[1][:, None])[:, 0]

        labels = hidden(network, [0, 0, 1, 1, 2, 2])
        return cluster_lesions(model, (inputs, targets), logit, network, labels, n_random=19)

    def test_values_that_differ_by_rounding_are_equal(self):
        found = self.found((0.1 * self.nearly_one).expand(3, 6))
        assert found.random_importance.unique().numel() > 1
        assert found.importance_p.tolist() == [1, 1, 1]

    def test_what_changes_by_rounding_does_not_change(self):
        noise = torch.tensor([[1.0, -1, 2, 0, 1, 3], [2, 1, -1, 1, 0, 1], [0, 1, 1, 1, 1, -2]])
        found = self.found(1e-15 * noise.double())
        assert found.class_drops.count_nonzero() == 0
        assert found.coherence.isnan().all()
        assert found.importance_p.tolist() == [1, 1, 1]

    def test_falls_that_cancel_out_but_for_rounding(self):
        column = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64)
        assert float(column.sum()) != 0
        found = self.found(column[:, None].expand(3, 6))
        assert found.coherence.isinf().all()
        assert found.coherence_p.tolist() == [1, 1, 1]
        assert found.importance_effect.isnan().all()

    def test_coherence_that_differs_by_rounding_is_equal(self):
        column = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
        found = self.found(column[:, None] * self.nearly_one)
        assert found.random_coherence.unique().numel() > 1
        assert found.coherence_p.tolist() == [1, 1, 1]


def test_seeds_passes_progress_and_repr():
    model, network, batch = serving()
    labels = hidden(network, [0, 1, 2] * 4)
    calls = []
    first, again, other = (
        cluster_lesions(
            model, batch, shown, network, labels,
            n_random=4, seed=seed, progress=lambda *call: calls.append(call),
        )
        for seed in (1, 1, 2)
    )  # fmt: skip
    assert torch.equal(first.random_class_drops, again.random_class_drops)
    assert not torch.equal(first.random_class_drops, other.random_class_drops)
    assert first.num_passes == 1 + 3 * 5
    assert first.num_examples == 6
    assert calls[0] == (1, 16)
    assert calls[len(calls) // 3 - 1] == (16, 16)
    assert calls[: len(calls) // 3] == sorted(set(calls))
    assert repr(first).startswith("ClusterLesions(3 parts, 3 tested, 2 classes, zero ablation)\n")
    assert len(repr(first).splitlines()) == 3


def test_classes_that_are_given_or_those_of_the_batches():
    model, network, (inputs, targets) = serving()
    labels = hidden(network, [0] * 6 + [1] * 6)

    def from_inputs(output, batch):
        return shown(output, (None, targets))

    with pytest.raises(ValueError, match=r"classes must be given, or batches have targets.* got NoneType"):
        cluster_lesions(model, inputs, from_inputs, network, labels)
    given = cluster_lesions(model, inputs, from_inputs, network, labels, classes=targets)
    found = cluster_lesions(model, (inputs, targets), shown, network, labels)
    assert torch.equal(given.random_class_drops, found.random_class_drops)
    with pytest.raises(ValueError, match="classes must be 6, one for each example, got 2"):
        cluster_lesions(model, inputs, from_inputs, network, labels, classes=[0, 1])
    with pytest.raises(ValueError, match="classes must be 1-D integers"):
        cluster_lesions(model, inputs, from_inputs, network, labels, classes=[0.5] * 6)
    with pytest.raises(ValueError, match=r"classes must lie below 2\*\*63, got 18446744073709551615"):
        cluster_lesions(
            model, inputs, from_inputs, network, labels, classes=np.full(6, 2**64 - 1, dtype=np.uint64)
        )
    with pytest.raises(ValueError, match="batches: targets must be 1-D integers"):
        cluster_lesions(model, (inputs, targets.double()), lambda *_: torch.ones(6), network, labels)
    with pytest.raises(ValueError, match=r"classes must be given, .* got shape \(6, 1\)"):
        cluster_lesions(model, (inputs, targets[:, None]), lambda *_: torch.ones(6), network, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_random": 0}, "n_random must be a positive integer, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"by_space": 1}, "by_space must be True or False, got 1"),
        ({"spaces": "x"}, "spaces"),
        ({"ablation": "x"}, "ablation must be one of"),
        ({"labels": [-1] * 16}, "labels must put at least one of the 12 units"),
        ({"labels": [0]}, "labels must be 16, one for each unit"),
        ({"metric": lambda output, batch: output.mean()}, "metric must return one number per example"),
    ],
)
def test_bad_arguments(options, message):
    model, network, batch = serving()
    options = {"labels": 2, "metric": accuracy} | options
    with pytest.raises(ValueError, match=message):
        cluster_lesions(model, batch, network=network, **options)
