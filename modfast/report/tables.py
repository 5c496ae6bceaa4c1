"""The results of a run, a comparison or a clustering, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from .numbers import cell, is_unclear, shuffled_gap
from .statistics import mean_interval, paired_interval


def _layer_heading(layer: str, regularised: Sequence[str]) -> str:
    # Short enough that a table of four columns fits the 80 characters of a plain terminal.
    return f"Clusterability of {layer}{' *' if layer in regularised else ''}"


def _caption(meaning: str, regularised: Sequence[str]) -> str | None:
    return "; ".join(part for part in (meaning, "* regularised" if regularised else "") if part) or None


def results_table(results: Mapping[str, Any]) -> Table:
    """Return the table that ends ``modfast reproduce``: plain, modular and their difference.

    Args:
        results: As for :func:`modfast.report.pictures.runs.draw_comparison`. ``config`` is optional; the
            table shows its ``data``, ``seeds``, ``epochs``, ``enmeshment_weight``, ``num_clusters`` and
            ``regularised_layers`` if they are there.

    Returns:
        A table for ``rich.print``: one row for each measure with its unit; each number is a mean ± the half
        width of the 95% interval (the mean alone for a single seed). Differences are taken seed by seed.

    Raises:
        ValueError: ``results`` lacks ``plain``, ``modular`` or ``difference``.

    Example:
        >>> run = {"accuracy": 0.75, "clusterability": {"fc2": 0.3}, "history": [{"seconds": 1.0}]}
        >>> from modfast.report import summarize
        >>> results_table(summarize([run], [run])).row_count
        3
    """
    for key in ("plain", "modular", "difference"):
        if key not in results:
            raise ValueError(f"results must hold {key!r}, got {sorted(results)}")
    plain, modular, difference = results["plain"], results["modular"], results["difference"]
    config = results.get("config", {})
    regularised = config.get("regularised_layers", ())

    count = len(plain["accuracies"])
    meaning = (
        f"mean ± half width of the 95% interval, {count} seeds" if count > 1 else "one seed: no interval"
    )
    table = Table(title=setting_title(config), caption=_caption(meaning, regularised))
    table.add_column("Measure (unit)")
    for heading in ("Plain", "Modular", "Modular - plain"):
        table.add_column(heading, justify="right")

    def percent(part: Mapping[str, Any], sign: str = "") -> str:
        half = part["accuracy_interval"]
        return cell(100.0 * part["accuracy"], None if half is None else 100.0 * half, 2, sign)

    table.add_row("Test accuracy (%)", percent(plain), percent(modular), percent(difference, "+"))
    for layer in plain["clusterability"]:
        means = (
            cell(part["clusterability"][layer], part["clusterability_interval"][layer], 3)
            for part in (plain, modular)
        )
        change = paired_interval(modular["clusterabilities"][layer], plain["clusterabilities"][layer])
        table.add_row(_layer_heading(layer, regularised), *means, cell(*change, 3, "+"))
    seconds = (cell(part["seconds_per_epoch"], None, 3) for part in (plain, modular))
    table.add_row("Time per epoch (s)", *seconds, "")
    epochs = config.get("epochs")
    if isinstance(epochs, Mapping):
        table.add_row("Epochs", str(epochs["plain"]), str(epochs["modular"]), "")
    return table


def run_table(results: Mapping[str, Any]) -> Table:
    """Return the table that ends ``modfast train``: one run's last numbers.

    Args:
        results: ``accuracy`` (a share), ``clusterability`` (layer name to share), ``history`` (a list of
            epoch records with ``cross_entropy`` and ``seconds``) and optionally ``config``.

    Returns:
        A table for ``rich.print``: one row for each measure with its unit.

    Raises:
        ValueError: ``results`` lacks one of the three, or its history is empty.

    Example:
        >>> history = [{"epoch": 1, "cross_entropy": 0.25, "seconds": 1.5}]
        >>> run = {"accuracy": 0.75, "clusterability": {"fc2": 0.3}, "history": history}
        >>> run_table(run).row_count
        5
    """
    for key in ("accuracy", "clusterability", "history"):
        if key not in results:
            raise ValueError(f"results must hold {key!r}, got {sorted(results)}")
    history = results["history"]
    if not history:
        raise ValueError("results must hold at least one epoch in its history, got none")
    config = results.get("config", {})
    regularised = config.get("regularised_layers", ())
    table = Table(title=setting_title(config), caption=_caption("", regularised))
    table.add_column("Measure (unit)")
    table.add_column("Value", justify="right")
    table.add_row("Test accuracy (%)", cell(100.0 * results["accuracy"], None, 2))
    for layer, share in results["clusterability"].items():
        table.add_row(_layer_heading(layer, regularised), cell(share, None, 3))
    table.add_row("Cross-entropy in the last epoch (nats)", cell(history[-1]["cross_entropy"], None, 4))
    seconds = mean_interval([record["seconds"] for record in history])[0]
    table.add_row("Time per epoch (s)", cell(seconds, None, 3))
    table.add_row("Epochs", str(len(history)))
    return table


MOST_ROWS = 100


def cluster_table(results: Mapping[str, Any]) -> Table:
    """Return the table that ends ``modfast cluster``: all layers and numbers of clusters, the chosen marked.

    Args:
        results: ``clustering``, layer name to what :func:`modfast.experiment.eigengap.cluster_layer`
            records, and ``finished``.

    Returns:
        A table for ``rich.print``; only the rows of the chosen numbers if there are more than 100.

    Example:
        >>> chance = {"clusterability": 0.5, "normalized_cut": 1.0}
        >>> measures = {"num_clusters": 2, "clusterability": 0.9, "normalized_cut": 0.2, "by_chance": chance}
        >>> record = {"chosen": 2, "clusters": [{**measures, "gap": 0.6, "converged": True}]}
        >>> shuffled = {"clusterability": 0.6, "normalized_cut": 0.9, "singular_values": [1.0, 0.3, 0.2]}
        >>> shuffled |= {"largest_gaps": [0.1]}
        >>> record |= {"singular_values": [1.0, 0.8, 0.2], "shuffled": shuffled}
        >>> cluster_table({"clustering": {"fc2": record}, "finished": True}).row_count
        2
    """
    records = {name: record for name, record in results["clustering"].items() if record["chosen"] is not None}
    shortened = sum(len(record["clusters"]) for record in records.values()) > MOST_ROWS
    notes = ["* chosen: the largest gap s_k - s_(k+1) of singular values"]
    table = Table()
    table.add_column("Layer", overflow="fold")
    for heading in ("k", "Clusterability\n(by chance)", "Normalised cut\n(by chance)", "s_k", "Gap"):
        table.add_column(heading, justify="right")
    unclear = unconverged = False
    for name, record in records.items():
        largest = shuffled_gap(record)
        shown = [
            clustering
            for clustering in record["clusters"]
            if not shortened or clustering["num_clusters"] == record["chosen"]
        ]
        for clustering in shown:
            is_chosen, gap, mark = clustering["num_clusters"] == record["chosen"], clustering["gap"], "  "
            if is_chosen:
                mark = " ?" if is_unclear(gap, largest) else " *"
                unclear = unclear or is_unclear(gap, largest)
            unconverged = unconverged or not clustering["converged"]
            label = name if clustering is shown[0] else ""
            mark = mark if clustering["converged"] else f"!{mark}"
            text = "-" if gap is None else f"{gap:.3f}"
            values = record["singular_values"]
            table.add_row(*_cluster_cells(label, clustering, clustering, values, mark, text))
            if is_chosen:
                values = record["shuffled"]["singular_values"]
                text = "-" if largest is None else f"<= {largest:.3f}"
                cells = _cluster_cells("  shuffled", clustering, record["shuffled"], values, "  ", text)
                table.add_row(*cells)
        table.add_section()
    shuffles = max((len(record["shuffled"]["largest_gaps"]) for record in records.values()), default=0)
    notes.append(
        f"shuffled: found in the same weights in a random order; the largest gap of {shuffles} such orders"
    )
    if unclear:
        notes.append("? chosen, but its gap is no larger than that of shuffled weights")
    if unconverged:
        notes.append("! the singular vectors have not converged")
    notes.append("by chance: expected of weights without structure in clusters of the same sizes")
    if shortened:
        notes.append("the other numbers of clusters are in results.json")
    if not results["finished"]:
        notes.append("not all layers are finished: --resume continues")
    table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def _cluster_cells(
    label: str,
    clustering: Mapping[str, Any],
    measured: Mapping[str, float],
    singular_values: Sequence[float],
    mark: str,
    gap: str,
) -> list[str]:
    k, chance = clustering["num_clusters"], clustering["by_chance"]
    names = ("clusterability", "normalized_cut")
    measures = [f"{measured[name]:.3f} ({chance[name]:.3f})" for name in names]
    value = f"{singular_values[k - 1]:.3f}" if k <= len(singular_values) else "-"
    return [label, f"{k}{mark}", *measures, value, gap]


def setting_title(config: Mapping[str, Any]) -> str | None:
    """Return the few settings without which the numbers mean little; None if none is known."""
    names = {"data": "data", "num_clusters": "clusters", "enmeshment_weight": "enmeshment weight"}
    known = [f"{name} {config[key]}" for key, name in names.items() if config.get(key) is not None]
    return ", ".join(known) or None
