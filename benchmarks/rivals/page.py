"""Write the page of rivals and its picture from the committed results.

python -m benchmarks.rivals.page
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.pages import as_markdown, true_minus
from benchmarks.common.templates import page_template
from modfast.files import atomic_write
from modfast.report.numbers import NOTHING

from . import analysis
from .analysis import Value, live, of
from .arms import ARMS
from .cost import COSTS, read_costs
from .pictures import draw_rivals
from .recipe import RECIPE

PAGE = Path(__file__).parents[2] / "docs" / "findings" / "rivals.md"
PICTURE = "rivals.png"

_CRITERIA = (
    ("loss", "`loss`, the published criterion"),
    ("balanced", "`balanced`, the stricter one"),
    ("fixed", "`loss` with the same loss allowed to all (over the pairs that may have it)"),
)

# Heading, value, factor, decimals.
_Column = tuple[str, Value, float, int]


def main() -> None:
    """Write everything."""
    draw_rivals(PAGE.with_name(PICTURE), shown())
    with atomic_write(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")


def shown() -> list[str]:
    """Return the arms that have results of two seeds or more, plain training first."""
    return [name for name in ARMS if analysis.has_records(name) and len(analysis.pairs(name)) > 1]


def page() -> str:
    """Return the page."""
    rivals = [name for name in shown() if name != analysis.PLAIN]
    text = page_template(Path(__file__).with_name("page.md.jinja")).render(
        arms=ARMS,
        rivals=rivals,
        compared=sum(analysis.compare(name, of("model", "accuracy")) is not None for name in rivals),
        recipe=RECIPE,
        seeds={name: len(analysis.records(name)) for name in shown()},
        meets=lambda arm, price: all(
            analysis.meets_goal(arm, each, price=price) for each in ("loss", "balanced")
        ),
        allowed=_allowed,
        criteria=[
            (
                words,
                [name for name in rivals if analysis.meets_goal(name, criterion)],
                [name for name in rivals if analysis.surely_meets_goal(name, criterion)],
            )
            for criterion, words in _CRITERIA
        ],
        trend=analysis.while_plain_trains,
        titles=_titles,
        below=[arm for arm in rivals if set(_verdicts(arm)) == {"lower"}],
        above=[arm for arm in rivals if "higher" in _verdicts(arm)],
        cell=_cell,
        mean=_mean,
        ratio=_ratio,
        verdict=_verdict,
        main_table=lambda: _table(_MAIN, rivals),
        collapse_table=lambda: _collapse_table(shown()),
        units_table=lambda: _table(_UNITS, rivals),
        clusters_table=lambda: _table(_CLUSTERS, rivals),
        equal_table=lambda: _equal_table(rivals),
        cost_table=_cost_table if COSTS.exists() else None,
        hours=_hours,
        of=of,
    )
    return true_minus(text)


_MAIN: tuple[_Column, ...] = (
    ("accuracy, %", of("model", "accuracy"), 100, 1),
    ("test loss, nats", of("model", "test_loss"), 1, 3),
    ("size, %", of("loss", "size"), 100, 2),
    ("overlap, %", of("loss", "overlap"), 100, 1),
    ("size, balanced, %", of("balanced", "size"), 100, 2),
    ("overlap, balanced, %", of("balanced", "overlap"), 100, 1),
)
_UNITS: tuple[_Column, ...] = tuple(
    (f"{title}{', balanced' if criterion == 'balanced' else ''}, {unit}", value, 100, 1)
    for criterion in ("loss", "balanced")
    for title, unit, value in (
        ("size", "%", analysis.unit_circuits(criterion, "size")),
        ("overlap", "%", analysis.unit_circuits(criterion, "overlap")),
        ("overlap beyond random", "points", analysis.beyond_random(criterion, "overlap")),
        ("in one cluster beyond random", "points", analysis.beyond_random(criterion, "largest_share")),
    )
)
_CLUSTERS: tuple[_Column, ...] = (
    ("clusters needed, beyond random ones", analysis.needed, 1, 2),
    ("one cluster alone, points", of("model", "specialisation_only:fc2"), 100, 1),
    ("one cluster off, points", of("model", "specialisation_without:fc2"), 100, 1),
    ("classes among top images, %", of("model", "label_semanticity:fc2"), 100, 1),
)


def _table(columns: Sequence[_Column], arms: Sequence[str]) -> str:
    rows = [[_title(analysis.PLAIN), *(_middle(analysis.PLAIN, column) for column in columns)]]
    rows += [[_title(arm), *(_cell(arm, *column[1:]) for column in columns)] for arm in arms]
    return as_markdown(["trained", *(column[0] for column in columns)], rows)


def _title(arm: str) -> str:
    return ARMS[arm].title


def _titles(arms: Sequence[str]) -> str:
    return ", ".join(_title(arm) for arm in arms)


def _middle(arm: str, column: _Column) -> str:
    _, value, factor, decimals = column
    middle, interval = analysis.mean_of(arm, value)
    text = true_minus(f"**{factor * middle:.{decimals}f}**")
    return text if interval is None else f"{text} ± {factor * interval:.{decimals}f}"


def _mean(arm: str, value: Value, factor: float = 100, decimals: int = 1) -> str:
    return f"{factor * analysis.mean_of(arm, value)[0]:.{decimals}f}"


def _cell(arm: str, value: Value, factor: float = 100, decimals: int = 1, other: str = analysis.PLAIN) -> str:
    compared = analysis.compare(arm, value, other)
    if compared is None:
        return NOTHING
    return f"{factor * compared.difference:+.{decimals}f} ± {factor * compared.interval:.{decimals}f}"


def _ratio(arm: str, criterion: str, name: str) -> str:
    compared = analysis.compare(arm, of(criterion, name))
    return NOTHING if compared is None else f"{100 * (analysis.relative(compared) - 1):+.0f}"


def _verdict(arm: str, value: Value, other: str = analysis.PLAIN) -> str:
    """Return "higher", "lower" or "undecided": whether the 95 % interval of the difference holds 0."""
    compared = analysis.compare(arm, value, other)
    if compared is None or abs(compared.difference) <= compared.interval:
        return "undecided"
    return "higher" if compared.difference > 0 else "lower"


def _allowed(arm: str, name: str) -> str:
    """Return the share that is left where both networks' circuits may have the same loss, in percent."""
    compared, _ = analysis.with_allowed_loss(arm, name)
    return NOTHING if compared is None else f"{100 * analysis.relative(compared):.0f}"


def _verdicts(arm: str) -> list[str]:
    return [_verdict(arm, of("loss", name)) for name in ("size", "overlap")]


def _collapse_table(arms: Sequence[str]) -> str:
    columns: tuple[_Column, ...] = (
        ("clusterability of `fc2`", of("model", "clusterability:fc2"), 1, 3),
        ("of clusters found in `fc2`", analysis.found("fc2"), 1, 3),
        ("normalised cut of clusters found in all", analysis.found("cut"), 1, 2),
        ("live rows, %", live("rows"), 100, 0),
        ("live columns, %", live("columns"), 100, 0),
        ("effective rows", live("effective_rows"), 1, 0),
        ("effective columns", live("effective_columns"), 1, 0),
        ("effective clusters", live("clusters"), 1, 2),
    )
    rows = [[_title(arm), *(_mean(arm, *column[1:]) for column in columns)] for arm in arms]
    return as_markdown(["trained", *(column[0] for column in columns)], rows)


def _equal_table(arms: Sequence[str]) -> str:
    rows = []
    for arm in arms:
        gap = analysis.loss_gap(arm)
        cells = [
            NOTHING if gap is None else f"{gap.difference:+.3f} ± {gap.interval:.3f}",
            f"{analysis.nearest_epochs(arm):.1f}",
        ]
        for name, decimals in (("size", 2), ("overlap", 1)):
            found = analysis.at_equal_loss(arm, name)
            cells.append(
                NOTHING
                if found is None
                else f"{100 * (analysis.relative(found) - 1):+.0f} % ({_signed(found, decimals)})"
            )
        count = 0
        for name, decimals in (("size", 3), ("overlap", 1)):
            found, count = analysis.with_allowed_loss(arm, name)
            cells.append(
                NOTHING
                if found is None
                else f"{100 * (analysis.relative(found) - 1):+.0f} % ({_signed(found, decimals)})"
            )
        rows.append([_title(arm), *cells, str(count)])
    headings = [
        "trained",
        "test loss, difference",
        "plain network's epoch",
        "size",
        "overlap",
        "size, same loss allowed",
    ]
    return as_markdown([*headings, "overlap, same loss allowed", "pairs"], rows)


def _signed(found: analysis.Comparison, decimals: int) -> str:
    return f"{100 * found.difference:+.{decimals}f} ± {100 * found.interval:.{decimals}f}"


def _cost_table() -> str:
    costs = read_costs()
    rows = [[_title(arm), f"{costs['ratios'][arm]:.2f}"] for arm in ARMS if arm in costs["ratios"]]
    return as_markdown(["trained", "time of an epoch, plain training = 1"], rows)


def _hours() -> str:
    total = sum(
        sum(record["seconds"].values()) for arm in shown() for record in analysis.records(arm).values()
    )
    return f"{total / 3600:.1f}"


if __name__ == "__main__":
    main()
