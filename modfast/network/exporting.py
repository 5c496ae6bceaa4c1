"""Lets a model be exported in operators that a program can hold and rules know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Operators that say in one word what others do in several, for which there are rules.
_COMPOSED = ("einsum", "tensordot", "inner", "linalg_multi_dot", "chain_matmul")


def composed_operators() -> dict[Any, Callable[..., Any]]:
    """Return how operators that have no rule, but consist of such that have one, are taken apart."""
    known = torch.export.default_decompositions()
    overloads = [getattr(torch.ops.aten, name).default for name in _COMPOSED]
    return {overload: known[overload] for overload in overloads if overload in known}


@contextmanager
def in_plain_operators(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes the same in operators that a program can hold; afterwards it is as it was.

    No operator runs a whole layer of a transformer. The models of transformers run experts by the config's
    ``_experts_implementation``, of which "eager" loops over those that the input chooses: no program can hold
    that.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        configs[id(config)] = config
    eager = [c for c in configs.values() if getattr(c, "_experts_implementation", None) == "eager"]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for config in eager:
            config._experts_implementation = "batched_mm"
        yield
    finally:
        for config in eager:
            config._experts_implementation = "eager"
        torch.backends.mha.set_fastpath_enabled(fast)
