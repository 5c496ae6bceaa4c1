"""The pages, which parts of them are generated, and the figures in all the rest."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from modfast.files import atomic_write
from modfast.report.numbers import MINUS

from .blocks import BLOCKS

ROOT = Path(__file__).parents[2]

_MARKED = re.compile(
    r"<!-- (?P<name>.+?) table: begin -->\n(?P<inside>.*?)<!-- (?P=name) table: end -->", re.DOTALL
)
# Fenced blocks, comments, the head of a notebook, code in a line, the targets of links.
_CODE = re.compile(
    r"^( *)(```|~~~).*?^\1\2|<!--.*?-->|\A---\n.*?^---\n|`[^`\n]*`|\]\([^)\s]*\)", re.DOTALL | re.MULTILINE
)
# A version is no measurement: "Python 3.13", "CUDA 13.0".
_VERSION = re.compile(r"\b(?:Python|PyTorch|CUDA|glibc|QEMU)\s+\d+(?:\.\d+)*")

WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
NUMBER = rf"[{MINUS}+-]?\d[\d,]*(?:\.\d+)?|\b(?:{'|'.join(WORDS)})\b"
_UNIT = (
    r"ms|µs|s|seconds?|minutes?|hours?|%|percent|points?|x(?! ?\d)|times|[kKMG]i?B|bytes|nats?|bits?|tests"
)
# A number with a unit, alone or as the end of a range; and any number with a decimal point but arXiv's.
_FIGURE = re.compile(
    rf"(?<![\w.,])(?:(?:{NUMBER}) ?(?:to|and|or|of|[-\u2013±]) ?)?(?:{NUMBER})(?: and a half)?"
    rf"(?: ?|\n {{0,6}})(?:{_UNIT})(?!\w)"
    rf"|(?<![\w.,/-])(?!\d{{4}}\.\d{{5}})\d[\d,]*\.\d+(?![\w.])"
)


class Figure(NamedTuple):
    """A figure in the text of a page, outside code and generated parts."""

    start: int
    end: int
    text: str


def pages() -> list[Path]:
    """Return all pages whose figures are checked."""
    front = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", ROOT / "examples" / "README.md"]
    return [*front, *sorted((ROOT / "docs").rglob("*.md"))]


def whole_pages() -> dict[Path, str]:
    """Return the pages that an experiment writes as a whole, and what it writes."""
    found = {}
    for file in sorted((ROOT / "benchmarks").glob("*/page.py")):
        module = importlib.import_module(f"benchmarks.{file.parent.name}.page")
        if hasattr(module, "page"):
            found[module.PAGE] = module.page()
    return found


def blocks_of(text: str) -> Iterator[tuple[str, str, str]]:
    """Return name, text and due text of each block on a page.

    Raises:
        ValueError: markers name a block that nothing makes.
    """
    for marked in _MARKED.finditer(text):
        name = marked["name"]
        if name not in BLOCKS:
            raise ValueError(f"nothing makes the block {name!r}; there are: {', '.join(sorted(BLOCKS))}")
        yield name, marked["inside"], _due(name)


def with_blocks(text: str) -> str:
    """Return a page with every block as the committed results give it."""
    return _MARKED.sub(
        lambda marked: (
            marked[0].replace(marked["inside"], _due(marked["name"]), 1)
            if marked["inside"]
            else marked[0].replace(" -->\n", f" -->\n{_due(marked['name'])}", 1)
        ),
        text,
    )


def write_blocks() -> list[Path]:
    """Put every block into its places; return the pages that changed."""
    changed = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        due = with_blocks(text)
        if due != text:
            with atomic_write(page) as temporary:
                temporary.write_text(due, encoding="utf-8")
            changed.append(page)
    return changed


def figures(text: str) -> list[Figure]:
    """Return the figures of a page that no generator wrote."""
    blank = lambda found: re.sub(r"[^\n]", " ", found[0])  # noqa: E731
    rest = _VERSION.sub(blank, _CODE.sub(blank, _MARKED.sub(blank, text)))
    return [Figure(found.start(), found.end(), found[0]) for found in _FIGURE.finditer(rest)]


def _due(name: str) -> str:
    block = BLOCKS[name]()
    return f"\n{block}" if block else ""
