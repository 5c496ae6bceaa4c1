"""Files are written whole or not at all, also when the disk is full."""

import errno
import json
import os
import shutil
import sys

import pytest
from folder_helpers import COMMANDS, call

from modfast.partition import load_partitions
from modfast.train import read_checkpoint


class Disk:
    """Fails at its count-th change below a folder; an audit hook cannot be removed, but disarmed."""

    left = 0
    folder = ""

    def watch(self, event, arguments):
        if not self.left:
            return
        changes = event == "os.rename" or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if changes and self.folder in str(arguments[0]):
            self.left -= 1
            if not self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))


@pytest.fixture(scope="module")
def disk():
    made = Disk()
    sys.addaudithook(made.watch)
    return made


def assert_whole(folder):
    for path in folder.rglob("*"):
        assert not path.name.startswith(".modfast"), path
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name == "checkpoint.pt":
            read_checkpoint(path)
        elif path.name.startswith("partitions") or path.parent.name == "layers":
            if path.suffix == ".npz":
                load_partitions(path)
        elif path.suffix == ".png":
            assert path.read_bytes().endswith(path.name.encode())


@pytest.mark.parametrize("command", COMMANDS)
def test_files_are_whole_or_absent_when_the_disk_is_full(command, empty, copy, disk, capsys, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    count, status = 0, 1
    while status:
        # Each change at first, later some of them.
        count += 1 if count < 8 else 7
        out = copy(empty[command])
        disk.folder, disk.left = str(out), count
        status = call(command, out)
        error = capsys.readouterr().err
        if status:
            assert error.startswith("modfast: error: ")
            assert "No space left on device" in error
            assert error.count("\n") == 1
        disk.left = 0
        assert_whole(out)
        assert call(command, out, "--resume") == 0
        assert_whole(out)
        shutil.rmtree(out)
    assert count > 15
