"""Manifests: files in a folder that list what a command has written directly in it."""

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

COMMANDS = ("train", "reproduce", "cluster", "circuits", "unit-circuits", "report")
"""The commands that write in folders. What ``modfast circuits --units`` writes is listed apart from the
circuits of weights, since either replaces its own files alone."""

_FORMAT, _OLDER_FORMAT = "modfast manifest 2", "modfast manifest 1"
_MOST_PROCESSES = 100_000
_NAME = re.compile(rf"manifest-({'|'.join(COMMANDS)})(-\d+)?\.json")


def typed(command: str) -> str:
    """Return a command as users type it, for messages.

    Example:
        >>> typed("train"), typed("unit-circuits")
        ('modfast train', 'modfast circuits --units')
    """
    return "modfast circuits --units" if command == "unit-circuits" else f"modfast {command}"


class Written(NamedTuple):
    """The size and digest of a file when it was written, which identify it among files of the same name.

    The file's times are not used: a copy of the folder has other ones.

    Attributes:
        size: in bytes.
        sha256: in hexadecimal digits; None in manifests of an older version, which noted sizes alone.
    """

    size: int
    sha256: str | None

    @classmethod
    def now(cls, path: Path) -> Written:
        """The size and digest of a file now."""
        return cls(os.lstat(path).st_size, sha256_of(path))


def holds_any(path: Path, known: Iterable[Written]) -> bool:
    """Whether a file has one of these contents. It is read only if the size of one matches."""
    size = os.lstat(path).st_size
    digests = {written.sha256 for written in known if written.size == size}
    return None in digests or (bool(digests) and sha256_of(path) in digests)


class Contents(NamedTuple):
    """What a manifest says.

    Attributes:
        token: random digits that the names of temporary files begin with.
        files: the name of each file to the contents that it may have; none if it is not written yet.
        processes: how many processes write in the folder, each with a manifest of its own.
    """

    token: str
    files: dict[str, list[Written]]
    processes: int


class Manifest:
    """The manifest of one command in one folder, such as ``manifest-train.json``.

    Several processes that write in one folder would lose each other's entries in one file. So each has a
    manifest of its own, and the first process merges them. Nothing is read before :meth:`read`, and
    nothing written before :meth:`open`.

    Args:
        folder: the folder that holds the manifest.
        command: one of :data:`COMMANDS`.
        process: the number of this process, from 0.

    Attributes:
        files: the files that are in this manifest, as in :class:`Contents`.
        processes: as in :class:`Contents`.
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
        """Read the manifests of this command, if there are any.

        Raises:
            ValueError: one is damaged.
        """
        if self._token:
            return
        own = read_manifest(self._folder, self._command, self._process)
        if own is not None:
            self._token, self.files, self.processes = own
        # The first process reads the manifests of all; the others read the first one's, for earlier files.
        self._elsewhere = {}
        for process in [0] if self._process else range(1, self.processes):
            other = read_manifest(self._folder, self._command, process)
            _add(self._elsewhere, {} if other is None else other.files)

    def written(self, name: str) -> list[Written]:
        """The contents that a file may have, according to the manifests of all processes."""
        return [*self.files.get(name, ()), *self._elsewhere.get(name, ())]

    def open(self) -> None:
        """Create the manifest if there is none, and remove temporary files of a process that was killed.

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
        """Write the manifest, whole or not at all."""
        write_json(Target(self._path, self.temporary(self._path.name)), self._contents())

    def gather(self) -> None:
        """Merge the manifests of all processes into this one, when none of them writes any more."""
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
        """The path of a file's contents until they are complete. The manifest names the file before that."""
        return self._temporary(self._token, name)

    @property
    def _path(self) -> Path:
        return manifest_path(self._folder, self._command, self._process)

    def _contents(self) -> dict[str, Any]:
        contents = Contents(self._token, self.files, self.processes)
        return {"format": _FORMAT, "command": self._command, **contents._asdict()}

    def _create(self) -> None:
        if os.path.lexists(self._path):
            self._path.unlink()  # empty: its process was killed before the first byte
        self._token = secrets.token_hex(8)
        # Written in place: a temporary file is found by its token, which is recorded nowhere yet. The text is
        # so short that it is written at once.
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
    """The path of a manifest.

    Example:
        >>> manifest_path(Path("out"), "train").name, manifest_path(Path("out"), "circuits", 2).name
        ('manifest-train.json', 'manifest-circuits-2.json')
    """
    return folder / (f"manifest-{command}-{process}.json" if process else f"manifest-{command}.json")


def is_plain(name: object) -> bool:
    """Whether a name can be that of a file directly in a folder, and is not a manifest's.

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
    """The contents of a manifest; None if there is none, or it is empty: its process was killed at once.

    Raises:
        ValueError: the manifest is damaged, of another command, or lists a file outside the folder.
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
            f"{path} should say which files `{typed(command)}` wrote, and cannot be used ({error}): without "
            "it nothing here is replaced or removed. Choose another folder, or move it away: then --resume "
            "continues what is here"
        ) from error


def _parse(document: Any, command: str) -> Contents:
    """Check a manifest's JSON, which anyone who can write to the folder may have changed."""
    if not isinstance(document, dict) or document.get("format") not in (_FORMAT, _OLDER_FORMAT):
        raise ValueError(f"it does not have the format {_FORMAT!r}")
    if document.get("command") != command:
        raise ValueError(f"it is of the command {document.get('command')!r}")
    token, files, processes = (document.get(name) for name in Contents._fields)
    if not isinstance(token, str) or re.fullmatch("[0-9a-f]{16}", token) is None:
        raise ValueError(f"its token is {token!r}")
    if type(processes) is not int or not 1 <= processes <= _MOST_PROCESSES:
        raise ValueError(f"its number of processes is {processes!r}")
    if not isinstance(files, dict):
        raise ValueError("it lists no files")
    written = {}
    for name, entries in files.items():
        if not is_plain(name):
            raise ValueError(f"it lists {name!r}, which is no file directly in the folder")
        if not isinstance(entries, list):
            raise ValueError(f"it lists {name!r} with {entries!r}")
        if document["format"] == _OLDER_FORMAT:
            entries = [[size, None] for size in entries]
        if not all(map(_is_written, entries)):
            raise ValueError(f"it lists {name!r} with the sizes and digests {entries!r}")
        written[name] = [Written(size, digest) for size, digest in entries]
    return Contents(token, written, processes)


def _is_written(entry: Any) -> bool:
    """Whether a manifest's entry is a size with a digest, or with None."""
    if not isinstance(entry, list) or len(entry) != 2:
        return False
    size, digest = entry
    known = digest is None or (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None)
    return type(size) is int and size >= 0 and known
