"""Means and intervals of a comparison over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .statistics import mean_interval, paired_interval


def summarize(
    plain_runs: Sequence[Mapping[str, Any]], modular_runs: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return means and 95% intervals over seeds, of plain and modular runs and of their difference.

    Args:
        plain_runs: One result for each seed: ``accuracy`` (a share), ``clusterability`` (layer name to
            share) and ``history`` (a list of epochs, each with its ``seconds``).
        modular_runs: The same for the modular model, for the same seeds in the same order.

    Returns:
        ``plain`` and ``modular``, each with ``accuracy``, ``accuracy_interval``, ``accuracies``,
        ``clusterability``, ``clusterability_interval``, ``clusterabilities`` (these three by layer) and
        ``seconds_per_epoch`` (mean over all epochs of all seeds); and ``difference``, modular minus plain
        seed by seed, with ``accuracy`` and ``accuracy_interval``. Intervals are half widths, None for
        a single seed.

    Raises:
        ValueError: No run, not as many plain runs as modular ones, runs that name different layers, or
            a run without epochs.

    Example:
        >>> run = {"accuracy": 0.75, "clusterability": {"fc2": 0.3}, "history": [{"seconds": 1.0}]}
        >>> better = {"accuracy": 0.875, "clusterability": {"fc2": 0.9}, "history": [{"seconds": 2.0}]}
        >>> summarize([run], [better])["difference"]
        {'accuracy': 0.125, 'accuracy_interval': None}
    """
    if len(plain_runs) != len(modular_runs):
        raise ValueError(
            f"modular_runs must hold as many runs as plain_runs ({len(plain_runs)}), got {len(modular_runs)}"
        )
    if not plain_runs:
        raise ValueError("plain_runs must hold at least one run, got none")
    layers = list(plain_runs[0]["clusterability"])
    plain = _summary("plain_runs", plain_runs, layers)
    modular = _summary("modular_runs", modular_runs, layers)
    accuracy, half_width = paired_interval(modular["accuracies"], plain["accuracies"])
    return {
        "plain": plain,
        "modular": modular,
        "difference": {"accuracy": accuracy, "accuracy_interval": half_width},
    }


def _summary(argument: str, runs: Sequence[Mapping[str, Any]], layers: Sequence[str]) -> dict[str, Any]:
    for position, run in enumerate(runs):
        if set(run["clusterability"]) != set(layers):
            raise ValueError(
                f"{argument}[{position}] must have the layers {list(layers)}, "
                f"got {list(run['clusterability'])}"
            )
        if not run["history"]:
            raise ValueError(f"{argument}[{position}] must hold at least one epoch in its history, got none")
    accuracies = [float(run["accuracy"]) for run in runs]
    accuracy, accuracy_interval = mean_interval(accuracies)
    clusterabilities = {layer: [float(run["clusterability"][layer]) for run in runs] for layer in layers}
    intervals = {layer: mean_interval(values) for layer, values in clusterabilities.items()}
    seconds = [float(record["seconds"]) for run in runs for record in run["history"]]
    return {
        "accuracy": accuracy,
        "accuracy_interval": accuracy_interval,
        "accuracies": accuracies,
        "clusterability": {layer: mean for layer, (mean, _) in intervals.items()},
        "clusterability_interval": {layer: half for layer, (_, half) in intervals.items()},
        "clusterabilities": clusterabilities,
        "seconds_per_epoch": mean_interval(seconds)[0],
    }
