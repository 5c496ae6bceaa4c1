"""The page of a circuits report, from the templates beside this file; it needs nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from modfast.report.numbers import MINUS, NOTHING
from modfast.report.svg.charts import marker

from .findings import Findings
from .words import CRITERIA


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        identifier: what links lead to.
        heading: above it.
        template: the file that it is made from.
        content: what the template shows, which knows it by this name.
    """

    identifier: str
    heading: str
    template: str
    content: Any = None


def page(title: str, sections: Sequence[Section], findings: Findings) -> str:
    """The whole file.

    Args:
        title: in the browser's title bar and above it all.
        sections: in their order.
        findings: what the report is made of.
    """
    # All that a template shows is escaped, and what it does not know is an error.
    templates = Environment(
        loader=PackageLoader("modfast.report.circuits"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters.update(listed=_listed, told=_told, minus=_minus, unbroken=_unbroken)
    templates.globals["marker"] = marker
    criteria = [CRITERIA[each] for each in findings.config["criteria"]]
    return templates.get_template("page.html").render(
        title=title, sections=sections, findings=findings, criteria=criteria
    )


def _listed(names: Sequence[object]) -> str:
    """Names as in a sentence.

    Example:
        >>> _listed(["fc1", "fc2", "fc3"]), _listed([42])
        ('fc1, fc2 and fc3', '42')
    """
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last


def _told(value: Any) -> str:
    """A setting in words.

    Example:
        >>> _told({"plain": 0.5, "layers": ["fc1", "fc2"]})
        'plain 0.5, layers fc1, fc2'
    """
    if value is None or value == []:
        return NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_told(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(_told(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _minus(text: str) -> str:
    """With true minus signs before numbers."""
    return re.sub(r"-(?=\d)", MINUS, text)


def _unbroken(html: Markup) -> Markup:
    """With each number on one line with its unit, its sign or its name; a command stays as it was typed."""
    spaces = r"(<pre>.*?</pre>)|(?<=\d) (?=%)|(?<=±) |(?<=d_z) "
    return Markup(re.sub(spaces, lambda found: found[1] or "\N{NO-BREAK SPACE}", html, flags=re.DOTALL))
