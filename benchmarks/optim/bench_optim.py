"""A step of each contestant, for pytest-benchmark."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.optim.peers import CASES, PEERS, Case, step_of


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_optim(case: Case, name: str, benchmark: Any) -> None:
    step = step_of(name, case)
    benchmark.group = f"optim, {case}"
    benchmark.pedantic(step, rounds=5, warmup_rounds=2)
