"""The report on a run's circuits: one HTML file that opens anywhere and loads nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modfast.circuits.folder import REPORT
from modfast.circuits.keys import REGULARISED, layer_of
from modfast.files import atomic_write
from modfast.report.numbers import MINUS, NOTHING, numbers
from modfast.report.svg.markup import Content, Markup, element, join
from modfast.run_folder import OutputExistsError, RunFolder

from .findings import Findings, read_findings
from .page import page
from .sections import clusters_section, criterion_section
from .words import CRITERIA, RANDOM, describe

_VERDICTS = {"supported": "✓ supported", "contradicted": "✗ contradicted", "undecided": "? undecided"}


def write_circuit_report(folder: str | os.PathLike[str]) -> Path:
    """Write a run's ``circuits.html`` from its files, whole or not at all.

    The file holds its pictures, needs no other, runs no script and forbids the browser to load anything; it
    can be read on a phone, in print and in a dark scheme.

    Args:
        folder: what ``modfast circuits`` has been through: it holds ``circuits.json``, and each model's
            folder within it (or it itself) ``partitions.npz`` and ``circuits/CRITERION/label-3.npz``.

    Returns:
        The file.

    Raises:
        FileNotFoundError: one of these is missing.
        ValueError: one of these is damaged, or they do not fit each other.
        OutputExistsError: there is a ``circuits.html`` that modfast did not write.
    """
    folder = RunFolder.of(folder, "report")
    findings = read_findings(folder.path)

    def write(path: os.PathLike[str]) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text(_report(findings), encoding="utf-8")

    if not folder.draw({REPORT: write}):
        raise OutputExistsError(folder.left[-1])
    return folder.path / REPORT


def _report(findings: Findings) -> str:
    sections: list[tuple[str, str, Content]] = []
    if findings.results["claims"]:
        sections.append(("claims", "What the data say", _claims(findings.results)))
    sections.append(("measures", "Measures", _measures(findings)))
    for criterion in findings.config["criteria"]:
        heading, content = criterion_section(findings, criterion)
        sections.append((criterion, heading, content))
    sections += [
        ("clusters", "Clusters on and off", clusters_section(findings)),
        ("reading", "How to read this", _definitions(_READING)),
        ("settings", "Settings", _facts(findings.config, skip=("command",))),
        ("environment", "Environment", _facts(findings.results["environment"])),
        ("command", "To repeat it", element("pre", element("code", findings.config["command"]))),
    ]
    data = findings.config["data"]
    kinds = " and ".join(findings.kinds)
    whose = f"{kinds} networks" if len(findings.results["runs"]) > 1 else f"a {kinds} network"
    return page(f"Circuits of {whose}: {data}", sections, _opening(findings))


def _opening(findings: Findings) -> Markup:
    config, count = findings.config, len(findings.config["seeds"])
    models = " and ".join(f"{count} {kind}" if count > 1 else f"one {kind}" for kind in findings.kinds)
    several = len(findings.results["runs"]) > 1
    looked_at = (
        f"This report looks at {models} {'networks' if several else 'network'} (model {config['model']}) "
        f"trained on {config['data']}, seed{'s' if count > 1 else ''} {_listed(config['seeds'])}."
    )
    trained = ""
    if "modular" in findings.kinds and config["regularised_layers"]:
        trained = (
            f"The modular {'ones' if several else 'one'} learned with a penalty (enmeshment weight "
            f"{_told(config['enmeshment_weight'])}) on the squared weight of "
            f"{_listed(config['regularised_layers'])} that crosses between {config['num_clusters']} "
            "clusters of neurons."
        )
    criteria = [_criterion_name(each) for each in config["criteria"]]
    all_classes = len(config["labels"]) == len(config["classes"])
    asked = (
        f"For {'each class' if all_classes else 'the classes ' + _listed(findings.names)} an effective "
        f"circuit was found in each network, by {_listed(criteria)}."
    )
    return join(
        element("p", "Which of its weights does a network need to recognise one class? ", looked_at),
        element("p", f"{trained} {asked}"),
        element(
            "p",
            f"An effective circuit is what is left of {_listed(config['layers'])} when each weight, from "
            "the last layer to the first, is set to zero, and put back only if the network has become "
            "worse on images of the class. Its size is the share of weights that are left.",
        ),
        element(
            "ul",
            [
                element("li", element("b", _criterion_name(each)), f": worse is {CRITERIA[each].worse}.")
                for each in config["criteria"]
            ],
        ),
    )


def _criterion_name(criterion: str) -> str:
    """As in a sentence."""
    return CRITERIA[criterion].title.removeprefix("Circuits by ")


def _claims(results: Mapping[str, Any]) -> Markup:
    parts: list[Content] = []
    claims = results["claims"]
    for criterion in dict.fromkeys(claim["criterion"] for claim in claims):
        items = [
            element(
                "li",
                element("p", _VERDICTS[claim["verdict"]], class_="verdict"),
                element("p", claim["statement"], class_="statement"),
                element("p", re.sub(r"-(?=\d)", MINUS, claim["text"])),
                class_=claim["verdict"],
            )
            for claim in claims
            if claim["criterion"] == criterion
        ]
        title = CRITERIA[criterion].title if criterion in CRITERIA else "Single clusters, on and off"
        parts += [element("h3", title), element("ul", items, class_="claims")]
    return join(*parts, element("p", results["note"], class_="quiet"))


def _measures(findings: Findings) -> Markup:
    summary, regularised = findings.results["summary"], findings.config["regularised_layers"]
    count = len(findings.config["seeds"])

    def is_detail(name: str, measures: Mapping[str, Any]) -> bool:
        """Whether it is of one layer, and of no regularised one or part of a measure over all."""
        measure, _, key = name.partition(":")
        return key not in ("", REGULARISED) and (measure in measures or layer_of(key) not in regularised)

    main, details = (
        {
            group: [name for name in measures if is_detail(name, measures) == wanted]
            for group, measures in summary.items()
        }
        for wanted in (False, True)
    )
    meaning = (
        f"Means over {count} seeds ± half widths of 95 % intervals; differences are taken seed by seed."
        if count > 1
        else "One seed: no intervals."
    )
    layers = element("details", element("summary", "Layer by layer"), _table(findings, details))
    return join(element("p", meaning, class_="quiet"), _table(findings, main), layers)


def _table(findings: Findings, chosen: Mapping[str, Sequence[str]]) -> Markup:
    """These measures, and below each what random circuits of the same sizes give."""
    kinds = findings.kinds
    compared = len(kinds) == 2
    headings = [*kinds, f"modular {MINUS} plain"] if compared else list(kinds)
    head = [element("th", "measure", scope="col", role="columnheader")]
    head += [element("th", each, scope="col", role="columnheader", class_="number") for each in headings]
    rows = [element("thead", element("tr", head, role="row"), role="rowgroup")]
    for group, names in chosen.items():
        measures = findings.results["summary"][group]
        title = CRITERIA[group].title if group in CRITERIA else "Models"
        heading = element("th", title, colspan=len(headings) + 1, scope="rowgroup", role="rowheader")
        body = [element("tr", heading, class_="group", role="row")]
        for name in names:
            if name.startswith(RANDOM):
                continue
            measure, parts, chances = describe(name), measures[name], measures.get(RANDOM + name)
            given = [parts.get(kind) for kind in kinds] + ([parts.get("difference")] if compared else [])
            texts = numbers(given, measure.scale)
            small: list[Markup | None] = [None] * len(texts)
            if chances is not None:
                means = [{"mean": chances[kind]["mean"], "interval": None} for kind in kinds]
                small[: len(kinds)] = [
                    element("small", f"by chance {text}") for text in numbers(means, measure.scale)
                ]
            cells = [
                element("td", text, [" ", chance] if chance else None, class_="number", role="cell")
                for text, chance in zip(texts, small, strict=True)
            ]
            unit = element("small", f" ({measure.unit})") if measure.unit else None
            title_cell = element("th", measure.title, unit, scope="row", role="rowheader")
            body.append(element("tr", title_cell, cells, role="row"))
        rows.append(element("tbody", body, role="rowgroup"))
    # Laid out anew on a narrow screen, a table is told as one only by its roles.
    return element("table", rows, class_="measures", role="table")


_READING = (
    (
        "Circuit size",
        "The share of all weights of the examined layers that a circuit keeps. The smaller it is, the less "
        "of the network the class needs.",
    ),
    (
        "Overlap",
        "Of two circuits: the weights that both keep, as a share of those that either keeps. At 0 % they "
        "have none in common, at 100 % they are the same. Random circuits with as many weights in each "
        "layer overlap too: only what exceeds theirs says that two classes share weights. It may say no more "
        "than that they leave out the same neurons, such as those that are never active.",
    ),
    (
        "Inside clusters",
        "A weight is inside a cluster if both the neuron that it reads and the one that it feeds belong to "
        "it. Of k equal clusters each holds 1/k² of all weights, and so of a random circuit.",
    ),
    (
        "Information",
        "How much the cluster of a kept weight tells about the class whose circuit it is from, in bits: 0 "
        "if all classes use the clusters alike. Few weights seem to tell more than many: random circuits of "
        "the same sizes are the baseline. Their weights are drawn one by one, where a circuit keeps or drops "
        "many weights of a neuron together: to exceed them a little is not yet to be specialised.",
    ),
    (
        "Specialisation",
        "For each class, by how many points of accuracy the best cluster alone exceeds the mean of all "
        "clusters alone, or by how many the network without the most needed cluster falls short of the mean; "
        "then the mean over classes. It is 0 if all clusters are alike, and large also for clusters that "
        "give one answer to all images.",
    ),
    ("Clusterability", "The share of a layer's squared weight that is inside clusters."),
    (
        "Verdict",
        "Supported or contradicted where the 95 % interval leaves no other answer; undecided where it "
        "does, and with a single seed. The effect size d_z is the mean difference in standard deviations.",
    ),
    (
        "Seeds",
        "Two networks of one seed begin with the same weights and see the data in the same order, so that "
        "their difference says more than two separate means. The intervals are Student's and take seeds to "
        "vary about normally.",
    ),
)


def _definitions(entries: Sequence[tuple[str, str]]) -> Markup:
    return element("dl", [[element("dt", term), element("dd", meaning)] for term, meaning in entries])


def _facts(facts: Mapping[str, Any], skip: Sequence[str] = ()) -> Markup:
    rows = [
        element("tr", element("th", key.replace("_", " "), scope="row"), element("td", _told(value)))
        for key, value in facts.items()
        if key not in skip
    ]
    return element("table", element("tbody", rows), class_="facts")


def _told(value: Any) -> str:
    if value is None or value == []:
        return NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_told(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(_told(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _listed(names: Sequence[object]) -> str:
    """Names as in a sentence.

    Example:
        >>> _listed(["fc1", "fc2", "fc3"]), _listed([42])
        ('fc1, fc2 and fc3', '42')
    """
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last
