"""What stands between the markers of pages, by name, from committed results.

A page has a line ``<!-- NAME table: begin -->`` and, after it, ``<!-- NAME table: end -->``. A block may be
moved to any page by moving its markers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.circuits import convolutions, units
from benchmarks.circuits import table as circuits
from benchmarks.common.pages import as_markdown
from benchmarks.energy import busy
from benchmarks.energy import table as energy
from benchmarks.findings import page as findings_page
from benchmarks.kernels import table as kernels
from benchmarks.minilm import findings as minilm
from benchmarks.minilm import page as minilm_page
from benchmarks.optim import table as optim
from benchmarks.spectral import solvers
from benchmarks.spectral import table as spectral
from modfast.files import read_json

from . import short

BENCHMARKS = Path(__file__).parents[1]
TRANSCRIBED = Path(__file__).with_name("transcribed.json")


@cache
def result(name: str) -> Any:
    """Return committed results: ``"energy/cpu"`` are those of ``benchmarks/energy/results/cpu.json``."""
    family, _, file = name.partition("/")
    return read_json(BENCHMARKS / family / "results" / f"{file}.json")


def printed(report: dict[str, Any]) -> str:
    """Return a table whose cells were kept as they were printed."""
    return f"{as_markdown(report['headings'], report['rows'])}\n"


def _measured(name: str, make: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    def block() -> str:
        report = result(name)
        origin = f"\nThese figures are {report['transcribed']}.\n" if "transcribed" in report else ""
        return make(report) + origin

    return block


def _of_a_gpu(family: str, make: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """Return a block that stays empty until results of ``make bench-cuda`` are committed."""
    there = (BENCHMARKS / family / "results" / "cuda.json").exists()

    def shown(report: dict[str, Any]) -> str:
        return printed(report) if "headings" in report else make(report)

    return _measured(f"{family}/cuda", shown) if there else lambda: ""


def _minilm(name: str) -> Callable[[], str]:
    return lambda: minilm_page.tables(minilm.read())[name]


BLOCKS: dict[str, Callable[[], str]] = {
    "energy": _measured("energy/cpu", energy.markdown),
    "energy busy": _measured("energy/busy", busy.markdown),
    "optim": _measured("optim/cpu", optim.markdown),
    "spectral": _measured("spectral/cpu", spectral.markdown),
    "solvers": _measured("spectral/solvers", solvers.markdown),
    "circuits": _measured("circuits/cpu", circuits.markdown),
    "units": _measured("circuits/units", units.markdown),
    "convolutions": _measured("circuits/convolutions", convolutions.markdown),
    "energy cuda": _of_a_gpu("energy", energy.markdown),
    "spectral cuda": _of_a_gpu("spectral", spectral.markdown),
    "circuits cuda": _of_a_gpu("circuits", circuits.markdown),
    "speed": lambda: short.speed(
        *(result(f"{family}/cpu") for family in ("energy", "optim", "spectral", "circuits"))
    ),
    "task rankings": lambda: printed(read_json(TRANSCRIBED)["tasks"]["rankings"]),
    "findings": findings_page.lines_of_readme,
    "kernels": lambda: kernels.markdown(read_json(kernels.KEPT)),
    **{
        name: _minilm(name)
        for name in ("minilm curve", "minilm enmeshment", "minilm agreement", "minilm layers")
    },
}
