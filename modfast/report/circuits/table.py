"""The table that ends ``modfast circuits``, and the lines below it on the paper's claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from modfast.circuits.keys import layer_key
from modfast.report.numbers import cell
from modfast.report.tables import setting_title

from .claims import claim_versions
from .summary import BY_CLASS

# Measure, heading, factor, decimals, and which layers have rows of their own: "layers" adds all of them below
# the row over all layers, "regularised" shows these instead of it. The HTML report shows the other layers.
_OF_MODELS = (
    ("accuracy", "Test accuracy (%)", 100.0, 2, ""),
    ("test_loss", "Test loss (nats)", 1.0, 3, ""),
    ("clusterability", "Clusterability", 1.0, 3, "layers"),
    ("specialisation_only", "Specialised, on (points)", 100.0, 2, ""),
    ("specialisation_without", "Specialised, off (points)", 100.0, 2, ""),
    ("label_semanticity", "Top images' classes (%)", 100.0, 2, "regularised"),
    ("search_space_reduction", "Search-space reduction (%)", 100.0, 2, ""),
    ("live_rows", "Live rows (%)", 100.0, 2, "regularised"),
    ("live_columns", "Live columns (%)", 100.0, 2, "regularised"),
    ("live_clusters", "Live clusters", 1.0, 2, "regularised"),
)
_OF_CIRCUITS = (
    ("size", "Size (% of weights)", 100.0, 2, "layers"),
    ("accuracy_after", "Circuit's accuracy (%)", 100.0, 2, ""),
    ("overlap", "Overlap (%)", 100.0, 2, ""),
    ("random_overlap", "  if random", 100.0, 2, ""),
    ("inside", "Inside clusters (%)", 100.0, 2, "regularised"),
    ("random_inside", "  if random", 100.0, 2, "regularised"),
    ("information", "Information (bits)", 1.0, 3, "regularised"),
    ("random_information", "  if random", 1.0, 3, "regularised"),
)


def circuits_table(results: Mapping[str, Any]) -> Table:
    """Return the table of plain, modular and their difference, or of a single run.

    Args:
        results: ``config`` and ``summary``, as ``circuits.json`` holds them.

    Returns:
        A table for ``rich.print``: for the models and each criterion one row for each measure, as mean ± half
        width of the 95% interval over seeds (the mean alone for a single seed). Differences are taken seed by
        seed; below that of circuit sizes stands their relative difference, (modular - plain) / plain for each
        class, then the mean over classes. Specialisation is the mean over regularised layers; see
        :func:`modfast.report.circuits.summary.run_measures`.
    """
    config, summary = results["config"], results["summary"]
    kinds = config["kinds"]
    count = len(config["seeds"])
    meaning = (
        f"mean ± half width of the 95% interval, {count} seeds" if count > 1 else "one seed: no interval"
    )
    table = Table(
        title=setting_title(config), caption=f"{meaning}; mean over labels: {len(config['labels'])}"
    )
    table.add_column("Measure (unit)")
    for kind in kinds:
        table.add_column(kind.capitalize(), justify="right")
    if len(kinds) > 1:
        table.add_column("Modular - plain", justify="right")
    for group, measures in summary.items():
        if group != "model":
            table.add_section()
            table.add_row(f"Circuits by {group}", style="bold")
        for name, heading, factor, decimals, by in _OF_MODELS if group == "model" else _OF_CIRCUITS:
            for measure, label in _rows(name, heading, by, config, measures):
                parts = [measures[measure][kind] for kind in kinds]
                cells = [_scaled(part, factor, decimals) for part in parts]
                if len(kinds) > 1:
                    cells.append(_scaled(measures[measure]["difference"], factor, decimals, "+"))
                table.add_row(label, *cells)
                if measure == "size" and BY_CLASS in measures:
                    change = _scaled(measures[BY_CLASS]["mean_size_change"], 100.0, 2, "+")
                    table.add_row("  relative to plain (%)", *("" for _ in kinds), change)
    return table


def _rows(
    name: str, heading: str, by: str, config: Mapping[str, Any], measures: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return the names and headings of a measure's rows that were measured."""
    layers = config["layers"] if by == "layers" else config["regularised_layers"] if by else []
    rows = [] if by == "regularised" else [(name, heading)]
    rows += [(f"{name}:{layer_key(layer)}", f"{heading}, {layer}") for layer in layers]
    return [(measure, label) for measure, label in rows if measure in measures]


def _scaled(part: Mapping[str, Any], factor: float, decimals: int, sign: str = "") -> str:
    mean, interval = part["mean"], part["interval"]
    if mean is None:
        return "-"
    return cell(factor * mean, None if interval is None else factor * interval, decimals, sign)


def claim_lines(results: Mapping[str, Any]) -> list[str]:
    """Return a line for each claim, and one on how far to trust them together; none if there is no claim.

    Each line names the papers and versions that make the claim, and those that deny it.

    Example:
        >>> claim = {"claim": "smaller", "criterion": "loss", "statement": "Circuits are smaller"}
        >>> claim |= {"source": "arXiv 2409.15747", "denied_by": None}
        >>> claim |= {"verdict": "undecided", "text": "0.2 here, 0.1 there"}
        >>> for line in claim_lines({"claims": [claim], "note": "No claim can be decided."}):
        ...     print(line)
        undecided     Circuits are smaller (loss): 0.2 here, 0.1 there [claimed by arXiv 2409.15747]
        No claim can be decided.
    """
    if not results["claims"]:
        return []
    lines = []
    for claim in results["claims"]:
        criterion = "" if claim["criterion"] is None else f" ({claim['criterion']})"
        said = f"{claim['verdict']:12}  {claim['statement']}{criterion}: {claim['text']}"
        lines.append(f"{said} [{claim_versions(claim)}]")
    return [*lines, results["note"]]
