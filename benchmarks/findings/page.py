"""Write the page of findings, its pictures, and the lines in the README, from the committed results.

python -m benchmarks.findings.page
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.pages import as_markdown, put_into_page, true_minus
from benchmarks.common.templates import page_template
from benchmarks.rivals import analysis as rivals
from benchmarks.rivals.recipe import RECIPE
from modfast.files import atomic_write
from modfast.report.numbers import NOTHING

from . import analysis
from .arms import ARMS, SEEDS
from .pictures import draw_against_loss, draw_by_class, draw_circuits, draw_neurons

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "findings" / "findings.md"
README = ROOT / "README.md"
PICTURES = {
    "findings-differences.png": lambda path: draw_circuits(path, shown_arms()),
    "findings-neurons.png": lambda path: draw_neurons(path, shown_arms()),
    "findings-loss.png": lambda path: draw_against_loss(path, "plain", "spectral-20", RECOMMENDED),
    "findings-classes.png": lambda path: draw_by_class(path, RECOMMENDED),
}
RECOMMENDED = "blocks-20"
"""The arm that the page speaks of first: the published layer and weight."""

CLAIMED = (RECOMMENDED, "spectral-20", "blocks-20-all", "mnist-blocks-20")
"""The arms that the claims of the papers are judged by: those with as many epochs as their plain partner."""

# Group, name, heading, factor, decimals.
_Column = tuple[str, str, str, float, int]
_COLUMNS: tuple[_Column, ...] = (
    ("model", "accuracy", "accuracy, %", 100.0, 1),
    ("model", "test_loss", "test loss, nats", 1.0, 3),
    ("loss", "size", "size, %", 100.0, 2),
    ("loss", "overlap", "overlap, %", 100.0, 1),
    ("balanced", "size", "size, balanced, %", 100.0, 2),
    ("balanced", "overlap", "overlap, balanced, %", 100.0, 1),
)


def main() -> None:
    """Write everything."""
    for name, draw in PICTURES.items():
        draw(PAGE.with_name(name))
    with atomic_write(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")
    put_into_page(README, "findings", lines_of_readme())


def page() -> str:
    """Return the page."""
    return _render("page.md.jinja")


def lines_of_readme() -> str:
    """Return what the README says of the findings."""
    return _render("readme.md.jinja")


def shown_arms(data: str = "cifar10", against: str = "plain") -> list[str]:
    """Return the arms with results that are compared with a plain one, and were trained as long."""
    epochs = ARMS[against].config.epochs
    return [
        name
        for name, arm in ARMS.items()
        if (arm.data, arm.against, arm.config.epochs) == (data, against, epochs)
        and analysis.has_records(name)
    ]


def _render(template: str) -> str:
    claims = analysis.claims([arm for arm in CLAIMED if analysis.has_records(arm)])
    text = page_template(Path(__file__).with_name(template)).render(
        seeds=SEEDS,
        recommended=RECOMMENDED,
        claims=claims,
        has=analysis.has_records,
        mean=_mean,
        diff=_difference,
        relative=_relative,
        detectable=analysis.detectable,
        after_epoch=analysis.after_epoch,
        main_table=_main_table,
        claims_table=lambda: _claims_table(claims),
        equal_table=_equal_table,
        fixed_table=_fixed_table,
        live_table=_live_table,
        other_table=_other_table,
        hours=_hours,
        machines=_machines,
        verdict=lambda arm, group, name: _verdict(claims, arm, group, name),
        shown_arms=shown_arms,
        recipe=_recipe,
    )
    return true_minus(text)


# --- Numbers in sentences.


def _mean(arm: str, group: str, name: str, factor: float = 100.0, decimals: int = 2) -> str:
    return f"{factor * analysis.mean(arm, group, name):.{decimals}f}"


def _difference(
    arm: str, group: str, name: str, factor: float = 100.0, decimals: int = 2, against: str | None = None
) -> str:
    found = analysis.compare(arm, group, name, against)
    return NOTHING if found is None else _signed(found.difference, found.interval, factor, decimals)


def _relative(arm: str, group: str, name: str) -> str:
    """Return the relative difference of the means, in percent."""
    found = analysis.compare(arm, group, name)
    return NOTHING if found is None else f"{100 * found.difference / found.other:+.0f}"


def _signed(mean: float, interval: float, factor: float = 1.0, decimals: int = 2) -> str:
    return f"{factor * mean:+.{decimals}f} ± {factor * interval:.{decimals}f}"


def _verdict(claims: Sequence[analysis.Claim], arm: str, group: str, name: str) -> str:
    return next(
        claim.verdict for claim in claims if (claim.arm, claim.group, claim.measure) == (arm, group, name)
    )


def _pairs_within(arm: str) -> int:
    """Return for how many seeds both networks may have the loss that is allowed to all."""
    return len(analysis.within_allowed(arm))


def _recipe(what: str) -> Any:
    """Return the relative size and overlap of the recipe's circuits and the seeds; or its accuracy."""
    accuracy, *_ = compared = [
        rivals.compare(RECIPE, rivals.of(group, name))
        for group, name in (("model", "accuracy"), (what, "size"), (what, "overlap"))
    ]
    assert accuracy is not None
    if what == "accuracy":
        return _signed(accuracy.difference, accuracy.interval, 100.0, 1)
    shares = [
        NOTHING if found is None else f"{100 * (rivals.relative(found) - 1):+.0f}" for found in compared[1:]
    ]
    return [*shares, accuracy.seeds]


# --- Tables.


def _main_table(plain: str, arms: Sequence[str]) -> str:
    rows = [[ARMS[plain].title, *(_plain_cell(plain, column) for column in _COLUMNS)]]
    rows += [[ARMS[arm].title, *(_difference(arm, *_place(column)) for column in _COLUMNS)] for arm in arms]
    return as_markdown(["trained", *(column[2] for column in _COLUMNS)], rows)


def _place(column: _Column) -> tuple[str, str, float, int]:
    group, name, _, factor, decimals = column
    return group, name, factor, decimals


def _plain_cell(arm: str, column: _Column) -> str:
    group, name, _, factor, decimals = column
    middle, interval = analysis.mean_of(arm, group, name)
    return f"**{factor * middle:.{decimals}f}** ± {factor * (interval or 0.0):.{decimals}f}"


def _claims_table(claims: Sequence[analysis.Claim]) -> str:
    arms = list(dict.fromkeys(claim.arm for claim in claims))
    headings = ["claim", "claimed by", "circuits by", *(f"{ARMS[arm].title}" for arm in arms)]
    rows = []
    for statement, versions, group, name, _ in analysis.CLAIMS:
        cells = []
        for arm in arms:
            (claim,) = (c for c in claims if (c.arm, c.group, c.measure) == (arm, group, name))
            p_value = "< 0.001" if claim.p_adjusted < 0.001 else f"{claim.p_adjusted:.2g}"
            effect = NOTHING if claim.comparison.effect is None else f"{claim.comparison.effect:.1f}"
            cells.append(f"**{claim.verdict}** ({effect}; {p_value})")
        rows.append([statement, versions, NOTHING if group == "model" else group, *cells])
    return as_markdown(headings, rows)


def _equal_table(arms: Sequence[str]) -> str:
    rows = []
    for arm in arms:
        gap = analysis.loss_gap(arm)
        assert gap is not None
        cells = [_signed(gap.difference, gap.interval, decimals=3)]
        for name, decimals in (("size", 2), ("overlap", 1)):
            found = analysis.at_equal_loss(arm, name)
            assert found is not None
            cells += [
                f"{100 * found.other:.{decimals}f}",
                _signed(found.difference, found.interval, 100.0, decimals),
            ]
        rows.append([ARMS[arm].title, *cells])
    headings = ["trained", "test loss, difference", "size of plain, %", "difference"]
    return as_markdown([*headings, "overlap of plain, %", "difference"], rows)


def _fixed_table(arms: Sequence[str]) -> str:
    rows = []
    for arm in arms:
        size, overlap = (analysis.with_allowed_loss(arm, name) for name in ("size", "overlap"))
        rows.append(
            [
                ARMS[arm].title,
                str(_pairs_within(arm)),
                f"{100 * size.other:.3f}",
                _signed(size.difference, size.interval, 100.0, 3),
                f"{100 * overlap.other:.1f}",
                _signed(overlap.difference, overlap.interval, 100.0, 1),
            ]
        )
    headings = ["trained", "pairs", "size of plain, %", "difference", "overlap of plain, %", "difference"]
    return as_markdown(headings, rows)


def _live_table(arms: Sequence[str]) -> str:
    rows = []
    for arm in arms:
        cells = []
        for name, factor, decimals in (
            ("rows", 100.0, 0),
            ("columns", 100.0, 0),
            ("effective_rows", 1.0, 0),
            ("effective_columns", 1.0, 0),
            ("clusters", 1.0, 2),
        ):
            middle, _ = analysis.live(arm, name)
            cells.append(f"{factor * middle:.{decimals}f}")
        rows.append([ARMS[arm].title, _mean(arm, "model", "clusterability:fc2", 1.0, 3), *cells])
    headings = ["trained", "clusterability of `fc2`", "live rows, %", "live columns, %"]
    return as_markdown([*headings, "effective rows", "effective columns", "effective clusters"], rows)


def _other_table(plain: str, arms: Sequence[str]) -> str:
    columns: tuple[_Column, ...] = (
        ("model", "specialisation_only", "one cluster alone, points", 100.0, 1),
        ("model", "specialisation_without", "one cluster off, points", 100.0, 1),
        ("model", "label_semanticity:fc2", "classes among top images, %", 100.0, 1),
        ("loss", "inside:fc2", "circuit inside clusters, %", 100.0, 1),
        ("loss", "information:regularised", "cluster and class, bits", 1.0, 2),
    )
    rows = [[ARMS[plain].title, *(_plain_cell(plain, column) for column in columns)]]
    rows += [[ARMS[arm].title, *(_difference(arm, *_place(column)) for column in columns)] for arm in arms]
    return as_markdown(["trained", *(column[2] for column in columns)], rows)


# --- What it took.


def _hours(data: str, what: str) -> str:
    total = sum(
        record["seconds"][what]
        for name, arm in ARMS.items()
        if arm.data == data and analysis.has_records(name)
        for record in analysis.records(name)
    )
    return f"{total / 3600:.1f}"


def _machines() -> str:
    """Return which arms were trained on which devices."""
    by_device: dict[str, list[str]] = {}
    for name in ARMS:
        if analysis.has_records(name):
            devices = sorted({_device(record) for record in analysis.records(name)})
            by_device.setdefault(" and ".join(devices), []).append(f"`{name}`")
    return "; ".join(f"{device}: {', '.join(names)}" for device, names in by_device.items())


def _device(record: analysis.Record) -> str:
    devices: list[Any] = record["environment"]["devices"]
    return str(devices[0]) if devices else "a processor"


if __name__ == "__main__":
    main()
