"""Check every figure of the pages, and write those that results have changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from modfast.files import atomic_write

from . import claims
from .pages import ROOT, blocks_of, figures, pages, whole_pages


def problems() -> list[str]:
    """Return what is wrong on the pages, with page and line; nothing if all is right."""
    written = whole_pages()
    measured, constants = claims.load()
    found = []
    for page in pages():
        name, text = page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
        if page in written:
            if text != written[page]:
                found.append(f"{name}: not what its results give")
        else:
            found += of_page(name, text, measured, constants)
    known = {page.relative_to(ROOT).as_posix() for page in pages()}
    for entry in (*measured, *constants):
        if entry.page not in {*known, "*"}:
            found.append(f"{entry.page}: there is no such page for: {entry.text}")
    return found


def of_page(
    name: str,
    text: str,
    measured: Sequence[claims.Measured],
    constants: Sequence[claims.Constant],
    root: Path = ROOT,
) -> Iterator[str]:
    """Yield what is wrong on one page that people write.

    Args:
        name: the page, as entries name it.
        text: what it says.
        measured: entries of all pages.
        constants: the same.
        root: where the files of results are.
    """
    try:
        for block, inside, due in blocks_of(text):
            if inside != due:
                yield f"{name}: the table {block!r} is not what its results give"
    except ValueError as error:
        yield f"{name}: {error}"
    claimed: list[tuple[int, int]] = []
    for entry in measured:
        if entry.page != name:
            continue
        place = claims.find(entry.text, text)
        if place is None:
            yield f"{name}: does not say once: {entry.text}"
            continue
        claimed.append(place.span())
        for said, of in zip(place.groups(), entry.values, strict=True):
            due = claims.value(of, root)
            if said != due:
                line = text.count("\n", 0, place.start()) + 1
                yield f"{name}:{line}: says {said}, but {of['file']} says {due}: {entry.text}"
    for constant in constants:
        if constant.page not in (name, "*"):
            continue
        spans = [found.span() for found in claims.pattern(constant.text).finditer(text)]
        if not spans and constant.page != "*":
            yield f"{name}: does not say: {constant.text}"
        claimed += spans
    for figure in figures(text):
        if not any(start <= figure.start and figure.end <= end for start, end in claimed):
            line = text.count("\n", 0, figure.start) + 1
            yield f"{name}:{line}: {figure.text!r} has no entry in benchmarks/figures/figures.toml"


def write() -> list[Path]:
    """Put the figures of all sentences as results say them; return the pages that changed."""
    measured, _ = claims.load()
    changed = []
    for page in pages():
        name, text = page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
        due = text
        for entry in measured:
            if entry.page == name:
                due = claims.told(entry, [claims.value(of) for of in entry.values], due)
        if due != text:
            with atomic_write(page) as temporary:
                temporary.write_text(due, encoding="utf-8")
            changed.append(page)
    return changed
