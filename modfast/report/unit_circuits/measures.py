"""Measures of one model's unit circuits: sizes, scores, overlap and clusters, beside random circuits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modfast.circuits.measures import intersection_over_union, random_circuits
from modfast.circuits.units.unit_circuit import UnitCircuit
from modfast.report.circuits.summary import DRAWS, pair_mean
from modfast.report.numbers import average
from modfast.results import as_lists

_NUMBERS = ("num_examples", "num_passes", "metric_before", "metric_after", "size", "num_units")


def describe_unit_circuits(
    circuits: Sequence[UnitCircuit], clusters: Tensor | None, seed: int
) -> dict[str, Any]:
    """Return all measures of one model's unit circuits, and of random circuits.

    Args:
        circuits: at least one, all of the same spaces.
        clusters: the cluster of each unit, ``(num_units,)`` int64, -1 for none; None without clusters.
        seed: the seed for drawing the random circuits.

    Returns:
        Lists over circuits: ``num_examples``, ``num_passes``, ``metric_before``, ``metric_after``, ``size``,
        ``num_units`` and, by space of which units were asked for, ``sizes`` and ``scores`` (each with
        ``units`` asked for, ``kept``, ``largest``, ``mean``, ``smallest`` and ``negative``, how many scores
        are below zero). ``overlap`` (circuits x circuits) is the intersection over union of the units that
        they keep, ``random_overlap`` its mean over pairs and over draws of circuits with as many units in
        each space. ``inside`` (circuits x clusters) is the share of a circuit's units in each cluster,
        ``random_inside`` what is to be expected of random circuits of the same sizes, mean of the circuits;
        ``largest_share`` the share in the cluster that holds most of a circuit, ``random_largest_share`` its
        mean over circuits and draws; these four are None without clusters. None stands for NaN.

    Example:
        >>> kept, scores = torch.tensor([True, False]), torch.tensor([1.0, -0.5], dtype=torch.float64)
        >>> circuit = UnitCircuit(kept, scores, {"0": slice(0, 2)}, "greedy", "zero", 0.1, 10, 3, -0.5, -0.6)
        >>> described = describe_unit_circuits([circuit], torch.tensor([1, 0]), seed=0)
        >>> described["num_units"], described["inside"], described["scores"]["0"][0]["negative"]
        ([1], [[0.0, 1.0]], 1)
    """
    kept = _kept(circuits)
    spaces = asked_spaces(circuits)
    draws = [_kept(random_circuits(circuits, seed * DRAWS + draw)) for draw in range(DRAWS)]
    # (units, clusters); None without clusters.
    member = None
    if clusters is not None and bool((clusters >= 0).any()):
        member = torch.nn.functional.one_hot(clusters + 1).double()[:, 1:]
    return {
        **{name: [getattr(circuit, name) for circuit in circuits] for name in _NUMBERS},
        "sizes": {name: [circuit.sizes.get(name) for circuit in circuits] for name in spaces},
        "scores": {name: [_scores(circuit, space) for circuit in circuits] for name, space in spaces.items()},
        "overlap": as_lists(unit_overlap(kept)),
        "random_overlap": average(pair_mean(unit_overlap(drawn)) for drawn in draws),
        "inside": None if member is None else as_lists(_inside(kept, member)),
        "random_inside": None if member is None else as_lists(_expected_inside(circuits, member, spaces)),
        "largest_share": None if member is None else as_lists(_inside(kept, member).amax(1)),
        "random_largest_share": None
        if member is None
        else average(share for drawn in draws for share in _inside(drawn, member).amax(1).tolist()),
    }


def asked_spaces(circuits: Sequence[UnitCircuit]) -> dict[str, slice]:
    """Return the spaces of which units were asked for in any of the circuits, in the order of the network."""
    asked = torch.stack([circuit.asked for circuit in circuits]).any(0)
    return {name: space for name, space in circuits[0].spaces.items() if bool(asked[space].any())}


def unit_overlap(kept: Tensor) -> Tensor:
    """Return the intersection over union of each two circuits, from what each keeps, ``(n, units)``.

    :func:`modfast.circuit_overlap` refuses circuits that were asked for different units; a page shows them.

    Example:
        >>> unit_overlap(torch.tensor([[True, True, False], [False, True, True]]))
        tensor([[1.0000, 0.3333],
                [0.3333, 1.0000]], dtype=torch.float64)
    """
    counts = kept.double()
    return intersection_over_union([counts @ counts.T])


def _kept(circuits: Sequence[UnitCircuit]) -> Tensor:
    """What each circuit keeps of the units that it was asked for, ``(n, units)``."""
    return torch.stack([circuit.kept & circuit.asked for circuit in circuits])


def _inside(kept: Tensor, member: Tensor) -> Tensor:
    """Return the share of each circuit's units in each cluster, (circuits, clusters); NaN without a unit."""
    counts = kept.double()
    return counts @ member / counts.sum(1, keepdim=True)


def _expected_inside(circuits: Sequence[UnitCircuit], member: Tensor, spaces: Mapping[str, slice]) -> Tensor:
    """Return the share of random circuits' units in each cluster, mean of the circuits, without drawing."""
    shares = []
    for circuit in circuits:
        expected = torch.zeros(member.shape[1], dtype=torch.float64, device="cpu")
        for space in spaces.values():
            count = int((circuit.kept & circuit.asked)[space].sum())
            if count:
                asked = circuit.asked[space].double()
                expected += count * (asked @ member[space]) / asked.sum()
        if circuit.num_units:
            shares.append(expected / circuit.num_units)
    if not shares:
        return torch.full((member.shape[1],), torch.nan, dtype=torch.float64, device="cpu")
    return torch.stack(shares).mean(0)


def _scores(circuit: UnitCircuit, space: slice) -> dict[str, Any]:
    """Return a summary of a circuit's scores in one space; numbers are None if no unit was asked for."""
    asked = circuit.asked[space]
    scores = circuit.scores[space][asked]
    some = len(scores) > 0
    return {
        "units": len(scores),
        "kept": int(circuit.kept[space][asked].sum()),
        "largest": float(scores.max()) if some else None,
        "mean": float(scores.mean()) if some else None,
        "smallest": float(scores.min()) if some else None,
        "negative": int((scores < 0).sum()),
    }
