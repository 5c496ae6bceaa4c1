"""What does a network lose without one cluster, what can one do alone, and how many does an answer need?"""

import torch
from torch.nn.functional import cross_entropy

import modfast
from modfast.data import load_dataset
from modfast.models import MLP

K = 4
digits = load_dataset("digits")
train, test = digits.normalize(digits.train_images), digits.normalize(digits.test_images)
task = (test, digits.test_labels)

for name, weight in (("plain", 0.0), ("modular", 20.0)):
    torch.manual_seed(0)
    model = MLP((1, 8, 8), 10)
    # Clusters of neurons, not of one matrix: what fc1 writes and fc2 reads is in the same cluster.
    network = modfast.read_network(model, test[:2])
    layers = ["fc1", "fc2"]
    loss = modfast.EnmeshmentLoss(model, network.partitions(K, layers=layers), layers=["fc2"])
    optimizer = modfast.optim.AdamW(model.parameters(), 3e-3, enmeshment=loss, enmeshment_weight=weight)
    for _ in range(1000):
        rows = torch.randint(len(train), (64,))
        optimizer.zero_grad()
        cross_entropy(model(train[rows]), digits.train_labels[rows]).backward()
        optimizer.step()

    # A neuron that is off is replaced by its mean over the training images: 0 would be an unusual value.
    instead = {"ablation": "mean", "reference": train}
    without = modfast.cluster_ablation(model, task, modfast.accuracy, network, K, "without", **instead)
    alone = modfast.cluster_ablation(model, task, modfast.accuracy, network, K, "only", **instead)
    print(f"{name} (clusterability of fc2 {loss.clusterability()['fc2']:.3f}), accuracy")
    print("  without each cluster: " + ", ".join(f"{share:.1%}" for share in without.tolist()))
    print("  with each alone:      " + ", ".join(f"{share:.1%}" for share in alone.tolist()))

    # Any four groups give some numbers. Random ones of the same sizes say what they are worth.
    dependence = modfast.cluster_dependence(model, task, modfast.accuracy, network, K, **instead)
    print(f"  a right answer needs {dependence.mean:.2f} clusters, ", end="")
    print(f"{dependence.random_mean:.2f} of random clusters of the same sizes")
