"""Image folders: listed as torchvision lists them, decoded once and in parallel, kept in a cache file."""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from modfast.files import atomic_write, open_to_read

from .dataset import DataError, Dataset, import_optional

MAX_DECODED_BYTES = 8 * 2**30
"""The largest data set, decoded, that `load_dataset` keeps in memory."""

# The extensions that torchvision.datasets.ImageFolder looks for, so that both see the same files.
_IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# The last two characters are the version of the layout that `_write_cache` documents.
_CACHE_MAGIC = b"modfst01"
_CACHE_PREFIX_BYTES = len(_CACHE_MAGIC) + hashlib.sha256().digest_size + 8
_CACHE_ALIGNMENT = 64

# Long enough that handing a chunk to a worker costs little, short enough that progress is seen to move.
_CHUNK_IMAGES = 256
_CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class _ImageTree:
    """The image files of a folder, training images first, and a key that changes with any of them."""

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    num_train: int
    key: str


def load_imagefolder(
    spec: str,
    path: str,
    cache_dir: Path,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
) -> Dataset:
    """Load the image folder ``path``, from the cache if that is up to date; otherwise decode it.

    Args:
        spec: The name of the data set, in the result and in messages.
        path: A folder with ``train/CLASS/*`` and ``test/CLASS/*``.
        cache_dir: Where the decoded images are kept.
        progress: Called with the numbers of images decoded so far and in all.
        workers: Number of processes that decode, by default one for each usable processor.

    Raises:
        DataError: The folder is missing, damaged, mixed or too large; the file is named.
        ImportError: Pillow is missing.

    Warns:
        RuntimeWarning: The cache file is damaged or cannot be written.
    """
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
            count = 0
            for file, status in _list_images(str(folder)):
                relative = os.path.relpath(file, root)
                key.update(os.fsencode(relative) + f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
                paths.append(file)
                count += 1
            if not count:
                raise DataError(f"{folder}: no image here; looked for {', '.join(_IMAGE_EXTENSIONS)}")
            labels.extend([label] * count)
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
    """Return all image files below ``folder`` in torchvision's order: by folder, then by name."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error})") from error

    images = []
    for parent, _, names in sorted(os.walk(folder, followlinks=True, onerror=fail)):
        for name in sorted(names):
            if name.lower().endswith(_IMAGE_EXTENSIONS):
                file = os.path.join(parent, name)
                try:
                    images.append((file, os.stat(file)))
                except OSError as error:
                    raise DataError(f"{file}: cannot be read ({error})") from error
    return images


def _decode_tree(
    tree: _ImageTree, spec: str, progress: Callable[[int, int], None] | None, workers: int | None
) -> NDArray[np.uint8]:
    import_optional("PIL.Image", spec)
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
    # closing() makes an interrupt stop the workers now, not when the traceback is deleted.
    with closing(_decode_chunks(chunks, mode, size, workers)) as decoded_chunks:
        for decoded in decoded_chunks:
            images[done : done + len(decoded)] = decoded
            done += len(decoded)
            if progress is not None:
                progress(done, total)
    return images


def _probe_image(path: str) -> tuple[str, tuple[int, int]]:
    """Read from the first image the mode to decode to, and the (width, height) of all images."""
    from PIL import Image

    with _naming(path), open_to_read(path) as file, Image.open(file) as image:
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
    # Outside Linux a new process would first import the caller's script and PyTorch, which takes longer than
    # it saves and breaks scripts without `if __name__ == "__main__"`.
    if processes == 1 or sys.platform != "linux":
        yield from map(decode, chunks)
        return
    # Each worker has a pipe of its own, and the chunks are dealt out in turn. An executor of the standard
    # library uses threads too, and waits for ever for its workers if Ctrl-C comes while it starts them.
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
            # Now only the worker can write to the pipe, so that its death closes the pipe.
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
            # Not terminate(): a worker inherits the caller's handler of SIGTERM, which may ignore the signal.
            worker.kill()
            worker.join()
            results.close()


def _usable_processors() -> int:
    if sys.platform == "linux":
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return count


def _decode_in_worker(
    sender: Connection,
    decode: Callable[[tuple[str, ...]], NDArray[np.uint8]],
    chunks: list[tuple[str, ...]],
) -> None:
    # Ctrl-C reaches the whole process group; only the parent reacts, and stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # A parent that is killed cannot stop its workers, which would wait for ever; the kernel can.
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
    """Return one image as a uint8 array (channels, height, width)."""
    from PIL import Image

    with _naming(path), open_to_read(path) as file, Image.open(file) as image:
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
            # Pillow would clip these to 8 bits silently.
            raise DataError(
                f"{path}: mode {image.mode} has more than 8 bits for a pixel; convert the image to 8 bits"
            )
        image.load()
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        channels_first: NDArray[np.uint8] = pixels.reshape(size[1], size[0], len(mode)).transpose(2, 0, 1)
        return channels_first


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn any error of Pillow about a damaged file, even SyntaxError, into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: missing, damaged or not an image ({error})") from error


# --- the cache of decoded images ---


def _write_cache(path: Path, tree: _ImageTree, images: NDArray[np.uint8]) -> None:
    """Write the layout: magic, SHA-256 of all that follows, header length, JSON header, images.

    This format lets a reader check every byte before it interprets one.
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
    """Return the images of ``tree``; None if the cache is missing, outdated or damaged."""
    damage = "its checksum does not match"
    try:
        with open_to_read(path) as file:
            contents = np.fromfile(file, dtype=np.uint8)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
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
