"""The answer in five lines: what plain and modular models show, for those who read nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modfast.circuits.keys import layer_key
from modfast.report.numbers import average, cell

from .claims import OF_CIRCUITS, OF_MODELS, values_by_seed
from .words import CRITERIA, describe

_CLAIMS = {claim.key: claim for claim in (*OF_CIRCUITS, *OF_MODELS)}

# What each line claims, in the order of the paper's title, and for each test of it the claim's key and its
# name; {} stands for the criterion.
_LINES = (
    ("Circuits are smaller", (("smaller", "by {}"),)),
    ("Circuits of two classes overlap less", (("disjoint", "by {}"),)),
    (
        "Clusters are more specialised in classes",
        (
            ("specialised_only", "one cluster alone"),
            ("specialised_without", "one cluster off"),
            ("more_informative", "information beyond random circuits, by {}"),
        ),
    ),
)


def answer_lines(results: Mapping[str, Any]) -> list[str]:
    """Return five lines on a comparison: the price, size, overlap, specialisation, and the clusters in use.

    A line on a claim of the paper states it, and says for each test of it the verdict of
    :func:`modfast.report.circuits.claims.paper_claims` and the means over seeds. Random circuits of the same
    sizes are told beside the overlap, since smaller circuits overlap less by chance alone.

    Args:
        results: what ``circuits.json`` holds.

    Returns:
        The lines; none if there are no plain and modular models to compare.

    Example:
        >>> answer_lines({"claims": []})
        []
    """
    if not results["claims"]:
        return []
    summary, config = results["summary"], results["config"]
    lines = [_price(summary["model"]["accuracy"], config["data"], len(config["seeds"]))]
    for title, tests in _LINES:
        parts = [
            _judged(test, claim, summary["model" if claim["criterion"] is None else claim["criterion"]])
            for key, test in tests
            for claim in results["claims"]
            if claim["claim"] == key
        ]
        lines.append(f"{title}: {'; '.join(parts)}.")
    lines.append(_in_use(summary["model"], config["regularised_layers"], config["num_clusters"]))
    return lines


def _price(accuracy: Mapping[str, Any], data: str, seeds: int) -> str:
    """Say what modular models cost in accuracy, and whether there are seeds enough for any verdict."""
    told = f"{seeds} seeds" if seeds > 1 else "1 seed, too few to decide a claim"
    change, interval = accuracy["difference"]["mean"], accuracy["difference"]["interval"]
    if change is None:
        return f"{data}, {told}: a model's accuracy is missing."
    plain, modular = (100 * accuracy[kind]["mean"] for kind in ("plain", "modular"))
    # What rounds to zero is no loss.
    rounded = round(100 * change, 1) + 0.0
    price = cell(rounded, None if interval is None else 100 * interval, 1, "+")
    return (
        f"{data}, {told}: plain models get {plain:.1f} % of the test images right, modular ones "
        f"{modular:.1f} % (difference {price} points)."
    )


def _judged(test: str, claim: Mapping[str, Any], measures: Mapping[str, Any]) -> str:
    """Return the verdict on a claim, with the means of plain and modular models."""
    tested = _CLAIMS[claim["claim"]]
    criterion = CRITERIA.get(claim["criterion"])
    name = f"{test.format(criterion.name if criterion else claim['criterion'])} {claim['verdict']}"
    told = _both(measures, tested.measure)
    if told is None:
        return f"{name} (no value in every seed)"
    shown = describe(tested.measure.partition(" - ")[0])
    by_chance = None
    # A claim on what exceeds random circuits has their part in it already.
    if tested.beside is not None and tested.beside not in tested.measure:
        by_chance = _both(measures, tested.beside)
    chance = "" if by_chance is None else f"; random circuits of equal size: {by_chance}"
    return f"{name} ({told} {shown.unit}{chance})"


def _both(measures: Mapping[str, Any], measure: str) -> str | None:
    """Return the means of both kinds of models; None if a seed lacks its value."""
    scale = describe(measure.partition(" - ")[0]).scale
    means = []
    for kind in ("plain", "modular"):
        values = values_by_seed(measures, measure, kind)
        mean = None if None in values else average(values)
        if mean is None:
            return None
        means.append(f"{kind} {scale * mean:.3g}")
    return ", ".join(means)


def _in_use(measures: Mapping[str, Any], layers: Sequence[str], num_clusters: int | None) -> str:
    """Say how many clusters still carry weight: a clusterability of 1 may mean that only one is left."""
    found = []
    for layer in layers:
        by_kind = measures.get(f"live_clusters:{layer_key(layer)}", {})
        both = [by_kind[kind]["mean"] for kind in ("plain", "modular") if kind in by_kind]
        # Only layers that both kinds of models have a mean of: others would make a difference of their own.
        if len(both) == 2 and None not in both:
            found.append(both)
    if not found:
        return "Clusters in use: not measured."
    plain, modular = (sum(means) / len(found) for means in zip(*found, strict=True))
    of = "" if num_clusters is None else f" of {num_clusters}"
    which = "effective number"
    if len(layers) > 1:
        which += f", mean of {len(found)}{'' if len(found) == len(layers) else f' of {len(layers)}'} layers"
    told = f"{plain:.1f}{of} in plain models, {modular:.1f}{of} in modular ones"
    warning = "" if num_clusters == 1 else "; near 1 means collapsed into one cluster, not modular"
    return f"Clusters in use: {told} ({which}{warning})."
