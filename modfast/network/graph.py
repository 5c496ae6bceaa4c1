"""A whole network as a graph, and its clusters layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from modfast.partition import Labels, Partition

from .chain import read_chain
from .reading import read_network
from .units import Network


def find_network(
    model: nn.Module, layers: Iterable[str] | str | None = None, example_inputs: Any = None
) -> Network:
    """Return the network of :func:`network_graph`.

    Raises:
        ValueError, TypeError: as :func:`network_graph`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if example_inputs is None:
        return read_chain(model, layers)
    network = read_network(model, example_inputs)
    return network if layers is None else network.part(layers)


def network_graph(
    model: nn.Module, layers: Iterable[str] | str | None = None, example_inputs: Any = None
) -> Tensor:
    """Return the whole network as one sparse undirected graph.

    The nodes are the units of the network: inputs, neurons, channels, attention heads, dimensions of the
    residual stream. The edge weight between two units is ``|W|``, summed over the weights between them: over
    a kernel's positions, those of a flattened channel, a head's rows, and all layers. Zero weights are no
    edges and are not stored. :func:`read_network` says more of what a unit is, and makes an object that also
    has roles and spaces.

    PyTorch does not record how a model joins its layers, so what to give depends on the model:

    - An ``nn.Sequential`` of layers and of modules that keep units in their places (activations, pooling,
      dropout, normalisation; ``nn.Flatten``, which a convolution before a linear layer needs), all with
      PyTorch's own forward passes and without hooks of yours: the model alone. The nodes are the inputs of
      the first layer, then the outputs of each layer in order.
    - Any other model: ``example_inputs``. The computation on them is followed, as :func:`read_network` does.
    - A chain in which each layer reads the output of the one before, where you have no example: ``layers``,
      which are then taken as the chain without a check against the model's forward pass.

    A batch norm between a layer and the next, with as many features as the layer has outputs, is folded in:
    it multiplies the layer's rows by ``|weight| / sqrt(running_var + eps)``. With ``layers`` alone it is
    recognised if both are in one ``nn.Sequential``. Biases, activations and other normalisations are left
    out.

    Args:
        model: the network. It is not changed. Without ``example_inputs``, its layers are ``nn.Linear``,
            ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d`` (grouped ones too) and ``transformers``'
            ``Conv1D``.
        layers: without ``example_inputs``, names of layers or parameters in the order of the chain; a glob
            (``"features.*"``) may stand for the layers of one ``nn.Sequential``. With them, the names or
            globs of those layers whose units and weights make the graph; None takes all.
        example_inputs: what the model takes: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments.

    Returns:
        ``torch.sparse_csr``, ``(n, n)``, symmetric, not negative; float64 if a weight is, else float32;
        int64 indices; on the device of the first layer, or on the CPU if there are no kernels for that.
        :func:`network_nodes` says which node is which.

    Raises:
        ValueError: the model has no layer, or it is not known in which order its layers run (the message says
            what to give); its computation cannot be followed; ``layers`` names none or one of another kind; a
            layer does not fit the one before it; it is not known whether a batch norm follows a layer, or
            several do; a weight is empty, not finite, or cannot be read.
        TypeError: ``model`` is no ``nn.Module``, returns no tensor for ``example_inputs``, or a weight is
            spread over processes (``DTensor``), or, with ``example_inputs``, kept by FSDP; ``layers`` is a
            set, which has no order.

    Source: "Clusterability in Neural Networks" (arXiv 2103.03386).

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> model[0].weight.data = torch.tensor([[3.0, -4.0]])
        >>> model[1].weight.data = torch.tensor([[5.0]])
        >>> network_graph(model).to_dense()
        tensor([[0., 0., 3., 0.],
                [0., 0., 4., 0.],
                [3., 4., 0., 5.],
                [0., 0., 5., 0.]])
    """
    return find_network(model, layers, example_inputs).graph()


def network_nodes(
    model: nn.Module, layers: Iterable[str] | str | None = None, example_inputs: Any = None
) -> dict[str, slice]:
    """Return the range of nodes in :func:`network_graph` that each space has.

    A space is a range of units that several layers read or write: in a chain, what each layer puts out.

    Args:
        model: as for :func:`network_graph`.
        layers: as for :func:`network_graph`.
        example_inputs: as for :func:`network_graph`.

    Returns:
        Name to nodes, in the graph's order. A space has the name of the layer that writes it first; that of
        the inputs is ``".input"`` (no layer can have that name); see :class:`Network` for others.

    Raises:
        ValueError, TypeError: as for :func:`network_graph`.

    Example:
        >>> network_nodes(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
        {'.input': slice(0, 2, None), '0': slice(2, 5, None), '2': slice(5, 6, None)}
    """
    return find_network(model, layers, example_inputs).spaces


def network_partitions(
    model: nn.Module,
    labels: Labels,
    layers: Iterable[str] | str | None = None,
    example_inputs: Any = None,
) -> dict[str, Partition]:
    """Turn clusters of the whole network into a partition of each layer's weight.

    Args:
        model: as for :func:`network_graph`.
        labels: the cluster of each node of that graph: integers, -1 for "in no cluster". A tensor, list or
            numpy array.
        layers: as for :func:`network_graph`.
        example_inputs: as for :func:`network_graph`.

    Returns:
        Layer name to :class:`Partition`, as :class:`EnmeshmentLoss` and :func:`save_partitions` take it. All
        have the same number of clusters, the largest label + 1. After a flatten a channel's positions share
        its label. Convolutions in groups are left out if a column of theirs stands for channels of several
        clusters, and so are layers with the weight of an earlier one.

    Raises:
        ValueError: as for :func:`network_graph`; ``labels`` are not one integer, -1 or above, for each node.
        TypeError: as for :func:`network_graph`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> partitions = network_partitions(model, [0, 1, 0, 1, 1])
        >>> partitions["2"].row_labels, partitions["2"].col_labels
        (tensor([1]), tensor([0, 1]))
    """
    return find_network(model, layers, example_inputs).partitions(labels)
