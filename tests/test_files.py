"""Files are written whole or not at all."""

import json
import os
import signal
import stat

import pytest

from modfast.files import atomic_write, write_json


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_new_file(tmp_path):
    target = tmp_path / "note.txt"
    with atomic_write(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".txt"
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names_in(tmp_path) == ["note.txt"]


def test_replaces_only_at_the_end(tmp_path):
    target = tmp_path / "note.txt"
    target.write_text("old")
    with atomic_write(str(target)) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "note.txt"
    target.write_text("old")

    def interrupted():
        with atomic_write(target) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        interrupted()
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["note.txt"]


def test_killed_while_writing_leaves_the_old_file(tmp_path, run_python):
    target = tmp_path / "note.txt"
    target.write_text("old")
    done = run_python(
        "import os, signal\n"
        "from modfast.files import atomic_write\n"
        f"with atomic_write({str(target)!r}) as temporary:\n"
        "    temporary.write_text('half of the n')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert target.read_text() == "old"


def test_makes_the_folder(tmp_path):
    with atomic_write(tmp_path / "a" / "b" / "note.txt") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "a" / "b" / "note.txt").read_text() == "whole"


def test_as_readable_as_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "note.txt") as temporary:
            temporary.write_text("whole")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "note.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["x" * 255, "ж" * 127, "x" * 250 + ".json", ".hidden", "no suffix", "a.b.c"])
def test_any_file_name(tmp_path, name):
    with atomic_write(tmp_path / name) as temporary:
        temporary.write_text("whole")
    assert (tmp_path / name).read_text() == "whole"
    assert names_in(tmp_path) == [name]


def test_a_folder_in_the_way(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError, match="folder"), atomic_write(target) as temporary:
        temporary.write_text("whole")
    assert names_in(tmp_path) == ["folder"]


def test_json(tmp_path):
    value = {"accuracy": 0.1 + 0.2, "names": ["fc2", "ж"], "nothing": None}
    write_json(tmp_path / "result.json", value)
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8")) == value


@pytest.mark.parametrize(
    ("value", "error"),
    [(float("nan"), ValueError), (float("inf"), ValueError), ({1, 2}, TypeError), (object(), TypeError)],
)
def test_json_that_cannot_be_leaves_the_old_file(tmp_path, value, error):
    target = tmp_path / "result.json"
    write_json(target, 1)
    with pytest.raises(error):
        write_json(target, {"value": value})
    assert json.loads(target.read_text()) == 1
    assert names_in(tmp_path) == ["result.json"]


# What lies before the end mark of texts on Windows, and ends of lines that it would change.
BYTES = b'["a", 1]\r\n\x1a\n'


def test_files_are_read_where_the_system_has_no_flag_for_pipes(tmp_path, run_python):
    (tmp_path / "file").write_bytes(BYTES)
    done = run_python(
        "import importlib, os\n"
        "import modfast.files\n"
        "del os.O_NONBLOCK\n"
        "os.O_BINARY = 1 << 30\n"
        "opened, real = [], os.open\n"
        "def open_as_windows_does(path, flags, *mode):\n"
        "    opened.append(flags)\n"
        "    return real(path, flags & ~os.O_BINARY, *mode)\n"
        "os.open = open_as_windows_does\n"
        "importlib.reload(modfast.files)\n"
        f"with modfast.files.open_to_read({str(tmp_path / 'file')!r}) as file:\n"
        "    print(file.read())\n"
        "assert opened == [os.O_RDONLY | os.O_BINARY], opened\n"
    )
    assert done.stdout == f"{BYTES}\n", done.stderr
