"""Circuits of one class, of all classes, and one trial of each loop, for pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest

from benchmarks.circuits.cases import CircuitCase, digits, noisy_patterns
from benchmarks.circuits.peers import ALL, OURS, PEERS
from modfast import find_circuit, find_circuits

CASES: dict[str, Callable[[], CircuitCase]] = {"digits": digits, "noisy_patterns": noisy_patterns}


@lru_cache(maxsize=1)
def made(case: str) -> CircuitCase:
    return CASES[case]()


@pytest.mark.parametrize("name", [OURS, ALL, *PEERS])
@pytest.mark.parametrize("case", CASES)
def test_circuits(case: str, name: str, benchmark: Any) -> None:
    model, inputs, labels = made(case)[1:]
    if name == OURS:
        call: Callable[[], object] = lambda: find_circuit(model, inputs[labels == 0], 0)  # noqa: E731
    elif name == ALL:
        call = lambda: find_circuits(model, inputs, labels)  # noqa: E731
    else:
        call = PEERS[name](model, inputs[labels == 0], 0)
    benchmark.group = f"circuits, {case}" + ("" if name in (OURS, ALL) else ", one trial")
    benchmark.pedantic(call, rounds=5, warmup_rounds=1)
