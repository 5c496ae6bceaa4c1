"""Write the page on the fine-tuned transformer and its pictures, from the committed results.

python -m benchmarks.finetune.page
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.common.pages import as_markdown
from benchmarks.common.templates import page_template
from modfast.files import atomic_write
from modfast.report.numbers import MINUS, NOTHING

from . import analysis
from .arms import ARMS, KS, MANY, RANDOM_SETS, Settings
from .pictures import draw_dependence, draw_over_k

PAGE = Path(__file__).parents[2] / "docs" / "findings" / "finetune-minilm.md"
PICTURES = {"finetune-minilm-k.png": draw_over_k, "finetune-minilm-dependence.png": draw_dependence}


def main() -> None:
    """Write everything."""
    for name, draw in PICTURES.items():
        draw(PAGE.with_name(name))
    with atomic_write(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page."""
    record = analysis.records("plain")[0]
    text = page_template(Path(__file__).with_name("page.md.jinja")).render(
        a=analysis,
        arms=ARMS,
        ks=KS,
        many=[k for k in MANY if f"blocks-{k}" in analysis.shown()],
        blocks=[name for name in analysis.shown() if ARMS[name].k and ARMS[name].clusters == "blocks"],
        most_seeds=max(len(analysis.records(name)) for name in analysis.shown()),
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
        dependence_headline=dependence_headline(),
        collapse_headline=collapse_headline,
        rate_sentence=rate_sentence(),
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
    words = {"higher": "a price", "lower": "no price but a gain", "undecided": "undecided"}
    found = analysis.difference(arm, other, analysis.loss)
    if found.verdict != "one seed":
        return f"{_difference(found)} nats ({words[found.verdict]})"
    batches = analysis.over_batches(arm, other)
    return f"{_difference(batches)} nats ({words[batches.verdict]}; one seed, over held-out batches)"


def against_random(arm: str, k: int) -> str:
    """Say on how many clusters answers depend, and on how many random ones of the same sizes."""
    found, mean = analysis.beyond_random(arm, k), analysis.needed(arm, k).mean
    if found.verdict != "one seed":
        words = {"higher": "more", "lower": "fewer", "undecided": "undecided"}[found.verdict]
        return f"{mean:.2f} clusters, {_difference(found, 2)} against random ones ({words})"
    (one,) = analysis.depends(arm, k)
    return f"{mean:.2f} clusters, {_difference(found, 2)} against random ones ({_noise(found.mean, one)})"


def _noise(difference: float, *found: analysis.Record) -> str:
    """Compare a difference of one seed with the scatter over answers."""
    error = sum(analysis.answers_error(each) ** 2 for each in found) ** 0.5
    return f"{'within' if abs(difference) <= 2 * error else 'beyond'} two standard errors over answers"


def versus(arm: str, k: int) -> str:
    """Say on how many more clusters answers depend than after plain fine-tuning, in the same blocks."""
    found = analysis.needed_change(arm, k)
    if found.verdict == "one seed":
        both = (analysis.depends(name, k)[0] for name in (arm, "plain"))
        return f"{_difference(found, 2)} ({_noise(found.mean, *both)})"
    words = {"higher": "more", "lower": "fewer"}.get(found.verdict, found.verdict)
    return f"{_difference(found, 2)} ({words})"


def dependence_headline() -> str:
    """Say whether the loss makes answers depend on fewer clusters than random ones of the same sizes."""
    found = analysis.beyond_random("blocks-4", 4)
    if found.verdict == "one seed":
        (one,) = analysis.depends("blocks-4", 4)
        differs = abs(found.mean) > 2 * analysis.answers_error(one)
    else:
        differs = found.verdict != "undecided"
    if not differs:
        return "Dependence on few clusters is that on random ones, as far as this shows"
    return f"Answers depend on {'more' if found.mean > 0 else 'fewer'} trained clusters than random ones"


def collapse_headline(arms: list[str]) -> str:
    """Say whether all clusters of all weights are still in use."""
    least = min(
        analysis.own_live("least_effective_clusters")(record) / (ARMS[name].k or 1)
        for name in arms
        for record in analysis.records(name)
    )
    return "It is no collapse" if least > 0.9 else "Some clusters lose weight"


def rate_sentence() -> str:
    """Say whether the rate, "it", is good for the task itself."""
    found = analysis.difference("plain", "untouched", analysis.loss)
    if found.verdict == "lower":
        return "plain fine-tuning lowers the held-out loss, but no rate was searched for"
    words = "raises" if found.verdict == "higher" else "does not lower"
    return f"it is too high to be good for the task: plain fine-tuning {words} the held-out loss"


def _clusters_rise() -> bool:
    """Whether the loss raises clusterability above that of plain fine-tuning, in every seed."""
    plain = max(analysis.in_blocks(4)(record) for record in analysis.records("plain"))
    return all(analysis.in_blocks(4)(record) > plain for record in analysis.records("blocks-4"))


def dependence_verdict(k: int = 4) -> str:
    """Say whether more of the answers that need a cluster need only one, if trained with the loss."""
    found = analysis.one_needed_change(f"blocks-{k}", "plain", k).verdict
    return {"higher": "supported", "lower": "contradicted", "undecided": "undecided"}.get(
        found, "cannot be told from one seed"
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
        there = [name for name in analysis.shown() if analysis.has_dependence(name, k)]
        rows += [_dependence_row(name, k) for name in there]
    headings = [
        "k",
        "fine-tuned",
        "right answers",
        "clusters needed (standard error)",
        "random",
        "difference",
    ]
    return as_markdown([*headings, "none, %", "one, %", "two or more, %"], rows)


def _dependence_row(name: str, k: int) -> list[str]:
    found: list[Any] = analysis.depends(name, k)
    own, random = (analysis.shares(name, k, which) for which in ("shares", "random_shares"))
    groups = [(each[0], each[1], sum(each[2:])) for each in (own, random)]
    right = sum(each["right"] for each in found) / len(found)
    return [
        str(k),
        ARMS[name].title,
        f"{right:.0f} of {found[0]['answers']}",
        f"{_estimate(analysis.needed(name, k), 2)} ({analysis.answers_error(found[0]):.2f})",
        f"{sum(each['random_mean'] for each in found) / len(found):.2f}",
        _difference(analysis.beyond_random(name, k), 2),
        *(f"{100 * mine:.0f} ({100 * theirs:.0f})" for mine, theirs in zip(*groups, strict=True)),
    ]


if __name__ == "__main__":
    main()
