"""The text: the code of Python's standard library, without comments, of which whole files are held out."""

from __future__ import annotations

import ast
import platform
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modfast.tasks import NextToken

LENGTH = 96
"""Bytes of a window."""

LEAST_BYTES = 4000
_INDENT = 4  # spaces that ast.unparse writes for a level
HELD_OUT = 10
"""One file of so many is held out, in the order of their names."""


def sources(folder: Path | None = None) -> list[Path]:
    """Return the modules that lie directly in the standard library's folder, but for very short ones."""
    place = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    files = sorted(path for path in place.glob("*.py") if path.stat().st_size >= LEAST_BYTES)
    if len(files) < HELD_OUT:
        raise FileNotFoundError(
            f"folder must hold at least {HELD_OUT} files *.py of {LEAST_BYTES} bytes or more, {place} has "
            f"{len(files)}"
        )
    return files


def python_sources(folder: Path | None = None) -> NextToken:
    """Return the task to predict the next byte of Python's sources.

    Whole files are held out, the last of each ten: the end of a file would resemble its beginning.

    Args:
        folder: where the files are; None takes the standard library of the Python that runs.
    """
    files = sources(folder)
    held_out = files[HELD_OUT - 1 :: HELD_OUT]
    train = [path for path in files if path not in held_out]
    return NextToken(
        length=LENGTH,
        level="byte",
        vocabulary="".join(map(chr, range(256))),
        files=(*train, *held_out),
        train_texts=tuple(_read(train)),
        test_texts=tuple(_read(held_out)),
    )


def describe(task: NextToken) -> dict[str, Any]:
    """Return what a record keeps of the text."""
    return {
        "python": platform.python_version(),
        "files": [len(task.train_texts), len(task.test_texts)],
        "bytes": [sum(map(len, texts)) for texts in (task.train_texts, task.test_texts)],
        "held_out": [path.name for path in task.files[len(task.train_texts) :]],
        "fingerprint": task.fingerprint,
    }


def _read(paths: Sequence[Path]) -> list[Tensor]:
    return [torch.frombuffer(bytearray(_code(path).encode()), dtype=torch.uint8).long() for path in paths]


def _code(path: Path) -> str:
    """The code of a file as Python would write it: no comments, no docstrings; a tab for each level."""
    tree = ast.parse(path.read_bytes())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    lines = []
    for line in ast.unparse(tree).split("\n"):
        depth = (len(line) - len(line.lstrip(" "))) // _INDENT
        lines.append("\t" * depth + line[_INDENT * depth :])
    return "\n".join(lines) + "\n"
