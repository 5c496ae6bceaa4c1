"""Times and clusters of contestants side by side, and the cells that all tables share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common.rounds import in_rounds, quartiles
from benchmarks.spectral.agreement import adjusted_rand
from benchmarks.spectral.cases import Case
from benchmarks.spectral.peers import OURS, Contestant, Found

# A contestant that takes longer is timed once.
SLOW_SECONDS = 5.0


def measure(
    case: Case,
    contestants: dict[str, Contestant],
    truth: Sequence[Any],
    repeats: int,
    advance: Callable[[], None],
    device: str = "cpu",
) -> tuple[dict[str, Any], dict[str, Found]]:
    """Return the results that all tables hold, and what each contestant found.

    Args:
        case: for the report.
        contestants: by name.
        truth: the planted labels.
        repeats: how many rounds.
        advance: called after each round.
        device: the device that the contestants run on.
    """
    clusterings: dict[str, Found] = {}

    def recording(name: str, call: Contestant) -> Callable[[], None]:
        def recorded() -> None:
            if clustering := call():
                clusterings[name] = clustering

        return recorded

    calls = {name: recording(name, call) for name, call in contestants.items()}
    seconds = in_rounds(calls, repeats, advance, device, SLOW_SECONDS)
    by_name = {name: quartiles(values) for name, values in seconds.items()}
    median = {name: values[1] for name, values in by_name.items()}
    result = {
        "case": str(case),
        **case._asdict(),
        "milliseconds": median,
        "quartiles": by_name,
        "calls": {name: len(values) for name, values in seconds.items()},
        "passes": clusterings[OURS].passes,
        "ratios": {name: median[name] / median[OURS] for name in clusterings if name != OURS},
        "adjusted_rand": {
            name: [
                adjusted_rand(expected, labels)
                for expected, labels in zip(truth, clustering.labels, strict=True)
            ]
            for name, clustering in clusterings.items()
        },
    }
    return result, clusterings


def peer_cells(result: dict[str, Any], names: Sequence[str]) -> list[str]:
    ratios, index = result["ratios"], result["adjusted_rand"]
    return [f"{ratios[name]:.1f} x ({min(index[name]):.3f})" if name in ratios else "-" for name in names]


def time_cells(result: dict[str, Any]) -> list[str]:
    low, ours, high = result["quartiles"][OURS]
    return [result["case"], f"{ours:.1f}", f"{low:.1f} - {high:.1f}"]
