"""Write docs/gpt.md and its pictures from the committed results.

python -m benchmarks.gpt.page
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.common.pages import as_markdown
from modfast.files import atomic_write
from modfast.report.numbers import MINUS, NOTHING
from modfast.report.statistics import detectable_effect

from . import analysis
from .analysis import Comparison, Measure, at, beyond_chance, circuit, less, mean_of
from .arms import ARMS, CLUSTERS, SEEDS, SIZE
from .behaviours import NAMES
from .measure import DEMANDED, TOLERANCE
from .pictures import Row, draw_clusters, draw_differences

PAGE = Path(__file__).parents[2] / "docs" / "gpt.md"
PICTURES = ("gpt-clusters.png", "gpt-differences.png")

_Column = tuple[str, Measure, float, int]
"""A heading, what is measured, the factor to its unit, and decimals."""


def main() -> None:
    """Write everything."""
    arms = shown_arms()
    if not arms or not all(analysis.pairs(arm) for arm in arms):
        raise SystemExit("there are no plain and modular networks of the same seed yet: benchmarks.gpt.run")
    draw_clusters(PAGE.with_name(PICTURES[0]), ["plain", *arms])
    draw_differences(PAGE.with_name(PICTURES[1]), arms, difference_rows())
    with atomic_write(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    plain = analysis.records("plain")
    seeds = {arm: len(analysis.records(arm)) for arm in ("plain", *shown_arms())}
    return environment.get_template("page.md.jinja").render(
        arms=shown_arms(),
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
        mean=_mean,
        diff=_difference,
        verdict=verdict,
        compare=analysis.compare,
        equal=equal_loss_sizes,
        sizes=sizes,
        overlap=overlap,
        best=best_beyond_chance,
        bits=bits_beyond_chance,
        depends=beyond_chance,
        at=at,
        training_table=training_table,
        abilities_table=abilities_table,
        clusters_table=clusters_table,
        dependence_table=dependence_table,
        circuits_table=circuits_table,
        equal_table=equal_table,
        curve_table=curve_table,
        hours=f"{analysis.hours():.1f}",
        processor=plain[0]["environment"]["processor"],
    )


def shown_arms() -> list[str]:
    """Return the modular arms that have been run."""
    return [name for name, arm in ARMS.items() if arm.weight and analysis.has_records(name)]


# --- Measures.


def sizes(kind: str) -> Measure:
    """Return the mean size of the circuits of all behaviours."""
    return mean_of([circuit(kind, name, "size") for name in NAMES])


def overlap(kind: str) -> Measure:
    """Return the overlap of two circuits, less that of random ones of equal size."""
    return less(at("circuits", kind, "overlap", "mean"), at("circuits", kind, "overlap", "random"))


def best_beyond_chance(labels: str) -> Measure:
    """Return the share of a circuit in its best cluster less that of random circuits, over behaviours."""
    return mean_of(
        [
            less(
                circuit("relative", name, "best_cluster", labels, "share"),
                circuit("relative", name, "best_cluster", labels, "random"),
            )
            for name in NAMES
        ]
    )


def bits_beyond_chance(labels: str) -> Measure:
    """Return what a unit's cluster says of its circuit, less that of random circuits, in bits."""
    where = ("circuits", "relative", "information", labels)
    return less(at(*where, "bits"), at(*where, "random"))


def equal_loss_sizes(arm: str) -> Comparison | None:
    """Compare the mean size of all circuits with that in plain networks of equal loss."""
    return analysis.mean_size_at_equal_loss(arm, NAMES)


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


# --- Numbers in sentences.


def verdict(found: Comparison | None, below: str, above: str) -> str:
    """Return a word for a difference, or that it is undecided."""
    if found is None:
        return "not measured"
    return {-1: below, 0: "undecided", 1: above}[found.sign]


def _mean(arm: str, measure: Measure, factor: float = 1.0, decimals: int = 2, interval: bool = False) -> str:
    found = analysis.mean(arm, measure)
    if found is None:
        return NOTHING
    middle, width = found
    text = f"{factor * middle:.{decimals}f}"
    if interval and width is not None:
        text += f" ± {factor * width:.{decimals}f}"
    return _minus(text)


def _difference(found: Comparison | None, factor: float = 1.0, decimals: int = 2) -> str:
    if found is None:
        return NOTHING
    text = f"{factor * found.difference:+.{decimals}f}"
    if found.interval is not None:
        text += f" ± {factor * found.interval:.{decimals}f}"
    return _minus(text)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _ceiling() -> str:
    """Say how many circuits keep nearly all units, which says little about the networks."""
    found = [
        (name, size)
        for arm in ("plain", *shown_arms())
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


def _power(pairs: int) -> str:
    """Say what so many pairs can show."""
    if pairs < 2:
        return "One pair of networks says nothing about the spread over seeds, so no comparison is decided."
    return (
        f"A comparison of {pairs} pairs is decided with a chance of 80 % only if the true difference is "
        f"{detectable_effect(pairs):.1f} times its standard deviation over seeds."
    )


def _minus(text: str) -> str:
    return text.replace("-", MINUS)


# --- Tables.


def _table(columns: Sequence[_Column], first: str = "trained") -> str:
    """A row of means of plain networks, and rows of differences to them."""
    rows = [
        [
            ARMS["plain"].title,
            *(
                _bold(_mean("plain", measure, factor, decimals, True))
                for _, measure, factor, decimals in columns
            ),
        ]
    ]
    for arm in shown_arms():
        cells = [
            _difference(analysis.compare(arm, measure), factor, decimals)
            for _, measure, factor, decimals in columns
        ]
        rows.append([ARMS[arm].title, *cells])
    return as_markdown([first, *(column[0] for column in columns)], rows)


def _bold(text: str) -> str:
    middle, sign, rest = text.partition(" ±")
    return text if middle == NOTHING else f"**{middle}**{sign}{rest}"


def training_table() -> str:
    """Return what training gave."""
    return _table(
        [
            ("held-out loss, nats a byte", at("model", "loss"), 1.0, 3),
            ("right bytes, %", at("model", "accuracy"), 100.0, 1),
            ("clusterability, MLPs", at("clusters", "blocks", "mlps"), 1.0, 3),
            ("clusterability, attention", at("clusters", "blocks", "attention"), 1.0, 3),
            ("live neurons, %", at("live", "neurons"), 100.0, 1),
            ("effective clusters", at("live", "clusters"), 1.0, 2),
        ]
    )


def abilities_table() -> str:
    """Return what the networks can do."""
    columns: list[_Column] = []
    for name in NAMES:
        columns += [
            (f"{name}: right, %", at("behaviours", name, "right"), 100.0, 1),
            (f"{name}: logits", at("behaviours", name, "metric"), 1.0, 2),
        ]
    return _table(columns)


def clusters_table() -> str:
    """Return how modular each network is by the clusters that are found in it, beside random ones."""
    rows = []
    for arm in ("plain", *shown_arms()):
        cells = [
            _mean(arm, at("clusters", labels, kind))
            + f" ({_mean(arm, at('clusters', labels, f'{kind}_random'))})"
            for labels in ("blocks", "found")
            for kind in ("mlps", "attention")
        ]
        rows.append([ARMS[arm].title, *cells])
    headings = [
        f"{labels}: {kind}" for labels in ("blocks", "found afterwards") for kind in ("MLPs", "attention")
    ]
    return as_markdown(["trained", *headings], rows)


def dependence_table(labels: str) -> str:
    """Return on how many clusters answers depend, beside random clusters of the same sizes."""
    rows = []
    for arm in ("plain", *shown_arms()):
        cells = []
        for task in ("text", *NAMES):
            own, random = (at("dependence", labels, task, name) for name in ("mean", "random_mean"))
            cells.append(f"{_mean(arm, own)} ({_mean(arm, random)})")
            cells.append(_mean(arm, less(own, random), 1.0, 2, True))
        rows.append([ARMS[arm].title, *cells])
    headings = [
        heading for task in ("held-out text", *NAMES) for heading in (f"{task} (random)", "difference")
    ]
    return as_markdown(["trained", *headings], rows)


def circuits_table(kind: str) -> str:
    """Return sizes of circuits, and how much they overlap."""
    columns: list[_Column] = [
        (f"{name}, % of units", circuit(kind, name, "size"), 100.0, 1) for name in NAMES
    ]
    columns += [
        ("overlap of two, %", at("circuits", kind, "overlap", "mean"), 100.0, 1),
        ("beyond random, points", overlap(kind), 100.0, 1),
    ]
    if kind == "relative":
        columns += [
            ("best block beyond random, points", best_beyond_chance("blocks"), 100.0, 1),
            ("block and behaviour beyond random, bits", bits_beyond_chance("blocks"), 1.0, 3),
        ]
    return _table(columns)


def equal_table() -> str:
    """Return circuits beside those of plain networks of the same loss."""
    rows = []
    for arm in shown_arms():
        for name in NAMES:
            found = analysis.at_equal_loss(arm, name)
            if found is None:
                continue
            loss, size = found
            rows.append(
                [
                    f"{ARMS[arm].title}: {name}",
                    _difference(loss, 1.0, 3),
                    f"{100 * size.other:.1f}",
                    f"{100 * size.own:.1f}",
                    _difference(size, 100.0, 1),
                ]
            )
    headings = ["trained", "loss, difference", "size of plain, %", "size, %", "difference, points"]
    return as_markdown(headings, rows)


def curve_table() -> str:
    """Return the areas of the curves of faithfulness."""
    rows = []
    for arm in ("plain", *shown_arms()):
        cells = [
            f"{_mean(arm, at('curve', name), 1.0, 2, True)} ({_mean(arm, at('curve', f'random_{name}'))})"
            for name in ("cpr", "cmd")
        ]
        rows.append([ARMS[arm].title, *cells])
    return as_markdown(["trained", "CPR (random rankings)", "CMD (random rankings)"], rows)


if __name__ == "__main__":
    main()
