"""The table of rules, and how a rule gets into it."""

from __future__ import annotations

from collections.abc import Callable

from modfast.network.following import Entry, Rule

RULES: dict[str, Entry] = {}
"""What each operator does with marks, by the operator's name without ``aten::``."""


def rule(operators: str, *, by_itself: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for operators, by their names; no PyTorch needs to have all of them.

    Args:
        operators: names of ``torch.ops.aten``, or of other libraries as ``library::name``, with blanks
            between.
        by_itself: whether the operator treats each number by itself, or only moves numbers.
    """

    def register(function: Rule) -> Rule:
        for name in operators.split():
            if name in RULES:
                raise ValueError(f"operators: there is a rule for {name!r} already")
            RULES[name] = Entry(function, by_itself)
        return function

    return register
