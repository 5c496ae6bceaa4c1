"""The paper's claims about circuits, each with what the data say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from modfast.report.statistics import effect_size, paired_interval

from .words import describe


class Claim(NamedTuple):
    """That one measure is above or below another.

    Attributes:
        key: a short name.
        statement: the claim in words.
        measure: of modular models. A measure may be ``"a - b"``, the difference of two of the same model.
        against: the other measure, of random circuits in modular models; or a number; or None, the same
            measure of plain models.
        sign: of ``measure`` minus ``against`` if the claim holds.
    """

    key: str
    statement: str
    measure: str
    against: str | float | None
    sign: int


OF_CIRCUITS = (
    Claim(
        "different",
        "Circuits of different classes are not all the same weights (a single one that differs would do)",
        "overlap",
        1.0,
        -1,
    ),
    Claim(
        "disjoint",
        "Circuits of different classes overlap less than random circuits of their sizes",
        "overlap",
        "random_overlap",
        -1,
    ),
    Claim(
        "more_disjoint",
        "Circuits of different classes overlap less in modular models than in plain ones",
        "overlap",
        None,
        -1,
    ),
    Claim("smaller", "Circuits are smaller in modular models", "size", None, -1),
    Claim(
        "informative",
        "The cluster of a kept weight tells its class better than in random circuits of their sizes",
        "information:regularised",
        "random_information:regularised",
        1,
    ),
    Claim(
        "more_informative",
        "Clusters tell classes better, beyond random circuits, in modular models than in plain ones",
        "information:regularised - random_information:regularised",
        None,
        1,
    ),
)
"""Those that are tested for each criterion."""

OF_MODELS = (
    Claim(
        "specialised_only",
        "Single clusters alone differ more in which classes they get right in modular models",
        "specialisation_only",
        None,
        1,
    ),
    Claim(
        "specialised_without",
        "Classes depend more on single clusters in modular models",
        "specialisation_without",
        None,
        1,
    ),
)
"""Those that need no circuits."""


def paper_claims(summary: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the data show of each of the paper's claims.

    A claim is ``"supported"`` if the paired 95% interval of the difference excludes 0 on the claim's side,
    ``"contradicted"`` if on the other, and else ``"undecided"``, as is everything from a single seed.

    Args:
        summary: of plain and modular models, from :func:`modfast.report.circuits.summary.summarize_circuits`.

    Returns:
        For each claim ``claim`` (its key), ``criterion`` (None for those that need no circuits),
        ``statement``, ``verdict``, ``text`` (a line with the numbers), ``difference`` (of the measures, or
        modular minus plain; negative where a claim says "less" and holds), ``interval`` (half width, None
        for a single seed) and ``effect_size`` (Cohen's d_z, None without scatter). All three are None where
        a measure is missing, such as the overlap of the circuit of a single label.

    Source: the claims are of arXiv 2409.15747 and 2502.02470.
    """
    told = []
    for group, measures in summary.items():
        for claim in OF_MODELS if group == "model" else OF_CIRCUITS:
            first = _values(measures, claim.measure, "modular")
            if claim.against is None:
                names = ("in modular models", "in plain ones")
                second = _values(measures, claim.measure, "plain")
            elif isinstance(claim.against, str):
                names = ("", "of random circuits")
                second = _values(measures, claim.against, "modular")
            else:
                names = ("", "were they the same")
                second = [claim.against] * len(first)
            measure = describe(claim.measure.partition(" - ")[0])
            criterion = None if group == "model" else group
            told.append(
                {"claim": claim.key, "criterion": criterion, "statement": claim.statement}
                | judge(first, second, claim.sign, names, measure.scale, measure.unit.partition(" ")[0])
            )
    return told


def judge(
    first: Sequence[float | None],
    second: Sequence[float | None],
    sign: int,
    names: tuple[str, str],
    scale: float = 1.0,
    unit: str = "",
) -> dict[str, Any]:
    """Whether ``first`` is above (``sign`` 1) or below (-1) ``second``, paired by seed.

    Args:
        first: a value for each seed.
        second: a value for each seed, in the same order.
        sign: of ``first - second``, if the claim holds.
        names: what the values are of, for the text.
        scale: by which the text multiplies them.
        unit: of the products.

    Returns:
        ``verdict``, ``text``, ``difference``, ``interval`` and ``effect_size``; see :func:`paper_claims`.

    Example:
        >>> judged = judge([1.0, 2.0, 3.0], [4.0, 5.0, 7.0], -1, ("here", "there"))
        >>> judged["verdict"], judged["text"]
        ('supported', '2 here, 5.33 there: difference -3.33 ± 1.43, 3 seeds, d_z -5.77')
        >>> judge([0.25], [0.5], -1, ("here", "there"), 100.0, "%")["text"]
        '25 % here, 50 % there: difference -25 points, one seed: no interval'
    """
    a = [value for value in first if value is not None]
    b = [value for value in second if value is not None]
    if not len(a) == len(b) == len(first):
        missing = {"difference": None, "interval": None, "effect_size": None}
        return {"verdict": "undecided", "text": "there is nothing to measure", **missing}
    difference, interval = paired_interval(a, b)
    effect = effect_size(a, b)
    verdict = "undecided"
    # A difference that is nothing but rounding decides nothing, though it may be the same for all seeds.
    least = 1e-12 * max(abs(value) for value in (*a, *b))
    if interval is not None and abs(difference) > max(interval, least):
        verdict = "supported" if difference * sign > 0 else "contradicted"
    means = (
        " ".join(filter(None, (_number(scale * sum(each) / len(each)), unit, name)))
        for each, name in zip((a, b), names, strict=True)
    )
    told = f"difference {_number(scale * difference, '+')}"
    if interval is not None:
        told += f" ± {_number(scale * interval)}"
    if unit:
        told += " points" if unit == "%" else f" {unit}"
    parts = [told, "one seed: no interval" if interval is None else f"{len(a)} seeds"]
    if effect is not None:
        parts.append(f"d_z {_number(effect)}")
    text = f"{', '.join(means)}: {', '.join(parts)}"
    return {
        "verdict": verdict,
        "text": text,
        "difference": difference,
        "interval": interval,
        "effect_size": effect,
    }


def comparisons_note(claims: Sequence[Mapping[str, Any]]) -> str:
    """How far the verdicts may be trusted together.

    Example:
        >>> comparisons_note([{"claim": "smaller", "interval": 0.1}])[:40]
        '1 claim is tested, each by a 95% interva'
    """
    decidable = [claim["claim"] for claim in claims if claim["interval"] is not None]
    if not decidable:
        return "No claim can be decided: an interval takes two seeds or more."
    # No overlap is above 1: were all circuits the same, no chance would say that they are not.
    tested = sum(name != "different" for name in decidable)
    besides = "Besides whether circuits are all the same, " if tested < len(decidable) else ""
    return (
        f"{besides}{tested} claim{'s are' if tested != 1 else ' is'} tested, each by a 95% interval of its "
        f"own, without correction for their number: if no difference were real, {0.05 * tested:.1f} of them "
        "would be decided by chance on average. They are not independent: several rest on the same circuits."
    )


def _values(measures: Mapping[str, Any], name: str, kind: str) -> list[float | None]:
    if " - " in name:
        first, second = (_values(measures, each, kind) for each in name.split(" - "))
        return [None if a is None or b is None else a - b for a, b in zip(first, second, strict=True)]
    values: list[float | None] = measures[name][kind]["values"]
    return values


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3g}"
