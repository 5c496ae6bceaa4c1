"""Verdicts follow the intervals, and the summary the numbers, both worked by hand."""

from __future__ import annotations

import json

import pytest
import torch
from circuit_helpers import MODULAR, PLAIN, circuit, described, kept, run

from modfast.partition import Partition
from modfast.report.circuits.claims import comparisons_note, judge, paper_claims
from modfast.report.circuits.summary import (
    DRAWS,
    describe_circuits,
    pair_mean,
    run_measures,
    specialisation,
    summarize_circuits,
)

NAMES = ("a", "b")


class TestJudge:
    @pytest.mark.parametrize(
        ("first", "second", "sign", "verdict"),
        [
            ([1, 2, 3], [4, 5, 7], -1, "supported"),
            ([1, 2, 3], [4, 5, 7], 1, "contradicted"),
            ([4, 5, 7], [1, 2, 3], 1, "supported"),
            ([1, 5, 3], [2, 3, 4], -1, "undecided"),
            ([1], [100], -1, "undecided"),
            ([1, 1], [2, 2], -1, "supported"),
            ([1, 1], [1, 1], -1, "undecided"),
            ([1, None], [2, 2], -1, "undecided"),
            ([0.1 + 0.2] * 3, [0.3] * 3, 1, "undecided"),  # nothing but rounding
        ],
    )
    def test_verdict(self, first, second, sign, verdict) -> None:
        assert judge(first, second, sign, NAMES)["verdict"] == verdict

    def test_numbers_by_hand(self) -> None:
        # Differences -3, -3, -4: standard deviation 1 / sqrt(3), and 4.3027 / 3 for the half width.
        judged = judge([1, 2, 3], [4, 5, 7], -1, NAMES)
        assert judged["difference"] == pytest.approx(-10 / 3)
        assert judged["interval"] == pytest.approx(4.3027 / 3, rel=1e-4)
        assert judged["effect_size"] == pytest.approx(-10 / 3**0.5)

    def test_what_a_single_seed_says(self) -> None:
        judged = judge([0.25], [0.5], -1, NAMES)
        assert judged["text"] == "0.25 a, 0.5 b: difference -0.25, one seed: no interval"
        assert judged["interval"] is judged["effect_size"] is None

    def test_shares_are_told_in_percent_and_their_differences_in_points(self) -> None:
        text = judge([0.10, 0.12], [0.2, 0.2], -1, NAMES, 100.0, "%")["text"]
        # Differences -10 and -8: deviation sqrt(2), and 12.706 / sqrt(2) times it for the half width.
        assert text == "11 % a, 20 % b: difference -9 ± 12.7 points, 2 seeds, d_z -6.36"
        assert judge([0.5], [0.25], 1, NAMES, 1.0, "bits")["text"].startswith(
            "0.5 bits a, 0.25 bits b: difference +0.25 bits"
        )

    def test_a_missing_measure_is_said(self) -> None:
        judged = judge([None, None], [None, None], 1, NAMES)
        assert judged["text"] == "there is nothing to measure"
        assert judged["difference"] is None


class TestNote:
    def test_it_counts_what_is_tested(self) -> None:
        tested, untested = {"claim": "smaller", "interval": 0.1}, {"claim": "smaller", "interval": None}
        note = comparisons_note([tested] * 14 + [untested])
        assert note.startswith("14 claims are tested")
        assert "0.7 of them would be decided by chance" in note

    def test_what_chance_cannot_decide_does_not_count(self) -> None:
        claims = [{"claim": name, "interval": 0.1} for name in ("different", "smaller", "disjoint")]
        note = comparisons_note(claims)
        assert note.startswith("Besides whether circuits are all the same, 2 claims are tested")
        assert "0.1 of them" in note

    def test_nothing_tested(self) -> None:
        assert "two seeds" in comparisons_note([{"claim": "smaller", "interval": None}])


def test_specialisation_by_hand() -> None:
    # Class 0: best 0.9, mean 0.5. Class 1: 0.4 in both clusters. Class 2 has no image.
    shares = [[0.9, 0.4, None], [0.1, 0.4, None]]
    assert specialisation(shares, "only") == pytest.approx(0.2)
    assert specialisation([[0.9, 0.4], [0.3, 0.4], [0.9, 0.4]], "without") == pytest.approx(0.2)
    assert specialisation([[None], [None]], "only") is None


def test_the_mean_over_pairs_leaves_out_those_without_overlap() -> None:
    nan = float("nan")
    overlap = torch.tensor([[1, 0.5, nan], [0.5, 1, 0.25], [nan, 0.25, 1]])
    assert pair_mean(overlap) == 0.375
    assert pair_mean(torch.tensor([[1.0]])) is None


class TestDescription:
    def test_numbers(self) -> None:
        found = described("xx.. xx.. .... ....", "xx.. .... .... ..x.")
        assert found["size"] == [4 / 16, 3 / 16]
        assert found["sizes"] == {"fc": found["size"]}
        assert found["overlap"]["all"] == found["overlap"]["fc"] == [[1, 2 / 5], [2 / 5, 1]]
        assert found["inside"] == {"fc": [[1, 0], [pytest.approx(2 / 3), pytest.approx(1 / 3)]]}
        assert found["random_inside"] == {"fc": [0.25, 0.25]}
        assert found["num_inputs"] == [10, 10]
        # A random pair of 4 and 3 of 16 weights shares 0.75 of 6.25 on average.
        assert 0.02 < found["random_overlap"]["all"] < 0.3
        assert 0 < found["random_information"]["fc"] < 1

    def test_it_is_json_also_without_any_number(self) -> None:
        empty = ".... .... .... ...."
        found = json.loads(json.dumps(described(empty, empty), allow_nan=False))
        assert found["overlap"]["all"] == [[None, None], [None, None]]
        assert found["random_overlap"] == {"all": None, "fc": None}
        assert found["information"] == {"all": None, "fc": None}
        assert found["inside"] == {"fc": [[None, None], [None, None]]}

    def test_without_clusters(self) -> None:
        found = describe_circuits([circuit(0, fc=kept("x."))], {}, seed=0)
        assert found["information"] == {"all": None}
        assert found["inside"] == {}

    def test_other_seeds_are_other_draws(self) -> None:
        pair = [circuit(label, fc=torch.arange(400).view(20, 20) < 40) for label in range(2)]
        blocks = {"fc": Partition.blocks((20, 20), 4)}
        means = {describe_circuits(pair, blocks, seed)["random_overlap"]["all"] for seed in range(3)}
        assert len(means) == 3
        assert DRAWS > 1


class TestClaims:
    def test_clear_data_decide(self) -> None:
        claims = paper_claims(summarize_circuits([*PLAIN, *MODULAR], ["fc"]))
        verdicts = {claim["claim"]: claim["verdict"] for claim in claims}
        assert verdicts == {
            "specialised_only": "supported",
            "specialised_without": "undecided",  # no difference at all
            "different": "supported",
            "disjoint": "supported",
            "more_disjoint": "supported",
            "smaller": "supported",
            "informative": "supported",
            "more_informative": "supported",
        }
        criteria = {claim["claim"]: claim["criterion"] for claim in claims}
        assert criteria["smaller"] == "loss"
        assert criteria["specialised_only"] is None

    def test_exchanged_models_contradict(self) -> None:
        exchanged = [each | {"kind": "modular"} for each in PLAIN] + [
            each | {"kind": "plain"} for each in MODULAR
        ]
        claims = paper_claims(summarize_circuits(exchanged, ["fc"]))
        verdicts = {claim["claim"]: claim["verdict"] for claim in claims}
        for name in ("smaller", "more_disjoint", "more_informative", "specialised_only"):
            assert verdicts[name] == "contradicted"
        # Nor are circuits that share most of their weights disjoint.
        assert verdicts["disjoint"] == "contradicted"

    def test_the_texts_say_what_is_compared(self) -> None:
        claims = paper_claims(summarize_circuits([*PLAIN, *MODULAR], ["fc"]))
        texts = {claim["claim"]: claim["text"].partition(":")[0] for claim in claims}
        assert texts["different"] == "0 % measured, 100 % if they were identical"
        assert texts["smaller"] == "21.9 % in modular models, 33.3 % in plain ones"
        assert texts["disjoint"].startswith("0 % in circuits, ")
        assert texts["informative"].startswith("1 bits in circuits, ")
        for name in ("disjoint", "informative"):
            assert texts[name].endswith(" in random circuits")

    def test_a_single_seed_decides_nothing(self) -> None:
        claims = paper_claims(summarize_circuits([PLAIN[0], MODULAR[0]], ["fc"]))
        assert {claim["verdict"] for claim in claims} == {"undecided"}
        assert all(claim["difference"] is not None for claim in claims)


class TestSummary:
    def test_numbers(self) -> None:
        summary = summarize_circuits([*PLAIN, *MODULAR], ["fc"])
        size = summary["loss"]["size"]
        plain = [(4 / 16 + n / 16) / 2 for n in (6, 7, 7)]
        assert size["plain"]["values"] == pytest.approx(plain)
        assert size["plain"]["mean"] == pytest.approx(sum(plain) / 3)
        assert size["difference"]["mean"] == pytest.approx(sum([7, 7, 7]) / 32 / 3 - sum(plain) / 3)
        assert size["difference"]["interval"] > 0
        assert size["difference"]["effect_size"] < 0
        assert summary["model"]["accuracy"]["difference"] == {"mean": 0, "interval": 0, "effect_size": None}

    def test_a_single_run_is_compared_with_nothing(self) -> None:
        summary = summarize_circuits([MODULAR[0]], ["fc"])
        assert list(summary["loss"]["size"]) == ["modular"]
        assert summary["loss"]["size"]["modular"]["interval"] is None

    def test_a_missing_number_leaves_no_mean(self) -> None:
        empty = ".... .... .... ...."
        summary = summarize_circuits([PLAIN[0], run("modular", empty, empty)], ["fc"])
        assert summary["loss"]["overlap"]["modular"] == {"mean": None, "interval": None, "values": [None]}
        assert summary["loss"]["overlap"]["difference"]["mean"] is None
        assert summary["loss"]["size"]["difference"]["mean"] is not None

    def test_only_the_regularised_layers_count_for_clusters(self) -> None:
        measures = run_measures(MODULAR[0], ["fc"])
        assert (
            measures["model"]["specialisation_only"] == measures["model"]["specialisation_only:fc"] == 0.125
        )
        assert measures["loss"]["information:regularised"] == measures["loss"]["information:fc"] == 1
        assert run_measures(MODULAR[0], [])["model"]["specialisation_only"] is None
