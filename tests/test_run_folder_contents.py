"""A file is a command's own by what it holds, not by its size or its times."""

import json
import os
import shutil

import pytest
from folder_helpers import call, texts, tree, write, write_notes

from modfast.files import open_to_read, read_arrays, read_json
from modfast.manifest import manifest_path, read_manifest
from modfast.run_folder import OutputExistsError, RunFolder
from modfast.train.checkpoint import read_checkpoint

FLAGS = [{"overwrite": True}, {"resume": True}]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_another_file_of_the_same_size_is_somebody_else_s(tmp_path, flags):
    write_notes(tmp_path, text="note")
    (tmp_path / "a.txt").write_text("note mine!")
    os.utime(tmp_path / "a.txt", ns=(0, 0))
    before = tree(tmp_path)
    assert len(before["a.txt"]) == len("note a.txt")
    with pytest.raises(OutputExistsError, match=r"a\.txt is no longer what `modfast train` wrote"):
        write_notes(tmp_path, **flags)
    assert tree(tmp_path) == before
    folder = RunFolder(tmp_path, "train")
    with pytest.raises(OutputExistsError, match=r"so it is not replaced"):
        write(folder, "a.txt", "note")
    folder.remove("a.txt")
    folder.clear()
    assert texts(tmp_path) == {"a.txt": "note mine!"}


def test_a_model_of_the_same_size_that_was_moved_here_stays(tmp_path):
    for seed in "12":
        assert call("train", tmp_path / seed, "--seed", seed) == 0
    ours, moved = tmp_path / "1" / "checkpoint.pt", tmp_path / "2" / "checkpoint.pt"
    os.replace(moved, ours)
    before = tree(tmp_path)
    for flag in ("--overwrite", "--resume"):
        assert call("train", tmp_path / "1", "--seed", "1", flag) == 1
        assert tree(tmp_path) == before


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_a_copied_folder_is_as_much_a_command_s_own(tmp_path, flags):
    write_notes(tmp_path / "out")
    for path in shutil.copytree(tmp_path / "out", tmp_path / "copy").iterdir():
        os.utime(path, ns=(0, 0))
    write_notes(tmp_path / "copy", text="note again:", **flags)
    assert texts(tmp_path / "copy")["a.txt"] == "note again: a.txt"


def test_what_was_written_and_what_is_about_to_be_are_both_known(tmp_path):
    """A process may be killed between its word in the manifest and the renaming."""
    folder = RunFolder(tmp_path, "train")
    write(folder, "a.txt", "note 1")
    (tmp_path / "new").write_text("note 2")
    folder.approve("a.txt", tmp_path / "new")
    assert RunFolder(tmp_path, "train").owns("a.txt")
    os.replace(tmp_path / "new", tmp_path / "a.txt")
    assert RunFolder(tmp_path, "train").owns("a.txt")
    (tmp_path / "a.txt").write_text("note 3")
    assert not RunFolder(tmp_path, "train").owns("a.txt")


# --- Manifests of the version before, which noted sizes alone.


def with_sizes_alone(path):
    said = json.loads(path.read_text())
    said["format"] = "modfast manifest 1"
    said["files"] = {name: [size for size, _ in written] for name, written in said["files"].items()}
    path.write_text(json.dumps(said))


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_a_manifest_of_sizes_is_read_and_then_knows_more(tmp_path, flags):
    write_notes(tmp_path)
    with_sizes_alone(manifest_path(tmp_path, "train"))
    assert {each.sha256 for each in read_manifest(tmp_path, "train").files["a.txt"]} == {None}
    write_notes(tmp_path, text="note again:", **flags)
    known = read_manifest(tmp_path, "train").files
    assert all(each.sha256 is not None for written in known.values() for each in written)
    (tmp_path / "a.txt").write_text("mine again: a.txt")
    with pytest.raises(OutputExistsError, match="no longer what"):
        write_notes(tmp_path, overwrite=True)


DIGEST = "0" * 64
DAMAGED = {
    "a size alone": [4],
    "no pair": [[4]],
    "three": [[4, DIGEST, 1]],
    "a short digest": [[4, DIGEST[1:]]],
    "another digest": [[4, 7]],
    "a negative size": [[-1, DIGEST]],
    "a size that is no number": [["4", DIGEST]],
    "true": [[True, DIGEST]],
    "a mapping": {"4": DIGEST},
}


@pytest.mark.parametrize("written", DAMAGED.values(), ids=DAMAGED)
def test_damaged_contents_are_refused(tmp_path, written):
    write_notes(tmp_path)
    path = manifest_path(tmp_path, "train")
    said = json.loads(path.read_text())
    said["files"]["a.txt"] = written
    path.write_text(json.dumps(said))
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"manifest-train\.json .*cannot be used .*'a\.txt'"):
        write_notes(tmp_path, overwrite=True)
    assert tree(tmp_path) == before


# --- What is no file is not read.


@pytest.mark.parametrize("linked", [False, True], ids=["itself", "behind a link"])
@pytest.mark.parametrize(("what", "told"), [("pipe", "a named pipe"), ("folder", "a folder")])
def test_what_is_no_file_is_not_waited_for(tmp_path, what, told, linked):
    path = tmp_path / "it"
    (os.mkfifo if what == "pipe" else os.mkdir)(path)
    if linked:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"

    def arrays(path):
        with read_arrays(path, "format", "file"):
            pass

    for read in (open_to_read, read_json, arrays, read_checkpoint):
        with pytest.raises((ValueError, IsADirectoryError), match=f"{path.name} is {told}, not a file"):
            read(path)
    with pytest.raises(FileNotFoundError):
        open_to_read(tmp_path / "nothing")


COMMANDS = {
    "train": "checkpoint.pt",
    "reproduce": "plain-seed42/checkpoint.pt",
    "cluster": "results.json",
    "circuits": "circuits/loss/settings.json",
}


@pytest.mark.parametrize("what", ["pipe", "folder"])
@pytest.mark.parametrize(("command", "name"), COMMANDS.items())
def test_commands_say_what_is_no_file(tmp_path, capsys, command, name, what):
    if command == "circuits":
        assert call("train", tmp_path) == 0
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (os.mkfifo if what == "pipe" else os.mkdir)(tmp_path / name)
    before = {path: os.lstat(path) for path in tmp_path.rglob("*")}
    for flags in ([], ["--overwrite"], ["--resume"]):
        assert call(command, tmp_path, *flags) == 1
        told = capsys.readouterr().err
        assert f"{name} is {'a named pipe' if what == 'pipe' else 'a folder'}" in told
        assert "damaged" not in told
    assert {path: os.lstat(path) for path in tmp_path.rglob("*")} == before
