"""Find modules that nobody told you of: in one weight, and in a network of several layers."""

from itertools import pairwise
from pathlib import Path

import matplotlib
import torch
from torch import nn

import modfast

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path("out/examples")
torch.manual_seed(0)


def planted(rows, columns, clusters):
    """Make a weight with large entries inside clusters; rows and columns are in the order that is given."""
    inside = rows[:, None] % clusters == columns[None] % clusters
    return torch.randn(len(rows), len(columns)) * torch.where(inside, 1.0, 0.3)


# 1. One weight with six clusters, rows and columns shuffled.
rows, columns = torch.randperm(180), torch.randperm(120)
weight = planted(rows, columns, 6)

# How many? The singular values fall where the number of clusters is reached. A gap is evidence only if it is
# larger than those of the same weights in random orders.
found = modfast.eigengap(weight, max_clusters=12)
k = found.num_clusters
print(f"one weight: the largest gap, {found.gap:.3f}, is after {k} values; ", end="")
print(f"in shuffled weights the largest is {found.shuffled_gaps.max():.3f}")

partition = modfast.spectral_cocluster(weight, k)
# A found cluster is right if all its rows are of one planted cluster.
pure = sum(int((rows[partition.row_labels == c] % 6).bincount().max()) for c in range(k))
print(f"  {pure} of {len(rows)} rows are with those that they were planted with; ", end="")
print(f"clusterability {modfast.clusterability(weight, partition):.3f}")

# 2. A network: what one layer writes the next one reads, so that clusters run through all layers.
orders = [torch.randperm(size) for size in (40, 80, 80, 40)]
model = nn.Sequential(nn.Linear(40, 80), nn.ReLU(), nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 40))
for layer, (read, written) in zip(model[::2], pairwise(orders), strict=True):
    layer.weight.data = planted(written, read, 4)
network = modfast.read_network(model, torch.zeros(1, 40))
labels = modfast.spectral_cluster(network.graph(), 4)  # one label for each unit of each layer
truth = torch.cat([orders[i] % 4 for i in range(4)])
right = sum(int(truth[labels == c].bincount().max()) for c in range(4))
print(f"a network: {right} of {network.num_units} units of all layers are with their own; ", end="")
test = modfast.shuffle_test(model, 4, 9, example_inputs=torch.zeros(1, 40))
print(f"normalised cut {test.normalized_cut:.3f}, that of shuffled weights {test.mean:.3f}")

figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
modfast.plot.weights(weight, ax=axes[0])
modfast.plot.weights(weight, partition, axes[1])
OUT.mkdir(parents=True, exist_ok=True)
figure.savefig(OUT / "find_modules.png", dpi=120)
print("wrote", OUT / "find_modules.png")
