"""Pairs of neighbouring passages, from the docstrings of Python's standard library: text that is at hand."""

from __future__ import annotations

import ast
import hashlib
import platform
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests"})
"""Folders of the library that are not read: what was installed beside it, and its tests."""

HELD_OUT_FILES = 6
"""One file of so many is held out, by the checksum of its name."""

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

Encode = Callable[[str], Sequence[int]]
"""A function that returns the tokens of a text, without special ones."""


@dataclass(frozen=True)
class Texts:
    """Pairs of passages that follow one another in a docstring.

    Attributes:
        train: int64, ``(n, 2, length)``: tokens, the special ones included; no padding.
        held_out: likewise, of other files.
        description: what they were made of.
    """

    train: Tensor
    held_out: Tensor
    description: dict[str, Any]


def read_texts(folder: Path, length: int, library: Path | None = None) -> Texts:
    """Return the pairs of a Python's standard library.

    Args:
        folder: a model with its ``tokenizer.json``.
        length: tokens of each passage, the two special ones included.
        library: the folder of the library's sources; by default that of the Python that runs.

    Raises:
        ValueError: the length leaves no room for text, or there are no pairs for training, or none held out.
    """
    if length < 3:
        raise ValueError(f"length must be at least 3, for two special tokens and one of text, got {length}")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    if first is None or last is None:
        raise ValueError(f"{folder} must hold a tokenizer with [CLS] and [SEP]: is it BERT's?")
    source = Path(sysconfig.get_paths()["stdlib"]) if library is None else library

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    parts: dict[bool, list[list[list[int]]]] = {False: [], True: []}
    files, size, digest = {False: 0, True: 0}, {False: 0, True: 0}, hashlib.sha256()
    for name, documents in _documents(source):
        held = is_held_out(name)
        files[held] += 1
        for text in documents:
            content = text.encode()
            size[held] += len(content)
            digest.update(content + b"\0")
            parts[held] += pairs_of(text, encode, length, first, last)
    for held, what in ((False, "training"), (True, "measuring")):
        if not parts[held]:
            raise ValueError(f"{source} holds no pair of passages of {length} tokens for {what}")
    description = {
        "python": platform.python_version(),
        "length": length,
        "digest": digest.hexdigest()[:16],
        **{f"{what}_{name}": each[held] for name, each in (("files", files), ("bytes", size))
           for held, what in ((False, "train"), (True, "held_out"))},
        "train_pairs": len(parts[False]),
        "held_out_pairs": len(parts[True]),
    }  # fmt: skip
    return Texts(torch.tensor(parts[False]), torch.tensor(parts[True]), description)


def is_held_out(name: str) -> bool:
    """Whether a file is held out: decided by its name alone, so that a new file moves no other."""
    return zlib.crc32(name.encode()) % HELD_OUT_FILES == 0


def pairs_of(text: str, encode: Encode, length: int, first: int, last: int) -> list[list[list[int]]]:
    """Cut a text into passages of equal length; pair the first with the second, the third with the fourth.

    Args:
        text: what is left at its end is dropped.
        encode: the tokenizer.
        length: tokens of each passage, ``first`` and ``last`` included.
        first: the token before each passage.
        last: the token after it.
    """
    tokens, room = list(encode(text)), length - 2
    starts = range(0, len(tokens) - 2 * room + 1, 2 * room)
    return [
        [[first, *tokens[start + side : start + side + room], last] for side in (0, room)] for start in starts
    ]


def _documents(library: Path) -> Iterator[tuple[str, list[str]]]:
    """The docstrings of each file, in the order of the files' names; none twice."""
    seen: set[str] = set()
    paths = {path.relative_to(library): path for path in library.rglob("*.py")}
    for name in sorted(paths, key=lambda each: each.as_posix()):
        if LEFT_OUT & set(name.parts):
            continue
        try:
            tree = ast.parse(paths[name].read_bytes())
        except (SyntaxError, ValueError):  # templates, and files that are wrong on purpose
            continue
        found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, _DOCUMENTED))
        new = dict.fromkeys(text for text in found if text and text not in seen)
        seen.update(new)
        if new:
            yield name.as_posix(), list(new)
