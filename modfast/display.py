"""What objects look like in a terminal and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

# Colours are the page's own, so that a table is read on light and on dark pages alike.
_TABLE = "border-collapse: collapse; margin: 0.4em 0"
# A table's own caption would be broken to the table's width, and a browser centres it.
_CAPTION = "caption-side: top; text-align: left; padding: 0.2em 0; white-space: nowrap"
_HEADING = "border-bottom: 1px solid currentColor; padding: 0.15em 0.7em; text-align: "
_CELL = "padding: 0.15em 0.7em; text-align: "


def html_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[object]], most: int | None = 30
) -> str:
    """Return a table as HTML, for ``_repr_html_``; everything in it is escaped.

    Args:
        title: what stands above it.
        headings: the names of the columns.
        rows: the cells: texts stand on the left, numbers on the right, None is an empty cell.
        most: show at most so many rows, and say how many there are more; None shows all.

    Example:
        >>> table = html_table("two <b>", ["name", "size"], [["a", 1], ["b & c", 2000]], most=1)
        >>> "two &lt;b&gt;" in table, "... and 1 more" in table, "2,000" in table
        (True, True, False)
    """
    cells = [list(row) for row in rows]
    shown = cells if most is None else cells[:most]
    numeric = [any(_is_number(row[i]) for row in shown) for i in range(len(headings))]
    sides = ["right" if number else "left" for number in numeric]
    lines = [
        f'<table style="{_TABLE}">',
        f'<caption style="{_CAPTION}">{html.escape(title)}</caption>',
        "<thead><tr>",
    ]
    lines += [
        f'<th style="{_HEADING}{side}">{html.escape(heading)}</th>'
        for heading, side in zip(headings, sides, strict=True)
    ]
    lines.append("</tr></thead><tbody>")
    for row in shown:
        written = (
            f'<td style="{_CELL}{side}">{html.escape(_text(value))}</td>'
            for value, side in zip(row, sides, strict=True)
        )
        lines.append(f"<tr>{''.join(written)}</tr>")
    if len(shown) < len(cells):
        more = f"... and {len(cells) - len(shown):,} more"
        lines.append(f'<tr><td colspan="{len(headings)}" style="{_CELL}left">{more}</td></tr>')
    lines.append("</tbody></table>")
    return "\n".join(lines)


def listed(names: Sequence[object], most: int = 5) -> str:
    """Return names side by side; of many the first ones, and how many there are.

    Example:
        >>> listed(["a", "b"]), listed("abcdefgh", most=3)
        ('a, b', 'a, b, c, ... (8)')
    """
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown}, ... ({len(names):,})"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if _is_number(value) else str(value)
