"""What pictures as SVG share: their size, their text, and how names are cut.

All are 340 units wide, so that on a phone, where a unit is about a pixel, the text is as large as it says.
Colours and fonts are the page's: the pictures name classes of its style sheet.
"""

from __future__ import annotations

from .markup import Content, Markup, element, number

WIDTH = 340.0

# Names and numbers are left out where more would run into each other.
MOST_NAMED = 20


def picture(height: float, description: str, *content: Content, class_: str) -> Markup:
    """A picture of ``height`` units; ``description`` is for those who cannot see it."""
    return element(
        "svg",
        *content,
        class_=class_,
        viewBox=f"0 0 {number(WIDTH)} {number(height)}",
        role="img",
        aria_label=description,
    )


def text(x: float, y: float, content: str, **attributes: str | float | None) -> Markup:
    """A line of text whose baseline begins at ``(x, y)``."""
    return element("text", content, x=x, y=y, **attributes)


def shorten(name: str, most: int = 14) -> str:
    """``name``, or its beginning before an ellipsis, in at most ``most`` characters.

    Example:
        >>> shorten("a sea anemone", most=6)
        'a sea…'
    """
    return name if len(name) <= most else name[: most - 1] + "…"
