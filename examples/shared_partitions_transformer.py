"""Make all MLPs of a transformer modular, with clusters that its layers share: four streams side by side."""

import argparse
import json
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import modfast
from modfast.tasks import next_token

# Text that every Python has: two of its own modules.
sources = [Path(argparse.__file__), *sorted(Path(json.__file__).parent.glob("*coder.py"))]
task = next_token(sources, length=64)
inputs, _ = task.test_batches[0]


def held_out(model):
    """Mean loss of the text that was held out, in nats per byte."""
    with torch.no_grad():
        losses = [
            cross_entropy(model(each).flatten(0, 1), target.flatten()) for each, target in task.test_batches
        ]
    return float(torch.stack(losses).mean())


for name, weight in (("plain", 0.0), ("modular", 20.0)):
    model = task.model(width=64, heads=4, layers=2)
    # The hidden neurons of an MLP are the rows of one weight and the columns of the next, and the residual
    # stream belongs to all. So a cluster is the same in every layer.
    network = modfast.read_network(model, inputs[:1])
    layers = network.select("mlp_input", "mlp_output")
    loss = modfast.EnmeshmentLoss(model, network.partitions(4, layers=layers))
    optimizer = modfast.optim.AdamW(model.parameters(), 3e-3, enmeshment=loss, enmeshment_weight=weight)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        batch, targets = task.draw(16, generator)
        optimizer.zero_grad()
        cross_entropy(model(batch).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
    clusterability = loss.clusterability()
    print(f"{name}: held-out loss {held_out(model):.3f} nats per byte, clusterability")
    for layer in layers:
        print(f"  {layer}: {clusterability[layer]:.3f}")
    if weight:
        hidden, stream = network.layers[layers[0]].row_units, network.layers[layers[0]].col_units
        print(f"{len(layers)} weights share {len(stream)} dimensions of the stream; ", end="")
        print(f"{layers[0]} alone has {len(hidden)} neurons that {layers[1]} reads")
