"""Keep only the largest weights in every step, and see what becomes of accuracy and of circuits."""

import torch
from torch.nn.functional import cross_entropy

import modfast
from modfast.data import load_dataset
from modfast.models import MLP

digits = load_dataset("digits")
train, test = digits.normalize(digits.train_images), digits.normalize(digits.test_images)
STEPS = 1000

for final in (1.0, 0.2, 0.05):
    torch.manual_seed(0)
    model = MLP((1, 8, 8), 10)

    def keep(step, final=final):
        """Little by little in the first half: at once would leave only what chance made large."""
        return max(final, 1.0 - 2 * step / STEPS * (1.0 - final))

    # After each step all but the largest magnitudes of each layer are zero. Their moments live on, so that a
    # weight can come back. keep=1.0 is plain AdamW.
    optimizer = modfast.optim.AdamW(model.parameters(), 3e-3, keep=keep, keep_layers=model)
    for _ in range(STEPS):
        rows = torch.randint(len(train), (64,))
        optimizer.zero_grad()
        cross_entropy(model(train[rows]), digits.train_labels[rows]).backward()
        optimizer.step()

    weights = [layer.weight.detach() for layer in (model.fc1, model.fc2, model.fc3)]
    left = sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)
    with torch.no_grad():
        right = (model(test).argmax(1) == digits.test_labels).double().mean()
    # The share of all weights, zeros included, so that it compares across models.
    circuits = modfast.find_circuits(model, test, digits.test_labels, criterion="balanced")
    size = sum(circuit.size for circuit in circuits) / len(circuits)
    used = sum(modfast.live_units(weight).effective_rows for weight in weights)
    print(f"{left:.1%} of the weights: {right:.1%} of the test images right, ", end="")
    print(f"a digit needs {size:.2%} of all weights, {used:.0f} of 138 neurons are in use")
