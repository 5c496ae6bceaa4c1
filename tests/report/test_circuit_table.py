"""The table of circuits holds its numbers."""

from __future__ import annotations

import io
from typing import Any

import pytest
from circuit_helpers import MODULAR, PLAIN, run
from rich.console import Console

from modfast.report.circuits.claims import comparisons_note, paper_claims
from modfast.report.circuits.summary import summarize_circuits
from modfast.report.circuits.table import circuits_table, claim_lines


def results_of(runs: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    kinds = list(dict.fromkeys(each["kind"] for each in runs))
    config = {"kinds": kinds, "layers": ["fc"], "regularised_layers": ["fc"], "labels": [0, 1]}
    summary = summarize_circuits(runs, ["fc"])
    claims = paper_claims(summary) if len(kinds) > 1 else []
    config |= {"seeds": list(range(seeds)), "data": "digits", "num_clusters": 2, "enmeshment_weight": 0.7}
    return {"config": config, "summary": summary, "claims": claims, "note": comparisons_note(claims)}


def rows_of(results: dict[str, Any]) -> dict[str, list[str]]:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(circuits_table(results))
    cells = [line.strip("│").split("│") for line in console.export_text().splitlines() if "│" in line]
    return {first.strip(): [each.strip() for each in rest] for first, *rest in cells}


def test_plain_modular_and_difference() -> None:
    rows = rows_of(results_of([*PLAIN, *MODULAR], 3))
    # 10, 11 and 11 of 32 weights: mean 1/3, deviation 1/32 / sqrt(3), half width that times 4.3027 / sqrt(3).
    assert rows["Size (% of weights)"] == ["33.33 ± 4.48", "21.88 ± 0.00", "-11.46 ± 4.48"]
    assert rows["Size (% of weights), fc"] == rows["Size (% of weights)"]
    assert rows["Inside clusters (%), fc"][1] == "100.00 ± 0.00"
    assert rows["if random, fc"][1] != rows["Information (bits), fc"][1]
    assert rows["Information (bits), fc"][1] == "1.000 ± 0.000"
    assert rows["Specialised, off (points)"] == ["0.00 ± 0.00", "0.00 ± 0.00", "+0.00 ± 0.00"]


def test_a_single_run() -> None:
    results = results_of(MODULAR[:1], 1)
    assert rows_of(results)["Size (% of weights)"] == ["21.88"]
    assert claim_lines(results) == []


def test_what_was_not_measured() -> None:
    empty = ".... .... .... ...."
    rows = rows_of(results_of([run("modular", empty, empty)], 1))
    assert rows["Overlap (%)"] == ["-"]
    assert rows["Size (% of weights)"] == ["0.00"]


def test_a_line_for_each_claim() -> None:
    results = results_of([*PLAIN, *MODULAR], 3)
    lines = claim_lines(results)
    assert len(lines) == len(results["claims"]) + 1
    (line,) = [line for line in lines if "are smaller in" in line]
    assert line.startswith("supported     Circuits are smaller in modular models (loss): 21.9 % in modular")
    assert line.endswith("[claimed by arXiv 2409.15747, 2502.02470 v1, v2 and v3]")
    for line in lines:
        if "specialised" in line or "Classes depend" in line:
            assert line.endswith("; denied by arXiv 2502.02470 v3]")
    assert lines[-1].startswith("5 claims are tested")


def test_measures_that_earlier_releases_lack() -> None:
    later = {
        "label_semanticity": {"fc": 0.25},
        "search_space_reduction": 0.755,
        "live": {"fc": {"rows": 1.0, "columns": 0.75, "clusters": 3.5}},
        "history": [{"test_cross_entropy": 1.25}],
    }
    rows = rows_of(results_of([each | later for each in (*PLAIN, *MODULAR)], 3))
    assert rows["Test loss (nats)"][0] == "1.250 ± 0.000"
    assert rows["Top images' classes (%), fc"][1] == "25.00 ± 0.00"
    assert rows["Search-space reduction (%)"][1] == "75.50 ± 0.00"
    assert [rows[f"Live {part}, fc"][1][:5] for part in ("rows (%)", "columns (%)")] == ["100.0", "75.00"]
    assert rows["Live clusters, fc"][1] == "3.50 ± 0.00"
    assert "Test loss (nats)" not in rows_of(results_of([*PLAIN, *MODULAR], 3))


def test_the_relative_difference_of_sizes() -> None:
    results = results_of([*PLAIN, *MODULAR], 3)
    change = results["summary"]["loss"]["by_class"]["mean_size_change"]
    # Weights of class 0: 4 to 4, 4 to 3, 4 to 4. Class 1: 6 to 3, 7 to 4, 7 to 3.
    by_seed = [(0 - 3 / 6) / 2, (-1 / 4 - 3 / 7) / 2, (0 - 4 / 7) / 2]
    assert change["values"] == pytest.approx(by_seed)
    told = f"{100 * sum(by_seed) / 3:+.2f} ± {100 * change['interval']:.2f}"
    assert rows_of(results)["relative to plain (%)"] == ["", "", told]
    assert "relative to plain (%)" not in rows_of(results_of(MODULAR[:1], 1))
