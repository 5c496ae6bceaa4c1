"""Train a small network on digits twice, once with one more line: the enmeshment loss on its middle layer."""

from pathlib import Path

import matplotlib
import torch
from torch.nn.functional import cross_entropy

import modfast
from modfast.data import load_dataset
from modfast.models import MLP

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path("out/examples")

digits = load_dataset("digits")  # scikit-learn's own, no download
train, test = digits.normalize(digits.train_images), digits.normalize(digits.test_images)


def trained(weight):
    """Train with a weight of the enmeshment loss; 0 is plain training. Returns the model and its loss."""
    torch.manual_seed(0)
    model = MLP((1, 8, 8), 10)
    # Four contiguous blocks: before training neurons have no order, so these are as good as any.
    enmeshment = modfast.EnmeshmentLoss(model, 4, layers=["fc2"])
    print(f"weight {weight}: clusterability {enmeshment.clusterability()['fc2']:.3f} before training", end="")
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(1000):
        rows = torch.randint(len(train), (64,))
        loss = cross_entropy(model(train[rows]), digits.train_labels[rows])
        loss = loss + weight * enmeshment()  # the line that makes the network modular
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = (model(test).argmax(1) == digits.test_labels).double().mean()
    print(f", {enmeshment.clusterability()['fc2']:.3f} after; {right:.1%} of the test images right")
    return model


models = {"plain": trained(0.0), "modular": trained(20.0)}

# Rows and columns are in the order of the clusters already: a modular layer is four squares on the diagonal.
figure, axes = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
for ax, (name, model) in zip(axes, models.items(), strict=True):
    image = ax.imshow(model.fc2.weight.detach().abs(), cmap="viridis")
    ax.set(title=f"{name}: |weight| of fc2", xlabel="neuron read", ylabel="neuron fed")
    figure.colorbar(image, ax=ax, shrink=0.8)
OUT.mkdir(parents=True, exist_ok=True)
figure.savefig(OUT / "train_a_modular_mlp.png", dpi=120)
print("wrote", OUT / "train_a_modular_mlp.png")
