"""Lets a model be exported in operators that a program can hold and rules know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

# Operators that say in one word what others do in several, for which there are rules.
_COMPOSED = ("einsum", "tensordot", "inner", "linalg_multi_dot", "chain_matmul")


@cache  # PyTorch asks all its operators each time, which takes as long as to follow a small model
def composed_operators() -> Mapping[Any, Callable[..., Any]]:
    """Return how operators that have no rule, but consist of such that have one, are taken apart."""
    known = torch.export.default_decompositions()
    overloads = [getattr(torch.ops.aten, name).default for name in _COMPOSED]
    return MappingProxyType({overload: known[overload] for overload in overloads if overload in known})


@contextmanager
def in_plain_operators(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes the same in operators that a program can hold; afterwards it is as it was.

    No operator runs a whole layer of a transformer. The models of transformers run experts by the config's
    ``_experts_implementation``, of which "eager" loops over those that the input chooses: no program can hold
    that.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _experts_run_by(model, "batched_mm", of={"eager"}):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def in_plain_experts(model: nn.Module) -> Iterator[None]:
    """Inside, the experts of transformers' models are called one by one, each with its own matrix."""
    with _experts_run_by(model, "eager", of=None):
        yield


@contextmanager
def _experts_run_by(model: nn.Module, implementation: str, of: set[str] | None) -> Iterator[None]:
    """Inside, experts run by another implementation, where they run by one of these, or by any."""
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        configs[id(config)] = config
    before = [
        (config, chosen)
        for config in configs.values()
        if (chosen := getattr(config, "_experts_implementation", None)) is not None
        and (of is None or chosen in of)
    ]
    try:
        for config, _ in before:
            config._experts_implementation = implementation
        yield
    finally:
        for config, chosen in before:
            config._experts_implementation = chosen
