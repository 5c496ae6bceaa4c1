"""Clusters of channels in a residual network: additions tie channels together, and read_network sees it."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import modfast
from modfast.data import load_dataset

digits = load_dataset("digits")
train, test = digits.normalize(digits.train_images), digits.normalize(digits.test_images)
task = (test, digits.test_labels)


class Block(nn.Module):
    """Two convolutions; what they write is added to what they read, as in a ResNet."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, images):
        """The images with what this block adds."""
        hidden = torch.relu(self.bn1(self.conv1(images)))
        return torch.relu(images + self.bn2(self.conv2(hidden)))


def resnet():
    """A small one for images of 8 x 8; torchvision.models.resnet18() is read in the same way."""
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)
    stem = nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()
    return nn.Sequential(*stem, Block(24), nn.MaxPool2d(2), Block(24), *ends)


for name, weight in (("plain", 0.0), ("modular", 20.0)):
    torch.manual_seed(0)
    model = resnet()
    network = modfast.read_network(model, test[:1])
    layers = network.select("convolution")[1:]  # all but the first, which reads the one channel of the image
    # Four clusters of channels. The stream's are the same in all layers that add to it.
    loss = modfast.EnmeshmentLoss(model, network.partitions(4, layers=layers))
    optimizer = modfast.optim.AdamW(model.parameters(), 3e-3, enmeshment=loss, enmeshment_weight=weight)
    for _ in range(250):
        rows = torch.randint(len(train), (64,))
        optimizer.zero_grad()
        cross_entropy(model(train[rows]), digits.train_labels[rows]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = modfast.accuracy(model(test), task).mean()
    print(f"{name}: {right:.1%} of the test images right; clusterability ", end="")
    print(", ".join(f"{layer} {value:.3f}" for layer, value in loss.clusterability().items()))
    without = modfast.cluster_ablation(model, task, modfast.accuracy, network, 4)
    print("  without each cluster of channels: " + ", ".join(f"{share:.1%}" for share in without.tolist()))

stream = network.layers["0"].row_units  # what the first convolution writes, and both blocks add to
for layer in ("3.conv2", "5.conv2"):
    same = torch.equal(network.layers[layer].row_units, stream)
    print(f"{layer} writes {'the same' if same else 'other'} channels as the first convolution")
