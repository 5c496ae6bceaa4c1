"""The paper's claims about circuits, by its versions, and whether the data support them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from modfast.report.statistics import detectable_effect, effect_size, holm, paired_interval, paired_p_value

from .words import Measure, describe

LEVEL = 0.05
"""A claim is decided if its corrected p-value is at most this."""

POWER = 0.8
"""How often an effect would be found of which the note says that so many seeds find it."""

EARLIER = "arXiv 2409.15747, 2502.02470 v1 and v2"
"""The versions that claim "different, disjoint, and smaller circuits" and specialised clusters."""

LATEST = "arXiv 2502.02470 v3"
"""The version that says that clustered models "do not exhibit more task specialization, but do form smaller
circuits"."""


class Claim(NamedTuple):
    """A claim that a measure of modular models is above or below the same of plain ones.

    Attributes:
        key: a short name.
        statement: the claim in words.
        source: the papers, and their versions, that say so.
        denied_by: the versions that say it is not so; None if none does.
        measure: the measure; ``"a - b"`` is the difference of two measures of one model.
        sign: 1 if the claim says that modular models are above plain ones, -1 if it says below.
        beside: the measure of random circuits of the same sizes that is told beside it, without a test; None
            if there is none.
    """

    key: str
    statement: str
    source: str
    denied_by: str | None
    measure: str
    sign: int
    beside: str | None = None


OF_CIRCUITS = (
    Claim(
        "disjoint",
        "Circuits of different classes overlap less in modular models than in plain ones",
        EARLIER,
        None,
        "overlap",
        -1,
        beside="random_overlap",
    ),
    Claim(
        "smaller",
        "Circuits are smaller in modular models",
        "arXiv 2409.15747, 2502.02470 v1, v2 and v3",
        None,
        "size",
        -1,
    ),
    # How "clusters that learn different circuits" can be measured: that circuits differ at all says nothing.
    Claim(
        "more_informative",
        "Clusters say more about classes, beyond random circuits, in modular models than in plain ones",
        EARLIER,
        LATEST,
        "information:regularised - random_information:regularised",
        1,
        beside="random_information:regularised",
    ),
)
"""The claims about circuits, tested for each criterion."""

OF_MODELS = (
    Claim(
        "specialised_only",
        "Single clusters alone differ more in which classes they get right in modular models",
        EARLIER,
        LATEST,
        "specialisation_only",
        1,
    ),
    Claim(
        "specialised_without",
        "Classes depend more on single clusters in modular models",
        EARLIER,
        LATEST,
        "specialisation_without",
        1,
    ),
)
"""The claims that need no circuits."""


class Comparison(NamedTuple):
    """A measure of modular models against plain ones, paired by seed.

    Attributes:
        means: what the text says of either.
        difference: the mean difference; None where a measure is missing, as are the following.
        interval: half the width of its 95% interval; None for a single seed.
        effect_size: Cohen's d_z; None for a single seed, or without scatter.
        p_value: of the two-sided paired t-test; None for a single seed.
        seeds: how many there are.
    """

    means: str
    difference: float | None
    interval: float | None
    effect_size: float | None
    p_value: float | None
    seeds: int


def paper_claims(summary: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Judge each of the paper's claims by the data, all of them together.

    Each is tested by a two-sided paired t-test, whose p-value is corrected for the number of all tests by
    :func:`modfast.report.statistics.holm`. A claim is ``"supported"`` if the corrected value is at most
    :data:`LEVEL` and the difference is on the claim's side, ``"contradicted"`` if it is on the other side,
    and otherwise ``"undecided"``; so is every claim with a single seed. Undecided is no support of a version
    that denies the claim.

    Args:
        summary: the measures of plain and modular models, as
            :func:`modfast.report.circuits.summary.summarize_circuits` returns them.

    Returns:
        For each claim ``claim`` (its key), ``criterion`` (None for claims that need no circuits),
        ``statement``, ``source`` and ``denied_by`` (the papers and versions that say so, and that say the
        opposite), ``verdict``, ``text`` (a line with the numbers), ``difference`` (modular minus plain;
        negative where a claim says "less" and holds), ``interval`` (half width of its own 95% interval, not
        corrected; None for a single seed), ``effect_size`` (Cohen's d_z, None without scatter), ``p_value``
        and ``p_adjusted`` (None for a single seed), and ``seeds``, their number. The numbers are None where a
        measure is missing, such as the overlap if there is one label only; such a claim does not count in
        the correction.

    Source: arXiv 2409.15747, and 2502.02470 in its three versions.
    """
    judged = []
    for group, measures in summary.items():
        for claim in OF_MODELS if group == "model" else OF_CIRCUITS:
            shown = describe(claim.measure.partition(" - ")[0])
            compared = compare(
                values_by_seed(measures, claim.measure, "modular"),
                values_by_seed(measures, claim.measure, "plain"),
                shown,
            )
            judged.append((claim, None if group == "model" else group, compared, _beside(measures, claim)))
    adjusted = holm([compared.p_value for _, _, compared, _ in judged])
    return [
        {
            "claim": claim.key,
            "criterion": criterion,
            "statement": claim.statement,
            "source": claim.source,
            "denied_by": claim.denied_by,
            "verdict": verdict(compared.difference, p_adjusted, claim.sign),
            "text": compared.means + _p_text(compared.p_value, p_adjusted) + beside,
            "p_adjusted": p_adjusted,
            **{name: value for name, value in compared._asdict().items() if name != "means"},
        }
        for (claim, criterion, compared, beside), p_adjusted in zip(judged, adjusted, strict=True)
    ]


def compare(modular: Sequence[float | None], plain: Sequence[float | None], shown: Measure) -> Comparison:
    """Compare modular models with plain ones, paired by seed.

    Args:
        modular: a value for each seed.
        plain: a value for each seed, in the same order.
        shown: the unit and scale in which the text tells the values.

    Example:
        >>> compared = compare([1.0, 2.0, 3.0], [4.0, 5.0, 7.0], Measure("Depth", "m", 1.0))
        >>> compared.means
        '2 m in modular models, 5.33 m in plain ones: difference -3.33 ± 1.43 m, 3 seeds, d_z -5.77'
        >>> compare([0.25], [0.5], Measure("Share", "% of all", 100.0)).means
        '25 % in modular models, 50 % in plain ones: difference -25 points, one seed: no interval'
    """
    pairs = [(a, b) for a, b in zip(modular, plain, strict=True) if a is not None and b is not None]
    missing = len(modular) - len(pairs)
    if missing:
        # Means over the seeds that are left would compare what happens to be measurable.
        where = f"there is nothing to measure in {missing} of {len(modular)} seeds"
        means = where if pairs else "there is nothing to measure"
        return Comparison(means, None, None, None, None, len(modular))
    a, b = (list(values) for values in zip(*pairs, strict=True))
    difference, interval = paired_interval(a, b)
    effect = effect_size(a, b)
    unit = shown.unit.partition(" ")[0]
    change = f"difference {_number(shown.scale * difference, '+')}"
    if interval is not None:
        change += f" ± {_number(shown.scale * interval)}"
    if unit:
        change += " points" if unit == "%" else f" {unit}"
    parts = [change, "one seed: no interval" if interval is None else f"{len(a)} seeds"]
    if effect is not None:
        parts.append(f"d_z {_number(effect)}")
    means = f"{_both(sum(a) / len(a), sum(b) / len(b), shown)}: {', '.join(parts)}"
    return Comparison(means, difference, interval, effect, paired_p_value(a, b), len(a))


def verdict(difference: float | None, p_adjusted: float | None, sign: int) -> str:
    """Return what a corrected p-value says of the claim that the difference has this sign.

    Example:
        >>> verdict(-2.0, 0.04, -1), verdict(2.0, 0.04, -1), verdict(-2.0, 0.06, -1)
        ('supported', 'contradicted', 'undecided')
    """
    if difference is None or p_adjusted is None or p_adjusted > LEVEL:
        return "undecided"
    return "supported" if difference * sign > 0 else "contradicted"


def claim_versions(claim: Mapping[str, Any]) -> str:
    """Return which papers and versions make a claim, and which deny it.

    Example:
        >>> claim_versions({"source": "arXiv 2409.15747", "denied_by": "arXiv 2502.02470 v3"})
        'claimed by arXiv 2409.15747; denied by arXiv 2502.02470 v3'
    """
    denied = f"; denied by {claim['denied_by']}" if claim["denied_by"] else ""
    return f"claimed by {claim['source']}{denied}"


def comparisons_note(claims: Sequence[Mapping[str, Any]]) -> str:
    """Return sentences on how far the verdicts can be trusted together, and on what so many seeds can show.

    Example:
        >>> claim = {"p_value": 0.01, "seeds": 3, "verdict": "supported", "denied_by": None}
        >>> comparisons_note([claim])[:48]
        '1 claim is tested, by a two-sided paired t-test.'
    """
    tested = [claim for claim in claims if claim["p_value"] is not None]
    if not tested:
        return "No claim can be decided: a test takes two seeds or more."
    count, seeds = len(tested), tested[0]["seeds"]

    def found(comparisons: int) -> str:
        effect = detectable_effect(seeds, comparisons, POWER, 1 - LEVEL)
        return f"{effect:.2g}" if effect < 10 else f"{effect:.0f}"

    often = f"with a chance of {100 * POWER:.0f} %"
    if count == 1:
        parts = [
            "1 claim is tested, by a two-sided paired t-test.",
            f"With {seeds} seeds it is decided {often} if the true difference is {found(1)} times its "
            "standard deviation over seeds (d_z); smaller differences easily stay undecided.",
        ]
    else:
        parts = [
            f"{count} claims are tested, each by a two-sided paired t-test, and the p-values are corrected "
            "for this number by Holm's method: the chance that even one claim is decided whose true "
            f"difference is 0 is at most {100 * LEVEL:.0f} %, also where claims rest on the same circuits.",
            "The intervals are 95 % each, for one comparison and not corrected: one may leave out 0 although "
            "the claim is undecided.",
            f"With {seeds} seeds a claim tested alone is decided {often} if the true difference "
            f"is {found(1)} times its standard deviation over seeds (d_z), and the first of "
            f"{count} corrected ones if it is {found(count)} times; smaller differences easily stay "
            "undecided.",
        ]
    if any(claim["denied_by"] and claim["verdict"] == "undecided" for claim in tested):
        parts.append(
            "Undecided does not support a version that denies the claim: that no difference was found does "
            "not show that there is none."
        )
    return " ".join(parts)


def values_by_seed(measures: Mapping[str, Any], name: str, kind: str) -> list[float | None]:
    """Return a measure of each seed's model, or the difference of two.

    Example:
        >>> measures = {name: {"plain": {"values": [part, None]}} for name, part in (("a", 3.0), ("b", 1.0))}
        >>> values_by_seed(measures, "a", "plain"), values_by_seed(measures, "a - b", "plain")
        ([3.0, None], [2.0, None])
    """
    if " - " in name:
        first, second = (values_by_seed(measures, part, kind) for part in name.split(" - "))
        return [None if a is None or b is None else a - b for a, b in zip(first, second, strict=True)]
    values: list[float | None] = measures[name][kind]["values"]
    return values


def _beside(measures: Mapping[str, Any], claim: Claim) -> str:
    """Return what random circuits have of a claim's measure, as the end of its text."""
    if claim.beside is None:
        return ""
    modular, plain = (measures[claim.beside][kind]["mean"] for kind in ("modular", "plain"))
    if modular is None or plain is None:
        return ""
    return f"; random circuits of the same sizes: {_both(modular, plain, describe(claim.beside))}"


def _both(modular: float, plain: float, shown: Measure) -> str:
    unit = shown.unit.partition(" ")[0]
    names = ((modular, "in modular models"), (plain, "in plain ones"))
    return ", ".join(
        " ".join(filter(None, (_number(shown.scale * mean), unit, name))) for mean, name in names
    )


def _p_text(p_value: float | None, p_adjusted: float | None) -> str:
    if p_value is None or p_adjusted is None:
        return ""
    told = [f"< {_LEAST:g}" if value < _LEAST else _rounded(value) for value in (p_value, p_adjusted)]
    return f", p {told[0]}, corrected {told[1]}"


def _rounded(p_value: float) -> str:
    """Return a p-value with two digits, or as many more as show on which side of the level it is."""
    digits = 2
    while p_value != LEVEL and float(f"{p_value:.{digits}g}") == LEVEL:
        digits += 1
    return f"{p_value:.{digits}g}"


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3g}"


# Smaller p-values rest on tails in which no data are normal.
_LEAST = 0.0001
