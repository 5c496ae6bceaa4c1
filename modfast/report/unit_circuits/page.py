"""The page of one model's unit circuits: a picture that tells of each unit. It loads nothing."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from modfast.circuits.units.unit_circuit import UnitCircuit
from modfast.files import atomic_write
from modfast.partition import Labels
from modfast.report.pages.environment import page_templates

from .content import UnitFindings, picture_data
from .sections import cluster_figure, overlap_figure, settings_told, size_rows

# More circuits than this are chosen from a list, not by a button for each.
_MOST_BUTTONS = 24


def write_unit_page(
    path: str | os.PathLike[str],
    circuits: Sequence[UnitCircuit],
    clusters: Labels | None = None,
    *,
    title: str = "Unit circuits",
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Write a page of one model's unit circuits, whole or not at all: one HTML file that loads nothing.

    Each space of which units were asked for is a column, and each unit a mark: its area is the size of its
    score, a circle stands for a positive score and a diamond for a negative one, a filled mark for a unit
    that the circuit keeps, and the colour for its cluster. With the mouse, a finger or the keyboard the page
    tells each unit's name, score and cluster, and which circuits keep it. It can show one circuit or all,
    chosen clusters, or kept units alone. Tables below hold the sizes.

    Args:
        path: the file; it is replaced if it exists.
        circuits: at least one, all of one network. Those without a name are called "circuit 1" and so on.
        clusters: the cluster of each unit of the network, -1 for none, such as the labels of
            :func:`modfast.spectral_cluster`; None draws all units in one colour.
        title: the text at the top of the page.
        settings: names and values that the page tells in a table, such as the model and the data.
        seed: seeds the random circuits of equal sizes, whose overlap is told beside that of the circuits.

    Raises:
        ValueError: there is no circuit; they are of different networks or have the same name; a score is
            infinite; a unit that was asked for is in no space or in several; ``clusters`` is not one whole
            number of at least -1, and below the number of units, for each unit.
        TypeError: ``circuits`` holds something else.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> path = os.path.join(tempfile.mkdtemp(), "units.html")
        >>> kept, scores = torch.tensor([True, False]), torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> circuit = UnitCircuit(kept, scores, {"0": slice(0, 2)}, "greedy", "zero", 0.1, 10, 3, -0.5, -0.6)
        >>> write_unit_page(path, [circuit], clusters=[0, 1], title="A network of two units")
        >>> os.path.getsize(path) > 10_000
        True
    """
    findings = UnitFindings.of(circuits, clusters, seed=seed)
    page = unit_page(findings, title, settings or {})
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def unit_page(findings: UnitFindings, title: str, settings: Mapping[str, Any]) -> str:
    """Render the whole file."""
    templates = page_templates("modfast.report.unit_circuits")
    # What a script reads must not end it: the filter tojson writes <, > and & as escapes.
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    scripts = files("modfast.report.unit_circuits") / "templates"
    script = "".join((scripts / name).read_text(encoding="utf-8") for name in ("layout.js", "units.js"))
    return templates.get_template("units.html").render(
        title=title,
        findings=findings,
        settings={**settings_told(findings), **settings},
        data=picture_data(findings),
        as_buttons=len(findings.circuits) <= _MOST_BUTTONS,
        sizes=size_rows(findings),
        overlap=overlap_figure(findings),
        inside=cluster_figure(findings),
        script=script,
        digest=_digest(f"\n{script}"),
    )


def _digest(script: str) -> str:
    """Return what a content security policy names a script by, so that the browser runs this one alone."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
