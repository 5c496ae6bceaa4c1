"""The report on a run's circuits: one HTML file that opens anywhere and loads nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from modfast.circuits.folder import CIRCUITS, REPORT
from modfast.circuits.keys import REGULARISED, layer_of
from modfast.files import atomic_write
from modfast.report.numbers import MINUS, numbers
from modfast.run_folder import OutputExistsError, RunFolder

from .answer import answer_lines
from .findings import Findings, read_findings
from .page import Section, page
from .sections import clusters_section, criterion_section
from .summary import BY_CLASS
from .words import CRITERIA, RANDOM, describe


def write_circuit_report(folder: str | os.PathLike[str]) -> Path:
    """Write a run's ``circuits.html`` from its files, whole or not at all.

    The file holds its pictures, needs no other file, runs no script and forbids the browser to load anything.
    It is readable on a phone, in print and in a dark scheme.

    Args:
        folder: a folder in which ``modfast circuits`` found circuits. It holds ``circuits.json``, and each
            model's folder within it (or it itself) ``partitions.npz`` and ``circuits/CRITERION/label-3.npz``.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: one of these files is missing.
        ValueError: one of them is damaged, or they do not fit each other.
        OutputExistsError: there is a ``circuits.html`` that modfast did not write.
    """
    folder = RunFolder.of(folder, "report")
    with _naming(folder.path / CIRCUITS):
        report = _report(read_findings(folder.path))

    def write(path: os.PathLike[str]) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text(report, encoding="utf-8")

    if not folder.draw({REPORT: write}):
        raise OutputExistsError(folder.left[-1])
    return folder.path / REPORT


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what is raised because ``path`` lacks something into a ValueError that names both."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} is damaged: it lacks {error}") from error
    except (IndexError, UndefinedError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _report(findings: Findings) -> str:
    results, config = findings.results, findings.config
    sections = []
    if results["claims"]:
        sections.append(Section("claims", "What the data say", "claims.html", _claims(results)))
    sections.append(Section("measures", "Measures", "measures.html", _measures(findings)))
    for criterion in config["criteria"]:
        content = criterion_section(findings, criterion)
        sections.append(Section(criterion, CRITERIA[criterion].title, "criterion.html", content))
    settings = {name: value for name, value in config.items() if name != "command"}
    sections += [
        Section("clusters", "Clusters on and off", "clusters.html", clusters_section(findings)),
        Section("reading", "How to read this", "reading.html"),
        Section("settings", "Settings", "facts.html", settings),
        Section("environment", "Environment", "facts.html", results["environment"]),
        Section("command", "To repeat it", "command.html", config["command"]),
    ]
    kinds = " and ".join(findings.kinds)
    whose = f"{kinds} networks" if len(results["runs"]) > 1 else f"a {kinds} network"
    return page(f"Circuits of {whose}: {config['data']}", sections, findings)


def _claims(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer in five lines, the claims in order, grouped below titles, and the note on them."""
    groups: dict[str, list[Any]] = {}
    for claim in results["claims"]:
        criterion = CRITERIA.get(claim["criterion"])
        title = criterion.title if criterion else "Single clusters, on and off"
        groups.setdefault(title, []).append(claim)
    return {"answer": answer_lines(results), "groups": groups, "note": results["note"]}


def _measures(findings: Findings) -> dict[str, Any]:
    """Return the rows of the main table of measures, and of the table layer by layer."""
    summary, regularised = findings.results["summary"], findings.config["regularised_layers"]
    kinds = findings.kinds

    def is_detail(name: str, measures: Mapping[str, Any]) -> bool:
        """Whether a measure is of one layer that is not regularised, or part of one over all layers."""
        measure, _, key = name.partition(":")
        return key not in ("", REGULARISED) and (measure in measures or layer_of(key) not in regularised)

    def groups(details: bool) -> list[tuple[str, list[dict[str, Any]]]]:
        return [
            (
                CRITERIA[group].title if group in CRITERIA else "Models",
                [
                    _row(measures, name, kinds)
                    for name in measures
                    if name != BY_CLASS and not name.startswith(RANDOM)
                    if is_detail(name, measures) == details
                ],
            )
            for group, measures in summary.items()
        ]

    return {
        "num_seeds": len(findings.config["seeds"]),
        "headings": [*kinds, f"modular {MINUS} plain"] if len(kinds) == 2 else kinds,
        "main": groups(details=False),
        "layers": groups(details=True),
    }


def _row(measures: Mapping[str, Any], name: str, kinds: Sequence[str]) -> dict[str, Any]:
    """Return a measure of each kind and their difference, beside those of random circuits of equal sizes."""
    measure, parts, chances = describe(name), measures[name], measures.get(RANDOM + name)
    columns = [parts.get(kind) for kind in kinds] + ([parts.get("difference")] if len(kinds) == 2 else [])
    texts = numbers(columns, measure.scale)
    by_chance: list[str | None] = [None] * len(texts)
    if chances is not None:
        means = [{"mean": chances[kind]["mean"], "interval": None} for kind in kinds]
        by_chance[: len(kinds)] = numbers(means, measure.scale)
    cells = list(zip(texts, by_chance, strict=True))
    return {"title": measure.title, "unit": measure.unit, "cells": cells}
