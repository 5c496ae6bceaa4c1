"""How well scores tell what is known to matter from all else."""

import torch
from torch import Tensor


def auroc(scores: Tensor, positive: Tensor) -> float:
    """How often a positive has a higher score than a negative; ties count half. By the sum of ranks."""
    values, place = scores.unique(return_inverse=True)
    counts = torch.bincount(place, minlength=len(values)).double()
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[place]
    positives, negatives = int(positive.sum()), int((~positive).sum())
    return float(ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives)
