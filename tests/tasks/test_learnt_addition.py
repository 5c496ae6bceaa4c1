"""Networks learn modular addition, and compute it as the literature says: by waves of a few frequencies."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from rankings import auroc
from torch import Tensor, nn

import modfast
from modfast.metrics import class_log_likelihood
from modfast.tasks import ModularAddition, logit_frequencies, modular_addition, neuron_frequencies

pytestmark = pytest.mark.slow

KINDS = {
    "mlp": ("fc2", 59, {"hidden": 256}, 2500),
    "transformer": ("transformer.blocks.0.mlp_out", 41, {"width": 64, "hidden": 128}, 1500),
}


@dataclass
class Learnt:
    """A trained model, its neurons, and what is known of them.

    Attributes:
        units: the unit of each neuron.
        best: the share of each neuron's variance that its best frequency explains.
        frequency: that frequency.
        live: bool: whether a neuron writes at least a twentieth of what the strongest one writes.
        in_logits: the share of the logits that each frequency explains, from 1 on.
    """

    task: ModularAddition
    model: nn.Module
    test_accuracy: float
    network: modfast.Network
    units: Tensor
    best: Tensor
    frequency: Tensor
    live: Tensor
    in_logits: Tensor

    def accuracy_without(self, neurons: Tensor) -> float:
        """The accuracy on all pairs while some neurons have their mean."""
        with modfast.ablate_units(self.model, self.network, self.units[neurons], "mean", self.task.batches):
            logits = self.task.logits(self.model)
        return (logits.argmax(2).flatten() == self.task.targets).double().mean().item()


@cache
def learnt(kind: str) -> Learnt:
    layer, p, sizes, steps = KINDS[kind]
    task = modular_addition(p, 0.7)
    model = task.model(kind, **sizes)
    history = task.train(model, steps)
    activations = task.activations(model, layer)
    best, place = neuron_frequencies(activations).max(1)
    weight = model.get_submodule(layer).weight.detach().double()
    strength = activations.flatten(0, 1).std(0) * weight.norm(dim=0)
    network = modfast.read_network(model, task.pairs)
    return Learnt(
        task,
        model,
        history[-1]["test_accuracy"],
        network,
        network.layers[layer].col_units,
        best,
        place + 1,
        strength > strength.max() / 20,
        logit_frequencies(task.logits(model)),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_it_generalises(kind):
    assert learnt(kind).test_accuracy > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_one_frequency_explains_most_of_each_live_neuron(kind):
    found = learnt(kind)
    live = found.best[found.live]
    assert live.median() > 0.8
    assert (live > 0.5).double().mean() > 0.95
    # A frequency explains little of noise: there are as many as waves.
    noise = torch.randn(found.task.p, found.task.p, 50, generator=torch.Generator().manual_seed(0))
    assert neuron_frequencies(noise).max() < 0.05


def test_the_transformer_has_a_few_key_frequencies():
    found = learnt("transformer")
    key = found.in_logits > 0.02
    assert 2 <= int(key.sum()) <= 6
    assert found.in_logits[key].sum() > 0.85
    # No live neuron has another one.
    assert bool(key[found.frequency[found.live] - 1].all())
    assert 0.1 < found.live.double().mean() < 0.9


def test_the_mlp_uses_all_frequencies():
    found = learnt("mlp")
    assert found.in_logits.sum() > 0.6
    assert len(found.frequency.unique()) > 0.9 * len(found.in_logits)


def test_neurons_of_the_key_frequencies_are_what_the_transformer_needs():
    found = learnt("transformer")
    key = found.in_logits > 0.02
    needed = found.live & key[found.frequency - 1]
    assert found.accuracy_without(~needed) > 0.99
    assert found.accuracy_without(needed) < 0.2
    # As many others do nothing, as far as there are any.
    others = (~needed).nonzero().flatten()[: int(needed.sum())]
    assert len(others) > 20
    assert found.accuracy_without(others) > 0.99


def test_the_strongest_key_frequency_alone_breaks_the_transformer():
    found = learnt("transformer")
    strongest = found.frequency == int(found.in_logits.argmax()) + 1
    assert found.accuracy_without(strongest) < 0.7


def test_some_frequencies_are_enough_for_the_mlp():
    found = learnt("mlp")
    strongest = found.in_logits.argsort(descending=True)[:12] + 1
    kept = torch.isin(found.frequency, strongest)
    assert int(kept.sum()) < 160
    assert found.accuracy_without(~kept) > 0.99
    few = torch.isin(found.frequency, strongest[:2])
    assert found.accuracy_without(~few) < 0.7


def log_odds(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of the right answer. Its log probability is nearly 0 everywhere, and its gradient, too."""
    right = batch[1][:, None]
    others = output.scatter(1, right, -torch.inf).logsumexp(1)
    return output.gather(1, right)[:, 0] - others


def neurons_alone(found: Learnt) -> str:
    """The space of the neurons."""
    first = int(found.units[0])
    return next(name for name, space in found.network.spaces.items() if space.start <= first < space.stop)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_scores_find_the_live_neurons_of_the_transformer(ablation):
    found = learnt("transformer")
    scores = modfast.unit_scores(
        found.model,
        found.task.batches,
        log_odds,
        found.network,
        spaces=neurons_alone(found),
        ablation=ablation,
        reference=None if ablation == "zero" else found.task.batches,
    )
    assert auroc(scores[found.units], found.live) > 0.95


def test_the_transformer_s_circuit_is_of_neurons_of_the_key_frequencies():
    found = learnt("transformer")
    circuit = modfast.find_unit_circuit(
        found.model,
        found.task.batches,
        class_log_likelihood,
        found.network,
        spaces=neurons_alone(found),
        tolerance=0.01,
        method="greedy",
        ablation="mean",
        reference=found.task.batches,
        steps=8,
    )
    kept = circuit.kept[found.units]
    key = found.in_logits > 0.02
    assert bool(key[found.frequency[kept] - 1].all())
    assert (found.live[kept]).double().mean() > 0.9
    assert int(kept.sum()) < int(found.live.sum())
    assert found.accuracy_without(~kept) > 0.99
    # Each key frequency has neurons in it: none can be spared.
    assert set(found.frequency[kept].tolist()) == set((key.nonzero().flatten() + 1).tolist())
