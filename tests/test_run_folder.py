"""A command replaces and removes what its manifest names, and nothing else, whenever it is killed."""

import json
import os

import pytest
from folder_helpers import NOTES, older, texts, tree, write, write_notes

from modfast.files import write_json
from modfast.manifest import COMMANDS, manifest_path, read_manifest
from modfast.run_folder import OutputExistsError, RunFolder, claim

FLAGS = [{}, {"overwrite": True}, {"resume": True}]


# --- What is in the way.


def put(path, what):
    if what == "file":
        path.write_text("note of somebody else")
    elif what == "empty":
        path.touch()
    elif what == "folder":
        path.mkdir()
    elif what == "link":
        (path.parent / "elsewhere.txt").write_text("note elsewhere")
        path.symlink_to("elsewhere.txt")
    elif what == "dangling":
        path.symlink_to("nowhere.txt")
    else:
        os.mkfifo(path)


IN_THE_WAY = ["file", "empty", "folder", "link", "dangling", "pipe"]
FLAGS = [{}, {"overwrite": True}, {"resume": True}]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("what", IN_THE_WAY)
@pytest.mark.parametrize("name", NOTES)
def test_whatever_else_is_at_a_planned_name_is_refused_and_stays(tmp_path, name, what, flags):
    new, held = tmp_path / "new", tmp_path / "held"
    new.mkdir()
    write_notes(held)
    (held / name).unlink()
    for path in (new, held):
        put(path / name, what)
        before = os.listdir(path), os.lstat(path / name)
        if path == new and what == "file" and flags == {"resume": True} and name != "picture.txt":
            continue  # it reads as one of a version without manifests
        with pytest.raises((OutputExistsError, ValueError), match=name if flags else "txt"):
            write_notes(path, **flags)
        assert (os.listdir(path), os.lstat(path / name)) == before


def test_files_at_other_names_never_matter(tmp_path):
    own = ["results.json", "note/a.txt", ".a.txt", ".a-0123456789abcdef.txt", "a.txt.bak", "checkpoint.pt"]
    for name in own:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    for flags in FLAGS:
        write_notes(tmp_path, **flags)
        assert {name: (tmp_path / name).read_text() for name in own} == dict.fromkeys(own, "mine")
        if not flags:
            with pytest.raises(OutputExistsError, match=r"holds a run already \(a\.txt\): .*--overwrite"):
                write_notes(tmp_path)


def test_a_path_that_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        with pytest.raises(ValueError, match=f"out must be a folder, .*{name}"):
            write_notes(tmp_path / name)
    with pytest.raises(OSError, match="file"):
        write_notes(tmp_path / "file" / "within")


def test_flags_that_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="exclude each other"):
        write_notes(tmp_path / "out", resume=True, overwrite=True)
    assert not (tmp_path / "out").exists()


def test_overwriting_removes_what_the_manifest_names_and_is_unchanged(tmp_path):
    write_notes(tmp_path, names=["a.txt", "old.txt", "changed.txt", "linked.txt"])
    (tmp_path / "changed.txt").write_text("note that was annotated")
    (tmp_path / "linked.txt").unlink()
    (tmp_path / "linked.txt").symlink_to("changed.txt")
    write_notes(tmp_path, text="note again:", names=["a.txt", "b.txt"], overwrite=True)
    assert texts(tmp_path) == {
        "a.txt": "note again: a.txt",
        "b.txt": "note again: b.txt",
        "changed.txt": "note that was annotated",
        "linked.txt": "note that was annotated",
    }
    assert (tmp_path / "linked.txt").is_symlink()
    # What was changed is the user's from now on.
    assert set(read_manifest(tmp_path, "train").files) == {"a.txt", "b.txt"}


def test_nothing_is_removed_where_something_is_in_the_way_in_another_folder(tmp_path):
    folders = [RunFolder(tmp_path / name, "reproduce") for name in ("one", "two")]
    claim([(folder, NOTES) for folder in folders], resume=False, overwrite=False).take()
    write(folders[0], "a.txt", "note")
    (tmp_path / "two" / "b.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(OutputExistsError, match=r"two/b\.txt"):
        claim([(folder, NOTES) for folder in folders], resume=False, overwrite=True).take()
    assert tree(tmp_path) == before


def test_what_appears_during_the_work_is_not_replaced(tmp_path):
    folder = RunFolder(tmp_path, "train")
    claim([(folder, NOTES)], resume=False, overwrite=False).take()
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"a\.txt is .* so it is not replaced"):
        write(folder, "a.txt", "note")
    assert texts(tmp_path) == {"a.txt": "mine"}
    folder.remove("a.txt")
    assert texts(tmp_path) == {"a.txt": "mine"}


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a.txt", "a/b.txt", "/tmp/a.txt", "manifest-train.json", "a\0"]
)
def test_only_files_directly_in_the_folder_are_written(tmp_path, name):
    with pytest.raises(ValueError, match="name must be that of a file directly in the folder"):
        RunFolder(tmp_path / "out", "train").file(name)
    assert not (tmp_path / "out").exists()


# --- Commands beside each other.


@pytest.mark.parametrize("second", ["train", "reproduce", "cluster", "circuits"])
@pytest.mark.parametrize("first", ["train", "reproduce", "cluster", "circuits"])
def test_a_run_of_one_command_is_never_overwritten_by_another_one(tmp_path, first, second):
    write_notes(tmp_path, first)
    before = tree(tmp_path)
    for flags in FLAGS:
        if first == second and flags:
            write_notes(tmp_path, second, **flags)
        else:
            message = "already" if first == second else f"was written by `modfast {first}`"
            with pytest.raises(OutputExistsError, match=message):
                write_notes(tmp_path, second, **flags)
            assert tree(tmp_path) == before


def test_each_command_keeps_account_of_its_own_files(tmp_path):
    one, two = RunFolder(tmp_path, "train"), RunFolder(tmp_path, "circuits")
    for index in range(3):
        write(one, f"one{index}.txt", "note")
        write(two, f"two{index}.txt", "note")
    assert list(read_manifest(tmp_path, "train").files) == ["one0.txt", "one1.txt", "one2.txt"]
    assert list(read_manifest(tmp_path, "circuits").files) == ["two0.txt", "two1.txt", "two2.txt"]


def draw(path, command, text):
    folder = RunFolder(path, command)
    drawn = folder.draw({"a.png": lambda path: write_json(path, text)})
    return [each.name for each in drawn], folder.left


def test_what_report_draws_again_stays_the_command_s(tmp_path):
    write_notes(tmp_path, names=["a.txt", "a.png"])
    assert draw(tmp_path, "report", "longer than before") == (["a.png"], [])
    assert draw(tmp_path, "report", "and again") == (["a.png"], [])
    assert (tmp_path / "a.png").read_text() == '"and again"\n'
    write_notes(tmp_path, names=["a.txt", "a.png"], overwrite=True)
    assert draw(tmp_path, "report", "once more") == (["a.png"], [])


def test_report_leaves_what_it_does_not_know(tmp_path):
    write_notes(tmp_path, names=["a.png"])
    (tmp_path / "a.png").write_text("note that was annotated")
    drawn, left = draw(tmp_path, "report", "again")
    assert drawn == []
    assert left == [f"{tmp_path / 'a.png'} is no longer what `modfast train` wrote: it is left as it is"]
    for path in tmp_path.glob("manifest-*"):
        path.unlink()
    drawn, left = draw(tmp_path, "report", "again")
    assert left == [f"{tmp_path / 'a.png'} is in no manifest of modfast: it is left as it is"]
    assert (tmp_path / "a.png").read_text() == "note that was annotated"
    with pytest.raises(OutputExistsError):
        draw(tmp_path, "train", "again")


def test_report_answers_for_pictures_alone(tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    manifest_path(tmp_path, "report").write_text(said(command="report", files={"a.txt": [4]}))
    for flags in FLAGS:
        with pytest.raises((OutputExistsError, ValueError), match=r"a\.txt"):
            write_notes(tmp_path, **flags)
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_several_processes_lose_no_entry(tmp_path):
    first = RunFolder(tmp_path, "circuits")
    claim([(first, NOTES)], resume=False, overwrite=False).take(processes=3)
    others = [RunFolder(tmp_path, "circuits", process=process) for process in (1, 2)]
    for name in ("a.txt", "b.txt", "picture.txt"):
        for number, folder in enumerate([first, *others]):
            write(folder, f"{number}-{name}", "note")
    # Killed now: who goes on alone knows all, and one manifest is left.
    names = {f"{number}-{name}" for number in range(3) for name in NOTES}
    alone = RunFolder(tmp_path, "circuits")
    assert all(alone.refusal(name) is None for name in names)
    claim([(alone, NOTES)], resume=True, overwrite=False).take()
    assert {name for name, sizes in read_manifest(tmp_path, "circuits").files.items() if sizes} == names
    assert [path.name for path in tmp_path.glob("manifest-*")] == ["manifest-circuits.json"]


# --- Runs of versions without manifests.


def test_an_older_run_is_continued_and_then_has_a_manifest(tmp_path):
    write_notes(tmp_path)
    older(tmp_path)
    write_notes(tmp_path, text="note again:", resume=True)
    assert texts(tmp_path)["picture.txt"] == "note again: picture.txt"
    write_notes(tmp_path, overwrite=True)


def test_an_older_run_is_never_overwritten(tmp_path):
    write_notes(tmp_path)
    older(tmp_path)
    before = tree(tmp_path)
    for flags in ({}, {"overwrite": True}):
        with pytest.raises(OutputExistsError, match=r"a\.txt.*without manifests.*--resume.*another folder"):
            write_notes(tmp_path, **flags)
        assert tree(tmp_path) == before


@pytest.mark.parametrize("name", NOTES)
def test_only_what_proves_to_be_ours_is_continued(tmp_path, name):
    write_notes(tmp_path)
    older(tmp_path)
    (tmp_path / name).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=name):
        write_notes(tmp_path, resume=True)
    assert tree(tmp_path) == before


def test_a_name_that_a_manifest_lists_is_of_no_older_version(tmp_path):
    claim([(RunFolder(tmp_path, "train"), NOTES)], resume=False, overwrite=False).take()
    # Killed before anything was written; this is somebody else's, though it reads like ours.
    (tmp_path / "b.txt").write_text("note of somebody else")
    with pytest.raises(OutputExistsError, match=r"b\.txt"):
        write_notes(tmp_path, resume=True)
    assert texts(tmp_path) == {"b.txt": "note of somebody else"}


def test_a_picture_is_not_continued_without_what_it_shows(tmp_path):
    (tmp_path / "picture.txt").write_text("note that looks like ours")
    with pytest.raises(OutputExistsError, match=r"picture\.txt is in no manifest"):
        write_notes(tmp_path, resume=True)
    # Nor beside a run with a manifest, which would know it.
    (tmp_path / "picture.txt").unlink()
    write_notes(tmp_path, names=["a.txt"])
    (tmp_path / "picture.txt").write_text("note that looks like ours")
    with pytest.raises(OutputExistsError, match=r"picture\.txt is in no manifest"):
        write_notes(tmp_path, resume=True)


# --- Manifests that nobody should trust.

TOKEN = "0123456789abcdef"


def said(**changes):
    manifest = {
        "format": "modfast manifest 1",
        "command": "train",
        "token": TOKEN,
        "processes": 1,
        "files": {},
    }
    return json.dumps({**manifest, **changes})


DAMAGED = {
    "truncated": said()[:-9],
    "binary": "\x00\x01",
    "nested": "[" * 100_000,
    "a list": "[]",
    "no format": said(format=None),
    "of another version": said(format="modfast manifest 3"),
    "of another command": said(command="circuits"),
    "a token with a path": said(token="../../../../etc0"),
    "no token": said(token=None),
    "no number of processes": said(processes="1"),
    "too many processes": said(processes=10**9),
    "no files": said(files=None),
    "a path": said(files={"../x": [4]}),
    "an absolute path": said(files={"/etc/passwd": [4]}),
    "a path within": said(files={"a/b": [4]}),
    "another manifest": said(files={"manifest-circuits.json": [4]}),
    "its folder": said(files={".": [4096]}),
    "no sizes": said(files={"a.txt": None}),
    "a size that is no number": said(files={"a.txt": ["4"]}),
    "a negative size": said(files={"a.txt": [-1]}),
}


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("contents", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_manifest_is_refused_and_nothing_touched(tmp_path, contents, flags):
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "x").write_text("mine")
    (folder / "a.txt").write_text("mine")
    manifest_path(folder, "train").write_text(contents)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"manifest-train\.json .*cannot be used .*move it away"):
        write_notes(folder, **flags)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("what", ["folder", "link", "dangling", "pipe"])
def test_a_manifest_that_is_no_file(tmp_path, what):
    put(manifest_path(tmp_path, "train"), what)
    with pytest.raises(ValueError, match="it is no regular file"):
        write_notes(tmp_path, overwrite=True)
    assert not (tmp_path / "a.txt").exists()


def test_an_unknown_command_has_no_manifest(tmp_path):
    with pytest.raises(ValueError, match="command must be one of"):
        RunFolder(tmp_path, "delete")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_written_to_is_said_before_the_work(tmp_path, monkeypatch, command):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system", "manifest")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match="Read-only file system"):
        claim([(RunFolder(tmp_path, command), NOTES)], resume=False, overwrite=False).take()
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_checking_changes_nothing(tmp_path):
    claim([(RunFolder(tmp_path / "out", "train"), NOTES)], resume=False, overwrite=False)
    assert os.listdir(tmp_path) == []
