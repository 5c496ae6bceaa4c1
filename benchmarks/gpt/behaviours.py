"""What the networks can do, as pairs of texts: induction, brackets, indentation.

Each text asks for one byte, which is right, beside another one, which is wrong. Texts come in pairs: what is
right after the one is wrong after the other. So a preference for some byte, which any network has, cancels,
and what is left is what the network makes of the difference between the two texts.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modfast.layers.running import logits_of

Batch = tuple[Tensor, Tensor]
"""Bytes, int64 ``(n, length)``, and for each text the right and the wrong byte, int64 ``(n, 2)``.

The partner of each text of the first half stands at the same place of the second half.
"""

ANY = -1
"""Stands for any byte but the other one of the two: its logit is the log of their summed odds."""

NAMES = ("induction", "brackets", "indentation")

_Text = tuple[str, str | None, str | None]
"""A text, the right byte and the wrong one; None is ANY."""

_PAIRS = ("()", "[]", "{}")
_WORDS = (
    *("self", "name", "value", "result", "index", "line", "data", "key", "path", "args", "items", "node"),
    *("count", "text", "type", "size", "other", "func", "module", "start", "end", "first", "last", "code"),
    *("obj", "mode", "flags"),
)


def induction(generator: np.random.Generator) -> tuple[_Text, _Text]:
    """Random letters, and the same again as far as a random place: how does it go on?

    The other text has this letter and a later one in each other's places.
    """
    length, least = 20, 6
    letters = [str(letter) for letter in generator.choice(list(string.ascii_letters), length, replace=False)]
    place = int(generator.integers(least, length - 1))
    later = int(generator.integers(place + 1, length))
    start, right, wrong = "".join(letters[:place]), letters[place], letters[later]
    swapped = list(letters)
    swapped[place], swapped[later] = wrong, right
    return (
        (f"{''.join(letters)}\n{start}", right, wrong),
        (f"{''.join(swapped)}\n{start}", wrong, right),
    )


def brackets(generator: np.random.Generator) -> tuple[_Text, _Text]:
    """A line of code with a bracket open: which kind closes it? The other text has another kind open."""
    one, other = (_PAIRS[i] for i in generator.permutation(len(_PAIRS))[:2])
    first, second, third = (str(word) for word in generator.choice(_WORDS, 3, replace=False))
    within = f"'{second}'" if generator.integers(2) else f"{second}, {third}"
    return (
        (f"\n\t{first} = {one[0]}{within}", one[1], other[1]),
        (f"\n\t{first} = {other[0]}{within}", other[1], one[1]),
    )


def indentation(generator: np.random.Generator) -> tuple[_Text, _Text]:
    """Two lines of code, then as many tabs as they have: does another tab follow, or anything else?

    Another tab does after a colon, which the other text lacks.
    """
    one, two, three, four = (str(word) for word in generator.choice(_WORDS, 4, replace=False))
    indent = "\t" * int(generator.integers(1, 3))
    before = f"\n{indent}{one} = {two}\n{indent}"
    return (
        (f"{before}if {three} == {four}:\n{indent}", "\t", None),
        (f"{before}{three} = {four}\n{indent}", None, "\t"),
    )


MAKERS: dict[str, Callable[[np.random.Generator], tuple[_Text, _Text]]] = {
    "induction": induction,
    "brackets": brackets,
    "indentation": indentation,
}


def examples(count: int, seed: int) -> dict[str, list[Batch]]:
    """Return ``count`` texts of each behaviour, half as many pairs; the same for the same seed."""
    if count < 2 or count % 2:
        raise ValueError(f"count must be an even number of texts, got {count}")
    found = {}
    for name, make in MAKERS.items():
        generator = np.random.default_rng(seed)
        ones, others = zip(*(make(generator) for _ in range(count // 2)), strict=True)
        found[name] = [_batch([*ones, *others])]
    return found


def texts_alone(batches: Sequence[Batch]) -> list[Tensor]:
    """Return the texts without what fills them up: a batch for each length, int64 ``(n, length)``."""
    found = []
    for tokens, _ in batches:
        lengths = (tokens != 0).sum(1)
        found += [tokens[lengths == length, :length] for length in lengths.unique().tolist()]
    return found


def right_less_wrong(output: Any, batch: Batch) -> Tensor:
    """The metric: the logit of the right byte less that of the wrong one, mean over each pair of texts."""
    logits, (right, wrong) = _last(output, batch), batch[1].unbind(1)
    named = torch.where(right >= 0, right, wrong)[:, None]
    others = logits.scatter(1, named, -torch.inf).logsumexp(1)
    of_right, of_wrong = (
        torch.where(byte >= 0, logits.gather(1, byte.clamp(min=0)[:, None]).squeeze(1), others)
        for byte in (right, wrong)
    )
    ones, partners = (of_right - of_wrong).chunk(2)
    return ((ones + partners) / 2).repeat(2)


def is_right(output: Any, batch: Batch) -> Tensor:
    """Whether the metric of the pair is above 0: 1 or 0. By chance it is for one half."""
    return (right_less_wrong(output, batch) > 0).double()


def _last(output: Any, batch: Batch) -> Tensor:
    """The logits after each text, which is filled up with zero bytes that nobody asks for."""
    logits, lengths = logits_of(output), (batch[0] != 0).sum(1)
    return logits[torch.arange(len(logits)), lengths - 1]


def _batch(texts: list[_Text]) -> Batch:
    longest = max(len(text) for text, _, _ in texts)
    tokens = torch.tensor([list(text.encode("ascii").ljust(longest, b"\0")) for text, _, _ in texts])
    pairs = [[ANY if byte is None else ord(byte) for byte in pair] for _, *pair in texts]
    return tokens, torch.tensor(pairs)
