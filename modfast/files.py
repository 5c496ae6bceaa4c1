"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np


class Target(os.PathLike[str]):
    """A file that is to be written: its path, and the temporary path of its contents until they are complete.

    :class:`modfast.run_folder.RunFile` is a target that is listed in a manifest.

    Args:
        path: the file.
        temporary: a path in the same folder; by default one with a new random name.

    Example:
        >>> Target("out/note.txt").temporary.suffix
        '.txt'
    """

    def __init__(self, path: str | os.PathLike[str], temporary: Path | None = None) -> None:
        self.path = Path(path)
        # The suffix stays last, because libraries such as matplotlib choose a format by it.
        named = f".{self.path.stem[:32]}-{secrets.token_hex(8)}{self.path.suffix}"
        self.temporary = self.path.with_name(named) if temporary is None else temporary

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def approve(self, contents: Path) -> None:
        """Called when the contents are complete, before they replace the file; may raise to prevent that.

        Args:
            contents: the file that holds them.
        """


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on failure it is removed.

    A reader sees the old file or the new one, never a part of either, also when the process is
    killed: the data is flushed to the disk before the rename, which POSIX makes atomic.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_write(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    target = path if isinstance(path, Target) else Target(path)
    target.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.temporary
    # With the permissions of any other new file; those of the tempfile module's files are private.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        target.approve(temporary)
        os.replace(temporary, target)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # for example, the disk is full
            error.filename = os.fspath(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def kind_of(status: os.stat_result) -> str:
    """What lies at a path, in words.

    Example:
        >>> kind_of(os.stat("/"))
        'a folder'
    """
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
    }
    return kinds.get(stat.S_IFMT(status.st_mode), "no regular file")


# Without O_NONBLOCK the opening of a pipe itself blocks; a file is opened as without it. Windows has neither
# such pipes nor this flag; there O_BINARY keeps the bytes of a file as they are.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_to_read(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file, also through a symbolic link; a named pipe, which may block for ever, is refused.

    Raises:
        OSError: it cannot be opened, or is a folder.
        ValueError: it is a pipe, a socket or a device.

    Example:
        >>> open_to_read("/")
        Traceback (most recent call last):
        IsADirectoryError: / is a folder, not a file
    """
    descriptor = os.open(path, _READ)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = IsADirectoryError if stat.S_ISDIR(status.st_mode) else ValueError
        raise kind(f"{os.fspath(path)} is {kind_of(status)}, not a file")
    return os.fdopen(descriptor, "rb")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's contents, in hexadecimal digits.

    Raises:
        OSError, ValueError: as :func:`open_to_read` does.
    """
    digest = hashlib.sha256()
    with open_to_read(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


_HARMLESS = re.compile(r"[A-Za-z0-9_.\[\]-]{1,100}")


def file_name(name: str) -> str:
    """Turn a name into a part of a file's name, a different one for each name.

    A name of at most 100 letters, digits and ``_.-[]`` is left as it is. In any other one all but
    letters, digits and ``_.-`` is replaced by ``_``; it is cut to 60 characters, and ends in ``~``, which no
    unchanged name has, and a digest.

    Example:
        >>> file_name("blocks.0.fc1")
        'blocks.0.fc1'
        >>> file_name("a/b")
        'a_b~c14cddc033f64b9d'
    """
    if _HARMLESS.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{re.sub('[^A-Za-z0-9_.-]', '_', name)[:60]}~{digest}"


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all.

    Raises:
        ValueError: ``value`` holds NaN or infinity, which JSON cannot.
        TypeError: ``value`` holds something that JSON cannot.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "result.json"
        >>> write_json(target, {"accuracy": 0.9})
        >>> json.loads(target.read_text())
        {'accuracy': 0.9}
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the value in a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or no file.
    """
    with open_to_read(path) as file:
        contents = file.read()
    try:
        return json.loads(contents.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is damaged ({error})") from error


def write_arrays(
    path: str | os.PathLike[str], file_format: str, entries: Any, arrays: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """Write arrays and their description as a NumPy ``.npz`` archive without pickled objects.

    Args:
        path: the file; it is replaced if it exists.
        file_format: the name of the format, which :func:`read_arrays` checks.
        entries: the description; anything that JSON can hold.
        arrays: by technical names: users' names belong in ``entries``, since a zip archive does not allow any
            text as a name.
    """
    contents = json.dumps({"format": file_format, "entries": entries}).encode()
    header = np.frombuffer(contents, dtype=np.uint8)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **cast(Any, {**arrays, "contents": header}))


@contextmanager
def read_arrays(
    path: str | os.PathLike[str], file_format: str, what: str
) -> Iterator[tuple[Any, Mapping[str, np.ndarray[Any, Any]]]]:
    """Yield the entries and the arrays of a file that :func:`write_arrays` wrote. Runs no code from it.

    Any exception raised within the context becomes a ValueError that names the file, since reading a damaged
    file may raise anything.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: the file is truncated, damaged or not of this format, or is no regular file.
    """
    with open_to_read(path) as file:
        data = io.BytesIO(file.read())
    # For a damaged archive zipfile, zlib, NumPy and json raise many kinds of exceptions.
    try:
        with zipfile.ZipFile(data) as archive:
            # NumPy may stop reading before the end of an array, where its checksum would be compared.
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is damaged")
        data.seek(0)
        with np.load(data, allow_pickle=False) as arrays:
            contents = json.loads(arrays["contents"].tobytes())
            if contents["format"] != file_format:
                raise ValueError(f"format is {contents['format']!r}, expected {file_format!r}")
            yield contents["entries"], arrays
    except Exception as error:
        raise ValueError(f"path: {os.fspath(path)!r} is no {what}, or a damaged one ({error})") from error
