"""A command may be killed at any moment, and can be resumed."""

import os
import sys

import pytest
from folder_helpers import NOTES, older, texts, write, write_notes

from modfast.manifest import manifest_path, read_manifest
from modfast.run_folder import RunFolder, claim

TOKEN = "0123456789abcdef"


def killed_before(count, folder, work):
    """The status of a process that does ``work``, killed before its count-th change below ``folder``."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = count

    def watch(event, arguments):
        nonlocal left
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if changes and str(folder) in str(arguments[0]):
            left -= 1
            if left == 0:
                os._exit(9)

    try:
        sys.addaudithook(watch)
        work()
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
        os._exit(1)


@pytest.mark.parametrize(
    ("before", "flag"),
    [
        ("nothing", "resume"),
        ("a run", "resume"),
        ("a run", "overwrite"),
        ("an older run", "resume"),
        ("a killed run of three processes", "resume"),
        ("a killed run of three processes", "overwrite"),
    ],
)
def test_a_command_that_is_killed_anywhere_can_be_resumed(tmp_path, monkeypatch, before, flag):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # it matters when the machine fails, not the process
    count = 0
    status = 9
    while status == 9:
        count += 1
        path = tmp_path / str(count)
        path.mkdir()
        (path / "mine.txt").write_text("mine")
        if before != "nothing":
            write_notes(
                path,
                text="note of long ago:",
                names=["a.txt", "b.txt", "picture.txt", "old.txt"],
                command="circuits",
            )
        if before == "an older run":
            older(path)
        if before.startswith("a killed"):
            claim([(RunFolder(path, "circuits"), NOTES)], resume=True, overwrite=False).take(processes=3)
            write(RunFolder(path, "circuits", process=2), "b.txt", "note of another process")

        status = killed_before(count, path, lambda path=path: write_notes(path, "circuits", **{flag: True}))
        assert status in (0, 9)
        # Whatever was written is whole.
        for name, text in texts(path).items():
            if not name.startswith("."):
                assert text.endswith(name) or text in ("mine", "note of another process")
        write_notes(path, "circuits", text="note at last:", resume=True)
        expected = {name: f"note at last: {name}" for name in NOTES} | {"mine.txt": "mine"}
        left = texts(path)
        assert left.pop("old.txt", "note of long ago: old.txt") == "note of long ago: old.txt"
        assert left == expected
        assert [name for name in os.listdir(path) if name.startswith("manifest")] == [
            "manifest-circuits.json"
        ]
    assert count > 10


def test_temporary_files_of_others_stay(tmp_path):
    write_notes(tmp_path)
    token = read_manifest(tmp_path, "train").token
    like_ours = [
        ".modfast-0123456789abcdef-a.txt",
        ".modfast-a.txt",
        f".modfast-{token}-c.txt",
        f".modfast-{token}",
    ]
    for name in like_ours:
        (tmp_path / name).write_text("mine")
    (tmp_path / f".modfast-{token}-a.txt").write_text("half of the n")
    (tmp_path / f".modfast-{token}-b.txt").mkdir()
    write_notes(tmp_path, names=["a.txt"], resume=True)
    assert all((tmp_path / name).read_text() == "mine" for name in like_ours)
    assert not (tmp_path / f".modfast-{token}-a.txt").exists()
    assert (tmp_path / f".modfast-{token}-b.txt").is_dir()


def test_a_manifest_that_was_only_begun_is_none(tmp_path):
    manifest_path(tmp_path, "train").touch()
    write_notes(tmp_path)
    assert set(read_manifest(tmp_path, "train").files) == set(NOTES)
