"""What pictures as SVG share: their size, their text, and how names are cut.

All are 340 units wide, so that on a phone, where a unit is about a pixel, the text is as large as it says.
Colours and fonts are the page's: the pictures name classes of its style sheet.
"""

from __future__ import annotations

from unicodedata import east_asian_width

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


def text_width(content: str, size: float = 11.0) -> float:
    """About how wide a line of text is at most, whatever the reader's font is.

    Example:
        >>> text_width("cat") < text_width("Wow") < text_width("a cow")
        True
    """
    broad = sum(each in "MWmw@%&<>+=" or east_asian_width(each) in "WF" for each in content)
    return size * (0.63 * len(content) + 0.37 * broad)


def shorten(name: str, most: int = 14) -> str:
    """``name``, or its beginning and its end around an ellipsis, in at most ``most`` characters.

    Example:
        >>> shorten("class number 12", most=10)
        'class…r 12'
    """
    # Of many names some begin alike and some end alike.
    end = most // 2 - 1
    return name if len(name) <= most else f"{name[: most - end - 1]}…{name[-end:]}"
