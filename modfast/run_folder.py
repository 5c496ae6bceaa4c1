"""The folder of a command, and which files in it are the command's own.

A file is a command's own if the command's manifest names it, if it is a regular file, and if it holds what
the manifest says, by size and SHA-256. Only such files are replaced or removed, and only by the same command.
Anything else at a name that the command would write is an error, before any work is done. Files at other
names never matter.

A process may be killed at any moment. So the manifest lists a name before its temporary file is made, and the
contents of both the temporary and the old file before the one replaces the other.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from .files import Target, kind_of
from .manifest import COMMANDS, Manifest, Written, holds_any, is_plain, read_manifest, typed

# `report` draws the images of other commands again; they are then its own as well as theirs.
_REPORT = "report"
_DRAWN = (".png", ".html")

# What these write is called circuits in messages, not a run.
_OF_CIRCUITS = ("circuits", "unit-circuits")


class OutputExistsError(FileExistsError):
    """A folder holds files that would be lost."""


class Planned(NamedTuple):
    """A file that a command is about to write.

    Attributes:
        read: reads such a file, and raises if it is another kind of file. It identifies files of an older
            version, which kept no manifest.
        drawn_from: the name of the file that this image shows, without which the image is not identified.
    """

    read: Callable[[Path], object]
    drawn_from: str | None = None


Plan: TypeAlias = Mapping[str, Planned]
"""The files that a command is about to write directly in a folder, by name, in the order of removal."""


class RunFile(Target):
    """A file of a :class:`RunFolder`, which must approve before the file is replaced."""

    def __init__(self, folder: RunFolder, name: str, temporary: Path) -> None:
        super().__init__(folder.path / name, temporary)
        self._folder = folder

    def approve(self, contents: Path) -> None:
        """Ask the folder: see :meth:`RunFolder.approve`."""
        self._folder.approve(self.path.name, contents)


class RunFolder(os.PathLike[str]):
    """The files that a command writes directly in a folder, and which of them it may replace or remove.

    Nothing is read or written before it is needed, and the folder is made when it is first written to.

    Args:
        path: the folder that a user has named; it may be a symbolic link.
        command: one of :data:`modfast.manifest.COMMANDS`.
        inner: a folder within it to write in instead, such as ``"layers"``; by default none. It is refused if
            it is a symbolic link, since its files lie elsewhere.
        process: the number of this process, of several that write here.

    Attributes:
        path: the folder that is written in.
        command: as given.
        left: messages that say which files :meth:`draw` left as they were, and why.

    Example:
        >>> import tempfile
        >>> from modfast.files import write_json
        >>> folder = RunFolder(tempfile.mkdtemp(), "train")
        >>> write_json(folder.file("results.json"), {"accuracy": 0.5})
        >>> _ = (folder.path / "notes.txt").write_text("mine")
        >>> folder.remove("results.json", "notes.txt")
        >>> sorted(os.listdir(folder))
        ['manifest-train.json', 'notes.txt']
    """

    def __init__(self, path: str | os.PathLike[str], command: str, inner: str = "", process: int = 0) -> None:
        self.path, self.command = Path(path, inner), command
        parts = Path(inner).parts
        self._inner = [Path(path, *parts[: index + 1]) for index in range(len(parts))]
        self.left: list[str] = []
        self._manifest = Manifest(self.path, command, process)
        # Circuits are found, and kept, by several threads.
        self._lock = threading.RLock()

    @classmethod
    def of(cls, folder: str | os.PathLike[str], command: str) -> RunFolder:
        """Return ``folder`` itself if it is a :class:`RunFolder`, of any command; else one for the path."""
        return folder if isinstance(folder, RunFolder) else cls(folder, command)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    __str__ = __fspath__

    # --- Which files are the command's own.

    def refusal(self, name: str) -> str | None:
        """Why the file of that name may be neither replaced nor removed; None if it may, or if there is none.

        Raises:
            ValueError: a manifest is damaged.
        """
        with self._lock:
            self._manifest.read()
            known = self._manifest.written(name)
        path = self.path / name
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        for folder in self._inner:
            if folder.is_symlink():
                return f"{folder} is a symbolic link"
        if not stat.S_ISREG(status.st_mode):
            return f"{path} is {kind_of(status)}"
        if holds_any(path, [*known, *self._drawn(name)]):
            return None
        owner = self.command if known else self._other_owner(name)
        if owner is None:
            return f"{path} is in no manifest of modfast"
        if owner == self.command or self.command == _REPORT:
            return f"{path} is no longer what `{typed(owner)}` wrote"
        return f"{path} was written by `{typed(owner)}`"

    def owns(self, name: str) -> bool:
        """Whether there is such a file, and it is the command's own."""
        listed = self.refusal(name) is None and name in self._manifest.files
        return listed and os.path.lexists(self.path / name)

    def _drawn(self, name: str) -> list[Written]:
        """The contents of an image that `report` has drawn; for `report`, of one that other commands have."""
        if not name.endswith(_DRAWN):
            return []
        commands = [command for command in COMMANDS if (command == _REPORT) != (self.command == _REPORT)]
        manifests = [read_manifest(self.path, command) for command in commands]
        return [written for m in manifests if m is not None for written in m.files.get(name, ())]

    def _other_owner(self, name: str) -> str | None:
        for command in COMMANDS:
            manifest = None if command == self.command else read_manifest(self.path, command)
            if manifest is not None and name in manifest.files:
                return command
        return None

    # --- Before the work.

    def check(self, plan: Plan, *, resume: bool, overwrite: bool) -> dict[str, Written]:
        """Check that all files of the plan may be written, changing nothing; raises as :func:`claim` does.

        Returns:
            The files of a version without manifests that are to be continued, by name, with their contents.
        """
        self._check_folders()
        continued: dict[str, Written] = {}
        for name, planned in plan.items():
            if not os.path.lexists(self.path / name):
                continue
            refusal = self.refusal(name)
            if refusal is None and not (resume or overwrite):
                ours = "continue it with --resume, or replace it with --overwrite"
                if self.command in _OF_CIRCUITS:
                    ours = "continue with --resume, or replace them with --overwrite"
                raise OutputExistsError(f"{self._held(name)}: {ours}")
            if refusal is None:
                continue
            is_older = self._is_older(name, planned, continued, resume=resume)
            if is_older and resume:
                continued[name] = Written.now(self.path / name)
            elif is_older:
                raise OutputExistsError(
                    f"{self._held(name)}, of a version of modfast without manifests: continue with --resume, "
                    "move it away or choose another folder; --overwrite does not replace it"
                )
            else:
                raise OutputExistsError(
                    f"{refusal}, so it is neither replaced nor removed: move it away or choose another folder"
                )
        return continued

    def _check_folders(self) -> None:
        """Check that the folder can be written to, if it is there."""
        for folder in self._inner:
            if os.path.lexists(folder) and not stat.S_ISDIR(os.lstat(folder).st_mode):
                raise OutputExistsError(
                    f"{folder} is {kind_of(os.lstat(folder))}, so nothing is written there: move it away or "
                    "choose another folder"
                )
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise ValueError(f"out must be a folder, {self.path} is a file")
        if self.path.is_dir() and not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "no permission to write to this folder", str(self.path))

    def _is_older(
        self, name: str, planned: Planned, continued: Mapping[str, Written], *, resume: bool
    ) -> bool:
        """Whether a file that is not the command's own was written by a version without manifests.

        Raises:
            Exception: what ``planned.read`` raises for a file that is to be continued.
        """
        path = self.path / name
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        if planned.drawn_from is not None and planned.drawn_from not in continued:
            return False
        try:
            planned.read(path)
        except (ValueError, RuntimeError, OSError):
            if resume:
                raise
            return False
        # A file that a manifest lists is not of an older version.
        return name not in self._manifest.files and self._other_owner(name) is None

    def _held(self, name: str) -> str:
        """A message that the folder holds such a file already."""
        return f"{self.path} holds {'circuits' if self.command in _OF_CIRCUITS else 'a run'} already ({name})"

    def begin(
        self, plan: Plan, continued: Mapping[str, Written], *, overwrite: bool, processes: int = 1
    ) -> None:
        """Remove what is to be replaced, then list in the manifest what will be written.

        Args:
            plan: as given to :meth:`check`.
            continued: as returned by it.
            overwrite: remove every file that is the command's own.
            processes: how many processes will write here.
        """
        with self._lock:
            self._manifest.open()
            names = dict.fromkeys([*plan, *self._manifest.files])
            if overwrite:
                self.remove(*names)
            listed = [name for name in names if name in plan or self.owns(name)]
            self._manifest.files = {name: self._manifest.files.get(name, []) for name in listed}
            self._manifest.files |= {name: [written] for name, written in continued.items()}
            self._manifest.processes = max(self._manifest.processes, processes)
            self._manifest.write()

    # --- During the work.

    def file(self, name: str) -> RunFile:
        """The file of that name, to be written by :func:`modfast.files.atomic_write`.

        Raises:
            ValueError: ``name`` is not that of a file directly in the folder, or a manifest is damaged.
        """
        if not is_plain(name):
            raise ValueError(f"name must be that of a file directly in the folder, got {name!r}")
        with self._lock:
            self._manifest.open()
            if name not in self._manifest.files:
                self._manifest.files[name] = []
                self._manifest.write()
            return RunFile(self, name, self._manifest.temporary(name))

    def approve(self, name: str, contents: Path) -> None:
        """Note in the manifest that a file is about to be replaced by the contents of another one.

        Raises:
            OutputExistsError: the file that is there by now is not the command's own.
        """
        with self._lock:
            refusal = self.refusal(name)
            if refusal is not None:
                raise OutputExistsError(f"{refusal}, so it is not replaced")
            path = self.path / name
            before = [Written.now(path)] if os.path.lexists(path) else []
            # Both, since the process may be killed before it replaces the one by the other.
            written = list(dict.fromkeys([*before, Written.now(contents)]))
            if self._manifest.files[name] != written:
                self._manifest.files[name] = written
                self._manifest.write()

    def remove(self, *names: str) -> None:
        """Remove those of these files that are the command's own, and leave the others."""
        with self._lock:
            own = [name for name in names if self.owns(name)]
            if own:
                self._manifest.open()
                for name in own:
                    (self.path / name).unlink()
                    self._manifest.files[name] = []
                self._manifest.write()

    def clear(self) -> None:
        """Remove every file that is the command's own, if there is any."""
        with self._lock:
            self._manifest.read()
            self.remove(*self._manifest.files)

    def draw(self, pictures: Mapping[str, Callable[[RunFile], object]]) -> list[Path]:
        """Draw images, by file name.

        `report` has more to show than these: instead of raising, it leaves files that might be a user's own,
        and all further images once one cannot be written; see ``left``.

        Returns:
            The files that were drawn.
        """
        drawn = []
        for name, draw in pictures.items():
            refusal = self.refusal(name)
            if refusal is not None and self.command == _REPORT:
                self.left.append(f"{refusal}: it is left as it is")
                continue
            try:
                draw(self.file(name))
            except OSError as error:
                if self.command != _REPORT:
                    raise
                self.left.append(f"pictures are left as they are, since they cannot be written: {error}")
                break
            drawn.append(self.path / name)
        return drawn

    def gather(self) -> None:
        """Merge the manifests of all processes into one, when none of the others writes any more."""
        with self._lock:
            self._manifest.open()
            self._manifest.gather()


class Claim(NamedTuple):
    """Permission to write in folders: all checks have passed, and nothing has been changed yet.

    Attributes:
        plans: each folder, with the files to be written there.
        continued: for each folder, what :meth:`RunFolder.check` returned.
        overwrite: remove what is the command's own.
    """

    plans: Sequence[tuple[RunFolder, Plan]]
    continued: Sequence[Mapping[str, Written]]
    overwrite: bool

    def take(self, processes: int = 1) -> None:
        """Remove what is to be replaced, and list in the manifests what this many processes will write."""
        for (folder, plan), continued in zip(self.plans, self.continued, strict=True):
            folder.begin(plan, continued, overwrite=self.overwrite, processes=processes)


def claim(plans: Sequence[tuple[RunFolder, Plan]], *, resume: bool, overwrite: bool) -> Claim:
    """Check that all of the plans may be written; nothing changes before :meth:`Claim.take`.

    Taking the claim makes files the command's own, also those of a version without manifests, and the next
    command may remove them. So a command takes it last, after everything else that can fail, such as the
    check that the run to be continued is the same one.

    Args:
        plans: each folder, with the files to be written there.
        resume: continue what is the command's own, also if a version without manifests wrote it.
        overwrite: remove what is the command's own.

    Raises:
        OutputExistsError: a planned file is there; it is not the command's own, or neither ``resume`` nor
            ``overwrite`` is given.
        ValueError: both are given, a path is no folder, or a manifest is damaged.
        Exception: a file to be continued is damaged; raised by its plan's ``read``.
    """
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other")
    continued = [folder.check(plan, resume=resume, overwrite=overwrite) for folder, plan in plans]
    return Claim(plans, continued, overwrite)
