"""Placements on meshes of processes, for the tests of weights that lie in pieces."""

import torch
from torch.distributed.tensor import Replicate, Shard

R, S0, S1 = Replicate(), Shard(0), Shard(1)


def layout_name(value):
    return "x".join(map(str, value)) if isinstance(value[0], int) else " ".join(map(str, value))


def count(mesh):
    return torch.Size(mesh).numel()
