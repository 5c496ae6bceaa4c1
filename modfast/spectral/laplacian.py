"""The small eigenvalues of a network's Laplacian, differentiable: no normalised cut is below their sum."""

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

from . import operators as ops
from .embedding import normalised_eigenvectors, singular_vectors
from .similarity import DenseSimilarity, read_similarity
from .solver import check_solver, warn_unless


def laplacian_eigenvalues(
    weights: Tensor | Sequence[Tensor], k: int, *, tol: float = 1e-6, max_iter: int = 300, seed: int = 0
) -> Tensor:
    """The ``k`` smallest eigenvalues of ``L y = l D y``, from 0 up: the sum bounds every normalised cut.

    The graph's nodes are the columns of the first weight and the rows of each, tied by ``|W|``; D holds their
    degrees and ``L = D - A``. No normalised cut into k clusters is below the sum of the eigenvalues, so that
    a network trained to lower it becomes one that can be cut. For an eigenpair with ``y^T D y = 1`` the
    derivative is ``dl / da_ij = (y_i - y_j)^2 - l (y_i^2 + y_j^2)``, computed in one pass over the weights.

    Args:
        weights: one weight or the weights of successive layers, each ``(out, in, *kernel)``, dense float32,
            float64, float16 or bfloat16, all on one device, each reading what the one before puts out. A
            kernel's positions are added.
        k: from 1 to the least number of nodes that a layer reads or puts out.
        tol: of the eigenvectors: ``|N v - s v|`` is at most this (for one weight ``tol s``), N being
            ``D^-1/2 A D^-1/2``. The derivative has about this error, divided by the gap to the next
            eigenvalue.
        max_iter: passes over the weights, at most.
        seed: of the solver's start.

    Returns:
        ``(k,)``, ascending, float64 if a weight is, else float32; differentiable once, in reverse mode. Of
        eigenvalues that repeat, only functions that treat them alike, as their sum, have a derivative. Nodes
        without ties are left out.

    Raises:
        TypeError: weights are no tensors, of another dtype, or a ``DTensor`` (give its ``full_tensor()``).
        ValueError: they do not fit each other, hold NaN or infinity or nothing but zeros; another argument
            is out of range.
        NotImplementedError: a second derivative, or one in forward mode, is asked for.

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
    values, *_ = _Eigenvalues.apply(int(k), float(tol), int(max_iter), int(seed), *layers)
    double = any(layer.dtype == torch.float64 for layer in layers)
    result: Tensor = values.to(torch.float64 if double else torch.float32)
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
    """The similarities at a kernel's positions are added, which keeps the unit of the weights."""
    return layer if layer.dim() == 2 else layer.to(torch.float64).flatten(2).abs().sum(2)


def _no_derivative(ctx: Any, *given: Any) -> Any:
    raise NotImplementedError(
        "laplacian_eigenvalues can be differentiated once, in reverse mode: it has no second derivative, and "
        "none in forward mode (jvp, jacfwd, hessian)"
    )


class _Eigenvalues(torch.autograd.Function):
    """``apply(k, tol, max_iter, seed, *layers)``: the values l, ``1 - l``, the eigenvectors y of each side.

    These are in the weights' own unit: ``y^T D y = 1`` holds for the degrees as they are.
    """

    jvp = staticmethod(_no_derivative)

    @staticmethod
    def forward(k: int, tol: float, max_iter: int, seed: int, *layers: Tensor) -> tuple[Tensor, ...]:
        chain = []
        for index, layer in enumerate(layers):
            similarity = read_similarity(_matrix(layer), "abs", f"weights[{index}]")
            assert isinstance(similarity, DenseSimilarity)
            chain.append(similarity)
        # All layers in one unit, in which the largest weight is near one.
        smallest = min(each.scale for each in chain)
        chain = [replace(each, scale=smallest) for each in chain]
        places, similar = _places(chain, k, tol, max_iter, seed)
        similar = similar.to(layers[0].device)
        return (1.0 - similar).clamp(min=0.0), similar, *(each * smallest**0.5 for each in places)

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
        saved = ctx.saved_tensors  # asked for once: torch.utils.checkpoint gives them no second time
        layers, found = saved[: ctx.count], saved[ctx.count :]
        needed = ctx.needs_input_grad[4:]
        wanted = [layer if each else None for layer, each in zip(layers, needed, strict=True)]
        grads = iter(_Gradient.apply(grad, *found, *wanted))
        return None, None, None, None, *(next(grads) if each else None for each in needed)

    vmap: Any  # set below, when there is a class to call


class _Gradient(torch.autograd.Function):
    """``apply(grad, similar, *places, *layers)``: of each layer that is no None its gradient.

    A function of its own, so that its derivative is refused, which would take the eigenvectors for constants.
    """

    jvp = staticmethod(_no_derivative)
    backward = staticmethod(_no_derivative)

    @staticmethod
    def forward(grad: Tensor, similar: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        count = len(tensors) // 2
        places, layers = tensors[: count + 1], tensors[count + 1 :]
        slopes = grad.to(torch.float64)
        similar_slopes = slopes * similar
        grads = []
        for (cols, rows), layer in zip(pairwise(places), layers, strict=True):
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
            # The similarities of a kernel have been added: what holds for the sum holds for each position.
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


def _places(
    chain: list[DenseSimilarity], k: int, tol: float, max_iter: int, seed: int
) -> tuple[list[Tensor], Tensor]:
    """The eigenvectors y, ``(nodes, k)`` for the inputs and for each layer's outputs, and the ``1 - l``."""
    sums = [each.sums() for each in chain]
    degrees = [sums[0][1]]
    degrees += [sums[index][0] + sums[index + 1][1] for index in range(len(chain) - 1)]
    degrees.append(sums[-1][0])
    if not any(bool((each > 0).any()) for each in degrees):
        raise ValueError("weights must not be all zero")
    if len(chain) == 1:
        # The eigenvalues of the graph of a matrix are its singular values, and these with a minus.
        found = singular_vectors(chain[0], (degrees[1], degrees[0]), k, tol=tol, max_iter=max_iter, seed=seed)
        warn_unless(found.converged, found.passes, found.residuals)
        places, values = [found.right * 0.5**0.5, found.left * 0.5**0.5], found.values
    else:
        joint, eigen, _ = normalised_eigenvectors(
            lambda out, block, weights: _chain_product(chain, degrees, out, block, weights),
            torch.cat(degrees),
            k,
            sum(each.memory for each in chain),
            tol=tol,
            max_iter=max_iter,
            seed=seed,
        )
        warn_unless(eigen.converged, eigen.products, eigen.residuals)
        joint = joint[:, :k].to(torch.float64)
        places, values = list(joint.split([len(each) for each in degrees])), eigen.values
    return places, values


def _chain_product(
    chain: list[DenseSimilarity], degrees: list[Tensor], out: Tensor, block: Tensor, weights: Tensor
) -> None:
    """``weights * (A block)``: each layer ties the nodes that it reads and puts out."""
    sizes = [len(each) for each in degrees]
    parts, sums = block.split(sizes), out.zero_().split(sizes)
    for index, layer in enumerate(chain):
        forward, backward = layer.product(right=parts[index], left=parts[index + 1])
        sums[index + 1].add_(forward)
        sums[index].add_(backward)
    out *= weights[:, None]
