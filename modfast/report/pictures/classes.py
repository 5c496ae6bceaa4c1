"""The picture of class accuracy: what each cluster of a layer does alone, and what is lost without it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from modfast.report.numbers import MARGIN, name_end

from .style import new_figure, save_figure
from .table import MOST_NUMBERED, draw_table, name_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray


def draw_class_accuracy(
    path: str | os.PathLike[str],
    classes: Sequence[str],
    full: Tensor,
    only: Tensor,
    without: Tensor,
    layer: str,
) -> None:
    """Draw how well each class is recognised with one cluster alone, and with one cluster off.

    Args:
        path: PNG file to write.
        classes: Names of the classes.
        full: (classes,) accuracy of the whole network, shares in [0, 1]; NaN where a class has no image.
        only: (k, classes) accuracy with cluster ``i`` alone.
        without: (k, classes) accuracy with cluster ``i`` off.
        layer: The layer whose clusters are switched.

    Frames mark where one cluster alone stays within 10 points of the whole network, and where the network
    without it loses more. Up to 20 classes have their percentages written into the cells.

    Raises:
        ValueError: ``classes`` is empty, a tensor's shape does not fit it, or a value is outside [0, 1].

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> target = Path(tempfile.mkdtemp()) / "classes.png"
        >>> alone = torch.tensor([[0.9, 0.0], [0.1, 0.8]])
        >>> draw_class_accuracy(target, ["cat", "dog"], torch.tensor([0.9, 0.8]), alone, 1 - alone, "fc2")
        >>> target.exists()
        True
    """
    count = len(classes)
    if count == 0:
        raise ValueError("classes must name at least one class, got none")
    if tuple(full.shape) != (count,):
        raise ValueError(f"full must have the shape ({count},), got {tuple(full.shape)}")
    if only.ndim != 2 or only.shape[0] == 0 or only.shape[1] != count:
        raise ValueError(f"only must have the shape (clusters, {count}), got {tuple(only.shape)}")
    if without.shape != only.shape:
        raise ValueError(f"without must have only's shape {tuple(only.shape)}, got {tuple(without.shape)}")
    for name, shares in (("full", full), ("only", only), ("without", without)):
        outside = shares[(shares < 0) | (shares > 1)]
        if outside.numel():
            raise ValueError(f"{name} must be in [0, 1], got {outside[0].item()}")

    clusters = only.shape[0]
    figure = new_figure(2.6 + 2 * max(0.32 * (clusters + 1), 1.2))
    panels = figure.subplots(2, 1)
    whole = full.detach().cpu().to(torch.float64).numpy()[None]
    end = name_end(layer)
    titles = (
        f"One cluster of {end} alone (framed: at most {MARGIN:.0f} points below the whole network)",
        f"One cluster of {end} off (framed: more than {MARGIN:.0f} points below the whole network)",
    )
    for axes, shares, title, word in zip(panels, (only, without), titles, ("only", "without"), strict=True):
        table = 100.0 * np.concatenate([whole, shares.detach().cpu().to(torch.float64).numpy()])
        image = draw_table(axes, table, 100.0, "{:.0f}")
        loss = table[0] - table[1:]
        _frame(axes, loss <= MARGIN if word == "only" else loss > MARGIN)
        names = ["whole network", *(f"{word} cluster {cluster}" for cluster in range(clusters))]
        axes.set_yticks(range(clusters + 1), names, fontsize=9)
        # The line sets the whole network apart from the rows with clusters switched.
        axes.axhline(0.5, color="white", linewidth=3)
        name_columns(axes, classes)
        axes.set_title(title, fontsize=10)
        axes.tick_params(length=0)
    panels[1].set_xlabel("class", fontsize=9)
    bar = figure.colorbar(image, ax=list(panels), pad=0.01)
    bar.set_label("test accuracy on the class (%)", fontsize=9)
    save_figure(figure, path)


def _frame(axes: Axes, marked: NDArray[np.bool_]) -> None:
    """Frame the marked cells, given without the first row, which is the whole network's."""
    width = 1.8 if marked.shape[1] <= MOST_NUMBERED else 0.8
    for row, column in np.argwhere(marked):
        corner = (float(column) - 0.46, float(row) + 0.56)
        axes.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, edgecolor="#D55E00", linewidth=width))
