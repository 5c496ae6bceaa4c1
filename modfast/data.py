"""Image data for the experiment, as uint8 tensors that are decoded once.

`load_dataset` turns a short name into a `Dataset` that lies in memory as a whole, so that an epoch of
training costs arithmetic and no image decoding. The data sets and their scaling are those of
"Training Neural Networks for Modularity aids Interpretability" (arXiv 2409.15747), and beside them
some that need no download.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modfast.files import atomic_write

SPECS = "digits, cifar10, mnist, imagefolder:PATH, fake"
"""What `load_dataset` accepts, in words."""

MAX_DECODED_BYTES = 8 * 2**30
"""The largest data set, decoded, that `load_dataset` keeps in memory."""

# The extensions that torchvision.datasets.ImageFolder looks for, so that both see the same files.
_IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# Without a limit, an unreachable server behind a firewall that drops packets is waited for without end.
_NETWORK_TIMEOUT_SECONDS = 30.0

# The last two characters are the version of the layout that `_write_cache` documents.
_CACHE_MAGIC = b"modfst01"
_CACHE_PREFIX_BYTES = len(_CACHE_MAGIC) + hashlib.sha256().digest_size + 8
_CACHE_ALIGNMENT = 64

# Long enough that handing a chunk to a worker costs little, short enough that progress is seen to move.
_CHUNK_IMAGES = 256
_CHUNK_BYTES = 4 * 2**20


class DataError(RuntimeError):
    """A data set is missing, damaged or unusable; the message says which file and what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in memory, split into training and test images.

    Attributes:
        name: What `load_dataset` was asked for, such as ``"digits"``.
        train_images: uint8 tensor of shape ``(n, channels, height, width)``.
        train_labels: int64 tensor of shape ``(n,)`` with values in ``[0, num_classes)``.
        test_images: As ``train_images``, with another ``n``.
        test_labels: As ``train_labels``.
        classes: The name of each class, in the order of the labels.
        mean: Subtracted from the pixels after they are scaled to [0, 1].
        std: Divides the pixels after that; positive.

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
    train_images: Tensor = field(repr=False)
    train_labels: Tensor = field(repr=False)
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    classes: tuple[str, ...]
    mean: float = 0.0
    std: float = 1.0

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
        """The first 16 hexadecimal digits of a SHA-256 over images, labels, classes and scaling.

        Two data sets with the same fingerprint train the same model; ``name`` does not enter, because the
        same images may lie in another folder on another machine.
        """
        tensors = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        shapes = [list(tensor.shape) for tensor in tensors]
        digest = hashlib.sha256(json.dumps([shapes, self.classes, self.mean, self.std]).encode())
        for tensor in tensors:
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]


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
      MNIST is scaled with mean 0.1307 and standard deviation 0.3081, as published (arXiv 2409.15747).
    - ``imagefolder:PATH``: a tree as ``torchvision.datasets.ImageFolder`` reads it, twice:
      ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*``. All images have one size. They become grey images
      of one channel if the first is grey (Pillow's mode L; then all must be), RGB images otherwise. They
      are decoded once, in parallel, and kept in ``cache_dir`` until the tree changes.
    - ``fake``: 640 synthetic 3 x 32 x 32 images in 10 classes that a model can learn, the same each time.

    Args:
        spec: The data set, see above.
        cache_dir: Where decoded and downloaded data is kept. By default the environment variable
            ``MODFAST_CACHE``, or else the folder ``modfast`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
        download: Whether the network may be used for data that is missing or damaged.
        progress: Called with the numbers of images decoded so far and in all, while an image folder is
            decoded; not called when there is nothing to decode.
        workers: Number of processes that decode, by default one for each usable processor. With 1,
            decoding takes place in this process.

    Returns:
        The data set, on the CPU.

    Raises:
        ValueError: ``spec`` or ``workers`` is not among what is allowed.
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
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise ValueError(f"workers must be None or an integer of at least 1, got {workers!r}")
    kind, separator, path = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if kind == "imagefolder" and path:
        return _load_imagefolder(spec, path, _cache_folder(cache_dir), progress, workers)
    if not separator:
        if kind == "digits":
            return _load_digits()
        if kind == "fake":
            return _make_fake()
        if kind in _DOWNLOADABLE:
            return _load_downloadable(_DOWNLOADABLE[kind], _cache_folder(cache_dir), download)
    raise ValueError(f"data must be one of {SPECS}; got {spec!r}")


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return repr(value)


def _import_optional(module: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'data {spec!r} needs {module} ({error}); run: pip install "modfast[experiments]"'
        ) from error


def _cache_folder(cache_dir: str | Path | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir)
    if chosen := os.environ.get("MODFAST_CACHE"):
        return Path(chosen).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification asks that a relative path be ignored; an empty one is relative, too.
    return (base if base.is_absolute() else Path.home() / ".cache") / "modfast"


# --- data that needs no files ---


def _load_digits() -> Dataset:
    digits = _import_optional("sklearn.datasets", "digits").load_digits()
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
    generator = torch.Generator().manual_seed(0)
    coarse = 0.2 + 0.6 * torch.rand(num_classes, 3, 4, 4, generator=generator)
    patterns = coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    labels = torch.arange(num_train + num_test) % num_classes
    noise = 0.2 * torch.randn(num_train + num_test, 3, 32, 32, generator=generator)
    images = (patterns[labels] + noise).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Dataset(
        "fake",
        images[:num_train],
        labels[:num_train],
        images[num_train:],
        labels[num_train:],
        tuple(f"class {label}" for label in range(num_classes)),
    )


# --- data that torchvision downloads ---


@dataclass(frozen=True)
class _Downloadable:
    """A data set of torchvision: where its archives come from and where they and their contents belong."""

    name: str
    torchvision_class: str
    contents: str
    archive_folder: str
    archives: tuple[str, ...]
    url: str
    classes: tuple[str, ...]
    mean: float
    std: float


_DOWNLOADABLE = {
    "cifar10": _Downloadable(
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
    "mnist": _Downloadable(
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


def _load_downloadable(source: _Downloadable, cache_dir: Path, download: bool) -> Dataset:
    datasets = _import_optional("torchvision.datasets", source.name)
    dataset_class = getattr(datasets, source.torchvision_class)
    root = cache_dir / source.name
    # torchvision and the libraries below it raise RuntimeError, OSError, AssertionError, EOFError and
    # others for files that are missing or damaged; all of them mean that there is no data here.
    try:
        train, test = _read_splits(dataset_class, root)
    except Exception as missing:
        tried = f"reading {root / source.contents} ({missing})"
        if not download:
            raise DataError(_by_hand(source, root, tried)) from missing
        if (root / source.contents).exists() and not _has_archives(source, root):
            warnings.warn(
                f"{root / source.contents} is incomplete or damaged ({missing}); downloading it again",
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
        torch.as_tensor(train.targets, dtype=torch.int64),
        _channels_first(test.data),
        torch.as_tensor(test.targets, dtype=torch.int64),
        source.classes,
        source.mean,
        source.std,
    )


def _read_splits(dataset_class: Any, root: Path) -> tuple[Any, Any]:
    return (
        dataset_class(str(root), train=True, download=False),
        dataset_class(str(root), train=False, download=False),
    )


def _download(source: _Downloadable, dataset_class: Any, root: Path) -> tuple[Any, Any]:
    """Download into a folder of its own, check, and only then move the contents to where they are read."""
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
    try:
        for name in source.archives:
            placed = root / source.archive_folder / name
            if placed.is_file():
                (staging / source.archive_folder).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(placed, staging / source.archive_folder / name)
        with _network_timeout():
            dataset_class(str(staging), train=True, download=True)
        splits = _read_splits(dataset_class, staging)
        if (root / source.contents).exists():
            shutil.rmtree(root / source.contents)
        os.replace(staging / source.contents, root / source.contents)
        return splits
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _network_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT_SECONDS if before is None else before)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _has_archives(source: _Downloadable, root: Path) -> bool:
    return all((root / source.archive_folder / name).is_file() for name in source.archives)


def _by_hand(source: _Downloadable, root: Path, tried: str) -> str:
    return (
        f"data {source.name!r} is not available. Tried: {tried}. To provide it by hand, put "
        f"{', '.join(source.archives)} (from {source.url}) into {root / source.archive_folder} and load it "
        f"again with downloads allowed: complete archives are unpacked without the network. "
        f"The data sets digits and imagefolder:PATH need no download."
    )


def _channels_first(images: Any) -> Tensor:
    """MNIST's (n, h, w) and CIFAR-10's (n, h, w, channels) as contiguous (n, channels, h, w)."""
    tensor = torch.as_tensor(images)
    if tensor.dim() == 3:
        tensor = tensor.unsqueeze(-1)
    return tensor.permute(0, 3, 1, 2).contiguous()


# --- image folders ---


@dataclass(frozen=True)
class _ImageTree:
    """The image files of a folder, training images first, and a key that changes with any of them."""

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    num_train: int
    key: str


def _load_imagefolder(
    spec: str,
    path: str,
    cache_dir: Path,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
) -> Dataset:
    root = Path(path).expanduser().resolve()
    tree = _list_tree(root)
    # One file for each folder, so that a tree that changes often does not fill the disk with old copies.
    cache = cache_dir / f"imagefolder-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.cache"
    images = _read_cache(cache, tree)
    if images is None:
        images = _decode_tree(tree, spec, progress, workers)
        _write_cache(cache, tree, images)
    pixels, labels = torch.from_numpy(images), torch.from_numpy(tree.labels)
    split = tree.num_train
    return Dataset(spec, pixels[:split], labels[:split], pixels[split:], labels[split:], tree.classes)


def _list_tree(root: Path) -> _ImageTree:
    classes = _list_classes(root / "train")
    test_classes = _list_classes(root / "test")
    if classes != test_classes:
        raise DataError(
            f"{root}: train and test must have the same class folders; "
            f"only in train: {sorted(set(classes) - set(test_classes))}, "
            f"only in test: {sorted(set(test_classes) - set(classes))}"
        )
    key = hashlib.sha256(os.fsencode(root))
    paths: list[str] = []
    labels: list[int] = []
    num_train = 0
    for split in ("train", "test"):
        for label, name in enumerate(classes):
            folder = root / split / name
            found = 0
            for file, status in _list_images(str(folder)):
                relative = os.path.relpath(file, root)
                key.update(os.fsencode(relative) + f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
                paths.append(file)
                found += 1
            if not found:
                raise DataError(f"{folder}: no image here; looked for {', '.join(_IMAGE_EXTENSIONS)}")
            labels.extend([label] * found)
        if split == "train":
            num_train = len(paths)
    return _ImageTree(classes, tuple(paths), np.array(labels, dtype=np.int64), num_train, key.hexdigest())


def _list_classes(folder: Path) -> tuple[str, ...]:
    try:
        classes = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    except OSError as error:
        raise DataError(
            f"{folder}: not a readable folder; expected one sub-folder for each class ({error})"
        ) from error
    if not classes:
        raise DataError(f"{folder}: no class folder here; expected {folder / 'CLASS'} with images in it")
    return classes


def _list_images(folder: str) -> list[tuple[str, os.stat_result]]:
    """All image files below ``folder`` in torchvision's order: by folder, then by name."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error})") from error

    found = []
    for parent, _, names in sorted(os.walk(folder, followlinks=True, onerror=fail)):
        for name in sorted(names):
            if name.lower().endswith(_IMAGE_EXTENSIONS):
                file = os.path.join(parent, name)
                try:
                    found.append((file, os.stat(file)))
                except OSError as error:
                    raise DataError(f"{file}: cannot be read ({error})") from error
    return found


def _decode_tree(
    tree: _ImageTree, spec: str, progress: Callable[[int, int], None] | None, workers: int | None
) -> NDArray[np.uint8]:
    _import_optional("PIL.Image", spec)
    mode, size = _probe_image(tree.paths[0])
    width, height = size
    image_bytes = len(mode) * height * width
    total = len(tree.paths)
    if total * image_bytes > MAX_DECODED_BYTES:
        raise DataError(
            f"data {spec!r} is too large: {total} images of {width} x {height} pixels take "
            f"{total * image_bytes / 2**30:.1f} GiB in memory, more than the allowed "
            f"{MAX_DECODED_BYTES / 2**30:.1f} GiB; scale the images down or take fewer"
        )
    step = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // image_bytes))
    chunks = [tree.paths[start : start + step] for start in range(0, total, step)]
    images = np.empty((total, len(mode), height, width), dtype=np.uint8)
    done = 0
    # Closed in any case, so that an interrupt stops the workers now and not when the traceback is let go.
    with closing(_decode_chunks(chunks, mode, size, workers)) as decoded_chunks:
        for decoded in decoded_chunks:
            images[done : done + len(decoded)] = decoded
            done += len(decoded)
            if progress is not None:
                progress(done, total)
    return images


def _probe_image(path: str) -> tuple[str, tuple[int, int]]:
    """The mode that the tree is decoded to, by its first image, and the (width, height) of all images."""
    from PIL import Image

    with _naming(path), Image.open(path) as image:
        return ("L" if image.mode == "L" else "RGB"), image.size


def _decode_chunks(
    chunks: list[tuple[str, ...]], mode: str, size: tuple[int, int], workers: int | None
) -> Generator[NDArray[np.uint8], None, None]:
    """Decode chunk after chunk, in order.

    Processes, not threads: for small images most of Pillow's time is spent in Python, so that threads fight
    for the interpreter lock (two of them decoded 32 x 32 JPEGs 1.5 times slower than one).
    """
    decode = partial(_decode_files, mode=mode, size=size)
    processes = min(len(chunks), workers or _usable_processors())
    # Elsewhere than on Linux, a new process would import the caller's script and PyTorch first, which takes
    # longer than it saves and breaks scripts that have no `if __name__ == "__main__"`.
    if processes == 1 or sys.platform != "linux":
        yield from map(decode, chunks)
        return
    # One pipe for each worker, and the chunks dealt out in turn. An executor of the standard library has
    # threads besides, and waits without end for its workers if Ctrl-C comes while it starts them.
    context = multiprocessing.get_context("fork")
    workers_and_results = []
    try:
        for number in range(processes):
            results, sender = context.Pipe(duplex=False)
            worker = context.Process(
                target=_decode_in_worker, args=(sender, decode, chunks[number::processes]), daemon=True
            )
            with warnings.catch_warnings():
                # Python 3.12 warns of any fork beside threads such as PyTorch's, whose locks may stay taken
                # in the child; these children, like those of PyTorch's DataLoader, do not need them.
                warnings.simplefilter("ignore", DeprecationWarning)
                worker.start()
            workers_and_results.append((worker, results))
            # The worker now has the only end to write to, so that its death ends the pipe.
            sender.close()
        for number in range(len(chunks)):
            try:
                decoded = workers_and_results[number % processes][1].recv()
            except (EOFError, OSError) as error:
                raise DataError(
                    "a process that decodes images died, perhaps for want of memory; try again with workers=1"
                ) from error
            if isinstance(decoded, Exception):
                raise decoded
            yield decoded
    finally:
        for worker, results in workers_and_results:
            # Not terminate(): a worker inherits the caller's answer to SIGTERM, which may be to go on.
            worker.kill()
            worker.join()
            results.close()


def _usable_processors() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _decode_in_worker(
    sender: Connection,
    decode: Callable[[tuple[str, ...]], NDArray[np.uint8]],
    chunks: list[tuple[str, ...]],
) -> None:
    # Ctrl-C reaches the whole process group; the parent alone answers it, and stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that is killed cannot stop its workers, which would wait for it for ever; the kernel can.
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    for chunk in chunks:
        try:
            sender.send(decode(chunk))
        except Exception as error:
            sender.send(error)
            return


def _decode_files(paths: Iterable[str], mode: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.stack([_decode_image(path, mode, size) for path in paths])


def _decode_image(path: str, mode: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One image as a uint8 array (channels, height, width)."""
    from PIL import Image

    with _naming(path), Image.open(path) as image:
        if image.size != size:
            raise DataError(
                f"{path}: {image.width} x {image.height} pixels, but the first image has "
                f"{size[0]} x {size[1]}; all images must have one size"
            )
        if mode == "L" and image.mode != "L":
            raise DataError(
                f"{path}: mode {image.mode}, but the first image is grey (mode L); "
                f"convert all images to one mode"
            )
        if image.mode.startswith(("I", "F")):
            # Pillow would clip these to 8 bits without a word.
            raise DataError(
                f"{path}: mode {image.mode} has more than 8 bits for a pixel; convert the image to 8 bits"
            )
        image.load()
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        channels_first: NDArray[np.uint8] = pixels.reshape(size[1], size[0], len(mode)).transpose(2, 0, 1)
        return channels_first


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn all that Pillow raises for a damaged file, SyntaxError among it, into a DataError naming it."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: missing, damaged or not an image ({error})") from error


# --- the cache of decoded images ---


def _write_cache(path: Path, tree: _ImageTree, images: NDArray[np.uint8]) -> None:
    """Write the layout: magic, SHA-256 of all that follows, header length, JSON header, images.

    A format of our own, because a reader can then check every byte before it interprets one.
    """
    header = json.dumps({"key": tree.key, "shape": images.shape}).encode()
    header += b" " * (-(_CACHE_PREFIX_BYTES + len(header)) % _CACHE_ALIGNMENT)
    length = len(header).to_bytes(8, "little")
    digest = hashlib.sha256(length + header)
    digest.update(images.data)
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            file.write(_CACHE_MAGIC + digest.digest() + length + header)
            file.write(images.data)
    except OSError as error:
        warnings.warn(
            f"the decoded images cannot be kept in {path} ({error}); they will be decoded again next time",
            RuntimeWarning,
            stacklevel=4,
        )


def _read_cache(path: Path, tree: _ImageTree) -> NDArray[np.uint8] | None:
    """The images of ``tree``, or None if the cache has none, has another state of the tree, or is damaged."""
    damage = "its checksum does not match"
    try:
        contents = np.fromfile(path, dtype=np.uint8)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        damage = str(error)
    else:
        magic_end = len(_CACHE_MAGIC)
        digest_end = magic_end + hashlib.sha256().digest_size
        if contents[:magic_end].tobytes() != _CACHE_MAGIC:
            damage = "it does not begin as one of this version does"
        elif hashlib.sha256(contents[digest_end:].data).digest() == contents[magic_end:digest_end].tobytes():
            header_end = _CACHE_PREFIX_BYTES + int.from_bytes(
                contents[digest_end:_CACHE_PREFIX_BYTES], "little"
            )
            header = json.loads(contents[_CACHE_PREFIX_BYTES:header_end].tobytes())
            return contents[header_end:].reshape(header["shape"]) if header["key"] == tree.key else None
    warnings.warn(
        f"the cache file {path} is damaged ({damage}); decoding the images again",
        RuntimeWarning,
        stacklevel=4,
    )
    return None
