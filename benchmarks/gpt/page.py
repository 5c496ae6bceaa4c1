"""Write docs/findings/gpt.md and its pictures from the committed results.

python -m benchmarks.gpt.page
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.common.templates import page_template
from modfast.files import atomic_write
from modfast.report.statistics import detectable_effect

from . import analysis, tables
from .analysis import Comparison, Measure, at, beyond_chance, circuit
from .arms import ARMS, CLUSTERS, SEEDS, SIZE
from .behaviours import NAMES
from .circuits import DEMANDED, TOLERANCE
from .pictures import Row, draw_clusters, draw_differences

PAGE = Path(__file__).parents[2] / "docs" / "findings" / "gpt.md"
PICTURES = ("gpt-clusters.png", "gpt-differences.png")


def main() -> None:
    """Write everything."""
    arms = tables.shown_arms()
    if not arms or not all(analysis.pairs(arm) for arm in arms):
        raise SystemExit("there are no plain and modular networks of the same seed yet: benchmarks.gpt.run")
    draw_clusters(PAGE.with_name(PICTURES[0]), ["plain", *arms])
    draw_differences(PAGE.with_name(PICTURES[1]), arms, difference_rows())
    with atomic_write(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page."""
    plain = analysis.records("plain")
    seeds = {arm: len(analysis.records(arm)) for arm in ("plain", *tables.shown_arms())}
    return page_template(Path(__file__).with_name("page.md.jinja")).render(
        arms=tables.shown_arms(),
        titles={name: ARMS[name].title for name in ARMS},
        weights={name: ARMS[name].weight for name in ARMS},
        seeds=seeds,
        planned=len(SEEDS),
        size=SIZE,
        clusters=CLUSTERS,
        names=NAMES,
        text=plain[0]["text"],
        tolerance=TOLERANCE,
        demanded=DEMANDED,
        count=_count,
        power=_power(min(seeds.values())),
        ceiling=_ceiling(),
        answers=_answers(),
        mean=tables.mean,
        diff=tables.difference,
        verdict=verdict,
        compare=analysis.compare,
        equal=tables.equal_loss_sizes,
        sizes=tables.sizes,
        overlap=tables.overlap,
        best=tables.best_beyond_chance,
        bits=tables.bits_beyond_chance,
        depends=beyond_chance,
        at=at,
        training_table=tables.training_table,
        abilities_table=tables.abilities_table,
        clusters_table=tables.clusters_table,
        dependence_table=tables.dependence_table,
        circuits_table=tables.circuits_table,
        equal_table=tables.equal_table,
        curve_table=tables.curve_table,
        hours=f"{analysis.hours():.1f}",
        processor=plain[0]["environment"]["processor"],
    )


def difference_rows() -> list[Row]:
    """Return the rows of the picture of differences."""
    percent = "circuit size, points (% of units)"
    others = "clusters that an answer needs, beyond random ones"
    return [
        *(Row(name, _times(100, circuit("relative", name, "size")), percent) for name in NAMES),
        *(
            Row(f"{name}, same metric", _times(100, circuit("fixed", name, "size")), percent)
            for name in NAMES
        ),
        *(Row(f"{name}, blocks", beyond_chance("blocks", name), others) for name in ("text", *NAMES)),
        *(Row(f"{name}, found", beyond_chance("found", name), others) for name in ("text", *NAMES)),
    ]


def _times(factor: float, measure: Measure) -> Measure:
    def scaled(record: analysis.Record) -> float | None:
        value = measure(record)
        return None if value is None else factor * value

    return scaled


def verdict(found: Comparison | None, below: str, above: str) -> str:
    """Return a word for a difference, or that it is undecided."""
    if found is None:
        return "not measured"
    return {-1: below, 0: "undecided", 1: above}[found.sign]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _ceiling() -> str:
    """Say how many circuits keep nearly all units, which says little about the networks."""
    found = [
        (name, size)
        for arm in ("plain", *tables.shown_arms())
        for record in analysis.records(arm)
        for name in NAMES
        if (size := circuit("relative", name, "size")(record)) is not None
    ]
    full = [name for name, size in found if size > 0.9]
    if not full:
        return "None keeps more than 90 % of the units."
    names = " and ".join(dict.fromkeys(full))
    return (
        f"Of {len(found)}, {len(full)} keep more than 90 % of the units ({names}): their sizes are at the "
        "ceiling, and the comparison with the same metric demanded of all is the one to look at."
    )


def _answers() -> tuple[int, int]:
    """Return the fewest and the most right answers in held-out text, over networks."""
    found = [
        record["dependence"]["blocks"]["text"]["answers"]
        for arm in ("plain", *tables.shown_arms())
        for record in analysis.records(arm)
        if record["dependence"]["blocks"]["text"]
    ]
    return min(found), max(found)


def _power(pairs: int) -> str:
    """Say what so many pairs can show."""
    if pairs < 2:
        return "One pair of networks says nothing about the spread over seeds, so no comparison is decided."
    return (
        f"A comparison of {pairs} pairs is decided with a chance of 80 % only if the true difference is "
        f"{detectable_effect(pairs):.1f} times its standard deviation over seeds."
    )


if __name__ == "__main__":
    main()
