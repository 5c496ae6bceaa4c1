"""Measures of unit circuits against values worked by hand and against plain loops."""

import math

import pytest
import torch
from circuit_helpers import circuit as of_weights
from circuit_helpers import kept as mask

from modfast import Partition, circuit_overlap, cluster_information, cluster_shares, random_circuits
from modfast.circuits.units.unit_circuit import UnitCircuit

SPACES = {"residual": slice(0, 2), "mlp": slice(2, 6), "heads": slice(6, 9)}


def of_units(text, spaces=SPACES, **values):
    """``x`` for a unit that is kept, ``.`` for one that is not, ``_`` for one that was not asked for."""
    asked = torch.tensor([letter != "_" for letter in text])
    numbers = {
        "method": "greedy",
        "ablation": "zero",
        "tolerance": 0.1,
        "num_examples": 10,
        "num_passes": 3,
        "metric_before": -0.5,
        "metric_after": -0.6,
    }
    return UnitCircuit(
        kept=torch.tensor([letter != "." for letter in text]),
        scores=torch.where(asked, 1.0, math.nan).double(),
        spaces=spaces,
        **numbers | values,
    )


def some_circuits(count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    texts = torch.rand(count, 7, generator=generator) < 0.5
    return [of_units("__" + "".join("x" if each else "." for each in row)) for row in texts.tolist()]


LABELS = [0, 1, 0, 0, 1, -1, 1, 1, 2]


class TestOverlap:
    def test_by_hand(self):
        pair = [of_units("__xx...x."), of_units("__.xx...x")]
        assert circuit_overlap(pair)[0, 1] == 1 / 5
        assert circuit_overlap(pair, "mlp")[0, 1] == 1 / 3
        assert circuit_overlap(pair, "heads").tolist() == [[1, 0], [0, 1]]

    def test_agrees_with_sets(self):
        circuits = some_circuits()
        sets = [set((each.kept & each.asked).nonzero().flatten().tolist()) for each in circuits]
        overlap = circuit_overlap(circuits)
        assert overlap.dtype == torch.float64
        for i, one in enumerate(sets):
            for j, other in enumerate(sets):
                assert overlap[i, j] == len(one & other) / len(one | other)

    def test_units_that_were_not_asked_for_do_not_count(self):
        # They are kept by both, since they are never ablated.
        assert circuit_overlap([of_units("__x......"), of_units("__.x.....")])[0, 1] == 0

    def test_two_empty_circuits_have_none(self):
        assert circuit_overlap([of_units("__......."), of_units("__.......")]).isnan().all()


class TestShares:
    def test_by_hand(self):
        shares = cluster_shares([of_units("__xxxx.xx"), of_units("__.......")], LABELS)
        assert list(shares) == ["mlp", "heads"]  # nothing of the residual stream was asked for
        assert shares["mlp"][0].tolist() == [0.5, 0.25, 0]
        assert shares["heads"][0].tolist() == [0, 0.5, 0.5]
        assert shares["mlp"][1].isnan().all()
        assert shares["mlp"].dtype == torch.float64

    def test_no_unit_in_a_cluster(self):
        assert cluster_shares([of_units("__x......")], [-1] * 9)["mlp"].tolist() == [[0]]

    @pytest.mark.parametrize(
        ("labels", "error", "message"),
        [
            ([0, 1], ValueError, "partitions must be 9 labels, one for each unit, got 2"),
            ([-2] * 9, ValueError, "partitions must lie in .* got -2"),
            ([0.5] * 9, ValueError, "partitions must hold integers"),
            ({"mlp": Partition([0], [0], 1)}, TypeError, "partitions must be one label for each unit"),
        ],
    )
    def test_bad_labels(self, labels, error, message):
        with pytest.raises(error, match=message):
            cluster_shares([of_units("__x......")], labels)
        with pytest.raises(error, match=message):
            cluster_information([of_units("__x......")], labels)


class TestInformation:
    def test_a_cluster_of_its_own_is_one_bit(self):
        pair = [of_units("__xx....."), of_units("__..x....")]
        assert cluster_information(pair, LABELS) == 1
        assert cluster_information(pair, LABELS, "mlp") == 1
        assert math.isnan(cluster_information(pair, LABELS, "heads"))

    def test_equal_shares_tell_nothing(self):
        pair = [of_units("__x.x...."), of_units("__.xx....")]
        assert cluster_information(pair, LABELS) == pytest.approx(0, abs=1e-15)

    def test_spaces_alone_tell_nothing(self):
        # One circuit lies in one space, the other in another one: clusters say nothing within a space.
        assert cluster_information([of_units("__x.x...."), of_units("__....x.x")], LABELS) == 0

    def test_given_the_space(self):
        # Among the neurons the cluster tells the circuit, one bit; among the heads nothing; as many of each.
        pair = [of_units("__x...x.."), of_units("__..x..x.")]
        assert cluster_information(pair, LABELS) == pytest.approx(0.5, rel=1e-12)


class TestRandom:
    def test_sizes_in_each_space(self):
        circuits = [*some_circuits(), of_units("__......."), of_units("__xxxxxxx")]
        drawn = random_circuits(circuits, 3)
        for one, other in zip(circuits, drawn, strict=True):
            assert isinstance(other, UnitCircuit)
            assert other.sizes == one.sizes
            assert torch.equal(other.asked, one.asked)
            assert bool(other.kept[:2].all())
            assert math.isnan(other.metric_after)
            assert other.metric_before == one.metric_before

    def test_seeds(self):
        circuits = some_circuits()
        first, again, other = (random_circuits(circuits, seed) for seed in (1, 1, 2))
        assert all(torch.equal(a.kept, b.kept) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a.kept, b.kept) for a, b in zip(first, other, strict=True))

    def test_each_unit_is_as_likely(self):
        counts = sum(random_circuits([of_units("__x.._x..")], seed)[0].kept.long() for seed in range(900))
        # One of three neurons is kept: 300 of 900 draws each, standard deviation 14; likewise the heads.
        assert counts[[0, 1, 5]].tolist() == [900] * 3
        assert bool(((counts[[2, 3, 4, 6, 7, 8]] - 300).abs() < 57).all())


@pytest.mark.parametrize(
    ("circuits", "error", "message"),
    [
        ([], ValueError, "circuits must hold at least one circuit, got none"),
        (
            [of_units("__x......"), of_weights(0, fc=mask("x."))],
            ValueError,
            "all of weights or all of units, got 1 UnitCircuit of 2",
        ),
        ([of_units("__x......"), "x"], TypeError, "circuits must hold Circuit or UnitCircuit, got str"),
        (
            [of_units("__x......"), of_units("__x......", {"mlp": slice(0, 9)})],
            ValueError,
            r"of the same network: \[0\] has .*'heads': \(6, 9\).*, \[1\] {'mlp': \(0, 9\)}",
        ),
        (
            [of_units("__x......"), of_units("__x..._..")],
            ValueError,
            r"asked for the same units: \[0\] and \[1\] differ in 1, the first is unit 6",
        ),
    ],
)
def test_what_cannot_be_compared(circuits, error, message):
    with pytest.raises(error, match=message):
        circuit_overlap(circuits)
    with pytest.raises(error, match=message):
        cluster_shares(circuits, LABELS if circuits else {})
    if len({type(each) for each in circuits}) > 1:
        with pytest.raises(error, match=message):
            random_circuits(circuits, 0)


def test_unknown_spaces():
    message = r"layer must be a space of which units were asked for \('mlp', 'heads'\), got 'residual'"
    with pytest.raises(ValueError, match=message):
        circuit_overlap([of_units("__x......")], "residual")
    with pytest.raises(ValueError, match=message):
        cluster_information([of_units("__x......")], LABELS, "residual")


def test_labels_are_for_circuits_of_units():
    one = of_weights(0, fc=mask("x."))
    for measure in (cluster_shares, cluster_information):
        with pytest.raises(
            TypeError, match="partitions must map layers to Partition for circuits of weights"
        ):
            measure([one], [0, 1])
