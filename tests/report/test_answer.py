"""The five lines say what was measured, and nothing that was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from circuit_helpers import MODULAR, PLAIN, run

from modfast.report.circuits.answer import answer_lines
from modfast.report.circuits.claims import paper_claims
from modfast.report.circuits.summary import summarize_circuits

EMPTY = ".... .... .... ...."


def results_of(
    runs: Sequence[Mapping[str, Any]], layers: Sequence[str] = ("fc",), clusters: int | None = 2
) -> dict[str, Any]:
    summary = summarize_circuits(runs, layers)
    seeds = list(range(sum(each["kind"] == "plain" for each in runs)))
    config = {"data": "digits", "seeds": seeds, "regularised_layers": list(layers), "num_clusters": clusters}
    return {"summary": summary, "claims": paper_claims(summary), "config": config}


def live(run: Mapping[str, Any], **clusters: float | None) -> dict[str, Any]:
    """The run with effective numbers of clusters, by layer."""
    parts = {layer: {"rows": 1.0, "columns": 1.0, "clusters": number} for layer, number in clusters.items()}
    return {**run, "live": parts}


def in_use(plain: Mapping[str, Any], modular: Mapping[str, Any], **how: Any) -> str:
    return answer_lines(results_of([live(PLAIN[0], **plain), live(MODULAR[0], **modular)], **how))[-1]


def by_criteria(run: Mapping[str, Any], *criteria: str) -> dict[str, Any]:
    return {**run, "criteria": dict.fromkeys(criteria, run["criteria"]["loss"])}


class TestLines:
    def test_numbers_and_verdicts(self) -> None:
        runs = [live(each, fc=1.96) for each in PLAIN] + [live(each, fc=1.04) for each in MODULAR]
        results = results_of(runs)
        price, size, overlap, clusters, used = answer_lines(results)
        assert price == (
            "digits, 3 seeds: plain models get 90.0 % of the test images right, modular ones 90.0 % "
            "(difference +0.0 ± 0.0 points)."
        )
        # 10, 11 and 11 of 32 weights against 7, 7 and 7.
        assert size == "Circuits are smaller: by loss supported (plain 33.3, modular 21.9 % of weights)."
        loss = results["summary"]["loss"]
        means = [f"{100 * loss['random_overlap'][kind]['mean']:.3g}" for kind in ("plain", "modular")]
        assert overlap.startswith("Circuits of two classes overlap less: by loss supported (plain ")
        assert overlap.endswith(
            f" % of their union; random circuits of equal size: plain {means[0]}, modular {means[1]})."
        )
        assert clusters.startswith(
            "Clusters are more specialised in classes: one cluster alone supported (plain 0, modular 11.2 "
            "points); one cluster off undecided (plain 0, modular 0 points); information beyond random "
            "circuits, by loss supported (plain "
        )
        assert clusters.endswith(" bits).")
        assert used == (
            "Clusters in use: 2.0 of 2 in plain models, 1.0 of 2 in modular ones (effective number; near 1 "
            "means collapsed into one cluster, not modular)."
        )

    def test_information_is_told_without_that_of_random_circuits(self) -> None:
        results = results_of([*PLAIN, *MODULAR])
        loss = results["summary"]["loss"]
        told = [
            loss["information:regularised"][kind]["mean"]
            - loss["random_information:regularised"][kind]["mean"]
            for kind in ("plain", "modular")
        ]
        assert f"(plain {told[0]:.3g}, modular {told[1]:.3g} bits)." in answer_lines(results)[3]

    def test_models_exchanged(self) -> None:
        exchanged = [each | {"kind": "modular"} for each in PLAIN]
        lines = answer_lines(results_of([*(each | {"kind": "plain"} for each in MODULAR), *exchanged]))
        assert "by loss contradicted (plain 21.9, modular 33.3 % of weights)" in lines[1]

    def test_a_single_seed(self) -> None:
        lines = answer_lines(results_of([PLAIN[0], MODULAR[0]]))
        assert lines[0] == (
            "digits, 1 seed, too few to decide a claim: plain models get 90.0 % of the test images right, "
            "modular ones 90.0 % (difference +0.0 points)."
        )
        assert all("undecided" in line and "supported" not in line for line in lines[1:4])

    def test_a_loss_that_rounds_to_zero_has_no_minus(self) -> None:
        modular = [each | {"accuracy": 0.8999} for each in MODULAR]
        assert "(difference +0.0 ± 0.0 points)" in answer_lines(results_of([*PLAIN, *modular]))[0]

    def test_nothing_to_compare(self) -> None:
        assert answer_lines({"summary": summarize_circuits(MODULAR, ["fc"]), "claims": []}) == []


class TestCriteria:
    def test_each_has_its_part(self) -> None:
        criteria = ("loss_and_accuracy", "balanced")
        lines = answer_lines(results_of([by_criteria(each, *criteria) for each in (*PLAIN, *MODULAR)]))
        assert len(lines) == 5
        for line, measure in ((lines[1], "% of weights"), (lines[2], "of their union"), (lines[3], "bits)")):
            assert line.count("by loss and accuracy ") == line.count("by balanced loss ") == 1
            assert line.count(measure) == 2

    def test_a_measure_that_is_missing(self) -> None:
        # Circuits without a weight have no overlap, and say nothing about clusters.
        runs = [*PLAIN, *MODULAR[:2], run("modular", EMPTY, EMPTY)]
        lines = answer_lines(results_of(runs))
        assert lines[2] == "Circuits of two classes overlap less: by loss undecided (no value in every seed)."
        assert lines[3].endswith("by loss undecided (no value in every seed).")
        assert "(plain 33.3, modular 14.6 % of weights)" in lines[1]


class TestClustersInUse:
    def test_results_of_earlier_releases(self) -> None:
        assert answer_lines(results_of([*PLAIN, *MODULAR]))[-1] == "Clusters in use: not measured."
        only_one = [*PLAIN, *(live(each, fc=2.0) for each in MODULAR)]
        assert answer_lines(results_of(only_one))[-1] == "Clusters in use: not measured."

    def test_no_layer_is_regularised(self) -> None:
        lines = answer_lines(results_of([*PLAIN, *MODULAR], layers=()))
        assert lines[-1] == "Clusters in use: not measured."
        assert "one cluster alone undecided (no value in every seed)" in lines[3]

    @pytest.mark.parametrize("layer", ["", "all", "regularised", "layer:all", "{}", "a - b"])
    def test_any_name_of_a_layer(self, layer: str) -> None:
        plain, modular = live(PLAIN[0], **{layer: 2.0}), live(MODULAR[0], **{layer: 1.5})
        line = answer_lines(results_of([plain, modular], layers=[layer]))[-1]
        assert line.startswith("Clusters in use: 2.0 of 2 in plain models, 1.5 of 2 in modular ones")

    def test_several_layers(self) -> None:
        line = in_use({"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, layers=["a", "b"])
        assert line.startswith("Clusters in use: 1.5 of 2 in plain models, 1.0 of 2 in modular ones")
        assert "(effective number, mean of 2 layers; near 1" in line

    def test_both_means_are_of_the_same_layers(self) -> None:
        line = in_use({"a": 4.0, "b": 2.0}, {"a": 4.0, "b": None}, layers=["a", "b"], clusters=4)
        assert line.startswith("Clusters in use: 4.0 of 4 in plain models, 4.0 of 4 in modular ones")
        assert "mean of 1 of 2 layers" in line

    def test_layers_with_different_numbers_of_clusters(self) -> None:
        line = in_use({"fc": 2.0}, {"fc": 2.0}, clusters=None)
        assert line.startswith("Clusters in use: 2.0 in plain models, 2.0 in modular ones (")

    def test_one_cluster_cannot_collapse(self) -> None:
        assert in_use({"fc": 1.0}, {"fc": 1.0}, clusters=1).endswith("in modular ones (effective number).")
