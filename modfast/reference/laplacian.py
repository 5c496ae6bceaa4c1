"""The specification of the Laplacian's eigenvalues: a dense decomposition and autograd's derivative."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modfast.arrays import require_whole
from modfast.devices import widest_float


def laplacian_eigenvalues(weights: Tensor | Sequence[Tensor], k: int) -> Tensor:
    """Return the ``k`` smallest eigenvalues of ``L y = l D y`` on the graph of one or several weights.

    Arguments and result are those of :func:`modfast.laplacian_eigenvalues`, in float64 (float32 on a device
    without float64; it is computed on the CPU then). Every node needs an
    edge, and autograd's derivative needs eigenvalues that differ.

    Example:
        >>> laplacian_eigenvalues(torch.tensor([[3.0, 1.0], [1.0, 3.0]]), 2).round(decimals=4).abs()
        tensor([0.0000, 0.5000], dtype=torch.float64)
    """
    layers = [weights] if isinstance(weights, Tensor) else list(weights)
    for index, layer in enumerate(layers):
        require_whole(f"weights[{index}]", layer)
    ends = [0, layers[0].shape[1]]
    for layer in layers:
        ends.append(ends[-1] + layer.shape[0])
    nodes = ends[-1]
    home = layers[0].device
    wide = widest_float(home)
    if wide != torch.float64:
        layers = [layer.cpu() for layer in layers]
    graph = torch.zeros(nodes, nodes, dtype=torch.float64, device=layers[0].device)
    for index, layer in enumerate(layers):
        edges = layer.to(torch.float64).abs()
        edges = edges.flatten(2).sum(2) if edges.dim() > 2 else edges
        begin, middle, end = ends[index : index + 3]
        graph = graph + torch.nn.functional.pad(edges, (begin, nodes - middle, middle, nodes - end))
    graph = graph + graph.T
    scale = graph.sum(1).rsqrt()
    laplacian = torch.eye(nodes, dtype=torch.float64, device=graph.device) - scale[:, None] * graph * scale
    values: Tensor = torch.linalg.eigvalsh(laplacian)[:k]
    return values.to(wide).to(home)
