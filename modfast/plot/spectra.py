"""The picture that says how many clusters there are."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import nn

from modfast.arguments import Integer, check
from modfast.arrays import as_tensor
from modfast.network.units import Network
from modfast.report.pictures.spectrum import draw_spectrum
from modfast.spectral.eigengap import Eigengap
from modfast.spectral.eigengap import eigengap as find_eigengap

from .drawable import real_numbers
from .own_axes import LABEL, TITLE, axes_for, legend, style_lines


def eigengap(values_or_weight: Any, num_clusters: int | None = None, ax: Axes | None = None) -> Axes:
    r"""Draw singular values (or eigenvalues), those of shuffled weights, and the gap that gives the number.

    The orange band is the gap after the chosen number of clusters. The grey band is where the values of the
    same weights in random places lie, from the least to the largest shuffle: a gap says something if it is
    larger than theirs. The first value is 1 for any weights and is left out.

    Args:
        values_or_weight: an :class:`Eigengap`, which has been computed already; or a weight or a
            :class:`Network`, for which :func:`modfast.eigengap` computes it; or the values alone, 1-D,
            descending, at least 3: then there is nothing to compare with.
        num_clusters: the number to mark; None marks that of the largest gap.
        ax: the axes to draw into; None makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: there are fewer than 3 values, or they do not descend, or one is not finite or beyond
            1e300; ``num_clusters`` is not within the values; or what :func:`modfast.eigengap` raises.
        TypeError: ``ax`` is no axes; or what :func:`modfast.eigengap` raises.

    Example:
        >>> import modfast.plot
        >>> import torch
        >>> weight = torch.block_diag(*[torch.ones(5, 4)] * 3) + 0.1
        >>> axes = modfast.plot.eigengap(modfast.eigengap(weight, shuffles=5))
        >>> axes.get_title()
        'the largest gap, 0.769, is after 3 values\n5 shuffles: at most 0.107'
    """
    if isinstance(values_or_weight, nn.Module):
        raise TypeError(
            f"values_or_weight must be a weight or a Network, got a {type(values_or_weight).__name__}: give "
            "the weight of a layer, or read_network(model, example_inputs)"
        )
    found = _found(values_or_weight)
    values = found.values.tolist()
    if num_clusters is not None:
        check("num_clusters", num_clusters, Integer(1, len(values) - 1), f" for {len(values)} values")
    axes = axes_for(ax)
    chosen = found.num_clusters if num_clusters is None else int(num_clusters)
    count = len(found.shuffled_values)
    draw_spectrum(
        axes,
        values,
        found.shuffled_values.tolist(),
        chosen,
        # With one cluster marked, the gap is the one after the first value.
        first=min(chosen, 2),
        label="these weights",
        shuffled_label="shuffled once" if count == 1 else f"{count} shuffles, least to largest",
        gap_label=f"gap, k = {chosen}",
    )
    size = values[chosen - 1] - values[chosen]
    # Singular values are at most 1; a user's own values may be of any size.
    written = f"{size:.3f}" if size < 1e4 else f"{size:.3g}"
    title = f"{'the largest gap' if num_clusters is None else 'the gap'}, {written}, is after {chosen} values"
    if count:
        most = float(found.shuffled_gaps.max())
        title += f"\n{count} {'shuffle' if count == 1 else 'shuffles'}: at most {most:.3f}"
    axes.set_title(title, fontsize=TITLE)
    axes.set_xlabel("number of the value", fontsize=LABEL)
    axes.set_ylabel("value", fontsize=LABEL)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_lines(axes)
    legend(axes)
    return axes


def _found(given: Any) -> Eigengap:
    if isinstance(given, Eigengap):
        return given
    if isinstance(given, Network) or getattr(given, "ndim", 1) != 1:
        return find_eigengap(given)
    plain = as_tensor("values_or_weight", given)
    if plain.dim() != 1:
        return find_eigengap(plain)
    if plain.dtype == torch.bool:
        raise TypeError(f"values_or_weight must hold real numbers, got {plain.dtype}")
    values = real_numbers("values_or_weight", plain)
    # Values that rounding has changed by a little still descend.
    descending = bool((values.diff() <= 1e-6).all())
    if len(values) < 3 or not descending or not bool(torch.isfinite(values).all()):
        raise ValueError(
            "values_or_weight must be at least 3 finite values that descend, or a weight of at "
            f"least two dimensions, got {len(values)} values"
        )
    return Eigengap(values, values.new_zeros(0, len(values)))
