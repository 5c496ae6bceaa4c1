"""The clusters of a whole network, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from .numbers import NOTHING, is_unclear


def shuffled_cuts(record: Mapping[str, Any], k: int) -> Sequence[float]:
    """Return the normalised cuts of ``k`` clusters in the shuffled networks."""
    return [shuffled["normalized_cuts"][str(k)] for shuffled in record["shuffled"].values()]


def z_score(record: Mapping[str, Any], clustering: Mapping[str, Any]) -> float | None:
    """Return how many standard deviations a cut lies from the mean of shuffled networks; None if unknown.

    Example:
        >>> shuffled = {str(i): {"normalized_cuts": {"2": cut}} for i, cut in enumerate([1.0, 2.0, 3.0])}
        >>> z_score({"shuffled": shuffled}, {"num_clusters": 2, "normalized_cut": 0.5})
        -1.5
    """
    cuts = shuffled_cuts(record, clustering["num_clusters"])
    if len(cuts) < 2 or stdev(cuts) == 0.0:
        return None
    cut: float = clustering["normalized_cut"]
    return (cut - mean(cuts)) / stdev(cuts)


def largest_shuffled_gap(record: Mapping[str, Any]) -> float | None:
    """Return the largest gap in any shuffled network, over all numbers of clusters that were tried."""
    gaps = [shuffled["largest_gap"] for shuffled in record["shuffled"].values()]
    return max((gap for gap in gaps if gap is not None), default=None)


def network_table(results: Mapping[str, Any]) -> Table:
    """Return the table that ends ``modfast cluster --network``: all numbers of clusters, the chosen marked.

    Args:
        results: ``network_clustering``, what :func:`modfast.experiment.network_clusters.cluster_network`
            records, and ``finished``.

    Returns:
        A table for ``rich.print``.

    Example:
        >>> clusters = [{"num_clusters": 2, "normalized_cut": 0.5, "gap": 0.4, "sizes": [20, 12]}]
        >>> shuffled = {"0": {"normalized_cuts": {"2": 0.9}, "largest_gap": 0.1}}
        >>> record = {"clusters": clusters, "shuffled": shuffled, "chosen": 2, "eigenvalues": [1.0, 0.8, 0.4]}
        >>> record |= {"units": 32, "layers": {}, "converged": True}
        >>> network_table({"network_clustering": record, "finished": True}).row_count
        1
    """
    record = results["network_clustering"]
    largest = largest_shuffled_gap(record)
    table = Table(title=f"{record['units']} units, {len(record['layers'])} weights")
    headings = ("k", "Normalised cut", "Shuffled\n(mean)", "z-score", "Eigenvalue k", "Gap")
    for heading in (*headings, "Units in a cluster"):
        table.add_column(heading, justify="right")
    unclear = False
    for clustering in record["clusters"]:
        k, gap = clustering["num_clusters"], clustering["gap"]
        mark = "  "
        if k == record["chosen"]:
            unclear = is_unclear(gap, largest)
            mark = " ?" if unclear else " *"
        cuts, score = shuffled_cuts(record, k), z_score(record, clustering)
        sizes = clustering["sizes"]
        table.add_row(
            f"{k}{mark}",
            f"{clustering['normalized_cut']:.4f}",
            f"{mean(cuts):.4f}" if cuts else NOTHING,
            NOTHING if score is None else f"{score:.1f}",
            f"{record['eigenvalues'][k - 1]:.4f}",
            NOTHING if gap is None else f"{gap:.4f}",
            f"{min(sizes)} to {max(sizes)}",
        )
    notes = ["* chosen: the largest gap between eigenvalues"]
    if unclear:
        notes.append("? chosen, but its gap is no larger than those of shuffled weights")
    if largest is not None:
        notes.append(f"the largest gap of {len(record['shuffled'])} shuffled networks: {largest:.4f}")
    notes.append("shuffled: the same weights, permuted within each matrix; z below -2: more separate")
    if not record["converged"]:
        notes.append("the eigenvectors have not converged")
    if not results["finished"]:
        notes.append("not finished: --resume continues")
    table.caption, table.caption_justify = "\n".join(notes), "left"
    return table
