"""A whole network as a graph, and its clusters layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from modfast.partition import Labels, Partition, read_labels

from .chain import find_chain, graph_of, nodes_of, partitions_of


def network_graph(
    model: nn.Module, layers: Iterable[str] | str | None = None, example_inputs: Any = None
) -> Tensor:
    """Return the whole network as one sparse undirected graph.

    The nodes are the inputs of the first layer, then the outputs of each layer in order: the neurons of a
    linear layer, the channels of a convolution. The edge weight between an output and an input of a layer is
    ``|W|``, summed over a kernel's positions. Where a convolution's channels are flattened for a linear
    layer, it is summed over a channel's positions as well. Zero weights are no edges and are not stored.

    The layers must form a chain in which each reads the output of the one before. PyTorch does not record how
    a model joins its layers, so what to give depends on the model:

    - An ``nn.Sequential`` of layers and of modules that keep units in their places (activations, pooling,
      dropout, normalisation; ``nn.Flatten``, which a convolution before a linear layer needs), all with
      PyTorch's own forward passes and without hooks of yours: the model alone.
    - Any other model that is such a chain, without skip connections, branches or layers that are used twice:
      ``example_inputs``, with which the model is run once.
    - A model that does more than the chain: ``layers``, which are then taken as the chain without a check
      against the model's forward pass.

    A batch norm between a layer and the next, with as many features as the layer has outputs, is folded in:
    it multiplies the layer's rows by ``|weight| / sqrt(running_var + eps)``. With ``layers`` it is recognised
    if both are in one ``nn.Sequential``, or from ``example_inputs``. Biases, activations and other
    normalisations are left out.

    Args:
        model: the network. ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d`` (grouped ones too)
            and ``transformers``' ``Conv1D`` are its layers. It is not changed.
        layers: names of layers or parameters in the order of the chain. A glob (``"features.*"``) may stand
            for the layers of one ``nn.Sequential``.
        example_inputs: what the model takes: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments.

    Returns:
        ``torch.sparse_csr``, ``(n, n)``, symmetric, not negative; float64 if a weight is, else float32;
        int64 indices; on the device of the first layer. :func:`network_nodes` says which node is which.

    Raises:
        ValueError: the model has no layer, or it is not known in which order its layers run (the message says
            what to give); ``layers`` names none or one of another kind; a layer does not fit the one before
            it; it is not known whether a batch norm follows a layer, or several do; a weight is empty, not
            finite, or cannot be read.
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
    return graph_of(find_chain(model, layers, example_inputs))


def network_nodes(
    model: nn.Module, layers: Iterable[str] | str | None = None, example_inputs: Any = None
) -> dict[str, slice]:
    """Return the range of nodes in :func:`network_graph` that are each layer's outputs.

    Args:
        model: as for :func:`network_graph`.
        layers: as for :func:`network_graph`.
        example_inputs: as for :func:`network_graph`.

    Returns:
        Layer name to nodes, in the graph's order; the first name is ``".input"``, for the inputs of the first
        layer (no layer can have that name).

    Raises:
        ValueError, TypeError: as for :func:`network_graph`.

    Example:
        >>> network_nodes(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
        {'.input': slice(0, 2, None), '0': slice(2, 5, None), '2': slice(5, 6, None)}
    """
    return nodes_of(find_chain(model, layers, example_inputs))


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
        its label. Grouped convolutions are left out: a column of theirs stands for another channel in each
        group.

    Raises:
        ValueError: as for :func:`network_graph`; ``labels`` are not one integer, -1 or above, for each node.
        TypeError: as for :func:`network_graph`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> partitions = network_partitions(model, [0, 1, 0, 1, 1])
        >>> partitions["2"].row_labels, partitions["2"].col_labels
        (tensor([1]), tensor([0, 1]))
    """
    chain = find_chain(model, layers, example_inputs)
    nodes = nodes_of(chain)
    total = list(nodes.values())[-1].stop
    node_labels = read_labels("labels", labels, 2**31 - 2)
    if len(node_labels) != total:
        raise ValueError(f"labels must be {total}, one for each node of the network, got {len(node_labels)}")
    count = max(int(node_labels.max()) + 1, 1)
    return partitions_of(chain, node_labels, count)
