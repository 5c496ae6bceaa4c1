"""Checks before the first step that a model can be trained and tested on every batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from modfast.devices import forked_random
from modfast.layers.running import preserved
from modfast.layers.source import in_mode

Call: TypeAlias = Callable[[Tensor], Any]

_MOST_ADVISED = 3


def check_batches(
    model: nn.Module, num_images: int, batch_size: int, processes: int, attempt: Callable[[Call, int], object]
) -> None:
    """Raise if the model cannot be trained on a process's share of the smallest batch.

    BatchNorm after a linear layer cannot learn from a single image, which gives one value for each neuron;
    after a convolution it can. So the model is tried out. It is left as it was.

    Args:
        model: what is to be trained.
        num_images: the number of training images.
        batch_size: the number of images for each step, but for the last one of an epoch.
        processes: how many processes share each batch.
        attempt: ``attempt(call, count)`` computes the gradient for ``count`` images, using ``call`` in place
            of the model.

    Raises:
        ValueError: a process gets a single image, and the model needs more; the message names the layer, and
            batch sizes that work.
        Exception: what the model raises with more images as well.
    """
    smallest = _smallest_batch(num_images, batch_size)
    with _left_as_it_was(model, training=True) as (call, entered):
        if smallest >= 2 * processes:
            attempt(call, smallest // processes)
            return
        try:
            attempt(call, 1)
            return
        except Exception as error:  # the model may raise anything
            failure, name = error, entered[-1] if entered else ""
        entered.clear()
        attempt(call, 2)  # an error here has another cause than too few images
    layer = f"layer {name!r} ({type(model.get_submodule(name)).__name__})" if name else "the model"
    shared = f", which {processes} processes share" if processes > 1 else ""
    working = _batch_sizes(num_images, batch_size, processes)
    raise ValueError(
        f"batch_size {batch_size} gives a process a single image to train on, and {layer} needs more "
        f"({failure}): of {num_images} images the smallest batch has {smallest}{shared}; "
        + (f"batch sizes near it that work: {working}" if working else "no batch size works with so few")
    ) from failure


def check_evaluation(model: nn.Module, attempt: Callable[[Call], object]) -> None:
    """Raise what the model raises in evaluation mode, which training enters only after an epoch.

    Args:
        model: what is to be trained; it is left as it was.
        attempt: ``attempt(call)`` computes the logits of a batch, using ``call`` in place of the model.

    Raises:
        Exception: what ``attempt`` raises.
    """
    with _left_as_it_was(model, training=False) as (call, _), torch.no_grad():
        attempt(call)


def _smallest_batch(num_images: int, batch_size: int) -> int:
    """Return the number of images in an epoch's smallest batch.

    Example:
        >>> _smallest_batch(1442, 131), _smallest_batch(10, 5), _smallest_batch(3, 5)
        (1, 5, 3)
    """
    return num_images % batch_size or min(num_images, batch_size)


def _batch_sizes(num_images: int, batch_size: int, processes: int) -> str:
    """Return a few sizes near ``batch_size`` that give each process at least two images of each batch.

    Example:
        >>> _batch_sizes(1442, 131, 1), _batch_sizes(3, 1, 2)
        ('130, 132, 129', '')
    """
    working = (
        size
        for distance in range(1, num_images + batch_size)
        for size in (batch_size - distance, batch_size + distance)
        if 1 <= size <= num_images and _smallest_batch(num_images, size) >= 2 * processes
    )
    return ", ".join(str(size) for size, _ in zip(working, range(_MOST_ADVISED), strict=False))


@contextmanager
def _left_as_it_was(model: nn.Module, *, training: bool) -> Iterator[tuple[Call, list[str]]]:
    """Yield the model in this mode, and a list of the layers whose forward pass is running.

    Afterwards buffers, modes and random states are as before.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    entered: list[str] = []
    hooks = []

    def leave(*_: object) -> None:
        entered.pop()

    for name, module in model.named_modules():
        if not isinstance(module, ScriptModule):
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: entered.append(name)))
            hooks.append(module.register_forward_hook(leave))
    try:
        with (
            forked_random(devices),
            preserved(model),
            in_mode(model, training=training),
        ):
            yield model, entered
    finally:
        for hook in hooks:
            hook.remove()
        random.setstate(python)
        np.random.set_state(numpy)
