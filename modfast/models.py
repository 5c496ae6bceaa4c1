"""The networks of the published experiment, sized to the data.

Architectures and sizes from "Training Neural Networks for Modularity aids Interpretability"
(arXiv 2409.15747), and those of its authors' public notebooks (github.com/7vik/nn-modularity), which differ:
``cnn`` and ``mlp`` are the paper's, ``cnn4``, ``cnn-large`` and ``mlp4`` the notebooks'. `modfast.train`
trains any `torch.nn.Module`, so a model of your own needs nothing from this module: pass it to the training
function. From the command line, name a function that makes it: ``modfast train --model
package.module:callable`` (see `build_model`).
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .arguments import MODELS, Integer, check


class CNN(nn.Module):
    """The paper's network for CIFAR-10: one convolution and three linear layers without biases.

    ``conv1`` (3 x 3, padding 1, 16 channels, with biases), ReLU, 2 x 2 max-pool, then ``fc1``, ``fc2`` and
    ``fc3`` with ReLU between them. For 3 x 32 x 32 images the linear layers are 4096 -> 64 -> 64 -> 10, as
    published (arXiv 2409.15747). An odd last row or column is dropped by the pooling.

    The authors' notebook ``pipeline.ipynb`` has four linear layers, 4096 -> 64 -> 64 -> 64 -> 10. Choose
    three to compare with the paper, and four (``"cnn4"`` for `build_model`) to compare with what that
    notebook printed.

    Args:
        image_shape: ``(channels, height, width)``; height and width at least 2.
        num_classes: Number of outputs.
        hidden: Number of neurons of each hidden linear layer.
        linear_layers: Number of linear layers, at least 2; they are named ``fc1``, ``fc2`` and so on.

    Raises:
        ValueError: An argument is not a whole number in its range.

    Example:
        >>> import torch
        >>> model = CNN()
        >>> tuple(model.fc1.weight.shape), tuple(model.fc3.weight.shape)
        ((64, 4096), (10, 64))
        >>> model(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 10])
        >>> tuple(CNN(linear_layers=4).fc4.weight.shape)
        (10, 64)
    """

    # Models that were pickled whole before there was the argument have no such attribute of their own.
    linear_layers = 3

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        hidden: int = 64,
        *,
        linear_layers: int = 3,
    ) -> None:
        super().__init__()
        channels, height, width = _check_image_shape(image_shape, smallest_side=2)
        check("num_classes", num_classes, Integer(1))
        check("hidden", hidden, Integer(1))
        check("linear_layers", linear_layers, Integer(2))
        self.linear_layers = linear_layers
        self.conv1 = nn.Conv2d(channels, 16, kernel_size=3, padding=1)
        inputs = 16 * (height // 2) * (width // 2)
        _add_linear_layers(self, [inputs, *[hidden] * (linear_layers - 1), num_classes])

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(n, num_classes)`` of floating-point images ``(n, channels, height, width)``."""
        # Channels last in memory: on a CPU, PyTorch convolves and pools that layout faster.
        images = images.contiguous(memory_format=torch.channels_last)
        # The largest first and then ReLU: the same values and gradients as in the other order, a quarter as
        # many numbers.
        features = functional.relu(functional.max_pool2d(self.conv1(images), 2)).flatten(1)
        return _run_linear_layers(self, self.linear_layers, features)


class LargeCNN(nn.Module):
    """The larger network of the authors' notebook for CIFAR-10: two convolutions, batch norm and dropout.

    ``conv1`` (3 x 3, padding 1, 32 channels), ReLU, ``conv2`` (the same, 64 channels), batch norm ``bn1``,
    ReLU, 4 x 4 max-pool (the notebook pools 2 x 2 twice, which gives the same), then ``fc1``, ``fc2`` and
    ``fc3`` with ReLU between them, and dropout of one half before ``fc3``. For 3 x 32 x 32 images the linear
    layers are 4096 -> 128 -> 64 -> 10. All layers have biases, the linear ones too. Rows and columns that do
    not fill a pool are dropped.

    Layers, widths and dropout are those of ``cnn/cifar10.ipynb`` in github.com/7vik/nn-modularity; ours are
    only what happens for other sizes of images, and ``bias=False``. The notebook trains it with the weight 20
    on the mean enmeshment of ``fc1``, ``fc2`` and ``fc3``, and prints a test accuracy of 71.7 %. Choose `CNN`
    to compare with the paper: this network is not in it.

    Args:
        image_shape: ``(channels, height, width)``; height and width at least 4.
        num_classes: Number of outputs.
        bias: Whether the linear layers have biases, as in the notebook; without them every parameter after
            the convolutions is one that a partition or a circuit covers, as in the paper's networks.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> import torch
        >>> model = LargeCNN()
        >>> tuple(model.fc1.weight.shape), tuple(model.fc2.weight.shape), tuple(model.fc3.weight.shape)
        ((128, 4096), (64, 128), (10, 64))
        >>> model(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, image_shape: Sequence[int] = (3, 32, 32), num_classes: int = 10, *, bias: bool = True
    ) -> None:
        super().__init__()
        channels, height, width = _check_image_shape(image_shape, smallest_side=4)
        check("num_classes", num_classes, Integer(1))
        if not isinstance(bias, bool):
            raise ValueError(f"bias must be True or False, got {bias!r}")
        self.conv1 = nn.Conv2d(channels, 32, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.bn1 = nn.BatchNorm2d(64)
        self.fc1 = nn.Linear(64 * (height // 4) * (width // 4), 128, bias=bias)
        self.fc2 = nn.Linear(128, 64, bias=bias)
        self.fc3 = nn.Linear(64, num_classes, bias=bias)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(n, num_classes)`` of floating-point images ``(n, channels, height, width)``."""
        # As in CNN: faster on a CPU.
        images = images.contiguous(memory_format=torch.channels_last)
        features = functional.relu(self.bn1(self.conv2(functional.relu(self.conv1(images)))))
        features = functional.max_pool2d(features, 4).flatten(1)
        features = functional.relu(self.fc1(features))
        features = self.dropout(functional.relu(self.fc2(features)))
        logits: Tensor = self.fc3(features)
        return logits


class MLP(nn.Module):
    """The paper's network for MNIST: three linear layers without biases.

    ``fc1``, ``fc2`` and ``fc3`` with ReLU between them; for 1 x 28 x 28 images 784 -> 64 -> 64 -> 10, as
    published (arXiv 2409.15747). The authors' notebook ``pipeline.ipynb`` has four, 784 -> 64 -> 64 -> 64 ->
    10 (``"mlp4"`` for `build_model`).

    Args:
        image_shape: ``(channels, height, width)``, each at least 1.
        num_classes: Number of outputs.
        hidden: Number of neurons of each hidden layer.
        linear_layers: Number of linear layers, at least 2; they are named ``fc1``, ``fc2`` and so on.

    Raises:
        ValueError: An argument is not a whole number in its range.

    Example:
        >>> import torch
        >>> model = MLP((1, 8, 8))
        >>> [tuple(parameter.shape) for parameter in model.parameters()]
        [(64, 64), (64, 64), (10, 64)]
        >>> model(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    linear_layers = 3  # as for CNN

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        hidden: int = 64,
        *,
        linear_layers: int = 3,
    ) -> None:
        super().__init__()
        channels, height, width = _check_image_shape(image_shape, smallest_side=1)
        check("num_classes", num_classes, Integer(1))
        check("hidden", hidden, Integer(1))
        check("linear_layers", linear_layers, Integer(2))
        self.linear_layers = linear_layers
        inputs = channels * height * width
        _add_linear_layers(self, [inputs, *[hidden] * (linear_layers - 1), num_classes])

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(n, num_classes)`` of floating-point images ``(n, channels, height, width)``."""
        return _run_linear_layers(self, self.linear_layers, images.flatten(1))


def _add_linear_layers(module: nn.Module, sizes: Sequence[int]) -> None:
    for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        module.add_module(f"fc{number}", nn.Linear(inputs, outputs, bias=False))


def _run_linear_layers(module: nn.Module, count: int, features: Tensor) -> Tensor:
    """Return the logits of ``fc1``, ``fc2`` and so on, with ReLU between them."""
    for number in range(1, count):
        features = functional.relu(getattr(module, f"fc{number}")(features))
    logits: Tensor = getattr(module, f"fc{count}")(features)
    return logits


class UnfitCallableError(TypeError, ValueError):
    """What ``"package.module:callable"`` names does not serve.

    It is a ValueError too, so that the command line takes it for a mistake in its options, which is told in
    one line, and not for a defect, which is told with a traceback.
    """


def build_model(name: str, image_shape: Sequence[int], num_classes: int) -> nn.Module:
    """Make a model by name.

    Args:
        name: ``"cnn"`` (`CNN`), ``"cnn4"`` (`CNN` with four linear layers), ``"cnn-large"`` (`LargeCNN`),
            ``"mlp"`` (`MLP`), ``"mlp4"`` (`MLP` with four linear layers), ``"auto"`` (`MLP` for images of one
            channel, `CNN` for others), or ``"package.module:callable"``: that module is imported (the current
            folder is searched last) and the callable is called as ``callable(image_shape=...,
            num_classes=...)``; it returns the model.
        image_shape: ``(channels, height, width)``.
        num_classes: Number of outputs.

    Returns:
        A new model with PyTorch's default initialization; seed PyTorch beforehand to repeat it. It is on the
        CPU, whatever PyTorch's default device, unless the callable names another.

    Raises:
        ValueError: ``name`` is none of these, cannot be imported, or another argument is out of range.
        TypeError: What ``name`` refers to cannot be called like this or does not return an `nn.Module`.

    Example:
        >>> type(build_model("auto", (1, 8, 8), 10)).__name__
        'MLP'
        >>> type(build_model("modfast.models:CNN", (3, 32, 32), 10)).__name__
        'CNN'
    """
    shape = _check_image_shape(image_shape, smallest_side=1)
    check("num_classes", num_classes, Integer(1))
    if name == "auto":
        name = "mlp" if shape[0] == 1 else "cnn"
    with torch.device("cpu"):
        if name == "cnn":
            return CNN(shape, num_classes)
        if name == "cnn4":
            return CNN(shape, num_classes, linear_layers=4)
        if name == "cnn-large":
            return LargeCNN(shape, num_classes)
        if name == "mlp":
            return MLP(shape, num_classes)
        if name == "mlp4":
            return MLP(shape, num_classes, linear_layers=4)
    return _call(name, f"one of {MODELS}", image_shape=shape, num_classes=num_classes)


def import_model(name: str) -> nn.Module:
    """Make the model that ``"package.module:callable"`` returns when it is called without arguments.

    Raises:
        ValueError: ``name`` has another form or cannot be imported.
        TypeError: What it refers to cannot be called like this or does not return an `nn.Module`.

    Example:
        >>> type(import_model("modfast.models:MLP")).__name__
        'MLP'
    """
    return _call(name, "package.module:callable")


def import_example(name: str) -> Any:
    """Make the inputs that ``"package.module:callable"`` returns when it is called without arguments.

    Returns:
        What it returns: a tensor, a tuple of positional arguments, or a mapping of keyword arguments, on the
        CPU unless the callable names another device.

    Raises:
        ValueError: ``name`` has another form or cannot be imported.
        TypeError: what it refers to cannot be called like this or returns something else.

    Example:
        >>> import_example("modfast.models:nothing")
        Traceback (most recent call last):
        ValueError: example 'modfast.models:nothing': modfast.models has no 'nothing'
    """
    example = _called(name, "example", "package.module:callable", {})
    if not isinstance(example, (Tensor, tuple, Mapping)):
        raise UnfitCallableError(
            f"example {name!r}: must return a tensor, a tuple of positional arguments or a mapping of "
            f"keyword arguments, but returned a {type(example).__name__}"
        )
    return example


def _call(name: str, allowed: str, **arguments: Any) -> nn.Module:
    model = _called(name, "model name", allowed, arguments)
    if not isinstance(model, nn.Module):
        raise UnfitCallableError(
            f"model name {name!r}: must return a torch.nn.Module, but returned {model!r}"
        )
    return model


def _called(name: str, what: str, allowed: str, arguments: dict[str, Any]) -> Any:
    """What the callable of this name returns; ``what`` says in messages what it is called for."""
    module_name, separator, attribute = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not (separator and module_name and attribute) or module_name.startswith("."):
        raise ValueError(f"{what} must be {allowed}; got {name!r}")
    with _current_folder_importable():
        return _call_attribute(f"{what} {name!r}", module_name, attribute, arguments)


def _call_attribute(what: str, module_name: str, attribute: str, arguments: dict[str, Any]) -> Any:
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"{what}: cannot import {module_name} ({error})") from error
    try:
        factory = getattr(module, attribute)
    except AttributeError as error:
        raise ValueError(f"{what}: {module_name} has no {attribute!r}") from error
    if not callable(factory):
        raise UnfitCallableError(f"{what}: must name a callable, but is a {type(factory).__name__}")
    try:
        inspect.signature(factory).bind(**arguments)
    except (TypeError, ValueError) as error:  # the second: some functions in C do not tell what they accept
        accepted = f"the keyword arguments {' and '.join(arguments)}" if arguments else "no arguments"
        raise UnfitCallableError(f"{what}: must accept {accepted} ({error})") from error
    with torch.device("cpu"):
        return factory(**arguments)


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Search the current folder for modules, as ``python -m`` does but an installed command does not."""
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield
    finally:
        # The last entry is the one added here: the folder may also stand further up, for another reason.
        for position in range(len(sys.path) - 1, -1, -1):
            if sys.path[position] == folder:
                del sys.path[position]
                break


def _check_image_shape(image_shape: Sequence[int], smallest_side: int) -> tuple[int, int, int]:
    try:
        channels, height, width = image_shape
    except (TypeError, ValueError):
        raise ValueError(f"image_shape must be (channels, height, width), got {image_shape!r}") from None
    for value, smallest in ((channels, 1), (height, smallest_side), (width, smallest_side)):
        if value not in Integer(smallest):
            raise ValueError(
                f"image_shape must be (channels, height, width), whole numbers with at least 1 channel "
                f"and sides of at least {smallest_side}, got {image_shape!r}"
            )
    return channels, height, width
