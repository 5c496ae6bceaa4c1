"""Folders that commands write to: the commands themselves, and a small command of these tests' own."""

import os

from circuit_helpers import CPU

from modfast.cli import main
from modfast.files import atomic_write
from modfast.run_folder import Planned, RunFolder, claim

TINY = ["--data", "digits", "--model", "circuit_helpers:Tiny", "--layers", "fc2", "--clusters", "2"]
MLP_LAYER = ["modfast.models:MLP", "-k", "2,3", "--shuffles", "1", "--n-init", "1", "--layers", "fc3"]
ARGUMENTS = {
    "train": ["train", *TINY, "--epochs", "1", *CPU, "--out"],
    "reproduce": ["reproduce", *TINY, "--epochs", "1", "--seeds", "1", *CPU, "--out"],
    "cluster": ["cluster", *MLP_LAYER, *CPU, "--out"],
    "circuits": [
        "circuits",
        "--labels",
        "0",
        "1",
        "--images",
        "3",
        "--criterion",
        "loss",
        *CPU,
        "--data",
        "digits",
    ],
}
COMMANDS = list(ARGUMENTS)
FLAGS = [[], ["--overwrite"], ["--resume"]]


def picture(path, *_, **__):
    """Write a file that begins as a real picture does; drawing one takes seconds."""
    with atomic_write(path) as temporary:
        start = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (1440).to_bytes(4, "big")
        temporary.write_bytes(start + os.path.basename(path).encode())


def call(command, out, *options):
    return main([*ARGUMENTS[command], str(out), *options])


def tree(folder):
    """Everything below a folder: what files hold, where links lead, None for folders."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            contents[name] = f"-> {os.readlink(path)}"
        else:
            contents[name] = path.read_bytes() if path.is_file() else None
    return contents


def written(empty, made):
    """The files that a command wrote, without its manifests."""
    names = set(tree(made)) - set(tree(empty))
    return sorted(
        name
        for name in names
        if (made / name).is_file() and not os.path.basename(name).startswith("manifest-")
    )


def older(folder):
    """Remove manifests, which older versions did not write."""
    for path in folder.rglob("manifest-*.json"):
        path.unlink()


# --- A command that writes notes.


def read_note(path):
    """Raise if a file is no note, which is these tests' own kind of file."""
    if not path.read_text().startswith("note"):
        raise ValueError(f"{path} is no note")


NOTES = {
    "a.txt": Planned(read_note),
    "b.txt": Planned(read_note),
    "picture.txt": Planned(read_note, drawn_from="a.txt"),
}


def write(folder, name, text):
    with atomic_write(folder.file(name)) as temporary:
        temporary.write_text(text)


def write_notes(path, command="train", text="note", names=NOTES, **flags):
    """Write notes as a command does: claim the files first."""
    folder = RunFolder(path, command)
    plan = {name: NOTES.get(name, Planned(read_note)) for name in names}
    claim([(folder, plan)], **{"resume": False, "overwrite": False, **flags}).take()
    for name in names:
        write(folder, name, f"{text} {name}")
    return folder


def texts(folder):
    """The text of each file directly in a folder, but for manifests."""
    paths = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith("manifest")]
    return {path.name: path.read_text() for path in paths}
