"""Write the page on the fine-tuned transformer and its pictures, from the committed results.

python -m benchmarks.finetune.page
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.common.pages import as_markdown
from modfast.files import atomic_write
from modfast.report.numbers import MINUS, NOTHING

from . import analysis
from .arms import ARMS, KS, MANY, RANDOM_SETS, Settings
from .pictures import draw_dependence, draw_over_k

PAGE = Path(__file__).parents[2] / "docs" / "finetune-minilm.md"
PICTURES = {"finetune-minilm-k.png": draw_over_k, "finetune-minilm-dependence.png": draw_dependence}


def main() -> None:
    """Write everything."""
    for name, draw in PICTURES.items():
        draw(PAGE.with_name(name))
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
    record = analysis.records("plain")[0]
    text = environment.get_template("page.md.jinja").render(
        a=analysis,
        arms=ARMS,
        ks=KS,
        many=[k for k in MANY if f"blocks-{k}" in analysis.shown()],
        random_sets=RANDOM_SETS,
        settings=Settings(**{name: record["settings"][name] for name in vars(Settings())}),
        weight=analysis.records("blocks-4")[0]["settings"]["weight"],
        texts=record["texts"],
        machine=record["environment"],
        shown=analysis.shown(),
        missing=missing(),
        training_table=training_table,
        dependence_table=dependence_table,
        est=_estimate,
        diff=_difference,
        share=_share,
        against_random=against_random,
        versus=versus,
        price=price,
        clusters_rise=_clusters_rise(),
        dependence_verdict=dependence_verdict(),
        one_needed_sentence=one_needed_sentence(),
        right_answers=analysis.depends("plain", 4)[0]["right"],
    )
    # True minus signs before numbers, but not in names, commands and links.
    return re.sub(r"(?<![\w`\-./])-(?=\d)", MINUS, text)


# --- Numbers in sentences.


def _estimate(found: analysis.Estimate, decimals: int = 3) -> str:
    return _with(f"{found.mean:.{decimals}f}", found.interval, decimals)


def _difference(found: analysis.Estimate, decimals: int = 3) -> str:
    return _with(f"{found.mean:+.{decimals}f}", found.interval, decimals)


def _with(text: str, interval: float | None, decimals: int) -> str:
    return text if interval is None else f"{text} ± {interval:.{decimals}f}"


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.0f}"


# --- Words that depend on numbers.


def price(arm: str, other: str = "plain") -> str:
    """Say what the held-out loss of an arm is in comparison with that of another."""
    found = analysis.difference(arm, other, analysis.loss)
    words = {
        "higher": "a price",
        "lower": "no price, but a gain",
        "undecided": "undecided",
        "one seed": "one seed, so no interval",
    }
    return f"{_difference(found)} nats ({words[found.verdict]})"


def against_random(arm: str, k: int, ablation: str = "zero") -> str:
    """Say on how many clusters answers depend, and on how many random ones of the same sizes."""
    found = analysis.beyond_random(arm, k, ablation)
    low, high = analysis.random_range(arm, k, ablation)
    mean = analysis.needed(arm, k, ablation).mean
    if found.verdict == "one seed":
        place = "above" if mean > high else "below" if mean < low else "within"
        words = f"{place} those of the random sets, {low:.2f} to {high:.2f}"
    else:
        words = {"higher": "more", "lower": "fewer", "undecided": "undecided"}[found.verdict]
    return f"{mean:.2f} clusters, {_difference(found, 2)} against random ones ({words})"


def versus(arm: str, k: int) -> str:
    """Say on how many more clusters answers depend than after plain fine-tuning, in the same blocks."""
    found = analysis.needed_change(arm, k)
    words = {"higher": "more", "lower": "fewer"}.get(found.verdict, found.verdict)
    return f"{_difference(found, 2)} ({words})"


def _clusters_rise() -> bool:
    """Whether the loss raises clusterability above that of plain fine-tuning, in every seed."""
    plain = max(analysis.in_blocks(4)(record) for record in analysis.records("plain"))
    return all(analysis.in_blocks(4)(record) > plain for record in analysis.records("blocks-4"))


def dependence_verdict(k: int = 4) -> str:
    """Say whether more of the answers that need a cluster need only one, if trained with the loss."""
    found = analysis.one_needed_change(f"blocks-{k}", "plain", k).verdict
    return {"higher": "supported", "lower": "contradicted", "undecided": "undecided"}.get(
        found, "cannot speak of it with one seed"
    )


def one_needed_sentence(k: int = 4) -> str:
    """Return the differences behind :func:`dependence_verdict`, in percentage points."""
    parts = []
    for what, found in (
        ("with the loss less without", analysis.one_needed_change(f"blocks-{k}", "plain", k)),
        ("with the loss, against random clusters", analysis.one_needed_beyond_random(f"blocks-{k}", k)),
        ("without it, against random clusters", analysis.one_needed_beyond_random("plain", k)),
    ):
        points = found._replace(
            mean=100 * found.mean, interval=None if found.interval is None else 100 * found.interval
        )
        parts.append(f"{what} {_difference(points, 0)} points ({found.verdict})")
    return f"The share that needs one of those that need any, seed by seed: {'; '.join(parts)}."


def missing() -> list[str]:
    """Return what has not been run: an arm and how many of its seeds."""
    found = []
    for name, arm in ARMS.items():
        there = len(analysis.records(name)) if name in analysis.shown() else 0
        if there < len(arm.seeds):
            found.append(f"{arm.title} ({there} of {len(arm.seeds)} seeds)")
    return found


# --- Tables.


def training_table() -> str:
    """Return the table of clusterability, held-out loss and collapse."""
    rows = []
    for name in analysis.shown():
        arm = ARMS[name]
        cells = [arm.title, str(len(analysis.records(name)))]
        if arm.k is None:
            cells += [NOTHING] * 3
        else:
            plain = NOTHING
            if arm.clusters == "blocks":
                plain = f"{analysis.estimate('plain', analysis.in_blocks(arm.k)).mean:.3f}"
            cells += [
                _estimate(analysis.estimate(name, analysis.own("clusterability"))),
                plain,
                f"{analysis.estimate(name, analysis.own('by_chance')).mean:.3f}",
            ]
        cells += [
            _estimate(analysis.estimate(name, analysis.loss)),
            NOTHING
            if name == "plain"
            else _difference(analysis.difference(name, "plain", analysis.loss))
            if arm.trained
            else _difference(_reversed(analysis.difference("plain", name, analysis.loss))),
            f"{100 * analysis.estimate(name, analysis.accuracy).mean:.1f}",
        ]
        if arm.k is None:
            cells.append(NOTHING)
        else:
            means = (analysis.estimate(name, analysis.own_live(each)).mean for each in _EFFECTIVE)
            cells.append(" (least: ".join(f"{value:.2f}" for value in means) + ")")
        rows.append(cells)
    headings = ["fine-tuned", "seeds", "clusterability", "plain, same clusters", "no structure"]
    return as_markdown(
        [*headings, "held-out loss, nats", "less that of plain", "accuracy, %", "effective clusters"], rows
    )


_EFFECTIVE = ("effective_clusters", "least_effective_clusters")


def _reversed(found: analysis.Estimate) -> analysis.Estimate:
    return found._replace(mean=-found.mean)


def dependence_table() -> str:
    """Return the table of how many clusters answers depend on, beside random ones."""
    rows = []
    for k in KS:
        for ablation in ("zero", "mean"):
            for name in analysis.shown():
                if analysis.has_dependence(name, k, ablation):
                    rows.append(_dependence_row(name, k, ablation))
    headings = ["k", "ablation", "fine-tuned", "right answers", "clusters needed", "random", "difference"]
    return as_markdown([*headings, "none, %", "one, %", "two or more, %"], rows)


def _dependence_row(name: str, k: int, ablation: str) -> list[str]:
    found: list[Any] = analysis.depends(name, k, ablation)
    own, random = (analysis.shares(name, k, which, ablation) for which in ("shares", "random_shares"))
    groups = [(each[0], each[1], sum(each[2:])) for each in (own, random)]
    right = sum(each["right"] for each in found) / len(found)
    return [
        str(k),
        ablation,
        ARMS[name].title,
        f"{right:.0f} of {found[0]['answers']}",
        _estimate(analysis.needed(name, k, ablation), 2),
        f"{sum(each['random_mean'] for each in found) / len(found):.2f}",
        _difference(analysis.beyond_random(name, k, ablation), 2),
        *(f"{100 * mine:.0f} ({100 * theirs:.0f})" for mine, theirs in zip(*groups, strict=True)),
    ]


if __name__ == "__main__":
    main()
