"""Write docs/findings/addition.md and its pictures from the committed results.

python -m benchmarks.addition.page
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.pages import as_markdown
from benchmarks.common.templates import page_template
from modfast.files import atomic_write
from modfast.report.numbers import MINUS, NOTHING

from . import analysis
from .ablated import ALLOWED, DRAWS
from .analysis import Claim, Value
from .arms import ARMS, CLUSTERS, MLP, SEEDS, TRANSFORMER
from .pictures import draw_differences, draw_frequencies
from .waves import KEY, LIVE, PERMUTATIONS

PAGE = Path(__file__).parents[2] / "docs" / "findings" / "addition.md"
TRANSFORMERS = ("transformer-plain", "transformer-mlp", "transformer-inside")
MLPS = tuple(name for name, arm in ARMS.items() if arm.kind is MLP)
MODULAR = tuple(name for name, arm in ARMS.items() if arm.against is not None)
CLAIMED = tuple(name for name in TRANSFORMERS if ARMS[name].against is not None)
"""The arms that the claims are judged by: those whose networks generalise."""

PICTURES = {
    "addition-frequencies.png": lambda path: draw_frequencies(
        path,
        [
            ("transformer-plain", "blocks", "plain training,\nblocks"),
            ("transformer-plain", "spectral", "plain training,\nspectral clusters"),
            ("transformer-mlp", "blocks", "loss on the MLP,\nblocks"),
            ("transformer-inside", "blocks", "loss on attention and MLP,\nblocks"),
        ],
    ),
    "addition-differences.png": lambda path: draw_differences(path, MODULAR),
}

_at = analysis.at
# Heading, measure, factor, decimals.
_Column = tuple[str, Value, float, int]
_TRAINING: tuple[_Column, ...] = (
    ("held-out accuracy, %", _at("measures", "test_accuracy"), 100.0, 1),
    ("held-out loss, nats", _at("measures", "test_loss"), 1.0, 4),
    ("steps until 99 %", _at("solved"), 1.0, 0),
    ("key frequencies", _at("measures", "keys"), 1.0, 1),
    ("live neurons, %", _at("measures", "live"), 100.0, 0),
)
_STRUCTURE: tuple[_Column, ...] = (
    ("clusterability, blocks", _at("measures", "clusterability:blocks"), 1.0, 3),
    ("effective clusters", _at("measures", "clusters:blocks"), 1.0, 2),
    ("clusterability, spectral", _at("measures", "clusterability:spectral"), 1.0, 3),
    ("effective clusters", _at("measures", "clusters:spectral"), 1.0, 2),
    ("effective neurons", _at("measures", "effective_neurons"), 1.0, 0),
)
_CIRCUITS: tuple[_Column, ...] = (
    ("units, %", _at("circuit", "size"), 100.0, 1),
    ("random ranking, %", _at("circuit", "random"), 100.0, 0),
    ("of live neurons, %", _at("circuit", "of_live"), 100.0, 0),
    ("neurons", _at("circuit", "neurons"), 1.0, 1),
    ("heads", _at("circuit", "heads"), 1.0, 1),
    ("frequencies", _at("circuit", "frequencies"), 1.0, 1),
    ("clusters", _at("circuit", "clusters"), 1.0, 1),
)


def main() -> None:
    """Write everything."""
    for name, draw in PICTURES.items():
        draw(PAGE.with_name(name))
    with atomic_write(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page."""
    claims = analysis.claims(CLAIMED)
    text = page_template(Path(__file__).with_name("page.md.jinja")).render(
        seeds=analysis.seeds(),
        planned=SEEDS,
        arms=ARMS,
        transformer=TRANSFORMER,
        mlp=MLP,
        clusters=CLUSTERS,
        key=KEY,
        live=LIVE,
        permutations=PERMUTATIONS,
        draws=DRAWS,
        allowed=ALLOWED,
        transformers=TRANSFORMERS,
        mlps=MLPS,
        at=_at,
        falls=analysis.falls,
        cluster=analysis.mean_accuracy,
        excess=analysis.excess,
        mean=_mean,
        diff=_difference,
        compare=analysis.compare,
        solved=analysis.solved,
        found_blocks=_found_blocks,
        above=analysis.above_permuted,
        claim=lambda arm, name: claims[arm, name],
        verdict=_verdict,
        how_much=_how_much,
        how_visible=_how_visible,
        fails=lambda arm: analysis.solved(arm) == 0,
        claims_table=lambda: _claims_table(claims),
        training_table=lambda arms: _table(arms, _TRAINING),
        structure_table=lambda arms: _table(arms, _STRUCTURE),
        circuits_table=lambda arms: _table(arms, _CIRCUITS),
        families_table=_families_table,
        ablation_table=_ablation_table,
        hours=_hours,
    )
    return re.sub(r"(?<![\w`\-./])-(?=\d)", MINUS, text)


# --- Words and numbers in sentences.


def _verdict(claim: Claim, yes: str, no: str, unknown: str) -> str:
    return {"supported": yes, "contradicted": no, "undecided": unknown}[claim.verdict]


def _how_much(arm: str, clustering: str) -> str:
    """Say how much of the information that clusters could have they have, beyond chance."""
    found = analysis.mean_of(arm, analysis.aligned(clustering))
    if found is None:
        raise ValueError(f"{arm} has no clusters by {clustering}")
    return "are" if found[0] >= 0.9 else "mostly are" if found[0] >= 0.5 else "are in part"


def _how_visible(arm: str) -> str:
    """Say how much of what clusters of activations know those of weights know, too."""
    weights, activations = (
        analysis.mean_of(arm, analysis.excess(name)) for name in ("spectral", "activations")
    )
    if weights is None or activations is None:
        raise ValueError(f"{arm} has no clusters")
    share = weights[0] / activations[0]
    return "them" if share >= 0.9 else "a part of it" if share >= 0.2 else "next to nothing of it"


def _mean(arm: str, value: Value, factor: float = 1.0, decimals: int = 2) -> str:
    found = analysis.mean_of(arm, value)
    return NOTHING if found is None else f"{factor * found[0]:.{decimals}f}"


def _difference(
    arm: str, value: Value, factor: float = 1.0, decimals: int = 2, other: Value | None = None
) -> str:
    found = analysis.compare(arm, value, other)
    if found is None:
        return NOTHING
    number = f"{factor * found.difference:+.{decimals}f}"
    if found.interval is not None:
        number += f" ± {factor * found.interval:.{decimals}f}"
    return number + _of_pairs(found.pairs)


def _found_blocks() -> str:
    """Say in how many modular networks spectral clusters are the blocks."""
    found = [analysis.finds_blocks(record) for arm in MODULAR for record in analysis.records(arm)]
    return f"{sum(found)} of {len(found)}"


def _of_pairs(number: int) -> str:
    """Say how many seeds have a measure, if not all."""
    return "" if number == len(analysis.seeds()) else f" ({number})"


def _with_interval(arm: str, value: Value, factor: float, decimals: int) -> str:
    found = analysis.mean_of(arm, value)
    if found is None:
        return NOTHING
    middle, interval, number = found
    text = f"**{factor * middle:.{decimals}f}**"
    if interval is not None:
        text += f" ± {factor * interval:.{decimals}f}"
    return text + _of_pairs(number)


# --- Tables.


def _table(arms: Sequence[str], columns: Sequence[_Column]) -> str:
    """Return means of the plain arm, and differences of the others to it."""
    rows = []
    for arm in arms:
        cells = [
            _with_interval(arm, value, factor, decimals)
            if ARMS[arm].against is None
            else _difference(arm, value, factor, decimals)
            for _, value, factor, decimals in columns
        ]
        rows.append([ARMS[arm].title, *cells])
    return as_markdown([ARMS[arms[0]].kind.title, *(heading for heading, *_ in columns)], rows)


def _clusterings(arm: str, *names: str) -> list[str]:
    """Return which of these clusterings are shown; spectral ones of modular networks are their blocks."""
    return [name for name in names if name != "spectral" or ARMS[arm].against is None]


def _families_table(arms: Sequence[str]) -> str:
    rows = []
    for arm in arms:
        for clustering in _clusterings(arm, "blocks", "spectral", "activations"):
            own = [
                _at("clusterings", clustering, name)
                for name in ("information", "permuted", "permuted_low", "permuted_high", "most")
            ]
            spread = [
                f"{_mean(arm, _at('clusterings', clustering, name), 1.0, 1)} "
                f"({_mean(arm, _at('clusterings', clustering, f'permuted_{name}'), 1.0, 1)})"
                for name in ("spread", "mixed")
            ]
            rows.append(
                [
                    ARMS[arm].title,
                    clustering,
                    _with_interval(arm, own[0], 1.0, 2),
                    f"{_mean(arm, own[1])} ({_mean(arm, own[2])} to {_mean(arm, own[3])})",
                    _mean(arm, own[4]),
                    f"{analysis.above_permuted(arm, clustering)} of {len(analysis.seeds())}",
                    *spread,
                ]
            )
    headings = [ARMS[arms[0]].kind.title, "clusters", "bits", "permuted (95 %)", "most", "above permuted"]
    return as_markdown([*headings, "clusters of a frequency", "frequencies of a cluster"], rows)


def _ablation_table(arms: Sequence[str]) -> str:
    rows = []
    for arm in arms:
        for clustering in _clusterings(arm, "blocks", "spectral"):
            cells = [
                f"{_mean(arm, analysis.mean_accuracy(clustering, mode), 100.0, 0)} "
                f"({_mean(arm, _at('clusterings', clustering, f'random_{mode}'), 100.0, 0)})"
                for mode in ("only", "without")
            ]
            cells += [
                f"{_mean(arm, analysis.falls(clustering, side), 100.0, 0)} "
                f"({_mean(arm, analysis.falls(clustering, side, 'random_own'), 100.0, 0)})"
                for side in (0, 1)
            ]
            rows.append([ARMS[arm].title, clustering, *cells])
    headings = [ARMS[arms[0]].kind.title, "clusters", "one alone: accuracy, %", "without one: accuracy, %"]
    return as_markdown([*headings, "own frequencies lost, %", "others lost, %"], rows)


def _claims_table(claims: dict[tuple[str, str], Claim]) -> str:
    rows = []
    for name, (statement, *_) in analysis.CLAIMS.items():
        cells = []
        for arm in CLAIMED:
            claim = claims[arm, name]
            if claim.comparison is None or claim.p_adjusted is None:
                cells.append(f"{claim.verdict}: too few pairs")
                continue
            p_value = "< 0.001" if claim.p_adjusted < 0.001 else f"{claim.p_adjusted:.2g}"
            effect = NOTHING if claim.comparison.effect is None else f"{claim.comparison.effect:.1f}"
            cells.append(f"**{claim.verdict}** ({effect}; {p_value}){_of_pairs(claim.comparison.pairs)}")
        rows.append([statement, *cells])
    return as_markdown(["claim", *(ARMS[arm].title for arm in CLAIMED)], rows)


def _hours() -> dict[str, str]:
    """Return the minutes of processor time that training and measuring took."""
    return {
        what: f"{sum(r['seconds'][what] for arm in ARMS for r in analysis.records(arm)) / 60:.0f}"
        for what in ("training", "measuring")
    }


if __name__ == "__main__":
    main()
