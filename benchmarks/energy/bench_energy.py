"""The enmeshment loss and its gradient: ours, each peer and the floor, for pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.energy.peers import CASES, FLOOR, OURS, OURS_AUTOGRAD, PEERS, Case, contestants


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    parameter: Case = request.param
    return parameter


@pytest.fixture(scope="module")
def calls(case: Case) -> Iterator[dict[str, Callable[[], object]]]:
    by_name = contestants(case)
    yield by_name
    by_name.clear()  # the weights of one case take half a gigabyte or more


@pytest.mark.benchmark(min_rounds=5, max_time=0.5)
@pytest.mark.parametrize("name", [OURS, OURS_AUTOGRAD, *PEERS, FLOOR])
def test_loss_and_gradient(
    name: str, case: Case, calls: dict[str, Callable[[], object]], benchmark: Any
) -> None:
    benchmark.group = f"loss and gradient, {case}"
    calls[name]()  # the compiled peer is compiled here
    benchmark(calls[name])
