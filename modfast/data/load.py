"""Image data for the experiment, as uint8 tensors that are decoded once.

`load_dataset` turns a short name into a `Dataset` that is held in memory as a whole, so that an epoch of
training decodes no image. The data sets and their scaling are those of "Training Neural Networks for
Modularity aids Interpretability" (arXiv 2409.15747), and some more that need no download.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from modfast.arguments import Integer, NoneOr, check, check_callback

from .dataset import Dataset, import_optional
from .download import DOWNLOADABLE, load_downloadable
from .image_folder import load_imagefolder

SPECS = "digits, cifar10, mnist, imagefolder:PATH, fake"
"""What `load_dataset` accepts, in words."""


def load_dataset(
    spec: str,
    *,
    cache_dir: str | Path | None = None,
    download: bool = True,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> Dataset:
    """Load images and labels into memory.

    ``spec`` is one of:

    - ``digits``: scikit-learn's 1,797 real 8 x 8 digits, part of that library. Within each class, every
      fifth image in the library's order is a test image; pixel values 0..16 become ``round(255 * v / 16)``.
    - ``cifar10``, ``mnist``: through torchvision, downloaded where ``download`` and the network allow.
      MNIST is scaled with mean 0.1307 and standard deviation 0.3081, as published (arXiv 2409.15747). Its
      four files may also lie unpacked in ``mnist/MNIST/raw`` of ``cache_dir``; they are then read as they
      are, without a checksum.
    - ``imagefolder:PATH``: a tree as ``torchvision.datasets.ImageFolder`` reads it, twice:
      ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*``. All images have one size. They become grey images
      of one channel if the first is grey (Pillow's mode L; then all must be), RGB images otherwise. They
      are decoded once, in parallel, and kept in ``cache_dir`` until the tree changes.
    - ``fake``: 640 synthetic 3 x 32 x 32 images in 10 classes that a model can learn, the same each time.

    Args:
        spec: The data set, see above.
        cache_dir: Where decoded and downloaded data is kept. By default the environment variable
            ``MODFAST_CACHE``, or else the folder ``modfast`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
        download: Whether missing or damaged data may be downloaded.
        progress: Called with the numbers of images decoded so far and in all, while an image folder is
            decoded; not called when there is nothing to decode.
        workers: Number of processes that decode, by default one for each usable processor. With 1,
            decoding takes place in this process.

    Returns:
        The data set, on the CPU.

    Raises:
        ValueError: ``spec`` or ``workers`` has a value that is not allowed.
        DataError: The data is missing, damaged, not downloadable or too large; the file is named.
        ImportError: A library of the extra ``experiments`` is missing.

    Warns:
        RuntimeWarning: A cache file is damaged or cannot be written; the result does not depend on it.

    Example:
        >>> data = load_dataset("fake")
        >>> data.train_images.shape, data.test_images.shape
        (torch.Size([512, 3, 32, 32]), torch.Size([128, 3, 32, 32]))
        >>> data.normalize(data.train_images[:64]).dtype
        torch.float32
    """
    check("workers", workers, NoneOr(Integer(1)))
    check_callback("progress", progress)
    kind, separator, path = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if kind == "imagefolder" and path:
        return load_imagefolder(spec, path, _cache_folder(cache_dir), progress, workers)
    if not separator:
        if kind == "digits":
            return _load_digits()
        if kind == "fake":
            return _make_fake()
        if kind in DOWNLOADABLE:
            return load_downloadable(DOWNLOADABLE[kind], _cache_folder(cache_dir), download)
    raise ValueError(f"data must be one of {SPECS}; got {spec!r}")


def _cache_folder(cache_dir: str | Path | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir)
    if chosen := os.environ.get("MODFAST_CACHE"):
        return Path(chosen).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says to ignore a relative path; an empty one is relative, too.
    return (base if base.is_absolute() else Path.home() / ".cache") / "modfast"


# --- data that needs no files ---


def _load_digits() -> Dataset:
    digits = import_optional("sklearn.datasets", "digits").load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, np.newaxis]
    labels = digits.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[4::5]] = True
    return Dataset(
        "digits",
        torch.from_numpy(pixels[~is_test]),
        torch.from_numpy(labels[~is_test]),
        torch.from_numpy(pixels[is_test]),
        torch.from_numpy(labels[is_test]),
        tuple(str(digit) for digit in range(10)),
    )


def _make_fake() -> Dataset:
    num_train, num_test, num_classes = 512, 128, 10
    generator = torch.Generator("cpu").manual_seed(0)
    coarse = 0.2 + 0.6 * torch.rand(
        num_classes, 3, 4, 4, generator=generator, dtype=torch.float32, device="cpu"
    )
    patterns = coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    labels = torch.arange(num_train + num_test, device="cpu") % num_classes
    noise = 0.2 * torch.randn(
        num_train + num_test, 3, 32, 32, generator=generator, dtype=torch.float32, device="cpu"
    )
    images = (patterns[labels] + noise).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Dataset(
        "fake",
        images[:num_train],
        labels[:num_train],
        images[num_train:],
        labels[num_train:],
        tuple(f"class {label}" for label in range(num_classes)),
    )
