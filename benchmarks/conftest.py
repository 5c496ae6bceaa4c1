"""Make pytest collect ``bench_*.py`` here, and record what the times depend on."""

from __future__ import annotations

from typing import Any

import pytest

import modfast
from modfast.machine import environment


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["modfast"] = {**environment(), **modfast.backend()}
