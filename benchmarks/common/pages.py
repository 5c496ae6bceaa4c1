"""Options and output that the tables of all families share: on the screen, as JSON, in a Markdown page."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import modfast
from modfast.files import atomic_write
from modfast.machine import environment
from modfast.report.numbers import MINUS


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return number


def add_options(parser: argparse.ArgumentParser, repeats: int) -> None:
    """Add the options of every script that measures times."""
    parser.add_argument("--threads", type=at_least(1), default=torch.get_num_threads(), metavar="N")
    parser.add_argument(
        "--repeats", type=at_least(1), default=repeats, metavar="N", help=f"rounds; default {repeats}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results, quartiles included")


def add_page_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the table between its markers")


def what_times_depend_on() -> dict[str, Any]:
    """Return the beginning of every report."""
    backend = modfast.backend()
    return {
        "date": date.today().isoformat(),
        "environment": environment(),
        "kernels": backend["cpu"] if backend["backend"] == "compiled" else backend["backend"],
    }


def versions(report: dict[str, Any]) -> str:
    machine = report["environment"]
    return (
        f"modfast {machine['modfast']} ({report['kernels']}), PyTorch {machine['torch']}, "
        f"Python {machine['python']}"
    )


def show(title: str, caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one table."""
    table = Table(*headings, title=title, caption=caption)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    # Into a pipe or a log rich would fold the table to 80 columns.
    Console(width=None if sys.stdout.isatty() else 190).print(table)


def as_markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def outside_markers(text: str, family: str) -> tuple[str, str]:
    """Return the text before and after a family's table, markers included."""
    first, last = (f"<!-- {family} table: {end} -->" for end in ("begin", "end"))
    before, begin, rest = text.partition(f"{first}\n")
    _, end, after = rest.partition(f"{last}\n")
    if not (begin and end):
        raise ValueError(f"needs a line {first} and, after it, a line {last}")
    return before + begin, end + after


def check_page(parser: argparse.ArgumentParser, page: Path | None, family: str) -> None:
    """Refuse a page without a place for the table, before the measurement."""
    if page:
        try:
            outside_markers(page.read_text(encoding="utf-8"), family)
        except (OSError, ValueError) as error:
            parser.error(f"--markdown {page}: {error}")


def put_into_page(page: Path, family: str, table: str) -> None:
    before, after = outside_markers(page.read_text(encoding="utf-8"), family)
    with atomic_write(page) as temporary:
        temporary.write_text(f"{before}\n{table}{after}", encoding="utf-8")


def true_minus(text: str) -> str:
    """Put true minus signs before numbers, but not into names, commands and links."""
    return re.sub(r"(?<![\w`\-./])-(?=\d)", MINUS, text)
