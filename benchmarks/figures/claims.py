"""The figures in sentences: each says where it comes from, in ``figures.toml``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from modfast.files import read_json
from modfast.report.numbers import MINUS

from .pages import NUMBER, ROOT, WORDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("figures.toml")
_TAKE = {
    "min": min,
    "max": max,
    "sum": sum,
    "mean": mean,
    "above zero": lambda each: sum(n > 0 for n in each),
}


class Measured(NamedTuple):
    """A sentence whose figures, ``{}`` in its text, come from committed results."""

    page: str
    text: str
    values: tuple[dict[str, Any], ...]


class Constant(NamedTuple):
    """A sentence whose figures are no measurements: settings, requirements, definitions."""

    page: str  # or "*": every page
    text: str
    why: str


def load(file: Path = FILE) -> tuple[list[Measured], list[Constant]]:
    """Return all entries.

    Raises:
        ValueError: an entry lacks something, or has too much.
    """
    entries = tomllib.loads(file.read_text(encoding="utf-8"))
    measured = [
        Measured(entry["page"], entry["text"], tuple(entry["values"]))
        for entry in entries.get("measured", [])
    ]
    for entry in measured:
        if entry.text.count("{}") != len(entry.values):
            raise ValueError(
                f"{entry.text!r} has {entry.text.count('{}')} places, {len(entry.values)} values"
            )
    return measured, [Constant(**entry) for entry in entries.get("constant", [])]


def value(of: dict[str, Any], root: Path = ROOT) -> str:
    """Return a figure as the page has to say it.

    Args:
        of: an entry's value; ``figures.toml`` says what it may have.
        root: what ``file`` is relative to.

    Raises:
        KeyError, IndexError, ValueError: there is no such number, or several.
    """
    unknown = of.keys() - {"file", "at", "minus", "over", "take", "times", "as"}
    if unknown:
        raise ValueError(f"unknown in a value: {', '.join(sorted(unknown))}")
    results = _read(root, of["file"])
    numbers = _at(results, of["at"])
    if "minus" in of:
        pairs = zip(numbers, _at(results, of["minus"]), strict=True)
        numbers = [number - less for number, less in pairs]
    if "over" in of:
        pairs = zip(numbers, _at(results, of["over"]), strict=True)
        numbers = [above / below for above, below in pairs]
    if "take" in of:
        numbers = [_TAKE[of["take"]](numbers)]
    if len(numbers) != 1:
        raise ValueError(f"{of['at']!r} of {of['file']} leads to {len(numbers)} numbers; take one")
    number = numbers[0] * of["times"] if "times" in of else numbers[0]
    if of["as"] == "word":
        return WORDS[round(number)]
    return format(number, of["as"]).replace("-", MINUS)


def pattern(text: str) -> re.Pattern[str]:
    """Return what finds a sentence on a page, with any figures in its places and any line breaks."""
    parts = [r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in text.split("{}")]
    return re.compile(rf"({NUMBER})".join(parts))


def find(text: str, page: str) -> re.Match[str] | None:
    """Return where a sentence stands on a page; None unless it stands there once."""
    found = list(pattern(text).finditer(page))
    return found[0] if len(found) == 1 else None


def told(entry: Measured, values: Sequence[str], page: str) -> str:
    """Return a page on which the figures of a sentence are these values."""
    found = find(entry.text, page)
    if found is None:
        raise ValueError(f"{entry.page} does not have once: {entry.text}")
    for place in reversed(range(len(values))):
        start, end = found.span(place + 1)
        page = page[:start] + values[place] + page[end:]
    return page


def _read(root: Path, file: str) -> Any:
    """Return the results of a file, or with a * the list of those of all files that fit."""
    if "*" not in file:
        return read_json(root / file)
    return [read_json(path) for path in sorted(root.glob(file))]


def _at(results: Any, keys: str) -> list[Any]:
    """Return all that keys lead to."""
    found = [results]
    for key in keys.split(" > "):
        found = [one for each in found for one in _step(each, key)]
    return found


def _step(each: Any, key: str) -> list[Any]:
    if key == "*":
        return list(each.values() if isinstance(each, dict) else each)
    if isinstance(each, dict):
        return [each[key]]
    name, equals, wanted = key.partition("=")
    if not equals:
        return [each[int(key)]]
    chosen = [one for one in each if str(one[name]) == wanted]
    if not chosen:
        raise KeyError(f"no entry has {key}")
    return chosen
