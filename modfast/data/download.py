"""CIFAR-10 and MNIST through torchvision: read from files, downloaded once if there are none."""

from __future__ import annotations

import filecmp
import os
import secrets
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modfast.files import open_to_read

from .dataset import DataError, Dataset, import_optional

# Without a limit, a download waits for ever if a firewall drops the packets to the server.
_NETWORK_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Downloadable:
    """A data set of torchvision: where its archives come from, and where they and their contents belong."""

    name: str
    torchvision_class: str
    contents: str
    archive_folder: str
    archives: tuple[str, ...]
    url: str
    classes: tuple[str, ...]
    mean: float
    std: float


DOWNLOADABLE = {
    "cifar10": Downloadable(
        name="cifar10",
        torchvision_class="CIFAR10",
        contents="cifar-10-batches-py",
        archive_folder="",
        archives=("cifar-10-python.tar.gz",),
        url="https://www.cs.toronto.edu/~kriz/",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        mean=0.0,
        std=1.0,
    ),
    "mnist": Downloadable(
        name="mnist",
        torchvision_class="MNIST",
        contents="MNIST",
        archive_folder="MNIST/raw",
        archives=(
            "train-images-idx3-ubyte.gz",
            "train-labels-idx1-ubyte.gz",
            "t10k-images-idx3-ubyte.gz",
            "t10k-labels-idx1-ubyte.gz",
        ),
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        classes=tuple(str(digit) for digit in range(10)),
        mean=0.1307,
        std=0.3081,
    ),
}


def load_downloadable(source: Downloadable, cache_dir: Path, download: bool) -> Dataset:
    """Read a data set from ``cache_dir``, and download it first if it is incomplete and ``download`` is true.

    Args:
        source: One of ``DOWNLOADABLE``.
        cache_dir: Holds a folder for each data set, named after it.
        download: Whether the network may be used for data that is missing or damaged.

    Raises:
        DataError: There is no complete data set and none can be downloaded; the message says how to get it.
        ImportError: torchvision is missing.

    Warns:
        RuntimeWarning: The data set is damaged and is downloaded again.
    """
    datasets = import_optional("torchvision.datasets", source.name)
    dataset_class = getattr(datasets, source.torchvision_class)
    root = cache_dir / source.name
    # For missing or damaged files torchvision and the libraries below it raise RuntimeError, OSError,
    # AssertionError, EOFError and others; all of them mean that there is no data here.
    try:
        train, test = _read_splits(source, dataset_class, root)
    except Exception as missing:
        tried = f"reading {root / source.contents} ({missing})"
        if not download:
            raise DataError(_by_hand(source, root, tried)) from missing
        if (root / source.contents).exists() and not _has_archives(source, root):
            warnings.warn(
                f"{root / source.contents} is incomplete or damaged ({missing}); downloading it again, and "
                "keeping what differs under another name",
                RuntimeWarning,
                stacklevel=3,
            )
        try:
            train, test = _download(source, dataset_class, root)
        except Exception as failed:
            tried += f"; downloading from {source.url} ({' '.join(str(failed).split())})"
            raise DataError(_by_hand(source, root, tried)) from failed
    return Dataset(
        source.name,
        _channels_first(train.data),
        torch.as_tensor(train.targets, dtype=torch.int64, device="cpu"),
        _channels_first(test.data),
        torch.as_tensor(test.targets, dtype=torch.int64, device="cpu"),
        source.classes,
        source.mean,
        source.std,
    )


def _read_splits(source: Downloadable, dataset_class: Any, root: Path) -> tuple[Any, Any]:
    # torchvision would wait for what is written to a pipe.
    for folder, _, names in os.walk(root / source.contents):
        for name in names:
            open_to_read(Path(folder, name)).close()
    return (
        dataset_class(str(root), train=True, download=False),
        dataset_class(str(root), train=False, download=False),
    )


def _download(source: Downloadable, dataset_class: Any, root: Path) -> tuple[Any, Any]:
    """Download into a temporary folder, check, and only then move the contents to where they are read."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root, ignore_cleanup_errors=True) as made:
        staging = Path(made)
        for name in source.archives:
            placed = root / source.archive_folder / name
            if placed.is_file():
                (staging / source.archive_folder).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(placed, staging / source.archive_folder / name)
        with _network_timeout():
            dataset_class(str(staging), train=True, download=True)
        splits = _read_splits(source, dataset_class, staging)
        _put_in_place(staging / source.contents, root / source.contents)
        return splits


def _put_in_place(made: Path, place: Path) -> None:
    """Move a data set to where it is read; files there that differ may be a user's, and are only renamed."""
    if not os.path.lexists(place):
        os.replace(made, place)
        return
    for folder, _, names in os.walk(made):
        for name in names:
            file = Path(folder, name)
            target = place / file.relative_to(made)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_file() and filecmp.cmp(file, target, shallow=False):
                continue
            if os.path.lexists(target):
                os.replace(target, target.with_name(f"{name}.replaced-{secrets.token_hex(4)}"))
            os.replace(file, target)


@contextmanager
def _network_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT_SECONDS if before is None else before)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _has_archives(source: Downloadable, root: Path) -> bool:
    return all((root / source.archive_folder / name).is_file() for name in source.archives)


def _by_hand(source: Downloadable, root: Path, tried: str) -> str:
    return (
        f"data {source.name!r} is not available. Tried: {tried}. To provide it by hand, put "
        f"{', '.join(source.archives)} (from {source.url}) into {root / source.archive_folder} and load it "
        f"again with downloads allowed: complete archives are unpacked without the network. "
        f"The data sets digits and imagefolder:PATH need no download."
    )


def _channels_first(images: Any) -> Tensor:
    """Return MNIST's (n, h, w) or CIFAR-10's (n, h, w, channels) as contiguous (n, channels, h, w)."""
    tensor = torch.as_tensor(images, device="cpu")
    if tensor.dim() == 3:
        tensor = tensor.unsqueeze(-1)
    return tensor.permute(0, 3, 1, 2).contiguous()
