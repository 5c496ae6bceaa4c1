"""Pictures of numbers over steps, and over numbers of units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from torch import Tensor

from modfast.arguments import Flag, check
from modfast.circuits.units.faithfulness import FaithfulnessCurve
from modfast.report.numbers import visible
from modfast.report.pictures.runs import STYLES, draw_mean_line
from modfast.report.statistics import mean_interval

from .drawable import real_numbers
from .own_axes import LABEL, TITLE, axes_for, legend, style_lines

_GREY = "#666666"

# From this ratio of the largest to the smallest size on, a logarithmic axis shows small sizes apart.
_WIDE = 20

# A legend of longer names, or of more, would leave no room for the curves.
_LONGEST = 48


def curves(
    mapping: Mapping[str, Any],
    steps: Any = None,
    ax: Axes | None = None,
    *,
    ylabel: str | None = None,
    xlabel: str = "step",
    every_seed: bool = False,
) -> Axes:
    """Draw curves over steps: of each name the mean over seeds, with its 95 % confidence interval.

    The interval is that of the mean, by Student's t, at each step by itself: seeds are taken as independent
    and about normally distributed. With few seeds it is wide, as it must be.

    Args:
        mapping: the name of a curve to its numbers, ``(steps,)`` for one run or ``(seeds, steps)``: arrays,
            tensors or lists. Where a seed has NaN, the mean and interval are those of the others; where all
            have it, the line has a hole. The legend has the first 16 names, up to 48 characters of each.
        steps: ``(steps,)``, the place of each number on the axis; None counts from 1.
        ax: the axes to draw into; None makes a figure.
        ylabel: what the numbers are.
        xlabel: what the steps are.
        every_seed: draw each seed as a thin line in place of the interval. Choose it for two or three seeds,
            or where seeds differ in kind.

    Returns:
        The axes.

    Raises:
        ValueError: there is no curve, or no number; a curve is neither of these shapes or has another number
            of steps; a number or a step is infinite or beyond 1e300; ``every_seed`` is neither True nor
            False.
        TypeError: ``mapping`` is no mapping of names to real numbers; ``ax`` is no axes.

    Example:
        >>> import modfast.plot
        >>> losses = {"plain": [[3.0, 2.0, 1.5], [3.2, 2.2, 1.6]], "modular": [3.1, 2.2, 1.7]}
        >>> axes = modfast.plot.curves(losses, steps=[0, 100, 200], ylabel="loss")
        >>> [label.get_text() for label in axes.get_legend().get_texts()]
        ['plain (mean of 2, 95 % interval)', 'modular']
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"mapping must map names to numbers, got {type(mapping).__name__}")
    if not mapping:
        raise ValueError("mapping must hold at least one curve, got none")
    check("every_seed", every_seed, Flag())
    read = {name: _curve(name, numbers) for name, numbers in mapping.items()}
    count = next(iter(read.values())).shape[1]
    places = list(range(1, count + 1)) if steps is None else _steps(steps)
    for name, numbers in read.items():
        if numbers.shape[1] != len(places):
            raise ValueError(
                f"mapping[{name!r}] must have {len(places)} steps, as "
                f"{'the first curve' if steps is None else 'steps'}, got {numbers.shape[1]}"
            )
    axes = axes_for(ax)
    for position, (name, numbers) in enumerate(read.items()):
        # A name beyond the first four has a colour again, with other dashes.
        colour, marker, _ = STYLES[position % len(STYLES)]
        dashes = STYLES[(position + position // len(STYLES)) % len(STYLES)][2]
        means, half = _intervals(numbers)
        seeds, label = len(numbers), _in_legend(name)
        if seeds > 1:
            label += f" (mean of {seeds}{', thin: each' if every_seed else ', 95 % interval'})"
        if every_seed and seeds > 1:
            for seed in numbers.tolist():
                axes.plot(places, seed, color=colour, linewidth=0.6, alpha=0.6)
            half = [math.nan] * len(means)
        low = [mean - width for mean, width in zip(means, half, strict=True)]
        high = [mean + width for mean, width in zip(means, half, strict=True)]
        draw_mean_line(axes, places, means, low, high, (colour, marker, dashes), label)
    axes.set_xlabel(xlabel, fontsize=LABEL)
    if ylabel is not None:
        axes.set_ylabel(ylabel, fontsize=LABEL)
    style_lines(axes)
    legend(axes)
    return axes


def _in_legend(name: str) -> str:
    shown = visible(name)
    if len(shown) > _LONGEST:
        half = _LONGEST // 2
        shown = f"{shown[:half]}…{shown[-half + 1 :]}"
    # Matplotlib leaves out of a legend what begins with an underscore, and what is empty.
    return f" {shown}" if not shown or shown.startswith("_") else shown


def _curve(name: object, numbers: Any) -> Tensor:
    """Return one curve as float64, ``(seeds, steps)``."""
    if not isinstance(name, str):
        raise TypeError(f"mapping must have names as keys, got {name!r}")
    argument = f"mapping[{name!r}]"
    curve = real_numbers(argument, numbers)
    if curve.dim() not in (1, 2) or curve.numel() == 0:
        raise ValueError(f"{argument} must have shape (steps,) or (seeds, steps), got {tuple(curve.shape)}")
    if bool(curve.isinf().any()):
        raise ValueError(f"{argument} must have no infinite number, got one (NaN is left out)")
    return curve if curve.dim() == 2 else curve[None]


def _steps(steps: Any) -> list[float]:
    places = real_numbers("steps", steps)
    if places.dim() != 1 or not bool(places.isfinite().all()):
        raise ValueError(f"steps must be finite numbers of shape (steps,), got shape {tuple(places.shape)}")
    numbers: list[float] = places.tolist()
    return numbers


def _intervals(numbers: Tensor) -> tuple[list[float], list[float]]:
    """Return the mean over seeds and half its interval, for each step; NaN where there is none."""
    means, half = [], []
    for of_step in numbers.T.tolist():
        known = [number for number in of_step if not math.isnan(number)]
        mean, width = mean_interval(known) if known else (math.nan, None)
        means.append(mean)
        half.append(math.nan if width is None else width)
    return means, half


def faithfulness(curve: FaithfulnessCurve, ax: Axes | None = None) -> Axes:
    """Draw a metric over numbers of units: with the best units alone, and without them.

    A ranking of units is good if the line of the best units alone rises early, and that without them falls
    early. Bands reach from the least to the largest random ranking. The dotted lines are the metric of the
    whole model, and with all units ablated. Sizes that span a factor of 20 or more have a logarithmic axis.

    Args:
        curve: what :func:`modfast.faithfulness_curve` returned.
        ax: the axes to draw into; None makes a figure.

    Returns:
        The axes.

    Raises:
        TypeError: ``curve`` is no :class:`FaithfulnessCurve`, or ``ax`` no axes.

    Example:
        >>> import modfast.plot
        >>> import torch
        >>> metric, none = torch.tensor([0.0, 0.9, 1.0]).double(), torch.zeros(0, 3).double()
        >>> curve = modfast.FaithfulnessCurve(
        ...     torch.tensor([0, 1, 2]), metric, 1 - metric, none, none, 1.0, 0.0, 2, "zero", 10, 4, 0
        ... )
        >>> axes = modfast.plot.faithfulness(curve)
        >>> axes.get_title()
        'CPR 0.700, CMD 0.300'
    """
    if not isinstance(curve, FaithfulnessCurve):
        raise TypeError(f"curve must be a FaithfulnessCurve, got {type(curve).__name__}")
    axes = axes_for(ax)
    sizes = curve.sizes.tolist()
    parts = (
        ("the best units alone", curve.sufficiency, curve.random_sufficiency),
        ("without the best units", curve.necessity, curve.random_necessity),
    )
    for (name, own, random), style in zip(parts, STYLES, strict=False):
        edge = random if len(random) else own.new_full((1, len(sizes)), math.nan)
        low, high = edge.amin(0).tolist(), edge.amax(0).tolist()
        draw_mean_line(axes, sizes, own.tolist(), low, high, style, name)
        if len(random):
            thin: dict[str, Any] = {"color": style[0], "linewidth": 0.8, "linestyle": style[2], "alpha": 0.7}
            axes.plot(sizes, random.mean(0).tolist(), label=f"{name}, random", **thin)
    for value, name in ((curve.metric_before, "whole model"), (curve.metric_none, "all ablated")):
        axes.axhline(value, color=_GREY, linestyle=":", linewidth=1)
        # Within the axes, at the right edge, where curves have reached these values.
        axes.annotate(
            name, (1, value), xycoords=("axes fraction", "data"), xytext=(-3, 2),
            textcoords="offset points", ha="right", fontsize=7, color=_GREY,
        )  # fmt: skip
    if sizes[-1] >= _WIDE * max(next((size for size in sizes if size > 0), 1), 1):
        # Linear from 0 to the smallest size, so that no unit at all has a place.
        axes.set_xscale("symlog", linthresh=max(next(size for size in sizes if size > 0), 1), linscale=0.5)
        axes.set_xlim(left=-0.1 if sizes[0] == 0 else 0.8 * sizes[0])
        axes.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
    if not math.isnan(curve.cpr):
        axes.set_title(f"CPR {curve.cpr:.3f}, CMD {curve.cmd:.3f}", fontsize=TITLE)
    axes.set_xlabel(f"number of units, of {curve.num_asked} ({curve.ablation} ablation)", fontsize=LABEL)
    axes.set_ylabel("metric", fontsize=LABEL)
    style_lines(axes)
    legend(axes)
    return axes
