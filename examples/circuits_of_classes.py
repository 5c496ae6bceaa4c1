"""Which weights does each digit need? Sizes and overlaps of circuits, plain, modular and random."""

import torch
from torch.nn.functional import cross_entropy

import modfast
from modfast.data import load_dataset
from modfast.models import MLP

digits = load_dataset("digits")
train, test = digits.normalize(digits.train_images), digits.normalize(digits.test_images)


def mean_overlap(circuits):
    """Mean over pairs of circuits of the weights they share, as a share of those of either."""
    overlap = modfast.circuit_overlap(circuits)
    return float(overlap[torch.triu(torch.ones_like(overlap), 1).bool()].nanmean())


for name, weight in (("plain", 0.0), ("modular", 20.0)):
    torch.manual_seed(0)
    model = MLP((1, 8, 8), 10)
    # The optimiser takes the loss into its own pass over the weights, so that it costs next to nothing.
    loss = modfast.EnmeshmentLoss(model, 4, layers=["fc2"])
    optimizer = modfast.optim.AdamW(model.parameters(), 3e-3, enmeshment=loss, enmeshment_weight=weight)
    for _ in range(1000):
        rows = torch.randint(len(train), (64,))
        optimizer.zero_grad()
        cross_entropy(model(train[rows]), digits.train_labels[rows]).backward()
        optimizer.step()

    # "balanced": the circuit must tell the digit from others, since one that always answers "3" knows no 3.
    circuits = modfast.find_circuits(model, test, digits.test_labels, criterion="balanced")
    sizes = [circuit.size for circuit in circuits]
    print(f"{name} (clusterability of fc2 {loss.clusterability()['fc2']:.3f})")
    print("  weights kept for each digit: " + ", ".join(f"{size:.1%}" for size in sizes))
    print(f"  mean size {sum(sizes) / len(sizes):.1%}; overlap {mean_overlap(circuits):.1%}, ", end="")
    # Circuits of the same sizes overlap by chance, too: only what is above that says something.
    print(f"of random circuits of these sizes {mean_overlap(modfast.random_circuits(circuits, seed=0)):.1%}")
    shares = modfast.cluster_shares(circuits, loss.partitions)["fc2"]
    print(f"  of a circuit's weights in fc2, {shares.sum(1).nanmean():.0%} lie inside clusters")
