"""The page of a circuits report, from the templates beside this file; it needs nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from modfast.report.pages.environment import page_templates

from .findings import Findings
from .words import CRITERIA


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        identifier: the anchor that links lead to.
        heading: the text above it.
        template: the name of its template.
        content: what the template shows, under the name ``content``.
    """

    identifier: str
    heading: str
    template: str
    content: Any = None


def page(title: str, sections: Sequence[Section], findings: Findings) -> str:
    """Render the whole file.

    Args:
        title: the text in the browser's title bar and at the top of the page.
        sections: the parts of the page, in order.
        findings: what the report is made of.
    """
    templates = page_templates("modfast.report.circuits")
    criteria = [CRITERIA[criterion] for criterion in findings.config["criteria"]]
    return templates.get_template("page.html").render(
        title=title, sections=sections, findings=findings, criteria=criteria
    )
