"""Weights in every layout, labels in random order, and the tolerances of results."""

import torch

from modfast import Partition, reference

OPS = torch.ops.modfast
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


# Sums are computed in float64 for every dtype. Products of narrower numbers are exact there, and a sum takes
# at most some thousands of additions (128 rows of a chunk, 1,024 columns of a tile, the tiles), each exact to
# 1.1e-16 of the sum of absolute values.
SUM_TOLERANCE = 1e-12


def product_tolerance(dtype):
    """How far a weight times a factor may be from the exact product: relative, and absolute near zero.

    In float64 the product is rounded once, as in the specification. In other dtypes the factor and the
    product are rounded to float32, and for half types the product once more to the dtype. Each rounding errs
    by at most half an eps, the distance from 1 to the next number: together an eps in float32, and in half
    types eps/2 and twice 6e-8, which is less than an eps as well. Below the normal numbers results are spaced
    evenly, by the smallest positive number, and are off by at most one such step.
    """
    if dtype == torch.float64:
        return {"rtol": 0.0, "atol": 0.0}
    info = torch.finfo(dtype)
    return {"rtol": 1.01 * info.eps, "atol": info.smallest_normal * info.eps}


def random_labels(size, k):
    """Labels in random order, one in five of them -1."""
    labels = torch.randint(0, k, (size,))
    return torch.where(torch.rand(size) < 0.2, -1, labels)


def random_partition(shape, k):
    return Partition(random_labels(shape[0], k), random_labels(shape[1], k), k)


LAYOUTS = {
    "contiguous": lambda shape, dtype: torch.randn(shape, dtype=dtype),
    "transposed": lambda shape, dtype: torch.randn(shape[1], shape[0], *shape[2:], dtype=dtype).transpose(
        0, 1
    ),
    "columns of a wider": lambda shape, dtype: torch.randn(
        shape[0], 2 * shape[1] + 3, *shape[2:], dtype=dtype
    )[:, 3::2],
    "rows of a taller": lambda shape, dtype: torch.randn(3 * shape[0] + 1, *shape[1:], dtype=dtype)[1::3],
    "one row for all": lambda shape, dtype: torch.randn(1, *shape[1:], dtype=dtype).expand(shape),
    "one column for all": lambda shape, dtype: torch.randn(shape[0], 1, *shape[2:], dtype=dtype).expand(
        shape
    ),
    "one number for all": lambda shape, dtype: torch.randn((), dtype=dtype).expand(shape),
    "channels last": lambda shape, dtype: torch.randn(shape[0], *shape[2:], shape[1], dtype=dtype).movedim(
        -1, 1
    ),
    # In memory the columns and the kernel do not make one line, whichever comes first.
    "kernel permuted": lambda shape, dtype: torch.randn(shape[-1], *shape[:-1], dtype=dtype).movedim(0, -1),
    "kernel cut": lambda shape, dtype: torch.randn(*shape[:-1], shape[-1] + 2, dtype=dtype)[..., 1:-1],
}

# Around a chunk of 128 rows, a window of 512, a tile of 4,096 columns (on a GPU segments of 1,024); primes;
# nothing; kernels of one to three sizes.
SHAPES = [
    (1, 1),
    (1, 7),
    (7, 1),
    (13, 17),
    (127, 31),
    (128, 128),
    (129, 3),
    (3, 1023),
    (2, 1025),
    (513, 3),
    (1025, 2),
    (300, 1030),
    (3, 4095),
    (2, 4097),
    (0, 5),
    (5, 0),
    (0, 0),
    (3, 5, 2),
    (8, 4, 3, 3),
    (6, 1, 3, 3),
    (1, 6, 3, 3),
    (130, 3, 3, 3),
    (3, 4, 2, 3, 2),
    (4, 5, 0),
    (2, 520, 1, 2),
]


def labels_of(partition):
    return partition.row_labels, partition.col_labels


def assert_sums(found, weight, other, partition):
    """Check the operator's sums, within the tolerance relative to the sums of absolute values."""
    expected = reference.labelled_block_inner(weight, other, *labels_of(partition), partition.num_clusters)
    size = reference.labelled_block_inner(
        weight.abs(), None if other is None else other.abs(), *labels_of(partition), partition.num_clusters
    )
    assert found.dtype == torch.float64
    assert found.shape == expected.shape
    assert ((found - expected).abs() <= SUM_TOLERANCE * size).all()


def assert_split(energies, weights, partitions):
    """Check the energies inside and across clusters, within the tolerance of sums."""
    for found, weight, partition in zip(energies, weights, partitions, strict=True):
        blocks = reference.labelled_block_inner(weight, None, *labels_of(partition), partition.num_clusters)
        expected = reference.split_energies(blocks)
        assert ((found - expected).abs() <= SUM_TOLERANCE * expected).all()
