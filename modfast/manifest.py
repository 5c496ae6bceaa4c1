"""Manifests: which files a command has written directly in a folder, in a file of that folder."""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .files import Target, read_json, sha256_of, write_json

COMMANDS = ("train", "reproduce", "cluster", "circuits", "report")

_FORMAT, _OLDER_FORMAT = "modfast manifest 2", "modfast manifest 1"
_MOST_PROCESSES = 100_000
_NAME = re.compile(rf"manifest-({'|'.join(COMMANDS)})(-\d+)?\.json")


class Written(NamedTuple):
    """What a file held when it was written, by which it is told from another one at the same name.

    Not by its times, which are other ones in a copy of the folder.

    Attributes:
        size: in bytes.
        sha256: in hexadecimal digits; None in manifests of an older version, which noted sizes alone.
    """

    size: int
    sha256: str | None

    @classmethod
    def now(cls, path: Path) -> Written:
        """What a file holds now."""
        return cls(os.lstat(path).st_size, sha256_of(path))


def holds_any(path: Path, known: Iterable[Written]) -> bool:
    """Whether a file holds one of these. It is read only if that may be so by its size."""
    size = os.lstat(path).st_size
    digests = {each.sha256 for each in known if each.size == size}
    return None in digests or (bool(digests) and sha256_of(path) in digests)


class Contents(NamedTuple):
    """What a manifest says.

    Attributes:
        token: random digits that the names of temporary files begin with.
        files: the name of each file to what it may hold; none if it is yet to be written.
        processes: how many processes write in the folder, each with a manifest of its own.
    """

    token: str
    files: dict[str, list[Written]]
    processes: int


class Manifest:
    """The manifest of one command in one folder, such as ``manifest-train.json``.

    Several processes that write in one folder would lose each other's entries in one file. So each has a
    manifest of its own, and the first process takes them together. Nothing is read before :meth:`read`, and
    nothing written before :meth:`open`.

    Args:
        folder: where it lies.
        command: one of :data:`COMMANDS`.
        process: the number of this process, from 0.

    Attributes:
        files: the files that are in this manifest, as :class:`Contents` has them.
        processes: as there.
    """

    def __init__(self, folder: Path, command: str, process: int = 0) -> None:
        if command not in COMMANDS:
            raise ValueError(f"command must be one of {COMMANDS}, got {command!r}")
        self._folder, self._command, self._process = folder, command, process
        self._token = ""
        self._is_open = False
        self._elsewhere: dict[str, list[Written]] = {}
        self.files: dict[str, list[Written]] = {}
        self.processes = 1

    def read(self) -> None:
        """Know what the manifests of this command say, if there are any.

        Raises:
            ValueError: one is damaged.
        """
        if self._token:
            return
        own = read_manifest(self._folder, self._command, self._process)
        if own is not None:
            self._token, self.files, self.processes = own
        # The first process knows of all; the others know what was there before they began.
        self._elsewhere = {}
        for process in [0] if self._process else range(1, self.processes):
            other = read_manifest(self._folder, self._command, process)
            _add(self._elsewhere, {} if other is None else other.files)

    def written(self, name: str) -> list[Written]:
        """What a file may hold, according to the manifests of all processes."""
        return [*self.files.get(name, ()), *self._elsewhere.get(name, ())]

    def open(self) -> None:
        """Have a manifest, and no temporary files of a process that was killed.

        Raises:
            OSError: the folder cannot be written to.
            ValueError: a manifest is damaged.
        """
        if self._is_open:
            return
        self.read()
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._token:
            self._create()
        self._clear(self._token, [self._path.name, *self.files])
        self._is_open = True
        if self._process == 0:
            self.gather()

    def write(self) -> None:
        """Write it, whole or not at all."""
        write_json(Target(self._path, self.temporary(self._path.name)), self._contents())

    def gather(self) -> None:
        """Take the manifests of all processes into this one, when none of them writes any more."""
        gathered = []
        for process in range(1, self.processes):
            other = read_manifest(self._folder, self._command, process)
            if other is not None:
                path = manifest_path(self._folder, self._command, process)
                _add(self.files, other.files)
                self._clear(other.token, [path.name, *other.files])
                gathered.append(path)
        self._elsewhere = {}
        if gathered:
            self.write()
        for path in gathered:
            path.unlink()

    def temporary(self, name: str) -> Path:
        """Where a file's contents are until they are whole. The manifest names the file before that."""
        return self._temporary(self._token, name)

    @property
    def _path(self) -> Path:
        return manifest_path(self._folder, self._command, self._process)

    def _contents(self) -> dict[str, Any]:
        said = Contents(self._token, self.files, self.processes)
        return {"format": _FORMAT, "command": self._command, **said._asdict()}

    def _create(self) -> None:
        if os.path.lexists(self._path):
            self._path.unlink()  # empty: its process was killed before the first byte
        self._token = secrets.token_hex(8)
        # In place, since a temporary file could not be found by a token that is written nowhere yet. It is so
        # short that it is written at once.
        with open(self._path, "x", encoding="utf-8") as file:
            try:
                json.dump(self._contents(), file)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                self._token = ""
                self._path.unlink()
                raise

    def _temporary(self, token: str, name: str) -> Path:
        return self._folder / f".modfast-{token}-{name}"

    def _clear(self, token: str, names: Iterable[str]) -> None:
        for name in names:
            path = self._temporary(token, name)
            if os.path.lexists(path) and stat.S_ISREG(os.lstat(path).st_mode):
                path.unlink()


def _add(files: dict[str, list[Written]], others: dict[str, list[Written]]) -> None:
    for name, written in others.items():
        files[name] = list(dict.fromkeys([*files.get(name, ()), *written]))


def manifest_path(folder: Path, command: str, process: int = 0) -> Path:
    """Where a manifest lies.

    Example:
        >>> manifest_path(Path("out"), "train").name, manifest_path(Path("out"), "circuits", 2).name
        ('manifest-train.json', 'manifest-circuits-2.json')
    """
    return folder / (f"manifest-{command}-{process}.json" if process else f"manifest-{command}.json")


def is_plain(name: object) -> bool:
    """Whether a name is that of a file directly in a folder, and of no manifest.

    Example:
        >>> [is_plain(name) for name in ("checkpoint.pt", "../x", "a/b", "..", "", "manifest-train.json", 3)]
        [True, False, False, False, False, False, False]
    """
    return (
        isinstance(name, str)
        and name not in ("", os.curdir, os.pardir)
        and name == os.path.basename(name)
        and "\0" not in name
        and _NAME.fullmatch(name) is None
    )


def read_manifest(folder: Path, command: str, process: int = 0) -> Contents | None:
    """What a manifest says; None if there is none, or an empty one, whose process was killed as it began.

    Raises:
        ValueError: it is damaged, of another command, or names something that is not directly in the folder.
    """
    path = manifest_path(folder, command, process)
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        return None if status.st_size == 0 else _parse(read_json(path), command)
    except ValueError as error:
        raise ValueError(
            f"{path} should say which files `modfast {command}` wrote, and cannot be used ({error}): without "
            "it nothing here is replaced or removed. Choose another folder, or move it away: then --resume "
            "continues what is here"
        ) from error


def _parse(said: Any, command: str) -> Contents:
    """The contents, checked: whoever may write to the folder may have changed them."""
    if not isinstance(said, dict) or said.get("format") not in (_FORMAT, _OLDER_FORMAT):
        raise ValueError(f"it does not have the format {_FORMAT!r}")
    if said.get("command") != command:
        raise ValueError(f"it is of the command {said.get('command')!r}")
    token, files, processes = (said.get(name) for name in Contents._fields)
    if not isinstance(token, str) or re.fullmatch("[0-9a-f]{16}", token) is None:
        raise ValueError(f"its token is {token!r}")
    if type(processes) is not int or not 1 <= processes <= _MOST_PROCESSES:
        raise ValueError(f"its number of processes is {processes!r}")
    if not isinstance(files, dict):
        raise ValueError("it lists no files")
    written = {}
    for name, each in files.items():
        if not is_plain(name):
            raise ValueError(f"it lists {name!r}, which is no file directly in the folder")
        if not isinstance(each, list):
            raise ValueError(f"it lists {name!r} with {each!r}")
        if said["format"] == _OLDER_FORMAT:
            each = [[size, None] for size in each]
        if not all(map(_is_written, each)):
            raise ValueError(f"it lists {name!r} with the sizes and digests {each!r}")
        written[name] = [Written(size, digest) for size, digest in each]
    return Contents(token, written, processes)


def _is_written(said: Any) -> bool:
    """Whether JSON holds a size and a digest, or None for the latter."""
    if not isinstance(said, list) or len(said) != 2:
        return False
    size, digest = said
    known = digest is None or (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None)
    return type(size) is int and size >= 0 and known
