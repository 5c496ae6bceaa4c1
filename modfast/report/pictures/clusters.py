"""Pictures of a clustering: its measures over the number of clusters, and the weights sorted by cluster.

The layers of a large network are spread over several pictures, ``name.png``, ``name_2.png`` and so on.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeAlias

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from modfast.energy.functional import clusterability
from modfast.partition import Partition
from modfast.report.numbers import name_end, shuffled_gap

from .spectrum import CHANCE, CHOSEN, FOUND, SHUFFLED, draw_spectrum
from .style import new_figure, save_figure
from .weights import Panel, draw_pairs, magnitude

# Layers in one picture: with more it would be taller than a screen shows without shrinking the text.
MOST_CURVES = 8
MOST_MATRICES = 5

Drawing: TypeAlias = Callable[[str | os.PathLike[str]], None]
"""A function that draws a picture into the file whose path it is given."""


class _Page(NamedTuple):
    """One of the pictures that many layers are spread over."""

    layers: Sequence[str]
    heading: str | None


def _pages(name: str, layers: Sequence[str], most: int) -> dict[str, _Page]:
    """Return the pages by file name."""
    path = PurePath(name)
    pages = {}
    for first in range(0, len(layers), most):
        number = first // most + 1
        shown = layers[first : first + most]
        heading = f"layers {first + 1} to {first + len(shown)} of {len(layers)}"
        page = name if number == 1 else f"{path.stem}_{number}{path.suffix}"
        pages[page] = _Page(shown, heading if len(layers) > most else None)
    return pages


def picture_names(layers: Sequence[str], clusterability: str, matrices: str) -> list[str]:
    """Return the names of all pictures of these layers.

    Example:
        >>> picture_names([f"fc{index}" for index in range(7)], "c.png", "m.png")
        ['c.png', 'm.png', 'm_2.png']
    """
    return [*_pages(clusterability, layers, MOST_CURVES), *_pages(matrices, layers, MOST_MATRICES)]


def draw_clusterability(path: str | os.PathLike[str], records: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """Draw clusterability, normalised cut and singular values, one row of panels for each layer.

    Args:
        path: PNG file to write; more than 8 layers continue in further files beside it, ``name_2.png`` and so
            on, which are replaced if they exist.
        records: layer name to what :func:`modfast.experiment.eigengap.cluster_layer` records, with a chosen
            number.

    Returns:
        The files.

    Raises:
        ValueError: there is no layer.

    Example:
        >>> import tempfile
        >>> measures = {"clusterability": 0.9, "normalized_cut": 0.2, "num_clusters": 2, "gap": 0.6}
        >>> chance = {"clusterability": 0.5, "normalized_cut": 1.0}
        >>> record = {"shape": [8, 8], "chosen": 2, "clusters": [{**measures, "by_chance": chance}]}
        >>> shuffled = {"clusterability": 0.6, "normalized_cut": 0.9, "singular_values": [1.0, 0.3, 0.2]}
        >>> shuffled |= {"largest_gaps": [0.1]}
        >>> record |= {"singular_values": [1.0, 0.8, 0.2], "shuffled": shuffled}
        >>> [made.name for made in draw_clusterability(Path(tempfile.mkdtemp()) / "c.png", {"fc": record})]
        ['c.png']
    """
    path = Path(path)
    pictures = clusterability_pictures(path.name, records)
    for name, draw in pictures.items():
        draw(path.with_name(name))
    return [path.with_name(name) for name in pictures]


def clusterability_pictures(name: str, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Drawing]:
    """Return what :func:`draw_clusterability` draws, as functions by file name.

    Args:
        name: the name of the first file.
        records: as there.

    Raises:
        ValueError: as there.
    """
    if not records:
        raise ValueError("records must hold at least one layer, got none")
    return {
        page: functools.partial(_draw_clusterability, records, shown)
        for page, shown in _pages(name, list(records), MOST_CURVES).items()
    }


def _draw_clusterability(
    records: Mapping[str, Mapping[str, Any]], page: _Page, path: str | os.PathLike[str]
) -> None:
    names = page.layers
    figure = new_figure(2.25 * len(names) + 0.9)
    rows = figure.subplots(len(names), 3, squeeze=False)
    for name, axes in zip(names, rows, strict=True):
        _draw_measure(axes[0], records[name], "clusterability")
        _draw_measure(axes[1], records[name], "normalized_cut")
        _draw_singular_values(axes[2], records[name])
        shape = " x ".join(str(size) for size in records[name]["shape"])
        axes[0].set_title(f"{name_end(name, 28)} ({shape})\nclusterability", fontsize=9)
        axes[1].set_title("normalised cut", fontsize=9)
        axes[2].set_title(gap_text(records[name]), fontsize=9)
    for axes in rows.flat:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes, label in zip(rows[-1], ("number of clusters k",) * 2 + ("singular value number",), strict=True):
        axes.set_xlabel(label, fontsize=9)
    handles, labels = [], []
    for axes in rows[0][[0, 2]]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.append(handle)
            labels.append(label)
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8, title=page.heading)
    save_figure(figure, path)


def gap_text(record: Mapping[str, Any]) -> str:
    """Return the chosen number of clusters and its gap, in a few words."""
    shuffled = shuffled_gap(record)
    gaps = {clustering["num_clusters"]: clustering["gap"] for clustering in record["clusters"]}
    gap = gaps[record["chosen"]]
    if gap is None or shuffled is None:
        return f"singular values (k = {record['chosen']}: no gap to show)"
    return f"singular values, gap {gap:.3f} at k = {record['chosen']}\n(shuffled: at most {shuffled:.3f})"


def _draw_measure(axes: Axes, record: Mapping[str, Any], measure: str) -> None:
    clusterings = record["clusters"]
    counts = [clustering["num_clusters"] for clustering in clusterings]
    values = [clustering[measure] for clustering in clusterings]
    axes.plot(counts, values, color=FOUND, marker="o", markersize=3, label="this layer")
    chance = [clustering["by_chance"][measure] for clustering in clusterings]
    label = "expected without structure, same cluster sizes"
    axes.plot(counts, chance, color=CHANCE, linestyle="--", marker="x", markersize=3, label=label)
    axes.axvline(record["chosen"], color=CHOSEN, linewidth=1.2, label="chosen k (largest gap)")
    shuffled = record["shuffled"][measure]
    axes.plot([record["chosen"]], [shuffled], **SHUFFLED, label="found in the same weights, shuffled")
    if measure == "clusterability":
        equal = [1 / k for k in counts]
        axes.plot(counts, equal, color=CHANCE, linestyle=":", linewidth=1, label="1/k")
        axes.set_ylim(0.0, 1.04)
    else:
        axes.set_ylim(bottom=0.0)


def _draw_singular_values(axes: Axes, record: Mapping[str, Any]) -> None:
    values, shuffled = record["singular_values"], record["shuffled"]["singular_values"]
    first = min(record["clusters"][0]["num_clusters"], 2, len(values))
    draw_spectrum(axes, values, [shuffled], record["chosen"], first=first, gap_label="the gap")
    axes.set_ylim(0.0, 1.08 * max(*values[first - 1 :], *shuffled[first - 1 :]))


def draw_matrices(
    path: str | os.PathLike[str], weights: Mapping[str, Tensor], partitions: Mapping[str, Partition]
) -> list[Path]:
    """Draw each layer's |weight| as it is stored, and sorted by cluster with lines between the clusters.

    Args:
        path: PNG file to write; more than 5 layers continue in further files beside it, as for
            :func:`draw_clusterability`.
        weights: layer name to weight, (out, in, *kernel).
        partitions: layer name to the partition of that weight.

    Returns:
        The files.

    Raises:
        ValueError: there is no layer, or a weight does not fit its partition or is not finite.

    Example:
        >>> import tempfile
        >>> import torch
        >>> path = Path(tempfile.mkdtemp()) / "m.png"
        >>> weight, partition = torch.ones(8, 8), Partition.blocks((8, 8), 2)
        >>> [made.name for made in draw_matrices(path, {"fc": weight}, {"fc": partition})]
        ['m.png']
    """
    path = Path(path)
    pictures = matrices_pictures(path.name, weights, partitions)
    for name, draw in pictures.items():
        draw(path.with_name(name))
    return [path.with_name(name) for name in pictures]


def matrices_pictures(
    name: str, weights: Mapping[str, Tensor], partitions: Mapping[str, Partition]
) -> dict[str, Drawing]:
    """Return what :func:`draw_matrices` draws, as functions by file name.

    Args:
        name: the name of the first file.
        weights: as there.
        partitions: as there.

    Raises:
        ValueError: there is no layer.
    """
    if not partitions:
        raise ValueError("partitions must name at least one layer, got none")
    return {
        page: functools.partial(_draw_matrices, weights, partitions, shown)
        for page, shown in _pages(name, list(partitions), MOST_MATRICES).items()
    }


def _draw_matrices(
    weights: Mapping[str, Tensor],
    partitions: Mapping[str, Partition],
    page: _Page,
    path: str | os.PathLike[str],
) -> None:
    pairs = []
    for name in page.layers:
        weight, partition = weights[name], partitions[name]
        values = magnitude(f"weights[{name!r}]", weight, partition)
        unit = "neuron" if weight.ndim == 2 else "channel"
        shape = " x ".join(str(size) for size in weight.shape)
        title = f"{name_end(name)} ({shape})\n"
        plural = "s" if partition.num_clusters > 1 else ""
        share = float(clusterability(weight, partition))
        sorting = f"sorted into {partition.num_clusters} cluster{plural}, clusterability {share:.3f}"
        pairs.append(
            (
                Panel(values, None, title + "as stored", unit),
                Panel(values, partition, title + sorting, unit),
            )
        )
    draw_pairs(path, pairs, page.heading)
