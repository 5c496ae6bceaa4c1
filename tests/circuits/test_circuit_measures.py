"""Measures of circuits against values worked by hand and against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from circuit_helpers import circuit, kept
from sklearn.metrics import mutual_info_score

from modfast.circuits import circuit_overlap, cluster_information, cluster_shares, random_circuits
from modfast.circuits.kept_weights import KeptWeights
from modfast.partition import Partition

HALVES = Partition([0, 0, 1, 1], [0, 0, 1, 1], 2)


def some_circuits(n: int = 5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"fc1": (6, 9), "fc2": (4, 6)}
    return [
        circuit(
            label, **{name: torch.rand(shape, generator=generator) < 0.3 for name, shape in shapes.items()}
        )
        for label in range(n)
    ]


class TestOverlap:
    def test_by_hand(self) -> None:
        pair = [circuit(0, fc=kept("xxx. ....")), circuit(1, fc=kept(".xxx x..."))]
        assert circuit_overlap(pair)[0, 1] == 2 / 5

    def test_by_layer_and_over_all(self) -> None:
        pair = [
            circuit(0, fc1=kept("xx"), fc2=kept("x.")),
            circuit(1, fc1=kept("x."), fc2=kept(".x")),
        ]
        assert circuit_overlap(pair, "fc1")[0, 1] == 1 / 2
        assert circuit_overlap(pair, "fc2")[0, 1] == 0
        assert circuit_overlap(pair)[0, 1] == 1 / 4

    def test_agrees_with_sets(self) -> None:
        circuits = some_circuits()
        overlap = circuit_overlap(circuits)
        sets = [
            {(name, int(index)) for name, mask in each.masks.items() for index in mask.flatten().nonzero()}
            for each in circuits
        ]
        for i, one in enumerate(sets):
            for j, other in enumerate(sets):
                assert overlap[i, j] == len(one & other) / len(one | other)
        assert overlap.dtype == torch.float64

    def test_two_empty_circuits_have_none(self) -> None:
        overlap = circuit_overlap(
            [circuit(0, fc=kept("..")), circuit(1, fc=kept("..")), circuit(2, fc=kept("x."))]
        )
        assert overlap[:2, :2].isnan().all()
        assert overlap[2].tolist() == [0, 0, 1]

    def test_what_cannot_be_compared(self) -> None:
        with pytest.raises(ValueError, match="circuits must hold at least one circuit, got none"):
            circuit_overlap([])
        with pytest.raises(ValueError, match=r"the same layers: \[0\] has .*'a': \(1, 2\).*, \[1\] .*'b'"):
            circuit_overlap([circuit(0, a=kept("x.")), circuit(1, b=kept("x."))])
        with pytest.raises(ValueError, match=r"the same layers: .*\(1, 2\).*\(2, 1\)"):
            circuit_overlap([circuit(0, a=kept("x.")), circuit(1, a=kept("x ."))])
        with pytest.raises(ValueError, match=r"layer must be one of the circuits' \(a\), got 'fc9'"):
            circuit_overlap([circuit(0, a=kept("x."))], "fc9")


class TestShares:
    def test_by_hand(self) -> None:
        one = circuit(0, fc=kept("xx.. x... .... ...x"))
        crossing = circuit(1, fc=kept("..x. .... x... .x.."))
        shares = cluster_shares([one, crossing], {"fc": HALVES})
        assert shares["fc"].tolist() == [[0.75, 0.25], [0, 0]]

    def test_a_weight_in_no_cluster_is_outside(self) -> None:
        partition = Partition([0, -1], [0, -1], 1)
        assert cluster_shares([circuit(0, fc=kept("xx xx"))], {"fc": partition})["fc"].tolist() == [[0.25]]

    def test_a_kernel_shares_its_channels_clusters(self) -> None:
        mask = torch.zeros(2, 2, 3, dtype=torch.bool)
        mask[0, 0] = True
        mask[0, 1, :1] = True
        partition = Partition([0, 1], [0, 1], 2)
        assert cluster_shares([circuit(0, conv=mask)], {"conv": partition})["conv"].tolist() == [[0.75, 0]]

    def test_an_empty_circuit_has_none(self) -> None:
        shares = cluster_shares([circuit(0, fc=torch.zeros(4, 4, dtype=torch.bool))], {"fc": HALVES})
        assert shares["fc"].isnan().all()

    def test_bad_partitions(self) -> None:
        with pytest.raises(ValueError, match="partitions: 'fc9' is no layer of the circuits; they have: fc"):
            cluster_shares([circuit(0, fc=kept("x."))], {"fc9": HALVES})
        with pytest.raises(ValueError, match=r"'fc' has \(out, in\) \(1, 2\), its partition \(4, 4\)"):
            cluster_shares([circuit(0, fc=kept("x."))], {"fc": HALVES})


class TestInformation:
    def test_circuits_in_clusters_of_their_own(self) -> None:
        # The cluster tells which of two labels it is: one bit, however unequal the circuits are.
        pair = [circuit(0, fc=kept("xx.. xx.. .... ....")), circuit(1, fc=kept(".... .... ..x. ...."))]
        assert cluster_information(pair, {"fc": HALVES}) == 1

    def test_equal_shares_tell_nothing(self) -> None:
        pair = [circuit(0, fc=kept("xx.. .... ..xx ....")), circuit(1, fc=kept("x... .... .... ..x."))]
        assert cluster_information(pair, {"fc": HALVES}) == pytest.approx(0, abs=1e-15)

    def test_by_hand(self) -> None:
        # Half of the first circuit crosses. Joint: (1/4, 1/4) and (1/2, 0) of inside and crossing.
        pair = [circuit(0, fc=kept("x.x. .... .... ....")), circuit(1, fc=kept("xx.. .... .... ...."))]
        expected = 0.25 * math.log2(0.25 / (0.5 * 0.75)) + 0.25 * math.log2(0.25 / (0.5 * 0.25))
        expected += 0.5 * math.log2(0.5 / (0.5 * 0.75))
        assert cluster_information(pair, {"fc": HALVES}) == pytest.approx(expected, rel=1e-12)

    def test_agrees_with_scikit_learn_on_equal_sizes(self) -> None:
        # With as many weights in each circuit, each weight counts the same, as it does there.
        generator = torch.Generator().manual_seed(0)
        circuits, clusters, labels = [], [], []
        for label in range(4):
            mask = torch.zeros(16, dtype=torch.bool)
            mask[torch.randperm(16, generator=generator)[:5]] = True
            circuits.append(circuit(label, fc=mask.view(4, 4)))
            for row, col in mask.view(4, 4).nonzero().tolist():
                clusters.append(row // 2 if row // 2 == col // 2 else 2)
                labels.append(label)
        expected = mutual_info_score(clusters, labels) / math.log(2)
        assert cluster_information(circuits, {"fc": HALVES}) == pytest.approx(expected, rel=1e-12)

    def test_a_layer_by_itself_tells_nothing(self) -> None:
        # One circuit lies in the first layer and the other in the second, each spread over the clusters.
        empty = torch.zeros(4, 4, dtype=torch.bool)
        spread = kept("x... .... ..x. ....")
        pair = [circuit(0, fc1=spread, fc2=empty), circuit(1, fc1=empty, fc2=spread)]
        both = {"fc1": HALVES, "fc2": HALVES}
        assert cluster_information(pair, both) == 0
        assert math.isnan(cluster_information(pair, both, "fc1"))

    def test_over_all_layers_it_is_the_mean_of_equally_large_ones(self) -> None:
        first, second = kept("xx.. .... .... ...."), kept(".... .... ..xx ....")
        mixed = kept("x... .... ..x. ....")
        pair = [circuit(0, fc1=first, fc2=mixed), circuit(1, fc1=second, fc2=mixed)]
        both = {"fc1": HALVES, "fc2": HALVES}
        assert [cluster_information(pair, both, name) for name in both] == [1, 0]
        assert cluster_information(pair, both) == 0.5

    def test_empty_circuits_are_left_out(self) -> None:
        empty = circuit(2, fc=torch.zeros(4, 4, dtype=torch.bool))
        pair = [circuit(0, fc=kept("xx.. .... .... ....")), circuit(1, fc=kept(".... .... ..xx ...."))]
        assert cluster_information([*pair, empty], {"fc": HALVES}) == 1
        assert math.isnan(cluster_information([empty], {"fc": HALVES}))

    def test_one_circuit_leaves_nothing_to_tell(self) -> None:
        one, empty = circuit(0, fc=kept("xx.. .... .... ....")), circuit(1, fc=kept(".... .... .... ...."))
        assert math.isnan(cluster_information([one], {"fc": HALVES}))
        assert math.isnan(cluster_information([one, empty], {"fc": HALVES}))

    def test_bad_layers(self) -> None:
        with pytest.raises(ValueError, match=r"layer must be one of partitions \('fc'\), got 'fc9'"):
            cluster_information([circuit(0, fc=kept("x."))], {"fc": HALVES}, "fc9")
        with pytest.raises(ValueError, match="partitions must hold at least one layer, got none"):
            cluster_information([circuit(0, fc=kept("x."))], {})


class TestRandom:
    def test_sizes_labels_and_seeds(self) -> None:
        circuits = some_circuits()
        drawn = random_circuits(circuits, seed=1)
        assert [each.sizes for each in drawn] == [each.sizes for each in circuits]
        assert [each.label for each in drawn] == [each.label for each in circuits]
        assert all(math.isnan(each.loss_after) and math.isnan(each.accuracy_after) for each in drawn)
        again, other = random_circuits(circuits, seed=1), random_circuits(circuits, seed=2)
        assert all(torch.equal(a.masks["fc1"], b.masks["fc1"]) for a, b in zip(drawn, again, strict=True))
        assert not all(torch.equal(a.masks["fc1"], b.masks["fc1"]) for a, b in zip(drawn, other, strict=True))

    def test_each_weight_is_as_likely(self) -> None:
        whole = [circuit(0, fc=kept("xxx. ...."))]
        counts = sum(random_circuits(whole, seed)[0].masks["fc"].long() for seed in range(800))
        # 300 of 800 draws expected for each, standard deviation 13.7: four of them to either side.
        assert ((counts - 300).abs() < 55).all()

    def test_the_overlap_is_that_of_chance(self) -> None:
        pair = [circuit(label, fc=torch.arange(10_000).view(100, 100) < 1000) for label in range(2)]
        overlaps = [float(circuit_overlap(random_circuits(pair, seed))[0, 1]) for seed in range(20)]
        # 100 of 1900 weights are shared on average.
        assert np.mean(overlaps) == pytest.approx(100 / 1900, rel=0.1)

    def test_empty_and_whole_circuits(self) -> None:
        given = circuit(0, none=kept(".. .."), all=kept("xx xx"))
        drawn = random_circuits([given], seed=0)[0]
        assert torch.equal(drawn.masks["none"], given.masks["none"])
        assert torch.equal(drawn.masks["all"], given.masks["all"])

    def test_those_of_a_summary_are_these(self) -> None:
        circuits = [*some_circuits(), circuit(9, fc1=torch.zeros(6, 9).bool(), fc2=torch.ones(4, 6).bool())]
        drawn = KeptWeights.of(circuits).drawn(7)
        masks = KeptWeights.of(random_circuits(circuits, seed=7))
        for name, each in masks.indices.items():
            assert [sorted(kept) for kept in drawn.indices[name]] == [kept.tolist() for kept in each]

    def test_bad_seed(self) -> None:
        with pytest.raises(ValueError, match="seed must be an integer of at least 0, got -1"):
            random_circuits([], -1)
