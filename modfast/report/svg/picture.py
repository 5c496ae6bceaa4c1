"""What SVG pictures share: their size, their text, the format of numbers and the length of names.

All are 340 units wide, so that on a phone, where a unit is about a pixel, the text is as large as it says.
Colours and fonts come from the page: the pictures name classes of its style sheet.
"""

from __future__ import annotations

from collections.abc import Iterable
from unicodedata import east_asian_width

from markupsafe import Markup

WIDTH = 340.0

# Names and numbers are left out where more would run into each other.
MOST_NAMED = 20


def picture(height: float, description: str, drawn: Iterable[Markup], class_: str) -> Markup:
    """Return a picture ``height`` units high; ``description`` is the alternative text."""
    frame = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    return frame.format(class_, number(WIDTH), number(height), description, Markup("\n").join(drawn))


def path(d: str, class_: str, **attributes: str | None) -> Markup:
    """Return lines or areas from SVG's attribute ``d``; further attributes as for :func:`text`."""
    return Markup('<path d="{}" class="{}"{}/>').format(d, class_, _written(attributes))


def text(x: float, y: float, content: str, **attributes: str | None) -> Markup:
    """Return a line of text whose baseline begins at ``(x, y)``.

    Args:
        x: to the right.
        y: downwards.
        content: any characters; those with a meaning in SVG are escaped.
        attributes: further attributes; None leaves one out. ``_`` stands for ``-``; a final ``_`` is dropped,
            for names that Python reserves.

    Example:
        >>> print(text(1, 2.5, "a < b", text_anchor="end", class_="tick", transform=None))
        <text x="1" y="2.5" text-anchor="end" class="tick">a &lt; b</text>
    """
    line = Markup('<text x="{}" y="{}"{}>{}</text>')
    return line.format(number(x), number(y), _written(attributes), content)


def _written(attributes: dict[str, str | None]) -> Markup:
    return Markup("").join(
        Markup(' {}="{}"').format(name.removesuffix("_").replace("_", "-"), value)
        for name, value in attributes.items()
        if value is not None
    )


def number(value: float, decimals: int = 2) -> str:
    """Write a coordinate without digits that nobody sees.

    Example:
        >>> number(12.0), number(0.256), number(-0.001)
        ('12', '0.26', '0')
    """
    text = f"{value:.{decimals}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def text_width(content: str, size: float = 11.0) -> float:
    """Estimate how wide a line of text is at most, whatever the reader's font is.

    Example:
        >>> text_width("cat") < text_width("Wow") < text_width("a cow")
        True
    """
    broad = sum(letter in "MWmw@%&<>+=" or east_asian_width(letter) in "WF" for letter in content)
    return size * (0.63 * len(content) + 0.37 * broad)


def shorten(name: str, most: int = 14) -> str:
    """Return ``name``, or its beginning and end around an ellipsis, in at most ``most`` characters.

    Example:
        >>> shorten("class number 12", most=10)
        'class…r 12'
    """
    # Some names differ only at their beginning, others only at their end.
    end = most // 2 - 1
    return name if len(name) <= most else f"{name[: most - end - 1]}…{name[-end:]}"
