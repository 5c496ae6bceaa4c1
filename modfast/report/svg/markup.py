"""HTML and SVG, written so that no text from data can be taken for markup."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias, Union

# The only elements without an end that the reports use.
_VOID = frozenset({"meta", "br"})


class Markup(str):
    """Text that is markup already; :func:`element` escapes every other string."""

    __slots__ = ()


# A quoted name takes no part in | when it is run.
Content: TypeAlias = Union[str, Iterable["Content"], None]  # noqa: UP007


def element(name: str, /, *content: Content, **attributes: str | float | None) -> Markup:
    """One element of HTML or SVG.

    Args:
        name: of the element.
        content: markup, text (which is escaped), None (nothing), or any nesting of these.
        attributes: None leaves an attribute out. ``_`` stands for ``-``, and a final one keeps a name that
            Python reserves, such as ``class_``. Numbers have at most two decimals.

    Example:
        >>> element("p", "a < b", element("b", "!"), class_="note", title='"')
        '<p class="note" title="&quot;">a &lt; b<b>!</b></p>'
        >>> element("circle", r=1.5, stroke_width=2, fill=None)
        '<circle r="1.5" stroke-width="2"></circle>'
    """
    written = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(content)}</{name}>")


def join(*content: Content) -> Markup:
    """The contents one after the other, text escaped.

    Example:
        >>> join("a & b", ["c", None])
        'a &amp; bc'
    """
    parts = []
    for each in content:
        if isinstance(each, Markup):
            parts.append(str(each))
        elif isinstance(each, str):
            parts.append(html.escape(each, quote=False))
        elif each is not None:
            parts.append(str(join(*each)))
    return Markup("".join(parts))


def number(value: float, decimals: int = 2) -> str:
    """A coordinate without digits that nobody sees.

    Example:
        >>> number(12.0), number(0.256), number(-0.001)
        ('12', '0.26', '0')
    """
    text = f"{value:.{decimals}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _value(value: str | float) -> str:
    return html.escape(value) if isinstance(value, str) else number(value)
