"""Weights that a model uses unseen, so that what they read cannot be changed: found while the model runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from modfast.layers.layer import Layer


class Watch:
    """Raises where weights are used in a way that a mode does not see.

    A layer's module may run without any of PyTorch's functions being called with its weight: by a scripted
    function, an extension, a backward pass that computes anew. And a weight that is computed may be used
    by another module than its own, whose inputs are those that are changed.

    Args:
        mode: the mode that sees products.
        stored: layers whose weight is a parameter.
        computed: layers whose weight is computed.
        parameters: ids of the parameters that are weights themselves; what uses them is seen.
    """

    def __init__(
        self,
        mode: TorchFunctionMode,
        stored: Iterable[Layer],
        computed: Sequence[Layer],
        parameters: set[int],
    ) -> None:
        self._mode = mode
        # Others, such as the matrices of a stack, need not be read whenever their module runs.
        self._stored = [layer for layer in stored if layer.attribute == "weight" and layer.place is None]
        self._computed = computed
        self._of_leaf: dict[int, list[Layer]] = {}
        for layer in computed:
            for leaf in layer.source.leaves():
                if id(leaf) not in parameters:
                    self._of_leaf.setdefault(id(leaf), []).append(layer)
        self._owner = threading.get_ident()
        self._met: dict[int, bool] = {}
        self._running: dict[int, int] = {}

    @property
    def is_here(self) -> bool:
        """Whether this thread is the one that entered the mode, or one that runs a part for it."""
        return threading.get_ident() == self._owner or self._mode in _get_current_function_mode_stack()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Inside, modules are watched."""
        self._owner = threading.get_ident()
        self._running.clear()
        with ExitStack() as stack:
            for layer in self._stored:
                module = layer.module
                stack.callback(module.register_forward_pre_hook(self._begins).remove)
                stack.callback(module.register_forward_hook(self._ends(layer)).remove)
            for layer in self._computed:
                module = layer.module
                stack.callback(module.register_forward_pre_hook(self._enters, prepend=True).remove)
                stack.callback(module.register_forward_hook(self._leaves, always_call=True).remove)
            yield

    def met(self, layer: Layer) -> None:
        """A product with the weight of a layer was seen."""
        self._met[id(layer.module)] = True

    def _begins(self, module: nn.Module, _: Any) -> None:
        if self.is_here:
            self._met[id(module)] = False

    def _ends(self, layer: Layer) -> Callable[..., None]:
        def check(*_: Any) -> None:
            if self.is_here and not self._met.get(id(layer.module), True):
                raise ValueError(
                    f"model: layer {layer.name!r} ran without calling a function of PyTorch with its weight "
                    "(does it run a scripted function or an extension, or anew within a backward pass?), so "
                    "that the units which it reads cannot be ablated"
                )

        return check

    def _enters(self, module: nn.Module, _: Any) -> None:
        if self.is_here:
            self._running[id(module)] = self._running.get(id(module), 0) + 1

    def _leaves(self, module: nn.Module, *_: Any) -> None:
        if self.is_here:
            self._running[id(module)] -= 1

    def used_elsewhere(self, tensors: Iterable[Tensor]) -> Layer | None:
        """The layer whose computed weight, or a piece of it, is used while the layer itself does not run."""
        for tensor in tensors:
            layers = self._of_leaf.get(id(tensor), [])
            # The hooks of torch.nn.utils store as an attribute what they compute.
            layers = layers or [each for each in self._computed if vars(each.module).get("weight") is tensor]
            if layers and not any(self._running.get(id(layer.module)) for layer in layers):
                return layers[0]
        return None

    @property
    def is_needed(self) -> bool:
        """Whether a weight is computed."""
        return bool(self._computed)
