"""Spectral clustering of weights and graphs: ours, each peer and the floor, for pytest-benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from rounds import seconds_of
from spectral_cases import GRAPHS, WEIGHTS, GraphCase, WeightCase, block_model, plant
from spectral_peers import (
    FLOOR,
    GRAPH_PEERS,
    OURS,
    WEIGHT_PEERS,
    Contestant,
    graph_contestants,
    weight_contestants,
)


@pytest.fixture(scope="module", params=[*WEIGHTS, *GRAPHS], ids=str)
def case(request: pytest.FixtureRequest) -> WeightCase | GraphCase:
    found: WeightCase | GraphCase = request.param
    return found


@pytest.fixture(scope="module")
def calls(case: WeightCase | GraphCase) -> Iterator[dict[str, Contestant]]:
    if isinstance(case, WeightCase):
        found = weight_contestants(plant(case))
    else:
        adjacency, _ = block_model(case)
        found = graph_contestants(adjacency, case.clusters)
    yield found
    # Emptied afterwards, as the largest graph and what is made of it take a gigabyte.
    found.clear()


@pytest.mark.parametrize("name", list(dict.fromkeys([OURS, *WEIGHT_PEERS, FLOOR, *GRAPH_PEERS])))
def test_clusters(
    name: str, case: WeightCase | GraphCase, calls: dict[str, Contestant], benchmark: Any
) -> None:
    if name not in calls:
        pytest.skip("not a contestant here")
    benchmark.group = f"spectral clustering, {case}"
    first = seconds_of(calls[name])
    # A thousand calls of the floor take less time than a look at the clock should.
    benchmark.pedantic(calls[name], rounds=1 if first > 2 else 5, iterations=1 if first > 1e-3 else 100)
