"""The table that ends ``modfast circuits --units``, and the numbers over seeds that it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from modfast.report.circuits.summary import over_seeds, pair_mean
from modfast.report.numbers import average, cell
from modfast.report.tables import setting_title
from modfast.results import from_lists

# Name, heading, factor, decimals, and whether it has a row for each space below it.
_ROWS = (
    ("size", "Units kept (%)", 100.0, 2, True),
    ("metric_before", "Log-likelihood, whole (nats)", 1.0, 4, False),
    ("metric_after", "Log-likelihood, circuit (nats)", 1.0, 4, False),
    ("overlap", "Overlap (%)", 100.0, 2, False),
    ("random_overlap", "  if random", 100.0, 2, False),
    ("largest_share", "Most in one cluster (%)", 100.0, 2, False),
    ("random_largest_share", "  if random", 100.0, 2, False),
)


def summarize_unit_circuits(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return every measure over seeds, of plain and modular models and of their difference.

    Args:
        runs: each with its ``kind`` and ``circuits``, which
            :func:`modfast.report.unit_circuits.measures.describe_unit_circuits` returned; both kinds for the
            same seeds in the same order.

    Returns:
        By name of measure and by kind: ``mean``, ``interval`` (half width of the 95% interval; None for a
        single seed) and ``values`` by seed; for plain and modular runs also ``difference``, seed by seed.
        Measures are means over circuits: ``size`` and, after a colon, that in each space, ``metric_before``,
        ``metric_after``, ``overlap`` of two circuits, ``random_overlap``, and ``largest_share``, the share of
        a circuit's units in the cluster that holds most of them.
    """
    kinds = list(dict.fromkeys(run["kind"] for run in runs))
    by_kind = {kind: [_means(run["circuits"]) for run in runs if run["kind"] == kind] for kind in kinds}
    names = dict.fromkeys(name for of_kind in by_kind.values() for means in of_kind for name in means)
    return {
        name: over_seeds({kind: [means.get(name) for means in of_kind] for kind, of_kind in by_kind.items()})
        for name in names
    }


def _means(circuits: Mapping[str, Any]) -> dict[str, float | None]:
    means = {name: average(circuits[name]) for name in ("size", "metric_before", "metric_after")}
    means |= {f"size:{space}": average(sizes) for space, sizes in circuits["sizes"].items()}
    means["overlap"] = pair_mean(from_lists(circuits["overlap"]))
    means["random_overlap"] = circuits["random_overlap"]
    if circuits["inside"] is not None:
        means["largest_share"] = average(circuits["largest_share"])
        means["random_largest_share"] = circuits["random_largest_share"]
    return means


def unit_circuits_table(results: Mapping[str, Any]) -> Table:
    """Return the table of plain, modular and their difference, or of a single run.

    Args:
        results: what ``unit-circuits.json`` holds.

    Returns:
        A table for ``rich.print``: a row for each measure, as mean ± half width of the 95% interval over
        seeds; the mean alone for a single seed.
    """
    config, summary = results["config"], results["summary"]
    kinds, count = config["kinds"], len(config["seeds"])
    meaning = (
        f"mean ± half width of the 95% interval, {count} seeds" if count > 1 else "one seed: no interval"
    )
    chosen = f"units by {config['method']}, {config['ablation']} ablation"
    table = Table(
        title=f"{setting_title(config)}, {chosen}",
        caption=f"{meaning}; mean over labels: {len(config['labels'])}",
    )
    table.add_column("Measure (unit)")
    for kind in kinds:
        table.add_column(kind.capitalize(), justify="right")
    if len(kinds) > 1:
        table.add_column("Modular - plain", justify="right")
    for name, heading, factor, decimals, by_space in _ROWS:
        rows = [(name, heading)]
        if by_space:
            rows += [(f"{name}:{space}", f"{heading}, {space}") for space in config["spaces"]]
        for measure, label in rows:
            if measure in summary:
                parts = [summary[measure][kind] for kind in kinds]
                cells = [_scaled(part, factor, decimals) for part in parts]
                if len(kinds) > 1:
                    cells.append(_scaled(summary[measure]["difference"], factor, decimals, "+"))
                table.add_row(label, *cells)
    return table


def _scaled(part: Mapping[str, Any], factor: float, decimals: int, sign: str = "") -> str:
    mean, interval = part["mean"], part["interval"]
    if mean is None:
        return "-"
    return cell(factor * mean, None if interval is None else factor * interval, decimals, sign)
