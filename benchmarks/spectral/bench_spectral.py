"""Spectral clustering of weights and graphs: ours, each peer and the floor, for pytest-benchmark."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from benchmarks.common.rounds import seconds_of
from benchmarks.spectral.cases import GRAPHS, WEIGHTS, Case, WeightCase, block_model, plant
from benchmarks.spectral.peers import (
    EXPERT,
    FLOOR,
    GRAPH_PEERS,
    OURS,
    SCIKIT_LEARN_NODES,
    WEIGHT_PEERS,
    Contestant,
    graph_contestants,
    weight_contestants,
)

PAIRS: list[tuple[Case, str]] = [(case, name) for case in WEIGHTS for name in (OURS, *WEIGHT_PEERS, FLOOR)]
for graph in GRAPHS:
    peers = GRAPH_PEERS if graph.nodes <= SCIKIT_LEARN_NODES else [EXPERT]
    PAIRS += [(graph, name) for name in (OURS, *peers)]


# One case is kept at a time: the largest graph and its copies take a gigabyte.
@lru_cache(maxsize=1)
def contestants(case: Case) -> dict[str, Contestant]:
    if isinstance(case, WeightCase):
        return weight_contestants(plant(case))
    adjacency, _ = block_model(case)
    return graph_contestants(adjacency, case.clusters)


@pytest.mark.parametrize(("case", "name"), PAIRS, ids=str)
def test_clusters(case: Case, name: str, benchmark: Any) -> None:
    call = contestants(case)[name]
    benchmark.group = f"spectral clustering, {case}"
    first = seconds_of(call)
    # A call that is too short for the clock's resolution is repeated for each measurement.
    benchmark.pedantic(call, rounds=1 if first > 2 else 5, iterations=1 if first > 1e-3 else 100)
