"""Pictures of small matrices: classes by clusters, circuits by circuits, clusters by clusters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes

from modfast.arguments import Integer, NoneOr, OneOf, check
from modfast.circuits.measures import circuit_overlap
from modfast.circuits.units.unit_circuit import UnitCircuit
from modfast.layers.names import known_name
from modfast.network.units import Network
from modfast.partition import Labels
from modfast.report.pictures.table import MOST_NUMBERED, draw_table, name_columns, shortened

from .drawable import LARGEST, names_of, real_numbers
from .own_axes import LABEL, TICK, TITLE, axes_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modfast.circuit import Circuit


def matrix(
    values: Any,
    row_names: Sequence[object] | None = None,
    col_names: Sequence[object] | None = None,
    ax: Axes | None = None,
    *,
    label: str | None = None,
    bounds: tuple[float, float] | None = None,
    digits: int = 2,
) -> Axes:
    """Draw a small matrix in colours, with the numbers in its cells up to 20 rows and columns.

    Args:
        values: ``(rows, columns)``, a tensor, array or list of real numbers. NaN is grey and says "n/a".
        row_names: one for each row; None numbers them from 0. Names of more than 20 characters are cut.
        col_names: the same for columns.
        ax: the axes to draw into; None makes a figure.
        label: what the numbers are, for the colour bar.
        bounds: the values of the darkest and the brightest colour; None takes those of the matrix.
        digits: how many decimals the numbers have.

    Returns:
        The axes.

    Raises:
        ValueError: ``values`` is empty or no matrix, or holds infinity or a number beyond 1e300; there are
            more or fewer names than rows or columns; ``bounds`` are not two ascending numbers; ``digits`` is
            not from 0 to 9.
        TypeError: ``values`` holds no real numbers; names have no order; ``ax`` is no axes.

    Example:
        >>> import modfast.plot
        >>> axes = modfast.plot.matrix([[0.5, 1.0], [0.25, float("nan")]], ["a", "b"], label="share")
        >>> [text.get_text() for text in axes.texts]
        ['0.50', '1.00', '0.25', 'n/a']
    """
    table = _table("values", values)
    rows = names_of("row_names", row_names, table.shape[0])
    cols = names_of("col_names", col_names, table.shape[1])
    check("digits", digits, Integer(0, 9))
    known = table[np.isfinite(table)]
    if bounds is None:
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        high = high if high > low else low + 1.0
    else:
        low, high = _bounds(bounds)
    return _draw(table, rows, cols, ax, low, high, f"{{:.{digits}f}}", label)


def _bounds(bounds: Any) -> tuple[float, float]:
    wrong = ValueError(f"bounds must be two ascending numbers within ±{LARGEST:g}, got {bounds!r}")
    if isinstance(bounds, (str, bytes, set, frozenset)):
        raise wrong
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError, OverflowError) as error:
        raise wrong from error
    if not -LARGEST <= low < high <= LARGEST:
        raise wrong
    return low, high


def cluster_accuracy(
    accuracy: Any,
    classes: Sequence[object] | None = None,
    ax: Axes | None = None,
    *,
    whole: Any = None,
    mode: str | None = None,
) -> Axes:
    """Draw the accuracy on each class with clusters switched, in percent: a row is a cluster.

    Args:
        accuracy: ``(k, classes)``, shares in [0, 1]: what :func:`modfast.cluster_accuracy` returned. NaN is
            grey.
        classes: the names of the classes; None numbers them from 0.
        ax: the axes to draw into; None makes a figure.
        whole: ``(classes,)``, the accuracy of the whole network, from :func:`modfast.class_accuracy`:
            drawn as the first row, to compare with.
        mode: ``"only"`` or ``"without"``, as the accuracy was measured, for the names of the rows.

    Returns:
        The axes.

    Raises:
        ValueError: a matrix has another shape, or a number outside [0, 1]; ``mode`` is another.
        TypeError: ``accuracy`` holds no real numbers; ``ax`` is no axes.

    Example:
        >>> import modfast.plot
        >>> import torch
        >>> alone = torch.tensor([[0.9, 0.0], [0.1, 0.8]])
        >>> axes = modfast.plot.cluster_accuracy(alone, ["cat", "dog"], mode="only")
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['only cluster 0', 'only cluster 1']
    """
    table = _shares("accuracy", accuracy)
    check("mode", mode, NoneOr(OneOf(("only", "without"))))
    names = [f"{mode} cluster {row}" if mode else f"cluster {row}" for row in range(len(table))]
    if whole is not None:
        first = _shares("whole", whole, dims=1)
        if len(first) != table.shape[1]:
            raise ValueError(f"whole must have {table.shape[1]} classes, as accuracy, got {len(first)}")
        table, names = np.concatenate([first[None], table]), ["whole network", *names]
    cols = names_of("classes", classes, table.shape[1])
    axes = _draw(100.0 * table, names, cols, ax, 0.0, 100.0, "{:.0f}", "accuracy (%)")
    axes.set_xlabel("class", fontsize=LABEL)
    if whole is not None:
        # The line sets the whole network apart from the rows with clusters switched.
        axes.axhline(0.5, color="white", linewidth=3)
    return axes


def circuits(
    circuits: Sequence[Circuit] | Sequence[UnitCircuit] | Mapping[str, Any],
    ax: Axes | None = None,
    *,
    layer: str | None = None,
) -> Axes:
    """Draw how circuits overlap: the intersection over union of each two, with their sizes beside the names.

    Args:
        circuits: as :func:`modfast.circuit_overlap` takes them; or a mapping of names to them, such as
            :func:`modfast.load_circuits` returns. Without names, a circuit of weights has that of its class.
        ax: the axes to draw into; None makes a figure.
        layer: the layer to compare, of unit circuits the space; None takes all together.

    Returns:
        The axes. Two circuits without any weight or unit have no overlap: grey.

    Raises:
        ValueError, TypeError: as :func:`modfast.circuit_overlap`; ``ax`` is no axes.

    Example:
        >>> import modfast.plot
        >>> import torch
        >>> from modfast import Circuit
        >>> masks = [torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]])]
        >>> pair = [Circuit(c, {"fc": m}, "loss", 0.0, 1, 0.0, 0.0, 1.0, 1.0) for c, m in enumerate(masks)]
        >>> axes = modfast.plot.circuits(pair)
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['class 0 (2)', 'class 1 (2)']
    """
    if not isinstance(circuits, Iterable):
        raise TypeError(
            f"circuits must be a sequence or a mapping of circuits, got {type(circuits).__name__}"
        )
    given: list[Any] = list(circuits.values() if isinstance(circuits, Mapping) else circuits)
    overlap = circuit_overlap(given, layer).cpu().numpy()
    if isinstance(circuits, Mapping):
        names = list(map(str, circuits))
    else:
        names = [
            each.name or str(index) if isinstance(each, UnitCircuit) else f"class {each.label}"
            for index, each in enumerate(given)
        ]
    sizes = [_size(each, layer) for each in given]
    rows = [f"{shortened(name)} ({size:,})" for name, size in zip(names, sizes, strict=True)]
    axes = _draw(overlap, rows, names, ax, 0.0, 1.0, "{:.2f}", "intersection over union", cut=False)
    what = "units" if isinstance(given[0], UnitCircuit) else "weights"
    axes.set_title(f"overlap of circuits (number of {what})", fontsize=TITLE)
    return axes


def network(
    network: Network,
    labels: Labels | int,
    ax: Axes | None = None,
    *,
    layers: Sequence[str] | str | None = None,
    affinity: str = "abs",
) -> Axes:
    """Draw where the edges of each cluster of units go: to units of its own, or of which other cluster.

    A row is a cluster, and sums to 1: each cell is the share of the cluster's edge weight (all that joins its
    units with others, an edge inside counted at both ends) that goes to the column's cluster.
    If the clusters are modules, the diagonal is bright. The normalised cut in the title is the sum over
    clusters of what is off the diagonal.

    Args:
        network: what :func:`modfast.read_network` returned.
        labels: ``(num_units,)`` integers, -1 for "in no cluster", which makes a last row; or a number of
            contiguous blocks, as :meth:`Network.unit_labels` takes them.
        ax: the axes to draw into; None makes a figure.
        layers: the names of some of the layers, or globs; None takes all.
        affinity: ``"abs"`` or ``"square"``, as for :meth:`Network.graph`.

    Returns:
        The axes. A cluster without edges is grey.

    Raises:
        ValueError: as :meth:`Network.graph` and :meth:`Network.unit_labels`; there are more than 500
            clusters.
        TypeError: ``network`` is no :class:`Network`; ``ax`` is no axes.

    Example:
        >>> import modfast.plot
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
        >>> units = modfast.read_network(model, torch.zeros(1, 4))
        >>> axes = modfast.plot.network(units, 2)
        >>> axes.get_xlabel(), axes.images[0].get_array().shape
        ('share of the edge weight that goes to cluster', (2, 2))
    """
    if not isinstance(network, Network):
        raise TypeError(
            f"network must be a Network, got {type(network).__name__}: read_network(model, example_inputs) "
            "makes one"
        )
    given, count = network.unit_labels(labels)
    if count > _MOST_CLUSTERS:
        raise ValueError(f"labels must be of at most {_MOST_CLUSTERS} clusters to be drawn, got {count}")
    names = [str(cluster) for cluster in range(count)]
    if bool((given < 0).any()):
        given, names = torch.where(given < 0, count, given), [*names, "none"]
    k = len(names)
    graph = network.graph(layers, affinity)
    of_units = given.to(graph.device)
    rows = of_units.repeat_interleave(graph.crow_indices().diff())
    places = rows * k + of_units[graph.col_indices()]
    # Without any edge bincount returns integers.
    counted = torch.bincount(places, graph.values().double(), minlength=k * k).double()
    sums = counted.view(k, k).cpu().numpy()
    volumes = sums.sum(1, keepdims=True)
    shares = np.divide(sums, volumes, out=np.full_like(sums, np.nan), where=volumes > 0)
    sizes = torch.bincount(given, minlength=k).tolist()
    labelled = [f"{name} ({size:,})" for name, size in zip(names, sizes, strict=True)]
    axes = _draw(shares, labelled, names, ax, 0.0, 1.0, "{:.2f}", "share of a row")
    cut = float(np.nansum(1.0 - np.diag(shares)[:count]))
    axes.set_title(f"{network.num_units:,} units, normalised cut {cut:.2f}", fontsize=TITLE)
    axes.set_xlabel("share of the edge weight that goes to cluster", fontsize=LABEL)
    axes.set_ylabel("of cluster (units)", fontsize=LABEL)
    return axes


_MOST_CLUSTERS = 500


def _size(circuit: Any, layer: str | None) -> int:
    """Return how many weights or units a circuit keeps, of all it was asked for."""
    if isinstance(circuit, UnitCircuit):
        if layer is None:
            return circuit.num_units
        return int((circuit.kept & circuit.asked)[circuit.spaces[layer]].sum())
    if layer is None:
        return int(circuit.num_weights)
    return int(circuit.masks[known_name(circuit.masks, layer)].sum())


def _table(argument: str, values: Any, dims: int = 2) -> NDArray[np.float64]:
    tensor = real_numbers(argument, values)
    if tensor.dim() != dims or tensor.numel() == 0:
        shape = "(rows, columns)" if dims == 2 else "(classes,)"
        raise ValueError(f"{argument} must have shape {shape} and hold something, got {tuple(tensor.shape)}")
    if bool(tensor.isinf().any()):
        raise ValueError(f"{argument} must have no infinite number, got one (NaN is grey)")
    table: NDArray[np.float64] = tensor.numpy()
    return table


def _shares(argument: str, values: Any, dims: int = 2) -> NDArray[np.float64]:
    table = _table(argument, values, dims)
    outside = table[(table < 0) | (table > 1)]
    if outside.size:
        raise ValueError(f"{argument} must be in [0, 1], got {outside[0]}")
    return table


def _draw(
    table: NDArray[np.float64],
    rows: Sequence[str],
    cols: Sequence[str],
    ax: Axes | None,
    low: float,
    high: float,
    text: str,
    label: str | None,
    *,
    cut: bool = True,
) -> Axes:
    # A new figure has room for the numbers.
    shown = [min(size, MOST_NUMBERED) for size in table.shape]
    axes = axes_for(ax, (max(4.4, 1.8 + 0.4 * shown[1]), max(2.2, 1.0 + 0.3 * shown[0])))
    crowd = max(table.shape[1] - 10, 0)
    image = draw_table(axes, table, high, text, low, size=TICK - 0.15 * crowd)
    step = math.ceil(len(rows) / MOST_NUMBERED)
    written = [shortened(rows[i]) if cut else rows[i] for i in range(0, len(rows), step)]
    axes.set_yticks(range(0, len(rows), step), written, fontsize=TICK, parse_math=False)
    name_columns(axes, cols, TICK)
    axes.tick_params(length=0)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02)
    bar.ax.tick_params(labelsize=TICK)
    if label is not None:
        bar.set_label(label, fontsize=LABEL)
    return axes
