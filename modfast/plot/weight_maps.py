"""The picture of weights, sorted by cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from modfast.arguments import NoneOr, Number, check
from modfast.arrays import as_tensor
from modfast.energy.functional import clusterability
from modfast.energy.loss import EnmeshmentLoss
from modfast.layers.layer import find_layer, find_layers
from modfast.layers.names import known_name
from modfast.partition import Partition
from modfast.report.numbers import name_end
from modfast.report.pictures.weights import Panel, cells_of, colour_top, draw_panel, magnitude, weight_label

from .drawable import LARGEST, real_numbers
from .own_axes import LABEL, MOST_AXES, TICK, TITLE, axes_for, new_grid

# The squares of larger ones overflow, in the norm of a kernel as in the clusterability.
_LARGEST_WEIGHT = 1e150

_OF_KERNELS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def weights(
    loss_or_weight: Any,
    partition: Partition | Mapping[str, Partition] | int | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    *,
    layer: str | None = None,
    top: float | None = None,
) -> Any:
    r"""Draw the magnitudes of a weight, rows and columns sorted by cluster, with a line between clusters.

    If the clusters are modules, the blocks on the diagonal are bright and the rest is dark. The title gives
    the clusterability, the share of squared weight inside the blocks.

    A weight of more than 128 rows or 256 columns is drawn in groups of neighbours within a cluster, each as
    its largest magnitude, so that no large weight is lost; the axis says how many form a group. A
    convolution's kernel is drawn as its Euclidean norm. The brightest colour is the 99.5th percentile of what
    is drawn; an arrow on the colour bar says that larger weights exist. NaN and infinity are grey.

    Args:
        loss_or_weight: a weight ``(out, in, *kernel)``, as a tensor, parameter or array of any real dtype.
            Or a module with weights: then the weight is what the layer's forward pass multiplies by, also
            where it is computed, adapted (LoRA) or stored as ``(in, out)``. Or an :class:`EnmeshmentLoss`,
            which has its own partitions.
        partition: the clusters of a weight; None draws it as it is stored. For a module also what
            :class:`EnmeshmentLoss` takes, a mapping from names to partitions or a number of clusters: then
            all their layers are drawn.
        ax: the axes to draw into, or an array or sequence of as many as there are layers. None makes them.
        layer: the name of one layer of a loss or a module. None draws all layers of a loss.
        top: the magnitude of the brightest colour. Set it to give several pictures one scale, such as those
            before and after training.

    Returns:
        The axes; a 1-D array of them if the loss has several layers and ``layer`` is None.

    Raises:
        ValueError: a partition does not fit; the weight is empty, has fewer than two dimensions or a finite
            number beyond 1e150; there is no such layer, or there are several and none was named; there are
            more than 100; ``ax`` has another number of axes.
        TypeError: ``loss_or_weight`` is none of these; a partition was given along with a loss; ``ax`` is no
            axes; a tensor is a ``DTensor``, sparse or quantised.

    Example:
        >>> import modfast.plot
        >>> import torch
        >>> weight = torch.block_diag(torch.ones(3, 4), torch.ones(3, 4))
        >>> axes = modfast.plot.weights(weight, modfast.Partition.blocks((6, 8), 2))
        >>> axes.get_title()
        'weight (6 x 8)\nclusterability 1.000'
    """
    check("top", top, NoneOr(Number(0, LARGEST)))
    found = _weights(loss_or_weight, partition, layer)
    several = len(found) > 1
    if len(found) > MOST_AXES:
        raise ValueError(
            f"layer must name one of the {len(found)} layers: a picture shows at most {MOST_AXES}"
        )
    if ax is None:
        grid: Sequence[Any] = [None] * len(found)
    elif isinstance(ax, Axes) and not several:
        grid = [ax]
    elif isinstance(ax, Axes):
        raise ValueError(f"layer must name one of {', '.join(found)}, or ax be {len(found)} axes, got one")
    else:
        grid = list(np.ravel(np.asarray(ax, dtype=object)))
        if len(grid) != len(found):
            raise ValueError(f"ax must be {len(found)} axes, one for each layer, got {len(grid)}")
    panels = {name: _panel(name, *each, short=several) for name, each in found.items()}
    if several and ax is None:
        grid = list(new_grid(len(found), (3.4, 3.0)))
    drawn = np.empty(len(found), dtype=object)
    # All axes are checked before the first is drawn into.
    own = [axes_for(each) for each in grid]
    for index, (axes, panel) in enumerate(zip(own, panels.values(), strict=True)):
        drawn[index] = _draw(axes, panel, top)
    return drawn if several else drawn[0]


def _draw(axes: Axes, panel: Panel, top: float | None) -> Axes:
    cells = cells_of(panel)
    brightest = colour_top(cells) if top is None else float(top)
    mesh = draw_panel(axes, panel, cells, brightest)
    axes.title.set_fontsize(TITLE)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(LABEL)
    beyond = bool((cells.values[np.isfinite(cells.values)] > brightest).any())
    bar = axes.figure.colorbar(mesh, ax=axes, extend="max" if beyond else "neither", pad=0.02)
    bar.set_label(weight_label(panel), fontsize=LABEL)
    bar.ax.tick_params(labelsize=TICK)
    return axes


def _weights(given: Any, partition: Any, layer: str | None) -> dict[str, tuple[Tensor, Partition | None]]:
    """Return the weights and their partitions, by name."""
    if isinstance(given, nn.Module) and not isinstance(given, EnmeshmentLoss):
        if partition is not None and not isinstance(partition, Partition):
            given, partition = EnmeshmentLoss(given, partition), None
        else:
            return _of_module(given, partition, layer)
    if isinstance(given, EnmeshmentLoss):
        if partition is not None:
            raise TypeError(
                "partition must be None with a loss, which has its own, got "
                f"{type(partition).__name__}: pass the model instead of the loss"
            )
        found, partitions = given.weights(), given.partitions
        if layer is not None:
            name = known_name(found, layer)
            if name is None:
                raise ValueError(f"layer must be one of the loss's ({', '.join(found)}), got {layer!r}")
            return {name: (found[name], partitions[name])}
        return {name: (weight, partitions[name]) for name, weight in found.items()}
    if layer is not None:
        raise TypeError(
            f"layer must be None for a weight, got {layer!r}: it names layers of a loss or module"
        )
    if partition is not None and not isinstance(partition, Partition):
        raise TypeError(f"partition must be a Partition or None, got {type(partition).__name__}")
    if isinstance(given, (Mapping, str)) or callable(given):
        raise TypeError(
            "loss_or_weight must be a weight, a module or an EnmeshmentLoss, got " + type(given).__name__
        )
    return {"weight": (as_tensor("loss_or_weight", given), partition)}


def _of_module(
    module: nn.Module, partition: Partition | None, layer: str | None
) -> dict[str, tuple[Tensor, Partition | None]]:
    if layer is None:
        names = [each.name for each in find_layers(module)]
        if len(names) != 1:
            raise ValueError(
                f"layer must name one of the module's {len(names)} layers: {', '.join(names) or 'none'}"
            )
        layer = names[0]
    found = find_layer(module, layer, "layer")
    return {found.name: (found.weight().detach(), partition)}


def _panel(name: str, weight: Tensor, partition: Partition | None, *, short: bool) -> Panel:
    argument = "loss_or_weight" if name == "weight" else f"layer {name!r}"
    weight = as_tensor(argument, weight)
    real_numbers(argument, weight, _LARGEST_WEIGHT)
    if weight.dim() < 2 or weight.numel() == 0:
        raise ValueError(
            f"{argument} must have the shape (out, in, *kernel) and hold something, got {tuple(weight.shape)}"
        )
    values = magnitude(argument, weight, partition, finite=False)
    shape = " x ".join(map(str, weight.shape))
    title = f"{name_end(name or 'weight', 20 if short else 30)} ({shape})"
    if partition is not None:
        own = weight if weight.dtype in _OF_KERNELS else weight.double()
        title += f"\nclusterability {float(clusterability(own, partition.to(own.device))):.3f}"
    return Panel(values, partition, title, "neuron" if weight.dim() == 2 else "channel")
