"""The answer in five lines: what plain and modular models show, for those who read nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modfast.circuits.keys import layer_key
from modfast.report.numbers import average, cell

from .words import CRITERIA, describe

# The claims in the order of the paper's title, with what the line calls them.
_CLAIMS = (("smaller", "Smaller circuits", "size"), ("disjoint", "Less overlap of circuits", "overlap"))
_SPECIALISED = (("specialised_only", "alone"), ("specialised_without", "off"))


def answer_lines(results: Mapping[str, Any]) -> list[str]:
    """Return five lines on a comparison: the price, size, overlap, specialisation, and the clusters in use.

    Args:
        results: what ``circuits.json`` holds.

    Returns:
        The lines; none if there are no plain and modular models to compare.
    """
    if not results["claims"]:
        return []
    claims = {(claim["claim"], claim["criterion"]): claim for claim in results["claims"]}
    summary, config = results["summary"], results["config"]
    seeds = len(config["seeds"])
    accuracy = summary["model"]["accuracy"]
    change, interval = accuracy["difference"]["mean"], accuracy["difference"]["interval"]
    price = cell(100 * change, None if interval is None else 100 * interval, 1, "+")
    lines = [
        f"{config['data']}, {seeds} {'seed' if seeds == 1 else 'seeds'}: "
        f"{100 * accuracy['plain']['mean']:.1f} % of test images right in plain models, "
        f"{100 * accuracy['modular']['mean']:.1f} % in modular ones ({price} points)."
    ]
    for key, title, measure in _CLAIMS:
        parts = [
            _part(claims[key, criterion], CRITERIA[criterion].name, summary[criterion][measure], measure)
            for criterion in CRITERIA
            if (key, criterion) in claims
        ]
        lines.append(f"{title}: {'; '.join(parts)}.")
    parts = [
        _part(claims[key, None], f"one cluster {what}", summary["model"][measure], measure)
        for key, what in _SPECIALISED
        if (measure := f"specialisation_{'only' if what == 'alone' else 'without'}") in summary["model"]
    ]
    lines.append(f"Clusters specialised in classes: {'; '.join(parts)}.")
    lines.append(_in_use(summary["model"], config["regularised_layers"], config["num_clusters"]))
    return lines


def _part(claim: Mapping[str, Any], name: str, values: Mapping[str, Any], measure: str) -> str:
    shown = describe(measure)
    plain, modular = (values[kind]["mean"] for kind in ("plain", "modular"))
    if plain is None or modular is None:
        return f"{name} undecided (nothing to measure)"
    unit = shown.unit.partition(" ")[0]
    return f"{name} {claim['verdict']} ({shown.scale * plain:.3g} to {shown.scale * modular:.3g} {unit})"


def _in_use(measures: Mapping[str, Any], layers: Sequence[str], num_clusters: int | None) -> str:
    """Say how many clusters still carry weight: a clusterability of 1 may mean that only one is left."""
    kinds = ("plain", "modular")
    known = [layer for layer in layers if f"live_clusters:{layer_key(layer)}" in measures]
    means = {
        kind: average(measures[f"live_clusters:{layer_key(layer)}"][kind]["mean"] for layer in known)
        for kind in kinds
    }
    if any(mean is None for mean in means.values()):
        return "Clusters in use: not measured."
    of = "" if num_clusters is None else f" of {num_clusters}"
    told = f"{means['plain']:.1f} in plain models, {means['modular']:.1f} in modular ones{of}"
    return f"Clusters in use (effective number): {told}; 1 would be a collapse, not modularity."
