"""Which frequencies the neurons of a network have, what of them its clusters tell, and its logits hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modfast.tasks import ModularAddition, logit_frequencies, neuron_frequencies

from .arms import Kind

KEY = 0.02
"""A frequency is a key one if it explains at least this share of the logits' variance."""

LIVE = 0.05
"""A neuron is live if it writes at least this share of what the strongest one writes."""

PERMUTATIONS = 1000


@dataclass(frozen=True)
class Waves:
    """What a trained network is made of.

    Attributes:
        shares: float64 ``(neurons, frequencies)``: how much of each neuron a frequency explains; 0 for dead
            ones.
        frequency: int64 ``(neurons,)``: the place of the largest share, the frequency less 1.
        live: bool ``(neurons,)``.
        correlation: float64 ``(neurons, neurons)``: the absolute correlation of two neurons' activations.
        in_logits: float64 ``(frequencies,)``: the share of the logits that each one explains.
        key: bool ``(frequencies,)``.
    """

    shares: Tensor
    frequency: Tensor
    live: Tensor
    correlation: Tensor
    in_logits: Tensor
    key: Tensor


def find_waves(task: ModularAddition, model: nn.Module, kind: Kind) -> Waves:
    """Return what a trained network is made of."""
    activations = task.activations(model, kind.neurons)
    shares = neuron_frequencies(activations).nan_to_num(0.0)
    flat = activations.flatten(0, 1)
    centred = flat - flat.mean(0)
    deviation = centred.square().mean(0).sqrt()
    strength = deviation * model.get_submodule(kind.neurons).weight.detach().double().norm(dim=0)
    normed = torch.where(deviation > 0, centred / deviation, 0.0)
    in_logits = logit_frequencies(task.logits(model))
    return Waves(
        shares,
        shares.argmax(1),
        (strength > 0) & (strength > LIVE * strength.max()),
        (normed.T @ normed / len(flat)).abs(),
        in_logits,
        in_logits > KEY,
    )


def information(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Return the mutual information of two labels of the same things, in bits."""
    size = int(other.max()) + 1
    joint = np.bincount(one * size + other, minlength=(int(one.max()) + 1) * size).reshape(-1, size)
    joint = joint / joint.sum()
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log2(joint[there] / apart[there])).sum())


def families(waves: Waves, labels: Tensor, clusters: int, seed: int) -> dict[str, float]:
    """Return what the clusters of live neurons say of their frequencies, beside permuted clusters.

    Args:
        waves: of the network.
        labels: the cluster of each neuron, -1 for none; int64 ``(neurons,)``.
        clusters: how many there are.
        seed: of the permutations.

    Returns:
        ``information`` of a live neuron's frequency and its cluster, in bits, the mean and the 95 % range of
        the same with permuted clusters, and ``most``, that of clusters that hold whole frequencies each: the
        entropy of the frequency, but at most that of so many equal clusters. ``spread``: in how many clusters
        the neurons of a key frequency are, as effective number (equal parts in two: 2), mean over key
        frequencies with live neurons, and with permuted clusters; ``mixed``: how many frequencies a cluster
        holds, likewise.
    """
    counted = waves.live & (labels >= 0)
    frequency, cluster = waves.frequency[counted].numpy(), labels[counted].numpy()
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(cluster) for _ in range(PERMUTATIONS)]
    permuted = np.array([information(frequency, each) for each in drawn])
    low, high = np.quantile(permuted, [0.025, 0.975])
    key = np.flatnonzero(waves.key.numpy())
    spreads = [_effective(frequency, key, each, clusters) for each in [cluster, *drawn[:100]]]
    return {
        "information": information(frequency, cluster),
        "permuted": float(permuted.mean()),
        "permuted_low": float(low),
        "permuted_high": float(high),
        "most": min(information(frequency, frequency), float(np.log2(clusters))),
        "spread": spreads[0][0],
        "permuted_spread": float(np.mean([spread for spread, _ in spreads[1:]])),
        "mixed": spreads[0][1],
        "permuted_mixed": float(np.mean([mixed for _, mixed in spreads[1:]])),
    }


def _effective(
    frequency: np.ndarray[Any, Any], key: np.ndarray[Any, Any], cluster: np.ndarray[Any, Any], clusters: int
) -> tuple[float, float]:
    """Effective numbers: of clusters for each key frequency, and of frequencies for each cluster; means."""
    counts = np.zeros((int(frequency.max()) + 1, clusters))
    np.add.at(counts, (frequency, cluster), 1.0)
    rows = [counts[k] for k in key if k < len(counts) and counts[k].sum() > 0]
    columns = [column for column in counts.T if column.sum() > 0]
    return _mean_number(rows), _mean_number(columns)


def _mean_number(many: list[np.ndarray[Any, Any]]) -> float:
    if not many:
        return 0.0
    numbers = []
    for counts in many:
        shares = counts[counts > 0] / counts.sum()
        numbers.append(np.exp(-(shares * np.log(shares)).sum()))
    return float(np.mean(numbers))


def logit_power(logits: Tensor) -> Tensor:
    """Return the variance of the logits that each frequency explains."""
    variance = (logits - logits.mean(2, keepdim=True)).square().mean()
    return torch.nan_to_num(logit_frequencies(logits), 0.0) * variance


def own_and_other_falls(waves: Waves, labels: Tensor, falls: Tensor) -> tuple[float, float] | None:
    """Return by how much amplitudes fall without a cluster: of its own frequencies, and of others.

    Args:
        waves: of the network.
        labels: the cluster of each neuron, -1 for none.
        falls: ``(clusters, frequencies)``: by which share the amplitude of each frequency falls in the logits
            without each cluster.

    Returns:
        Both are means over clusters and key frequencies. A cluster owns a frequency to the share of its live
        neurons that have it, and that share is the weight of the pair among its own, 1 less it among the
        others. None if no cluster has a live neuron of a key frequency, or there is but one key frequency.
    """
    owned = torch.zeros_like(falls)
    for cluster in range(len(falls)):
        members = waves.live & (labels == cluster) & waves.key[waves.frequency]
        owned[cluster] = torch.bincount(waves.frequency[members], minlength=falls.shape[1])
    owned, falls = owned[:, waves.key], falls[:, waves.key]
    has_any = owned.sum(1) > 0
    owned, falls = owned[has_any] / owned[has_any].sum(1, keepdim=True), falls[has_any]
    if not len(owned) or owned.shape[1] < 2:
        return None
    other = 1 - owned
    return float((owned * falls).sum() / owned.sum()), float((other * falls).sum() / other.sum())
