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


# A shape is read in one line; a note of a sentence may take several.
_UNBROKEN = 40


def html_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    most: int = 30,
    last: int = 0,
    hint: str = "",
) -> str:
    """Return a table as HTML, for ``_repr_html_``; everything in it is escaped.

    Args:
        title: what stands above it.
        headings: the names of the columns.
        rows: the cells: texts stand on the left, numbers on the right, None is an empty cell.
        most: show at most so many rows, and say how many are left out.
        last: so many of them are those at the end, below what is left out.
        hint: how to see all, beside the number of rows that are left out.

    Example:
        >>> table = html_table("two <b>", ["name", "size"], [["a", 1], ["b & c", 2000]], most=1)
        >>> "two &lt;b&gt;" in table, "... and 1 more" in table, "2,000" in table
        (True, True, False)
        >>> html_table("five", ["n"], [[f"row {i}"] for i in range(5)], 3, last=1).count("row ")
        3
    """
    cells = [list(row) for row in rows]
    left_out = max(len(cells) - most, 0)
    first = cells[: most - last] if left_out else cells
    end = cells[len(cells) - last :] if left_out else []
    numeric = [any(_is_number(row[i]) for row in (*first, *end)) for i in range(len(headings))]
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
    lines += [_html_row(row, sides) for row in first]
    if left_out:
        more = f"... and {left_out:,} more{hint}"
        lines.append(f'<tr><td colspan="{len(headings)}" style="{_CELL}left">{html.escape(more)}</td></tr>')
    lines += [_html_row(row, sides) for row in end]
    lines.append("</tbody></table>")
    return "\n".join(lines)


def _html_row(row: Sequence[object], sides: Sequence[str]) -> str:
    cells = []
    for value, side in zip(row, sides, strict=True):
        text = _text(value)
        style = f"{_CELL}{side}" + ("; white-space: nowrap" if len(text) <= _UNBROKEN else "")
        cells.append(f'<td style="{style}">{html.escape(text)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


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
