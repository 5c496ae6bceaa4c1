"""Curves of faithfulness: planted models, plain loops over ablations, and areas by hand."""

import json
import math

import pytest
import torch
from planted_units import ABLATIONS, additive, deep, inside, plain_loop

from modfast import FaithfulnessCurve, accuracy, class_log_likelihood, faithfulness_curve, unit_scores
from modfast.circuits.units.curves import chosen_sizes

EFFECTS = [1.0, 4.0, -2.0, 3.0, 0.0]


def output_of(output, batch):
    return output[:, 0]


def scores_of(network, space, values):
    scores = torch.full((network.num_units,), torch.nan, dtype=torch.float64)
    scores[space] = torch.tensor(values, dtype=torch.float64)
    return scores


def planted(scores=EFFECTS, effects=EFFECTS, **options):
    model, network, space = additive(effects)
    scores = scores_of(network, space, scores)
    return faithfulness_curve(model, torch.rand(4, 1), output_of, network, scores, **options)


class TestPlanted:
    def test_by_hand(self):
        curve = planted(sizes=range(6))
        assert curve.sizes.tolist() == [0, 1, 2, 3, 4, 5]
        assert curve.sufficiency.tolist() == [0, 4, 7, 8, 8, 6]
        assert curve.necessity.tolist() == [6, 2, -1, -2, -2, 0]
        assert (curve.metric_before, curve.metric_none, curve.num_asked) == (6, 0, 5)
        assert curve.faithfulness.tolist() == [0, 4 / 6, 7 / 6, 8 / 6, 8 / 6, 1]

    def test_areas_by_hand(self):
        curve = planted(sizes=[1, 2, 5])
        # Faithfulness 0, 2/3, 7/6, 1 at the shares 0, 0.2, 0.4, 1, with trapezoids between.
        area = 0.2 * (0 + 2 / 3) / 2 + 0.2 * (2 / 3 + 7 / 6) / 2 + 0.6 * (7 / 6 + 1) / 2
        assert curve.cpr == pytest.approx(area, rel=1e-12)
        distance = 0.2 * (1 + 1 / 3) / 2 + 0.2 * (1 / 3 + 1 / 6) / 2 + 0.6 * (1 / 6 + 0) / 2
        assert curve.cmd == pytest.approx(distance, rel=1e-12)

    def test_areas_reach_from_no_unit_to_all(self):
        # The two ends are known without being asked for.
        assert planted(sizes=[1, 2]).cpr == planted(sizes=[0, 1, 2, 5]).cpr

    def test_equal_scores_go_by_unit(self):
        curve = planted([1.0, 1.0, 1.0, 1.0, 1.0], sizes=range(6))
        assert curve.sufficiency.tolist() == [0, 1, 5, 3, 6, 6]

    def test_units_without_a_score_are_never_ablated(self):
        curve = planted([1.0, math.nan, -2.0, 3.0, math.nan], sizes=range(4))
        assert curve.num_asked == 3
        assert curve.sufficiency.tolist() == [4, 7, 8, 6]
        assert curve.metric_none == 4

    def test_without_an_effect_there_is_no_faithfulness(self):
        curve = planted(effects=[0.0] * 5, sizes=[0, 2])
        assert curve.sufficiency.tolist() == [0, 0]
        assert curve.faithfulness.isnan().all()
        assert math.isnan(curve.cpr)
        assert math.isnan(curve.cmd)
        assert curve.random_cpr.isnan().all()
        assert "no" in repr(curve).splitlines()[-1]

    def test_the_true_ranking_beats_random_ones(self):
        effects = [2.0 ** -(place % 20) for place in range(40)]
        curve = planted(effects, effects, n_random=15)
        assert bool((curve.random_cpr < curve.cpr).all())
        assert bool((curve.random_cmd > curve.cmd).all())


class TestSizes:
    def test_by_default_none_and_those_of_mib(self):
        curve = planted([float(place) for place in range(40)], [1.0] * 40, n_random=0)
        assert curve.sizes.tolist() == [0, 1, 2, 4, 8, 20, 40]

    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [
            ([5, 1, 1, 3], [1, 3, 5]),
            ([0.1], [1]),
            ([0.2, 0.4, 0.6], [1, 2, 3]),
            ([0.41, 0.0, 1.0], [0, 3, 5]),
            ([1, 1.0], [1, 5]),
            (torch.tensor([0.2, 0.6], dtype=torch.float32), [1, 3]),
            (torch.tensor([2, 4]), [2, 4]),
        ],
    )
    def test_integers_are_numbers_and_floats_are_shares(self, sizes, expected):
        assert planted(sizes=sizes, n_random=0).sizes.tolist() == expected

    def test_a_share_is_not_rounded_up_for_its_binary_digits(self):
        # 0.1 * 3 and 0.7 * 10 are above 0.3 and 7 in floating-point.
        for count, share, expected in ((30, 0.1, 3), (10, 0.7, 7), (1000, 0.001, 1), (1001, 0.001, 2)):
            found = planted([0.0] * count, [0.0] * count, sizes=[share], n_random=0)
            assert found.sizes.tolist() == [expected]

    @pytest.mark.parametrize(
        ("sizes", "error", "message"),
        [
            ([6], ValueError, r"sizes must lie in \[0, 5\], the number of units, got 6"),
            ([-1], ValueError, r"sizes must lie in \[0, 5\]"),
            ([1.5], ValueError, r"sizes that are floats are shares, and must lie in \[0, 1\], got 1.5"),
            ([math.nan], ValueError, "sizes that are floats are shares"),
            ([], ValueError, "sizes must hold at least one size, got none"),
            ([True], TypeError, "sizes must hold integers .* got True"),
            (["1"], TypeError, "sizes must hold integers"),
            ("12", TypeError, "sizes must be several numbers, got '12'"),
            (3, TypeError, "sizes must be several numbers, got 3"),
        ],
    )
    def test_bad_ones(self, sizes, error, message):
        with pytest.raises(error, match=message):
            planted(sizes=sizes)


class TestPlainLoop:
    @pytest.mark.parametrize(("ablation", "reference"), ABLATIONS)
    def test_every_point(self, ablation, reference):
        model, network, batches = deep()
        scores = unit_scores(
            model, batches, class_log_likelihood, network, ablation=ablation, reference=reference
        )
        asked = inside(network)
        assert torch.equal(asked, ~scores.isnan())
        sizes = [0, 1, 4, 7, 10]
        curve = faithfulness_curve(
            model, batches, class_log_likelihood, network, scores, sizes=sizes,
            ablation=ablation, reference=reference, n_random=2, seed=5,
        )  # fmt: skip

        def metric(units):
            found = plain_loop(model, network, batches, class_log_likelihood, units, ablation, reference)
            return float(found.mean())

        order = sorted(asked.nonzero().flatten().tolist(), key=lambda unit: (-float(scores[unit]), unit))
        for place, size in enumerate(sizes):
            best = torch.zeros_like(asked)
            best[order[:size]] = True
            assert float(curve.sufficiency[place]) == pytest.approx(metric(asked & ~best), rel=1e-6)
            assert float(curve.necessity[place]) == pytest.approx(metric(best), rel=1e-6)
        assert curve.metric_none == pytest.approx(metric(asked), rel=1e-6)
        assert not torch.allclose(curve.sufficiency, curve.sufficiency[:1])
        assert not torch.allclose(curve.random_sufficiency[0], curve.random_sufficiency[1])
        assert curve.random_sufficiency[:, 0].tolist() == [curve.metric_none] * 2
        assert curve.random_necessity[:, -1].tolist() == [curve.metric_none] * 2

    def test_a_metric_without_a_gradient(self):
        model, network, batches = deep()
        scores = unit_scores(model, batches, class_log_likelihood, network)
        curve = faithfulness_curve(model, iter(batches), accuracy, network, scores, sizes=[3], n_random=0)
        assert curve.metric_before == 16 / 24

    def test_spaces_restrict_the_curve(self):
        model, network, batches = deep()
        scores = torch.rand(network.num_units)
        curve = faithfulness_curve(model, batches, accuracy, network, scores, spaces="fc1", n_random=0)
        units = torch.zeros(network.num_units, dtype=torch.bool)
        units[network.spaces["fc1"]] = True
        assert curve.num_asked == 6
        assert curve.metric_none == float(plain_loop(model, network, batches, accuracy, units).mean())


class TestRandom:
    def test_seeds(self):
        first, again, other = (planted(n_random=3, seed=seed) for seed in (1, 1, 2))
        assert first == again
        assert not torch.equal(first.random_sufficiency, other.random_sufficiency)
        assert first != other
        assert torch.equal(first.sufficiency, other.sufficiency)

    def test_each_unit_is_as_likely_to_be_the_best(self):
        curve = planted(sizes=[1], n_random=500)
        counts = [int((curve.random_sufficiency[:, 0] == effect).sum()) for effect in EFFECTS]
        # 100 of 500 expected for each, standard deviation 9: four of them to either side.
        assert sum(counts) == 500
        assert all(abs(count - 100) < 36 for count in counts)


def test_the_whole_of_millions_is_the_whole():
    assert chosen_sizes([0.0, 0.5, 1.0], 10**7)[::2] == [0, 10**7]


def test_passes_and_progress():
    calls = []
    curve = planted(sizes=[0, 1, 2, 5], n_random=3, progress=lambda done, total: calls.append((done, total)))
    # Two for all and none, and two for each size between, for each of four rankings.
    assert curve.num_passes == 2 + 2 * 2 * 4
    assert curve.num_examples == 4
    assert calls[:2] == [(1, 18), (2, 18)]
    assert calls[-1] == (18, 18)
    assert calls == sorted(set(calls))


def test_a_metric_that_cannot_run_on_many_ablations_at_once():
    def metric(output, batch):
        return torch.tensor([float(value) for value in output[:, 0].tolist()])

    model, network, space = additive(EFFECTS)
    scores = scores_of(network, space, EFFECTS)
    with pytest.warns(UserWarning, match="cannot run on many ablations at once"):
        curve = faithfulness_curve(model, torch.rand(4, 1), metric, network, scores, sizes=range(6))
    assert curve == planted(sizes=range(6))


def test_files(tmp_path):
    curve = planted(n_random=2)
    curve.save(tmp_path / "curve.json")
    assert FaithfulnessCurve.load(tmp_path / "curve.json") == curve
    assert hash(FaithfulnessCurve.load(tmp_path / "curve.json")) == hash(curve)
    alone = planted(n_random=0)
    alone.save(tmp_path / "curve.json")
    assert FaithfulnessCurve.load(tmp_path / "curve.json") == alone
    assert alone != curve
    assert curve != "curve"
    assert json.loads(json.dumps(curve.as_dict())) == curve.as_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("format"), "holds no faithfulness curve"),
        (lambda held: held.pop("sizes"), "is damaged"),
        (lambda held: held.update(sufficiency=[1.0]), "is damaged .*sufficiency must have shape"),
        (lambda held: held.update(random_necessity=[]), "is damaged .* as many rankings, got 2 and 0"),
        (lambda held: held.update(sizes=held["sizes"][::-1]), "is damaged .*sizes must ascend"),
        (lambda held: held.update(num_asked=2), r"is damaged .*ascend within \[0, 2\]"),
        (lambda held: held.update(ablation="none"), "is damaged .*ablation must be one of"),
        (lambda held: held.update(metric_none="x"), "is damaged"),
        (lambda held: held.update(sizes=3), "is damaged"),
        (lambda held: held.update(metric_before=math.inf), "is damaged .*metric_before must be finite"),
        (
            lambda held: held.update(necessity=[math.nan] * len(held["sizes"])),
            "is damaged .*necessity must be finite",
        ),
    ],
)
def test_damaged_files(tmp_path, change, message):
    path = tmp_path / "curve.json"
    planted(n_random=2).save(path)
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=message):
        FaithfulnessCurve.load(path)


def test_a_short_repr():
    lines = repr(planted()).splitlines()
    assert len(lines) == 4
    assert "5 units, zero ablation" in lines[0]
    assert lines[2].startswith("  CPR: ")
    assert "random rankings: " in lines[2]
    assert "random" not in repr(planted(n_random=0))


def test_scores_of_units_that_no_weight_reads_are_not_looked_at():
    model, network, _ = additive(EFFECTS)
    scores = torch.rand(network.num_units, generator=torch.Generator().manual_seed(0))
    read = torch.zeros(network.num_units, dtype=torch.bool)
    for layer in network.layers.values():
        read[layer.col_units] = True
    assert not bool(read.all())
    inputs = torch.rand(2, 1)
    curve = faithfulness_curve(model, inputs, output_of, network, scores)
    expected = faithfulness_curve(model, inputs, output_of, network, scores.where(read, torch.nan))
    assert curve.as_dict() == expected.as_dict()
    with pytest.raises(ValueError, match="no weight reads unit"):
        faithfulness_curve(model, inputs, output_of, network, scores.where(~read, torch.nan))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_random": -1}, ValueError, "n_random must be an integer of at least 0, got -1"),
        ({"seed": -1}, ValueError, "seed must be an integer of at least 0, got -1"),
        ({"ablation": "none"}, ValueError, "ablation must be one of"),
        ({"spaces": "x"}, ValueError, "spaces"),
        ({"scores": [math.nan] * 5}, ValueError, "at least one unit, all are NaN"),
        ({"scores": [math.nan, 1, 1, 1, 1], "spaces": "0"}, ValueError, "scores must be numbers for all"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        planted(**options)


def test_metrics_that_are_no_numbers():
    model, network, space = additive(EFFECTS)
    scores = scores_of(network, space, EFFECTS)
    for metric in (lambda output, batch: output.mean() * math.nan, lambda output, batch: output[0, 0] / 0):
        with pytest.raises(ValueError, match="metric must be finite"):
            faithfulness_curve(model, torch.rand(2, 1), metric, network, scores)
