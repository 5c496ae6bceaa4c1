"""Weights that are spread over processes, as ``DTensor``: each process works on its own piece.

Processes exchange sums of block energies, ``k x k`` numbers or two for each layer, never weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from modfast.arrays import raise_transformed

if TYPE_CHECKING:
    from modfast.partition import Partition


class Group(NamedTuple):
    """The processes that hold the pieces of a weight, as some dimensions of a mesh."""

    mesh: Any
    dims: tuple[int, ...]


ALONE = Group(None, ())


class Piece(NamedTuple):
    """The labels of the rows and columns that this process holds of a weight, and who holds the rest."""

    row_labels: Tensor
    col_labels: Tensor
    group: Group


def piece_of(weight: Any, partition: Partition) -> Piece:
    """The labels of this process's piece of a ``DTensor``.

    Raises:
        TypeError: it is called within a transform of ``torch.func``.
        ValueError: the weight is a pending sum (``Partial``), whose squares cannot be summed piece by piece.
    """
    from torch.distributed.tensor import Replicate, distribute_tensor

    if torch._C._are_functorch_transforms_active():
        raise_transformed()
    mesh, placements = weight.device_mesh, weight.placements
    if any(placement.is_partial() for placement in placements):
        raise ValueError(
            f"weight must be sharded or replicated, got the placements {placements}: redistribute it first"
        )
    labels = []
    # Labels as a column and as a row can be sharded by the weight's own placements, whatever kind these are.
    for dim, whole in enumerate((partition.row_labels[:, None], partition.col_labels[None, :])):
        # By the dimension: the placement by FSDP of a weight under tensor parallelism is not "is_shard".
        cut = [p if getattr(p, "dim", None) == dim else Replicate() for p in placements]
        # Every process has all labels already: nothing is sent.
        piece = distribute_tensor(whole.to(weight.device), mesh, cut, src_data_rank=None).to_local()
        labels.append(piece.flatten().contiguous())
    local = weight.to_local()
    if local.shape[:2] != (len(labels[0]), len(labels[1])):
        raise ValueError(
            f"weight has placements that cannot be followed: {placements} (a piece of {tuple(local.shape)}, "
            f"labels for {len(labels[0])} rows and {len(labels[1])} columns)"
        )
    dims = tuple(i for i, placement in enumerate(placements) if not placement.is_replicate())
    return Piece(labels[0], labels[1], Group(mesh, dims))


class _Local(torch.autograd.Function):
    """The piece. Its gradient has the weight's layout, which ``to_local`` does not give in every PyTorch."""

    @staticmethod
    def forward(weight: Any) -> Tensor:
        piece: Tensor = weight.to_local()
        return piece.view_as(piece)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight = inputs[0]
        ctx.place = (weight.device_mesh, weight.placements, weight.shape, weight.stride())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _assembled(grad, *ctx.place)


def local(weight: Any) -> Tensor:
    """This process's piece of a ``DTensor``, differentiable any number of times.

    In reverse mode only: PyTorch gives no ``DTensor`` a tangent.
    """
    piece: Tensor = _Local.apply(weight)
    return piece


def like(piece: Tensor, weight: Any) -> Tensor:
    """A ``DTensor`` of the weight's shape and placements, of which this process holds ``piece``."""
    return _assembled(piece, weight.device_mesh, weight.placements, weight.shape, weight.stride())


def _assembled(piece: Tensor, mesh: Any, placements: Any, shape: Any, stride: Any) -> Tensor:
    from torch.distributed.tensor import DTensor

    whole: Tensor = DTensor.from_local(piece, mesh, placements, run_check=False, shape=shape, stride=stride)
    return whole


def _all_reduce(tensor: Tensor, group: Group) -> Tensor:
    result = tensor.clone()
    for dim in group.dims:
        torch.distributed.all_reduce(result, group=group.mesh.get_group(dim))
    return result


# The gradient of a sum that all processes share is the same on all of them. The gradient of a value that each
# process uses with its own piece is the sum over all processes. So each of these is the other's derivative.


class _Sum(torch.autograd.Function):
    """The sum of all processes' tensors."""

    @staticmethod
    def forward(tensor: Tensor, group: Group) -> Tensor:
        return _all_reduce(tensor, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(grad, ctx.group), None


class _Spread(torch.autograd.Function):
    """The same tensor, for each process to use with its own piece."""

    @staticmethod
    def forward(tensor: Tensor, group: Group) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad, ctx.group), None


def sum_over(tensor: Tensor, group: Group) -> Tensor:
    """The sum over the processes of a group, the same on all; differentiable any number of times."""
    total: Tensor = _Sum.apply(tensor, group) if group.dims else tensor
    return total


def spread_over(tensor: Tensor, group: Group) -> Tensor:
    """A tensor that all processes of a group share, for use with each one's own piece."""
    same: Tensor = _Spread.apply(tensor, group) if group.dims else tensor
    return same


def sum_all_over(rows: Tensor, groups: Sequence[Group]) -> Tensor:
    """Sum each row of a tensor over its group, in one exchange for all rows of a group."""
    members: dict[Group, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if len(members) == 1:
        return sum_over(rows, groups[0])
    result = list(rows.unbind())
    for group, indices in members.items():
        summed = sum_over(torch.stack([result[i] for i in indices]), group)
        for index, total in zip(indices, summed.unbind(), strict=True):
            result[index] = total
    return torch.stack(result)
