"""What the networks can do, as examples with a right and a wrong next byte: induction, brackets, indentation.

Each example asks for one byte after a text. The metric is the logit of the right byte less that of the wrong
one; an answer is right if it is above 0. A network that knows nothing is right in half of the cases: right
and wrong bytes of a behaviour come from the same few.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modfast.layers.running import logits_of

Batch = tuple[Tensor, Tensor]
"""Bytes, int64 ``(n, length)``, and for each text the right and the wrong byte, int64 ``(n, 2)``."""

NAMES = ("induction", "brackets", "indentation")

_PAIRS = ("()", "[]", "{}")
_STEP = 4
_WORDS = (
    *("self", "name", "value", "result", "index", "line", "data", "key", "path", "args", "items", "node"),
    *("count", "text", "type", "size", "other", "func", "module", "start", "end", "first", "last", "code"),
    *("obj", "mode", "flags"),
)


def induction(count: int, seed: int) -> Batch:
    """A string of random letters, and the same again as far as a random place: how does it go on?

    The wrong byte is another letter of the string.
    """
    generator = np.random.default_rng(seed)
    length, least = 20, 6
    texts, answers = [], []
    for _ in range(count):
        letters = generator.choice(list(string.ascii_letters), length, replace=False)
        place = int(generator.integers(least, length - 1))
        other = int(generator.choice([i for i in range(length) if i != place]))
        once = "".join(letters)
        texts.append(f"{once}\n{once[:place]}")
        answers.append((letters[place], letters[other]))
    return _batch(texts, answers)


def brackets(count: int, seed: int) -> Batch:
    """A line of code with a bracket open: which of the three kinds closes it?

    The wrong byte closes one of the other kinds. In half of the texts a pair of that other kind was opened
    and closed since, so that the last opening bracket is not the one to close.
    """
    generator = np.random.default_rng(seed)
    texts, answers = [], []
    for place in range(count):
        own, other = (_PAIRS[i] for i in generator.permutation(len(_PAIRS))[:2])
        words = [str(word) for word in generator.choice(_WORDS, 4, replace=False)]
        within = f"{words[2]}{other[0]}{words[3]}{other[1]}" if place % 2 else f"{words[2]}, {words[3]}"
        texts.append(f"\n    {words[0]} = {words[1]}{own[0]}{within}")
        answers.append((own[1], other[1]))
    return _batch(texts, answers)


def indentation(count: int, seed: int) -> Batch:
    """Lines of code, then as many spaces as the last line has: does another space follow, or code?

    Another space is right if the last line ends with a colon, and a letter if it does not; the other of the
    two is wrong. The letter is the one that began the first line.
    """
    generator = np.random.default_rng(seed)
    texts, answers = [], []
    for place in range(count):
        one, two, three, four = (str(word) for word in generator.choice(_WORDS, 4, replace=False))
        depth = _STEP * int(generator.integers(1, 3))
        indent, deeper = " " * depth, place % 2 == 0
        line = f"if {three} == {four}:" if deeper else f"{three} = {four}"
        texts.append(f"\n{indent}{one} = {two}\n{indent}{line}\n{indent}")
        answers.append((" ", one[0]) if deeper else (one[0], " "))
    return _batch(texts, answers)


MAKERS: dict[str, Callable[[int, int], Batch]] = {
    "induction": induction,
    "brackets": brackets,
    "indentation": indentation,
}


def examples(count: int, seed: int) -> dict[str, list[Batch]]:
    """Return ``count`` examples of each behaviour, the same for the same seed."""
    return {name: [make(count, seed)] for name, make in MAKERS.items()}


def right_less_wrong(output: Any, batch: Batch) -> Tensor:
    """The metric: the logit of the right byte less that of the wrong one, after each text."""
    lengths, (_, answers) = _lengths(batch), batch
    logits = logits_of(output)
    last = logits[torch.arange(len(logits)), lengths - 1]
    found = last.gather(1, answers)
    return found[:, 0] - found[:, 1]


def is_right(output: Any, batch: Batch) -> Tensor:
    """Whether the right byte is above the wrong one: 1 or 0."""
    return (right_less_wrong(output, batch) > 0).double()


def is_first(output: Any, batch: Batch) -> Tensor:
    """Whether the right byte is above all other 255."""
    lengths, (_, answers) = _lengths(batch), batch
    logits = logits_of(output)
    last = logits[torch.arange(len(logits)), lengths - 1]
    return (last.argmax(1) == answers[:, 0]).double()


def _lengths(batch: Batch) -> Tensor:
    """How long each text is: it is filled up with zero bytes, which no later place is asked for."""
    return (batch[0] != 0).sum(1)


def _batch(texts: list[str], answers: list[tuple[str, str]]) -> Batch:
    longest = max(map(len, texts))
    tokens = torch.tensor([list(text.encode("ascii").ljust(longest, b"\0")) for text in texts])
    return tokens, torch.tensor([[ord(right), ord(wrong)] for right, wrong in answers])
