"""Labelled images in memory, which every loader of :mod:`modfast.data` returns, and its error."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor


class DataError(RuntimeError):
    """A data set is missing, damaged or unusable; the message says which file and what to do."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Labelled images in memory, split into training and test images.

    Attributes:
        name: The name that `load_dataset` was given, such as ``"digits"``.
        train_images: uint8 tensor of shape ``(n, channels, height, width)``.
        train_labels: int64 tensor of shape ``(n,)`` with values in ``[0, num_classes)``.
        test_images: As ``train_images``, with another ``n``.
        test_labels: As ``train_labels``.
        classes: The name of each class, in the order of the labels.
        mean: What `normalize` subtracts from the pixels, scaled to [0, 1].
        std: What it then divides the pixels by; positive.

    Raises:
        ValueError: A tensor has another dtype or shape, a label is out of range, or ``std`` is not positive.

    Example:
        >>> pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
        >>> labels = torch.tensor([0, 1])
        >>> data = Dataset("two pixels", pixels, labels, pixels, labels, ("black", "white"))
        >>> data.normalize(data.train_images).flatten().tolist()
        [0.0, 1.0]
        >>> data.image_shape, data.num_classes
        ((1, 1, 1), 2)
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: float = 0.0
    std: float = 1.0

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.image_shape))
        return (
            f"Dataset({self.name!r}: {len(self.train_images):,} training and {len(self.test_images):,} test "
            f"images, {shape}, {self.num_classes:,} classes)"
        )

    def __post_init__(self) -> None:
        if not isinstance(self.classes, tuple) or not self.classes:
            raise ValueError(f"classes must be a tuple of at least one name, got {self.classes!r}")
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.dim() != 4:
                raise ValueError(
                    f"{split}_images must be a uint8 tensor (n, channels, height, width), "
                    f"got {_describe(images)}"
                )
            if images.numel() == 0:
                raise ValueError(f"{split}_images must hold at least one pixel, got {_describe(images)}")
            if (
                not isinstance(labels, Tensor)
                or labels.dtype != torch.int64
                or labels.shape != images.shape[:1]
            ):
                raise ValueError(
                    f"{split}_labels must be an int64 tensor of shape ({images.shape[0]},), "
                    f"got {_describe(labels)}"
                )
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"{split}_labels must lie in [0, {len(self.classes)}), got values from {low} to {high}"
                )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"test_images must have images of shape {tuple(self.train_images.shape[1:])} as train_images "
                f"has, got {tuple(self.test_images.shape[1:])}"
            )
        if not math.isfinite(self.mean):
            raise ValueError(f"mean must be finite, got {self.mean!r}")
        if not (math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"std must be positive and finite, got {self.std!r}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of every image."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def normalize(self, images: Tensor) -> Tensor:
        """Scale pixels to [0, 1], then subtract ``mean`` and divide by ``std``.

        Args:
            images: uint8 tensor of any shape and on any device, such as a batch of ``train_images``.

        Returns:
            A new float32 tensor of the same shape, on the same device.

        Raises:
            ValueError: ``images`` is not uint8, as happens when images are normalized twice.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"images must be a uint8 tensor, got {_describe(images)}")
        pixels = images.to(torch.float32).div_(255)
        if self.mean != 0:
            pixels.sub_(self.mean)
        if self.std != 1:
            pixels.div_(self.std)
        return pixels

    def fingerprint(self) -> str:
        """Return the first 16 hexadecimal digits of a SHA-256 over images, labels, classes and scaling.

        Two data sets with the same fingerprint train the same model. ``name`` does not count, because the
        same images may lie in another folder on another machine.
        """
        tensors = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        shapes = [list(tensor.shape) for tensor in tensors]
        digest = hashlib.sha256(json.dumps([shapes, self.classes, self.mean, self.std]).encode())
        for tensor in tensors:
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return repr(value)


def import_optional(module: str, spec: str) -> ModuleType:
    """Import a library of the extra ``experiments`` that the data set ``spec`` needs.

    Raises:
        ImportError: The library is missing; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # a torchvision made for another PyTorch raises the latter
        raise ImportError(
            f'data {spec!r} needs {module} ({error}); run: pip install "modfast[experiments]"'
        ) from error
