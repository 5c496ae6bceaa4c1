"""Verdicts follow the intervals, and the summary the numbers, both worked by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from circuit_helpers import MODULAR, PLAIN, circuit, described, kept, run

from modfast.partition import Partition
from modfast.report.circuits.claims import _p_text, compare, comparisons_note, paper_claims, verdict
from modfast.report.circuits.summary import (
    BY_CLASS,
    DRAWS,
    describe_circuits,
    pair_mean,
    run_measures,
    size_changes,
    specialisation,
    summarize_circuits,
)
from modfast.report.circuits.words import Measure, describe
from modfast.report.statistics import holm

DEPTH = Measure("Depth", "", 1.0)
SHARE = Measure("Share", "% of all", 100.0)
CLAIMED = ("specialised_only", "specialised_without", "disjoint", "smaller", "more_informative")


def verdicts(claims: list[dict[str, Any]]) -> dict[str, str]:
    return {each["claim"]: each["verdict"] for each in claims}


def claim(**changed: Any) -> dict[str, Any]:
    return {"p_value": 0.01, "seeds": 3, "verdict": "supported", "denied_by": None} | changed


class TestCompare:
    def test_numbers_by_hand(self) -> None:
        # Differences -3, -3, -4: standard deviation 1 / sqrt(3), and 4.3027 / 3 for the half width.
        compared = compare([1, 2, 3], [4, 5, 7], DEPTH)
        assert compared.difference == pytest.approx(-10 / 3)
        assert compared.interval == pytest.approx(4.3027 / 3, rel=1e-4)
        assert compared.effect_size == pytest.approx(-10 / 3**0.5)
        # t = -10 with 2 degrees of freedom: 1 - 10 / sqrt(102).
        assert compared.p_value == pytest.approx(1 - 10 / 102**0.5)
        assert compared.seeds == 3

    def test_what_a_single_seed_says(self) -> None:
        compared = compare([0.25], [0.5], DEPTH)
        assert compared.means == (
            "0.25 in modular models, 0.5 in plain ones: difference -0.25, one seed: no interval"
        )
        assert compared.interval is compared.effect_size is compared.p_value is None

    def test_shares_are_told_in_percent_and_their_differences_in_points(self) -> None:
        told = compare([0.10, 0.12], [0.2, 0.2], SHARE).means
        # Differences -10 and -8: deviation sqrt(2), and 12.706 / sqrt(2) times it for the half width.
        assert told == (
            "11 % in modular models, 20 % in plain ones: difference -9 ± 12.7 points, 2 seeds, d_z -6.36"
        )
        told = compare([0.5], [0.25], Measure("Information", "bits", 1.0)).means
        assert told.startswith("0.5 bits in modular models, 0.25 bits in plain ones: difference +0.25 bits")

    def test_a_missing_measure_is_said(self) -> None:
        for missing, where in (([None, None], ""), ([1.0, None], " in 1 of 2 seeds")):
            compared = compare(missing, [1.0, 2.0], DEPTH)
            assert compared.means == f"there is nothing to measure{where}"
            assert compared.difference is compared.p_value is None
        # Each kind lacks another seed: as many values, but none of the same seed.
        compared = compare([1.0, None, 1.0], [None, 2.0, 1.0], DEPTH)
        assert compared.means == "there is nothing to measure in 2 of 3 seeds"


@pytest.mark.parametrize(
    ("difference", "p_adjusted", "sign", "expected"),
    [
        (-1.0, 0.05, -1, "supported"),
        (-1.0, 0.05, 1, "contradicted"),
        (1.0, 0.0, 1, "supported"),
        (1.0, 0.051, 1, "undecided"),
        (0.0, 1.0, 1, "undecided"),
        (-1.0, None, -1, "undecided"),
        (None, None, 1, "undecided"),
    ],
)
def test_verdict(difference, p_adjusted, sign, expected) -> None:
    assert verdict(difference, p_adjusted, sign) == expected


class TestNote:
    def test_it_counts_what_is_tested(self) -> None:
        note = comparisons_note([claim()] * 14 + [claim(p_value=None, verdict="undecided")])
        assert note.startswith("14 claims are tested, each by a two-sided paired t-test")
        assert "Holm's method: the chance that even one claim is decided" in note
        assert "is at most 5 %" in note
        assert "95 % each, for one comparison and not corrected" in note

    def test_it_says_what_so_many_seeds_can_show(self) -> None:
        note = comparisons_note([claim(seeds=5)] * 8)
        assert "With 5 seeds" in note
        # One test at 0.05, and one at 0.05 / 8.
        assert "is 1.7 times its standard deviation" in note
        assert "first of 8 corrected ones if it is 3 times" in note

    def test_large_effects_are_told_as_people_write_them(self) -> None:
        note = comparisons_note([claim(seeds=2)] * 14)
        assert "is 12 times" in note
        assert "if it is 162 times" in note

    def test_a_single_test_needs_no_correction(self) -> None:
        note = comparisons_note([claim(seeds=10)])
        assert note.startswith("1 claim is tested, by a two-sided paired t-test. With 10 seeds")
        assert "is 1 times its standard deviation" in note
        assert "Holm" not in note

    def test_undecided_is_not_sold_as_support_of_a_denial(self) -> None:
        said = "Undecided does not support a version that denies the claim"
        denied = claim(denied_by="arXiv 2502.02470 v3")
        assert said in comparisons_note([denied | {"verdict": "undecided"}, claim()])
        assert said not in comparisons_note([denied, claim(verdict="undecided")])

    def test_nothing_tested(self) -> None:
        note = comparisons_note([claim(p_value=None, seeds=1)])
        assert note == "No claim can be decided: a test takes two seeds or more."


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
        # The last has no difference at all.
        assert verdicts(claims) == dict.fromkeys(CLAIMED, "supported") | {"specialised_without": "undecided"}
        criteria = {claim["claim"]: claim["criterion"] for claim in claims}
        assert criteria["smaller"] == "loss"
        assert criteria["specialised_only"] is None

    def test_exchanged_models_contradict(self) -> None:
        exchanged = [each | {"kind": "modular"} for each in PLAIN] + [
            each | {"kind": "plain"} for each in MODULAR
        ]
        claims = paper_claims(summarize_circuits(exchanged, ["fc"]))
        expected = dict.fromkeys(CLAIMED, "contradicted") | {"specialised_without": "undecided"}
        assert verdicts(claims) == expected

    def test_each_says_which_version_it_is_from(self) -> None:
        claims = {
            each["claim"]: each for each in paper_claims(summarize_circuits([*PLAIN, *MODULAR], ["fc"]))
        }
        for name in CLAIMED:
            assert claims[name]["source"].startswith("arXiv 2409.15747, 2502.02470 v1")
        # Only the last version's claims: smaller circuits, and no more specialisation.
        assert [name for name in CLAIMED if "v3" in claims[name]["source"]] == ["smaller"]
        denied = {name for name in CLAIMED if claims[name]["denied_by"] == "arXiv 2502.02470 v3"}
        assert denied == {"more_informative", "specialised_only", "specialised_without"}
        assert claims["smaller"]["denied_by"] is claims["disjoint"]["denied_by"] is None

    def test_the_correction_is_over_all_claims(self) -> None:
        both = [
            each | {"criteria": {"loss": each["criteria"]["loss"], "balanced": each["criteria"]["loss"]}}
            for each in (*PLAIN, *MODULAR)
        ]
        claims = paper_claims(summarize_circuits(both, ["fc"]))
        assert len(claims) == 8
        assert [each["p_adjusted"] for each in claims] == holm([each["p_value"] for each in claims])
        smaller = [each for each in claims if each["claim"] == "smaller"]
        # Differences -3, -4 and -4 of 32 weights, t = -11. Five of the eight p-values are smaller: the first
        # of this one is the sixth and multiplied by 3, the second is raised to that.
        assert all(each["p_value"] == pytest.approx(1 - 11 / 123**0.5) for each in smaller)
        assert all(each["p_adjusted"] == pytest.approx(3 * (1 - 11 / 123**0.5)) for each in smaller)

    def test_a_correction_can_undo_what_an_interval_says(self) -> None:
        many = [
            each | {"criteria": {f"criterion{index}": each["criteria"]["loss"] for index in range(10)}}
            for each in (*PLAIN, *MODULAR)
        ]
        smaller = [
            each for each in paper_claims(summarize_circuits(many, ["fc"])) if each["claim"] == "smaller"
        ]
        assert all(abs(each["difference"]) > each["interval"] for each in smaller)
        assert {each["verdict"] for each in smaller} == {"undecided"}

    def test_a_missing_measure_does_not_count(self) -> None:
        summary = summarize_circuits([*PLAIN, *MODULAR], ["fc"])
        before = paper_claims(summary)
        summary["model"]["specialisation_without"]["plain"]["values"] = [None] * 3
        after = paper_claims(summary)
        (missing,) = [each for each in after if each["claim"] == "specialised_without"]
        assert missing["text"] == "there is nothing to measure"
        assert missing["p_value"] is missing["p_adjusted"] is None
        counted = [each["p_value"] for each in before if each["claim"] != "specialised_without"]
        assert [each["p_adjusted"] for each in after if each["p_adjusted"] is not None] == holm(counted)

    def test_the_texts_say_what_is_compared(self) -> None:
        claims = paper_claims(summarize_circuits([*PLAIN, *MODULAR], ["fc"]))
        texts = {each["claim"]: each["text"] for each in claims}
        assert texts["smaller"].startswith(
            "21.9 % in modular models, 33.3 % in plain ones: difference -11.5 ±"
        )
        assert texts["smaller"].endswith("3 seeds, d_z -6.35, p 0.0082, corrected 0.016")
        assert texts["specialised_without"].endswith("difference +0 ± 0 points, 3 seeds, p 1, corrected 1")
        assert ", p 0.0016, corrected 0.0081; random circuits" in texts["more_informative"]
        # Differences without scatter.
        same = [PLAIN[0], PLAIN[0], MODULAR[0], MODULAR[0]]
        texts = {each["claim"]: each["text"] for each in paper_claims(summarize_circuits(same, ["fc"]))}
        assert texts["smaller"].endswith("2 seeds, p < 0.0001, corrected < 0.0001")

    def test_a_rounded_p_value_does_not_belie_its_verdict(self) -> None:
        shown = {0.0496: "0.0496", 0.05: "0.05", 0.05004: "0.05004", 0.051: "0.051", 0.0123: "0.012"}
        for value, expected in shown.items():
            assert _p_text(value, value) == f", p {expected}, corrected {expected}"

    def test_random_circuits_are_told_beside_and_not_tested(self) -> None:
        summary = summarize_circuits([*PLAIN, *MODULAR], ["fc"])
        texts = {each["claim"]: each["text"] for each in paper_claims(summary)}
        for name, measure, scale, unit in (
            ("disjoint", "random_overlap", 100, "%"),
            ("more_informative", "random_information:regularised", 1, "bits"),
        ):
            modular, plain = (
                f"{scale * summary['loss'][measure][kind]['mean']:.3g} {unit}"
                for kind in ("modular", "plain")
            )
            end = f"; random circuits of the same sizes: {modular} in modular models, {plain} in plain ones"
            assert texts[name].endswith(end)
        assert not any("random" in texts[name] for name in ("smaller", "specialised_only"))

    def test_a_single_seed_decides_nothing(self) -> None:
        claims = paper_claims(summarize_circuits([PLAIN[0], MODULAR[0]], ["fc"]))
        assert {each["verdict"] for each in claims} == {"undecided"}
        assert all(each["difference"] is not None for each in claims)
        assert {each["p_value"] for each in claims} == {each["p_adjusted"] for each in claims} == {None}


def test_size_changes_by_hand() -> None:
    # Class 0: halved and a quarter less. Class 1: doubled, then no plain circuit to compare with.
    changes = size_changes([[0.5, 0.25], [0.5, 0.0]], [[0.25, 0.5], [0.375, 0.5]])
    first, second = changes["size_change"]
    assert first["values"] == [-0.5, -0.25]
    # Deviation 0.25 / sqrt(2), and 12.706 / sqrt(2) times it for the half width.
    assert (first["mean"], first["interval"]) == (-0.375, pytest.approx(12.706 / 8, rel=1e-4))
    assert second == {"mean": None, "interval": None, "values": [1.0, None]}
    assert changes["mean_size_change"]["values"] == [0.25, -0.25]
    assert changes["mean_size_change"]["mean"] == 0.0


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

    def test_sizes_are_compared_class_by_class(self) -> None:
        changes = summarize_circuits([*PLAIN, *MODULAR], ["fc"])["loss"][BY_CLASS]
        # Class 1 keeps 6, 7 and 7 weights in plain models, and 3, 4 and 3 in modular ones.
        assert changes["size_change"][1]["values"] == pytest.approx([-3 / 6, -3 / 7, -4 / 7])
        assert changes["mean_size_change"]["mean"] < 0 < changes["mean_size_change"]["interval"]
        assert BY_CLASS not in summarize_circuits(MODULAR, ["fc"])["loss"]


class TestLaterMeasures:
    LATER: dict[str, Any] = {  # noqa: RUF012
        "label_semanticity": {"fc": 0.25},
        "search_space_reduction": 0.755,
        "live": {"fc": {"rows": 1.0, "columns": 0.75, "clusters": 3.5}},
        "history": [{"test_cross_entropy": 9.0}, {"test_cross_entropy": 1.25}],
    }
    TOLD: dict[str, float] = {  # noqa: RUF012
        "test_loss": 1.25,
        "label_semanticity:fc": 0.25,
        "search_space_reduction": 0.755,
        "live_rows:fc": 1.0,
        "live_columns:fc": 0.75,
        "live_clusters:fc": 3.5,
    }

    def test_they_are_told_where_they_are_there(self) -> None:
        before = run_measures(MODULAR[0], ["fc"])["model"]
        assert run_measures(MODULAR[0] | self.LATER, ["fc"])["model"] == before | self.TOLD
        assert run_measures(MODULAR[0] | {"history": [{"loss": 1.0}]}, ["fc"])["model"] == before

    def test_a_run_of_an_earlier_release_lacks_them(self) -> None:
        summary = summarize_circuits([PLAIN[0], MODULAR[0] | self.LATER], ["fc"])["model"]
        assert summary["test_loss"]["modular"]["values"] == [1.25]
        assert summary["test_loss"]["plain"] == {"mean": None, "interval": None, "values": [None]}
        assert summary["test_loss"]["difference"]["mean"] is None

    def test_their_names(self) -> None:
        assert describe("label_semanticity:fc2")[:2] == (
            "Classes among a neuron's top images, fc2",
            "% of classes",
        )
        assert describe("search_space_reduction")[:2] == ("Search-space reduction", "% of parameters")
        assert describe("live_rows:fc2")[:2] == ("Live rows, fc2", "% of rows")
        assert describe("live_columns:fc2")[:2] == ("Live columns, fc2", "% of columns")
        assert describe("live_clusters:fc2") == ("Live clusters, fc2", "effective number", 1.0)
        assert describe("test_loss") == ("Test loss", "nats", 1.0)
