"""Matrices whose clusters are known, for every test that looks for clusters."""

import torch
from torch import Tensor

from modfast import Partition


def planted(
    row_sizes: list[int], col_sizes: list[int], seed: int, spread: float = 0.25
) -> tuple[Tensor, Partition]:
    """Standard normal blocks on the diagonal, ``spread`` times that outside, rows and columns shuffled."""
    generator = torch.Generator().manual_seed(seed)

    def shuffled(sizes: list[int]) -> Tensor:
        labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        return labels[torch.randperm(len(labels), generator=generator)]

    partition = Partition(shuffled(row_sizes), shuffled(col_sizes), len(row_sizes))
    weight = torch.randn(partition.shape, generator=generator)
    return torch.where(partition.mask(), weight, spread * weight), partition
