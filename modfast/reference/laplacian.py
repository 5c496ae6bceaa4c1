"""The specification of the Laplacian's eigenvalues: a dense decomposition and autograd's derivative."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modfast.arrays import require_whole


def laplacian_eigenvalues(weights: Tensor | Sequence[Tensor], k: int) -> Tensor:
    """The ``k`` smallest eigenvalues of ``L y = l D y`` on the graph of a weight, or of successive layers.

    Arguments and result as for :func:`modfast.laplacian_eigenvalues`, in float64. All nodes need ties, and
    the eigenvalues have to differ for autograd to tell their derivative.

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
    graph = torch.zeros(nodes, nodes, dtype=torch.float64, device=layers[0].device)
    for index, layer in enumerate(layers):
        ties = layer.to(torch.float64).abs()
        ties = ties.flatten(2).sum(2) if ties.dim() > 2 else ties
        begin, middle, end = ends[index : index + 3]
        graph = graph + torch.nn.functional.pad(ties, (begin, nodes - middle, middle, nodes - end))
    graph = graph + graph.T
    scale = graph.sum(1).rsqrt()
    laplacian = torch.eye(nodes, dtype=torch.float64, device=graph.device) - scale[:, None] * graph * scale
    values: Tensor = torch.linalg.eigvalsh(laplacian)[:k]
    return values
