"""Reading and checking a user's matrices, dense or sparse, of PyTorch, NumPy or SciPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from modfast.arrays import as_tensor, native, require_numbers
from modfast.shapes import FLOATS
from modfast.without_kernels import on_host

# The index arrays of SciPy's formats. The formats that are not here consist of Python lists and dicts.
_SCIPY_INDICES = {
    "csr": ("indices", "indptr"),
    "csc": ("indices", "indptr"),
    "bsr": ("indices", "indptr"),
    "coo": ("row", "col"),
    "dia": ("offsets",),
}


class CompressedRows(NamedTuple):
    """A sparse matrix: entry e of row i, ``starts[i] <= e < starts[i + 1]``, is in column ``indices[e]``."""

    starts: Tensor  # (rows + 1,), int32 or int64
    indices: Tensor  # (entries,), of the same dtype
    values: Tensor  # (entries,); at most one entry for each row and column
    shape: tuple[int, int]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.values.device


def as_matrix(weight: object, name: str) -> Tensor | CompressedRows:
    """Read a matrix: a tensor of any supported layout, a NumPy array or a SciPy sparse matrix.

    A tensor on a device without kernels is copied to the CPU: every step of the solver would wait for it.

    Raises:
        TypeError: ``weight`` is none of these, does not hold real numbers, or is a ``DTensor``.
        ValueError: ``weight`` is sparse with another layout, or its indices do not fit its shape.
    """
    if isinstance(weight, (Tensor, np.ndarray)):
        tensor = as_tensor(name, weight)
        require_numbers(name, tensor)
        tensor = on_host(tensor)
        return tensor if tensor.layout == torch.strided else _from_sparse(tensor, name)
    if hasattr(weight, "tocsr"):
        return _from_scipy(weight, name)
    raise TypeError(
        f"{name} must be a torch.Tensor, a NumPy array or a SciPy sparse matrix, got {type(weight).__name__}"
    )


def home_of(weight: object) -> torch.device:
    """Return the device on which results of a matrix belong: its own, the CPU for one that is no tensor."""
    return weight.device if isinstance(weight, Tensor) else torch.device("cpu")


def widened(values: Tensor) -> Tensor:
    """Convert dtypes that the kernels do not read to float64: integers and floats narrower than float16."""
    return values if values.dtype in FLOATS else values.to(torch.float64)


def compress(dense: Tensor) -> CompressedRows:
    """Return the nonzero entries of a dense matrix as compressed rows."""
    dense = widened(dense)
    rows, cols = dense.nonzero(as_tuple=True)
    return _compressed(rows, cols, dense[rows, cols], (dense.shape[0], dense.shape[1]))


def _compressed(rows: Tensor, cols: Tensor, values: Tensor, shape: tuple[int, int]) -> CompressedRows:
    """Return compressed rows from the row and column of each entry; entries come row by row."""
    counts = torch.bincount(rows, minlength=shape[0])
    return CompressedRows(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), cols, values, shape)


def _from_sparse(weight: Tensor, name: str) -> CompressedRows:
    if weight.dim() != 2:
        raise ValueError(f"a sparse {name} must have shape (rows, columns), got {tuple(weight.shape)}")
    shape = (weight.shape[0], weight.shape[1])
    if weight.layout == torch.sparse_coo:
        if weight.dense_dim() == 0:
            # Checked before coalesce(), which writes wherever the indices point.
            for side, indices, size in zip(("row", "column"), weight._indices(), shape, strict=True):
                _check_range(indices, size, f"a sparse {name}'s {side} indices")
            weight = weight.coalesce()
            rows, cols = weight.indices()
            return _compressed(rows, cols, weight.values(), shape)
    elif weight.layout == torch.sparse_csr and weight.values().dim() == 1:
        return _checked_rows(weight.crow_indices(), weight.col_indices(), weight.values(), shape, name)
    raise ValueError(
        f"a sparse {name} must have layout torch.sparse_csr or torch.sparse_coo with a number for each "
        f"entry, got {weight.layout}"
    )


def _from_scipy(weight: Any, name: str) -> CompressedRows:
    if len(weight.shape) != 2:
        raise ValueError(f"a sparse {name} must have shape (rows, columns), got {tuple(weight.shape)}")
    try:
        matrix = _remade(weight, name).tocsr()
    except (ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"a sparse {name} must be a valid SciPy matrix: {error}") from error
    starts, indices, values = (as_tensor(name, part) for part in (matrix.indptr, matrix.indices, matrix.data))
    return _checked_rows(starts, indices, values, (int(matrix.shape[0]), int(matrix.shape[1])), name)


def _remade(matrix: Any, name: str) -> Any:
    """Construct the same matrix again from its arrays: SciPy checks the indices only at construction."""
    if matrix.format not in _SCIPY_INDICES:
        return matrix
    from scipy import sparse  # whoever passes a SciPy matrix has SciPy

    data = native(name, matrix.data)
    indices = tuple(native(name, getattr(matrix, part)) for part in _SCIPY_INDICES[matrix.format])
    if any(part.dtype.kind not in "iu" for part in indices):
        raise ValueError(f"its indices must be integers, got {[str(part.dtype) for part in indices]}")
    parts = (data, indices) if matrix.format == "coo" else (data, *indices)
    checked = getattr(sparse, f"{matrix.format}_array")(parts, shape=matrix.shape)
    if hasattr(checked, "check_format"):
        if (np.diff(checked.indptr) < 0).any():  # SciPy skips this check if the last one is negative
            raise ValueError("its index pointers must not fall")
        checked.check_format(full_check=True)
    return checked


def _checked_rows(
    starts: Tensor, indices: Tensor, values: Tensor, shape: tuple[int, int], name: str
) -> CompressedRows:
    entries, (rows, cols) = len(values), shape
    if starts.is_floating_point() or indices.is_floating_point():
        raise ValueError(
            f"a sparse {name}'s indices must be integers, got {starts.dtype} and {indices.dtype}"
        )
    if not (starts.dtype == indices.dtype and starts.dtype in (torch.int32, torch.int64)):
        starts, indices = starts.to(torch.int64), indices.to(torch.int64)
    if starts.shape != (rows + 1,) or indices.shape != (entries,):
        raise ValueError(
            f"a sparse {name} of {rows} rows and {entries} values must have {rows + 1} row starts and "
            f"{entries} column indices, got {tuple(starts.shape)} and {tuple(indices.shape)}"
        )
    if int(starts[0]) != 0 or int(starts[-1]) != entries or bool((starts.diff() < 0).any()):
        raise ValueError(f"a sparse {name}'s row starts must rise from 0 to {entries}, its number of entries")
    _check_range(indices, cols, f"a sparse {name}'s column indices")
    matrix = CompressedRows(starts, indices, values, shape)
    return matrix if _is_canonical(matrix) else _merged(matrix)


def _check_range(indices: Tensor, size: int, what: str) -> None:
    low, high = (int(extreme) for extreme in torch.aminmax(indices)) if len(indices) else (0, 0)
    if low < 0 or high >= max(size, 1):
        raise ValueError(f"{what} must be in [0, {size - 1}], got {low if low < 0 else high}")


def _is_canonical(matrix: CompressedRows) -> bool:
    """Return whether columns rise within each row, so that no column occurs twice."""
    rises = matrix.indices[1:] > matrix.indices[:-1]
    begins = matrix.starts[1:-1]
    begins = begins[(begins > 0) & (begins < len(matrix.indices))]
    rises[begins.long() - 1] = True
    return bool(rises.all())


def _merged(matrix: CompressedRows) -> CompressedRows:
    """Replace entries of the same row and column by their sum."""
    starts, indices, values, shape = matrix
    rows = torch.arange(shape[0], device=starts.device).repeat_interleave(starts.diff().long())
    positions, position_of = torch.unique(rows * shape[1] + indices, return_inverse=True)
    values = widened(values)
    sums = values.new_zeros(len(positions)).index_add_(0, position_of, values)
    return _compressed(positions // shape[1], positions % shape[1], sums, shape)
