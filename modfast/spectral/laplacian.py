"""The smallest eigenvalues of a network's Laplacian, differentiable: their sum bounds the normalised cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from modfast.arguments import Integer, check
from modfast.arrays import require_numbers, require_plain
from modfast.derivatives import one_by_one
from modfast.shapes import FLOATS
from modfast.without_kernels import on_host

from . import operators as ops
from .embedding import normalised_eigenvectors, singular_vectors
from .similarity import DenseSimilarity, read_similarity
from .solver import check_solver, warn_unless


def laplacian_eigenvalues(
    weights: Tensor | Sequence[Tensor], k: int, *, tol: float = 1e-6, max_iter: int = 300, seed: int = 0
) -> Tensor:
    """Return the ``k`` smallest eigenvalues of ``L y = l D y``: their sum bounds every normalised cut.

    The graph's nodes are the columns of the first weight and the rows of every weight; the edge weights are
    ``|W|``. D holds the degrees, and ``L = D - A``. Every normalised cut into k clusters is at least the sum
    of the eigenvalues: add the sum to a loss to train a network that can be cut. For an eigenpair with
    ``y^T D y = 1`` the derivative is ``dl / da_ij = (y_i - y_j)^2 - l (y_i^2 + y_j^2)``, computed in one pass
    over the weights.

    Args:
        weights: one weight or the weights of successive layers, each ``(out, in, *kernel)``, dense float32,
            float64, float16 or bfloat16, all on one device. Each layer's ``in`` is the ``out`` of the one
            before. The similarities at a kernel's positions are added.
        k: from 1 to the smallest ``in`` or ``out`` of a layer.
        tol: the solver's tolerance. An eigenpair ``(s, v)`` of ``N = D^-1/2 A D^-1/2`` has converged when
            ``|N v - s v|`` is at most ``tol`` (for one weight ``tol s``). The derivative's error is about
            ``tol`` divided by the gap to the next eigenvalue: lower ``tol`` if gaps are small.
        max_iter: the maximum number of passes over the weights, in each precision.
        seed: seeds the solver's starting vectors.

    Returns:
        ``(k,)``, ascending from 0, float64 if a weight is, else float32; differentiable once, in reverse
        mode. Where eigenvalues are equal, only functions that are symmetric in them, such as their sum, have
        a derivative. Nodes without edges are left out.

    Raises:
        TypeError: a weight is no tensor, has another dtype, or is a ``DTensor`` (give its
            ``full_tensor()``).
        ValueError: the weights do not fit each other, hold NaN or infinity, or are all zero; another
            argument is out of range.
        NotImplementedError: a second derivative, or one in forward mode, is requested.

    Warns:
        ConvergenceWarning: the solver made ``max_iter`` passes and stopped.

    Source: J. Shi and J. Malik, "Normalized cuts and image segmentation", PAMI 2000; as a regulariser:
    D. Filan et al., "Clusterability in Neural Networks", arXiv 2103.03386.

    Example:
        >>> weight = torch.tensor([[3.0, 1.0], [1.0, 3.0]], requires_grad=True)
        >>> values = laplacian_eigenvalues(weight, 2)
        >>> values.detach().round(decimals=4) + 0.0
        tensor([0.0000, 0.5000])
        >>> values.sum().backward()
        >>> weight.grad.round(decimals=4)
        tensor([[-0.0625,  0.1875],
                [ 0.1875, -0.0625]])
    """
    layers = [weights] if isinstance(weights, Tensor) else list(weights)
    _check_layers(layers)
    most = min(min(layer.shape[:2]) for layer in layers)
    check("k", k, Integer(1, most), " for these weights")
    check_solver(1, tol, max_iter, seed)
    home, layers = layers[0].device, [on_host(layer) for layer in layers]
    values, *_ = _Eigenvalues.apply(int(k), float(tol), int(max_iter), int(seed), *layers)
    double = any(layer.dtype == torch.float64 for layer in layers)
    # One after the other, so that the gradient is no float64 before it has left a device that has none.
    result: Tensor = values.to(torch.float64 if double else torch.float32).to(home)
    return result


def _check_layers(layers: list[Any]) -> None:
    if not layers:
        raise ValueError("weights must hold at least one weight, got none")
    for index, layer in enumerate(layers):
        if not isinstance(layer, Tensor) or layer.layout != torch.strided or layer.dtype not in FLOATS:
            got = f"{layer.dtype}, {layer.layout}" if isinstance(layer, Tensor) else type(layer).__name__
            raise TypeError(f"weights[{index}] must be a dense floating-point tensor, got {got}")
        require_plain(f"weights[{index}]", layer)
        require_numbers(f"weights[{index}]", layer)
        if layer.dim() < 2 or layer.numel() == 0:
            raise ValueError(
                f"weights[{index}] must have shape (out, in, *kernel), none 0, got {tuple(layer.shape)}"
            )
        if index > 0 and layer.shape[1] != layers[index - 1].shape[0]:
            raise ValueError(
                f"weights[{index}] must read what weights[{index - 1}] puts out: it has {layer.shape[1]} "
                f"columns for {layers[index - 1].shape[0]} rows"
            )
        if layer.device != layers[0].device:
            raise ValueError(f"weights must be on one device, got {layers[0].device} and {layer.device}")


def _matrix(layer: Tensor) -> Tensor:
    """Return a layer's weight as a matrix; a convolution's absolute weights are summed over the kernel."""
    return layer if layer.dim() == 2 else layer.to(torch.float64).flatten(2).abs().sum(2)


def _no_derivative(ctx: Any, *arguments: Any) -> Any:
    raise NotImplementedError(
        "laplacian_eigenvalues can be differentiated once, in reverse mode: it has no second derivative, and "
        "none in forward mode (jvp, jacfwd, hessian)"
    )


class _Eigenvalues(torch.autograd.Function):
    """``apply(k, tol, max_iter, seed, *layers)`` returns the eigenvalues l, ``1 - l`` and the eigenvectors y.

    There is one tensor of y for the inputs and one for each layer's outputs. They are scaled so that
    ``y^T D y = 1`` for the degrees of the weights as passed.
    """

    jvp = staticmethod(_no_derivative)

    @staticmethod
    def forward(k: int, tol: float, max_iter: int, seed: int, *layers: Tensor) -> tuple[Tensor, ...]:
        chain = []
        for index, layer in enumerate(layers):
            similarity = read_similarity(_matrix(layer), "abs", f"weights[{index}]")
            assert isinstance(similarity, DenseSimilarity)
            chain.append(similarity)
        # One scale for all layers, which brings the largest weight of all near one.
        scale = min(similarity.scale for similarity in chain)
        chain = [replace(similarity, scale=scale) for similarity in chain]
        vectors, similar = _eigenvectors(chain, k, tol, max_iter, seed)
        similar = similar.to(layers[0].device)
        return (1.0 - similar).clamp(min=0.0), similar, *(of_side * scale**0.5 for of_side in vectors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        layers = inputs[4:]
        ctx.count = len(layers)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*layers, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None, None, None, None, *([None] * ctx.count))
        saved = ctx.saved_tensors  # once only: torch.utils.checkpoint gives them no second time
        layers, eigen = saved[: ctx.count], saved[ctx.count :]
        needs_grad = ctx.needs_input_grad[4:]
        wanted = [layer if needed else None for layer, needed in zip(layers, needs_grad, strict=True)]
        grads = iter(_Gradient.apply(grad, *eigen, *wanted))
        return None, None, None, None, *(next(grads) if needed else None for needed in needs_grad)

    vmap: Any  # set below, once the class exists


class _Gradient(torch.autograd.Function):
    """``apply(grad, similar, *vectors, *layers)`` returns the gradient of each layer that is not None.

    It is a function of its own so that its derivative raises: autograd would treat the eigenvectors as
    constants and return a wrong second derivative.
    """

    jvp = staticmethod(_no_derivative)
    backward = staticmethod(_no_derivative)

    @staticmethod
    def forward(grad: Tensor, similar: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        count = len(tensors) // 2
        vectors, layers = tensors[: count + 1], tensors[count + 1 :]
        slopes = grad.to(torch.float64)
        similar_slopes = slopes * similar
        grads = []
        for (cols, rows), layer in zip(pairwise(vectors), layers, strict=True):
            if layer is None:
                continue
            assert rows is not None
            assert cols is not None
            matrix = _matrix(layer)
            edges = ops.edge_gradient(
                matrix if matrix.stride(1) == 1 else matrix.contiguous(),
                rows.square() @ similar_slopes,
                cols.square() @ similar_slopes,
                rows * slopes,
                cols,
            )
            # The matrix is a sum over the kernel's positions, so each position gets the sum's derivative.
            grads.append(edges if layer.dim() == 2 else _spread(edges, layer))
        return tuple(grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    vmap: Any


for _function in (_Eigenvalues, _Gradient):
    _function.vmap = staticmethod(one_by_one(_function.apply))


def _spread(edges: Tensor, layer: Tensor) -> Tensor:
    return (edges.view(*edges.shape, *[1] * (layer.dim() - 2)) * layer.sign()).to(layer.dtype)


def _eigenvectors(
    chain: list[DenseSimilarity], k: int, tol: float, max_iter: int, seed: int
) -> tuple[list[Tensor], Tensor]:
    """Return the eigenvectors y, ``(nodes, k)`` for the inputs and each layer's outputs, and ``1 - l``."""
    sums = [similarity.sums() for similarity in chain]
    degrees = [sums[0][1]]
    degrees += [sums[index][0] + sums[index + 1][1] for index in range(len(chain) - 1)]
    degrees.append(sums[-1][0])
    if not any(bool((of_side > 0).any()) for of_side in degrees):
        raise ValueError("weights must not be all zero")
    if len(chain) == 1:
        # The eigenvalues of a bipartite graph are the singular values of its matrix and their negatives.
        singular = singular_vectors(
            chain[0], (degrees[1], degrees[0]), k, tol=tol, max_iter=max_iter, seed=seed
        )
        warn_unless(singular.converged, singular.passes, singular.residuals)
        left, right = (singular.vectors * 0.5**0.5).split(chain[0].shape)
        vectors, values = [right, left], singular.values
    else:
        joint, eigen, _ = normalised_eigenvectors(
            lambda out, block, weights: _chain_product(chain, degrees, out, block, weights),
            torch.cat(degrees),
            k,
            sum(similarity.memory for similarity in chain),
            tol=tol,
            max_iter=max_iter,
            seed=seed,
        )
        warn_unless(eigen.converged, eigen.products, eigen.residuals)
        joint = joint[:, :k].to(torch.float64)
        vectors, values = list(joint.split([len(of_side) for of_side in degrees])), eigen.values
    return vectors, values


def _chain_product(
    chain: list[DenseSimilarity], degrees: list[Tensor], out: Tensor, block: Tensor, weights: Tensor
) -> None:
    """Write ``weights * (A block)`` to ``out``; each layer is a bipartite graph of its inputs and outputs."""
    sizes = [len(of_side) for of_side in degrees]
    parts, sums = block.split(sizes), out.zero_().split(sizes)
    for index, layer in enumerate(chain):
        forward, backward = layer.product(right=parts[index], left=parts[index + 1])
        sums[index + 1].add_(forward)
        sums[index].add_(backward)
    out *= weights[:, None]
