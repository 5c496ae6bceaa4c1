"""The paper's claims about circuits, and whether the data support them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from modfast.report.statistics import effect_size, paired_interval

from .words import describe


class Claim(NamedTuple):
    """A claim that one measure is above or below another.

    Attributes:
        key: a short name.
        statement: the claim in words.
        measure: the measure of modular models; ``"a - b"`` is the difference of two measures of one model.
        against: what it is compared with: a measure of random circuits in modular models, a number, or None
            for the same measure of plain models.
        sign: 1 if the claim says that ``measure`` is above ``against``, -1 if it says below.
    """

    key: str
    statement: str
    measure: str
    against: str | float | None
    sign: int


OF_CIRCUITS = (
    Claim(
        "different",
        "Circuits of different classes are not identical (one weight that differs is enough)",
        "overlap",
        1.0,
        -1,
    ),
    Claim(
        "disjoint",
        "Circuits of different classes overlap less than random circuits of the same sizes",
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
        "The cluster of a kept weight says more about its class than in random circuits of the same sizes",
        "information:regularised",
        "random_information:regularised",
        1,
    ),
    Claim(
        "more_informative",
        "Clusters say more about classes, beyond random circuits, in modular models than in plain ones",
        "information:regularised - random_information:regularised",
        None,
        1,
    ),
)
"""The claims about circuits, tested for each criterion."""

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
"""The claims that need no circuits."""


def paper_claims(summary: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Judge each of the paper's claims by the data.

    A claim is ``"supported"`` if the paired 95% interval of the difference excludes 0 on the claim's side,
    ``"contradicted"`` if it does on the other side, and otherwise ``"undecided"``; so is every claim with a
    single seed.

    Args:
        summary: the measures of plain and modular models, as
            :func:`modfast.report.circuits.summary.summarize_circuits` returns them.

    Returns:
        For each claim ``claim`` (its key), ``criterion`` (None for claims that need no circuits),
        ``statement``, ``verdict``, ``text`` (a line with the numbers), ``difference`` (between the measures,
        or modular minus plain; negative where a claim says "less" and holds), ``interval`` (half width, None
        for a single seed) and ``effect_size`` (Cohen's d_z, None without scatter). The last three are None
        where a measure is missing, such as the overlap if there is one label only.

    Source: the claims are of arXiv 2409.15747 and 2502.02470.
    """
    claims = []
    for group, measures in summary.items():
        for claim in OF_MODELS if group == "model" else OF_CIRCUITS:
            first = _values(measures, claim.measure, "modular")
            if claim.against is None:
                names = ("in modular models", "in plain ones")
                second = _values(measures, claim.measure, "plain")
            elif isinstance(claim.against, str):
                names = ("in circuits", "in random circuits")
                second = _values(measures, claim.against, "modular")
            else:
                names = ("measured", "if they were identical")
                second = [claim.against] * len(first)
            measure = describe(claim.measure.partition(" - ")[0])
            criterion = None if group == "model" else group
            claims.append(
                {"claim": claim.key, "criterion": criterion, "statement": claim.statement}
                | judge(first, second, claim.sign, names, measure.scale, measure.unit.partition(" ")[0])
            )
    return claims


def judge(
    first: Sequence[float | None],
    second: Sequence[float | None],
    sign: int,
    names: tuple[str, str],
    scale: float = 1.0,
    unit: str = "",
) -> dict[str, Any]:
    """Judge whether ``first`` is above (``sign`` 1) or below (-1) ``second``, paired by seed.

    Args:
        first: a value for each seed.
        second: a value for each seed, in the same order.
        sign: the sign of ``first - second`` if the claim holds.
        names: what the text says after either mean, such as ``"in modular models"``.
        scale: the factor by which the text multiplies the values.
        unit: the unit of these products.

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
    # A difference of rounding alone decides nothing, even if it is the same for all seeds.
    least = 1e-12 * max(abs(value) for value in (*a, *b))
    if interval is not None and abs(difference) > max(interval, least):
        verdict = "supported" if difference * sign > 0 else "contradicted"
    means = (
        " ".join(filter(None, (_number(scale * sum(values) / len(values)), unit, name)))
        for values, name in zip((a, b), names, strict=True)
    )
    change = f"difference {_number(scale * difference, '+')}"
    if interval is not None:
        change += f" ± {_number(scale * interval)}"
    if unit:
        change += " points" if unit == "%" else f" {unit}"
    parts = [change, "one seed: no interval" if interval is None else f"{len(a)} seeds"]
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
    """Return a sentence on how far the verdicts can be trusted together.

    Example:
        >>> comparisons_note([{"claim": "smaller", "interval": 0.1}])[:40]
        '1 claim is tested, each by a 95% interva'
    """
    decidable = [claim["claim"] for claim in claims if claim["interval"] is not None]
    if not decidable:
        return "No claim can be decided: an interval takes two seeds or more."
    # No overlap is above 1: if all circuits were identical, chance could not make them look different.
    tested = sum(name != "different" for name in decidable)
    besides = "Besides whether circuits are all the same, " if tested < len(decidable) else ""
    return (
        f"{besides}{tested} claim{'s are' if tested != 1 else ' is'} tested, each by a 95% interval of its "
        f"own, without correction for their number: if no difference were real, {0.05 * tested:.1f} of them "
        "would be decided by chance on average. They are not independent: several rest on the same circuits."
    )


def _values(measures: Mapping[str, Any], name: str, kind: str) -> list[float | None]:
    if " - " in name:
        first, second = (_values(measures, part, kind) for part in name.split(" - "))
        return [None if a is None or b is None else a - b for a, b in zip(first, second, strict=True)]
    values: list[float | None] = measures[name][kind]["values"]
    return values


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3g}"
