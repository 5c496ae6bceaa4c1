"""Tables hold their numbers."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pytest
from report_helpers import CONFIG, MODULAR, PLAIN
from rich.console import Console
from rich.table import Table

from modfast import report
from modfast.files import write_json
from modfast.report.statistics import mean_interval, paired_interval


def text_of(table: Table) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def row_of(table: Table, heading: str) -> str:
    (row,) = [line for line in text_of(table).splitlines() if heading in line]
    return row


class TestSummarize:
    def test_numbers(self) -> None:
        summary = report.summarize(PLAIN, MODULAR)
        accuracies = [0.95, 0.96, 0.97]
        assert summary["plain"]["accuracies"] == accuracies
        mean, half_width = mean_interval(accuracies)
        assert (summary["plain"]["accuracy"], summary["plain"]["accuracy_interval"]) == (mean, half_width)
        mean, half_width = mean_interval([0.98, 0.99, 0.97])
        assert summary["modular"]["clusterability"]["fc2"] == mean
        assert summary["modular"]["clusterability_interval"]["fc2"] == half_width
        assert summary["modular"]["clusterabilities"]["fc2"] == [0.98, 0.99, 0.97]
        assert summary["plain"]["seconds_per_epoch"] == 2.5
        assert summary["modular"]["seconds_per_epoch"] == 3.5
        mean, half_width = paired_interval([0.94, 0.96, 0.97], accuracies)
        assert summary["difference"] == {"accuracy": mean, "accuracy_interval": half_width}

    def test_fits_json(self, tmp_path: Path) -> None:
        summary = report.summarize(PLAIN[:1], MODULAR[:1])
        write_json(tmp_path / "results.json", summary)
        assert json.loads((tmp_path / "results.json").read_text()) == summary
        assert summary["plain"]["accuracy_interval"] is None
        assert summary["plain"]["clusterability_interval"] == {"fc1": None, "fc2": None}

    def test_bad_arguments(self) -> None:
        with pytest.raises(
            ValueError, match=r"modular_runs must hold as many runs as plain_runs \(3\), got 2"
        ):
            report.summarize(PLAIN, MODULAR[:2])
        with pytest.raises(ValueError, match="plain_runs must hold at least one run"):
            report.summarize([], [])
        other = copy.deepcopy(MODULAR)
        other[1]["clusterability"] = {"fc9": 0.5}
        with pytest.raises(ValueError, match=r"modular_runs\[1\] must have the layers .*fc9"):
            report.summarize(PLAIN, other)
        other = copy.deepcopy(PLAIN)
        other[2]["history"] = []
        with pytest.raises(ValueError, match=r"plain_runs\[2\] must hold at least one epoch"):
            report.summarize(other, MODULAR)


class TestTables:
    def test_results(self) -> None:
        table = report.results_table({**report.summarize(PLAIN, MODULAR), "config": CONFIG})
        row = row_of(table, "Test accuracy (%)")
        # Half widths by hand: 4.3027 / sqrt(3) times the standard deviations 1, 1.5275 and 0.5774 points.
        for number in ("96.00 ± 2.48", "95.67 ± 3.79", "-0.33 ± 1.43"):
            assert number in row
        row = row_of(table, "Clusterability of fc2 *")
        for number in ("0.250 ± 0.025", "0.980 ± 0.025", "+0.730 ± 0.025"):
            assert number in row
        assert "0.250 ± 0.000" in row_of(table, "Clusterability of fc1")
        row = row_of(table, "Time per epoch (s)")
        assert "2.500" in row
        assert "3.500" in row
        assert row_of(table, "Epochs").split()[-4:-1] == ["│", "4", "│"]
        text = text_of(table)
        assert "data digits, clusters 4, enmeshment weight 0.7" in text
        assert "95% interval, 3 seeds" in text

    def test_results_of_one_seed(self) -> None:
        text = text_of(report.results_table(report.summarize(PLAIN[:1], MODULAR[:1])))
        assert "95.00" in text
        assert "-1.00" in text
        assert "±" not in text
        assert "one seed: no interval" in text

    def test_run(self) -> None:
        table = report.run_table({**MODULAR[0], "config": CONFIG})
        assert "94.00" in row_of(table, "Test accuracy (%)")
        assert "0.980" in row_of(table, "Clusterability of fc2 *")
        assert "0.5000" in row_of(table, "Cross-entropy in the last epoch (nats)")
        assert "3.500" in row_of(table, "Time per epoch (s)")
        assert "4" in row_of(table, "Epochs")

    @pytest.mark.parametrize("missing", ["plain", "modular", "difference"])
    def test_incomplete_results(self, missing: str) -> None:
        results = report.summarize(PLAIN, MODULAR)
        del results[missing]
        with pytest.raises(ValueError, match=f"results must hold '{missing}'"):
            report.results_table(results)

    def test_incomplete_run(self) -> None:
        with pytest.raises(ValueError, match="results must hold 'history'"):
            report.run_table({"accuracy": 0.5, "clusterability": {}})
        with pytest.raises(ValueError, match="results must hold at least one epoch"):
            report.run_table({"accuracy": 0.5, "clusterability": {}, "history": []})
