"""A text to train on and one that is held out, as windows of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WIKITEXT = "Salesforce/wikitext", "wikitext-2-raw-v1"
HELD_OUT = 0.1
"""The share of each file, at its end, that is held out."""


@dataclass(frozen=True)
class Text:
    """Tokens of both splits, ``(n,)`` each, and what they are of."""

    train: Tensor
    validation: Tensor
    description: dict[str, Any]

    def windows(self, split: str, length: int) -> Tensor:
        """Return consecutive windows of a split, ``(n, length)``; what is left over at the end is dropped.

        Raises:
            ValueError: the split is shorter than one window.
        """
        tokens = getattr(self, split)
        if len(tokens) < length:
            raise ValueError(
                f"length must be at most the {len(tokens)} tokens of the {split} split, got {length}"
            )
        return tokens[: len(tokens) // length * length].view(-1, length)


def read_text(names: Sequence[str], tokenizer: Any) -> Text:
    """Read ``["wikitext"]`` from the hub, or files, of each of which the end is held out."""
    if list(names) == ["wikitext"]:
        parts = wikitext()
        source = {"source": " ".join(WIKITEXT), "held out": "its validation split"}
    else:
        parts = files([Path(name) for name in names])
        source = {
            "source": [Path(name).name for name in names],
            "held out": f"the last {HELD_OUT:.0%} of each file",
        }
    tokens = {split: _tokens(tokenizer, part) for split, part in parts.items()}
    digest = hashlib.sha256(b"".join(each.numpy().tobytes() for each in tokens.values()))
    counts = {split: len(each) for split, each in tokens.items()}
    return Text(**tokens, description={**source, "tokens": counts, "sha256": digest.hexdigest()})


def wikitext() -> dict[str, str]:
    """Return the training and the validation split of Wikitext-2.

    Raises:
        SystemExit: datasets is not installed.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise SystemExit(
            f"--text wikitext needs datasets ({error}): pip install datasets, or name files in its place"
        ) from error
    splits = load_dataset(*WIKITEXT)
    # A row is a line with its end; an empty one stands for a line with a space.
    return {
        split: "".join(row or " \n" for row in splits[split]["text"]) for split in ("train", "validation")
    }


def files(paths: Sequence[Path]) -> dict[str, str]:
    """Return what is trained on and what is held out of files.

    Raises:
        ValueError: a file is no UTF-8 or named twice.
        OSError: a file cannot be read.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"text must name each file once, got {[str(path) for path in paths]}")
    train, held_out = [], []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"text: {path} is no UTF-8 from byte {error.start} on") from error
        border = len(text) - round(HELD_OUT * len(text))
        train.append(text[:border])
        held_out.append(text[border:])
    return {"train": "\n\n".join(train), "validation": "\n\n".join(held_out)}


def _tokens(tokenizer: Any, text: str) -> Tensor:
    # Not verbose: it would warn that a model cannot read the whole text at once, which nobody asks it to.
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
