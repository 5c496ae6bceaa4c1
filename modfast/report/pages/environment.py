"""The templates of pages: read from their room and from the common one, and filled in without surprises."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from modfast.report.numbers import MINUS, NOTHING
from modfast.report.svg.charts import marker


def page_templates(room: str) -> Environment:
    """Return the templates of a room, and those that all pages share.

    Whatever a template shows is escaped, and a name that it does not know is an error.

    Args:
        room: the package whose folder ``templates`` is looked in first, such as ``modfast.report.circuits``.
    """
    templates = Environment(
        loader=ChoiceLoader([PackageLoader(room), PackageLoader("modfast.report.pages")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters.update(listed=_listed, in_words=_in_words, minus=_minus, unbroken=_unbroken)
    templates.globals["marker"] = marker
    return templates


def _listed(names: Sequence[object]) -> str:
    """Join names as in a sentence.

    Example:
        >>> _listed(["fc1", "fc2", "fc3"]), _listed([42])
        ('fc1, fc2 and fc3', '42')
    """
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last


def _in_words(value: Any) -> str:
    """Write a setting in words.

    Example:
        >>> _in_words({"plain": 0.5, "layers": ["fc1", "fc2"]})
        'plain 0.5, layers fc1, fc2'
    """
    if value is None or value == []:
        return NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_words(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(_in_words(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _minus(text: str) -> str:
    """Put true minus signs before numbers."""
    return re.sub(r"-(?=\d)", MINUS, str(text))


def _unbroken(html: Markup) -> Markup:
    r"""Keep each number on one line with its unit, sign or name; a command stays as it was typed.

    Example:
        >>> print(_unbroken(Markup("5 seeds, d_z 2, p &lt; 0.01, corrected 0.02")).replace("\xa0", "~"))
        5 seeds, d_z~2, p~&lt;~0.01, corrected~0.02
    """
    spaces = r"(<pre>.*?</pre>)|(?<=\d) (?=%)|(?<=±) |(?<=d_z) "
    for name in (r"\bp", r"\bcorrected"):
        spaces += rf"|(?<={name}) (?=&lt; \d|\d)|(?<={name} &lt;) (?=\d)"
    return Markup(re.sub(spaces, lambda match: match[1] or "\N{NO-BREAK SPACE}", html, flags=re.DOTALL))
