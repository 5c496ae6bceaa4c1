"""The README's table of times."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.circuits.peers import PEERS as LOOPS
from benchmarks.common.device import where
from benchmarks.common.pages import as_markdown
from benchmarks.optim.peers import ACCUMULATE, WITH_LOSS
from benchmarks.spectral.peers import ARPACK, EXPERT, RANDOMIZED

Report = dict[str, Any]


def time(milliseconds: float) -> str:
    """Return a time in three digits, with the unit that suits it."""
    if milliseconds >= 1e3:
        return f"{milliseconds / 1e3:.2f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def span(values: Iterable[float], form: str = ".1f") -> str:
    """Return the least and the largest value as a range; one number where they look the same."""
    values = list(values)
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def speed(loss: Report, step: Report, found: Report, walked: Report) -> str:
    """Return the table of the README."""
    matrix = _case(loss["results"], "4096 x 4096, k 8")
    gpt = _case(step["results"], "GPT-2 small, 24 matrices, k 8")
    weight = _case(found["weights"], "3072 x 768, k 8, outside 0.25")
    graph = _case(found["graphs"], "1,000,000 nodes, k 8")
    circuit = _case(walked["cases"], "noisy patterns, CNN")
    learnt = span(weight["ratios"][name] for name in (RANDOMIZED, ARPACK))
    theirs = span((min(weight["adjusted_rand"][name]) for name in (RANDOMIZED, ARPACK)), ".2f")
    whole = next(iter(LOOPS))
    rows = [
        [
            "loss and gradient, a 4096 x 4096 weight",
            f"{time(matrix['milliseconds']['modfast'])}: {matrix['share_of_floor']:.2f} of memory's speed",
            f"published code {matrix['ratios']['published']:.1f} times as long, "
            f"`torch.compile` {matrix['ratios']['compiled']:.1f}",
        ],
        [
            "the loss inside AdamW's step, GPT-2 small's 24 matrices",
            f"{gpt['ratios'][WITH_LOSS]:.2f} times PyTorch's fused AdamW without it",
            f"loss apart from the step {gpt['ratios'][ACCUMULATE]:.2f} times",
        ],
        [
            "clusters of a 3072 x 768 weight",
            f"{time(weight['milliseconds']['modfast'])}, adjusted Rand index "
            f"{min(weight['adjusted_rand']['modfast']):.2f} to the planted ones",
            f"scikit-learn {learnt} times as long, index {theirs}",
        ],
        [
            "clusters of a graph, a million nodes",
            time(graph["milliseconds"]["modfast"]),
            f"`eigsh` and k-means {graph['ratios'][EXPERT]:.1f} times as long",
        ],
        [
            f"the circuit of one class, {circuit['weights']:,} weights",
            f"{circuit['seconds']['modfast']:.2g} s, decided as a float64 loop decides",
            f"published loop {circuit['loop_seconds'][whole] / 3600:.0f} hours",
        ],
    ]
    machines = dict.fromkeys(where(report) for report in (loss, step, found, walked))
    table = as_markdown(["what", "modfast", "in comparison"], rows).replace(
        "---:", "---"
    )  # words, not numbers
    return f"{table}\n\nMeasured on {'; '.join(machines)}.\n"


def _case(results: list[Report], name: str) -> Report:
    return next(each for each in results if each["case"] == name)
