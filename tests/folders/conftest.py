"""Folders that each command has written to, made quickly: without drawing its pictures."""

import shutil

import pytest
from folder_helpers import COMMANDS, call, picture

from modfast.data import load_dataset


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Read the data once, and write placeholders instead of pictures."""
    digits = load_dataset("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modfast.cli.machine.load_dataset", lambda *_, **__: digits)
        for name in ("draw_weights", "draw_curves", "draw_class_accuracy", "draw_comparison"):
            patch.setattr(f"modfast.experiment.runs.{name}", picture)
        for name in ("_draw_clusterability", "_draw_matrices"):
            patch.setattr(
                f"modfast.report.pictures.clusters.{name}", lambda *arguments: picture(arguments[-1])
            )
        patch.setattr("modfast.report.circuits.report._report", lambda _: "<!DOCTYPE html>\n<html></html>")
        yield


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """For each command, a folder on which it can be called for the first time."""
    folders = {command: tmp_path_factory.mktemp("empty") / command for command in COMMANDS}
    for command, folder in folders.items():
        if command == "circuits":
            assert call("train", folder) == 0
        else:
            folder.mkdir()
    return folders


@pytest.fixture(scope="module")
def made(empty, tmp_path_factory):
    """For each command, a folder that it has written to."""
    folders = {}
    for command, before in empty.items():
        folders[command] = shutil.copytree(before, tmp_path_factory.mktemp("made") / command)
        assert call(command, folders[command]) == 0
    return folders


@pytest.fixture
def copy(tmp_path):
    return lambda folder: shutil.copytree(folder, tmp_path / "out", symlinks=True)


@pytest.fixture(scope="module")
def trained_longer(made, tmp_path_factory):
    """The folders of ``made``, with models trained for two epochs, which cannot be continued to one."""
    folders = dict(made)
    for command in ("train", "reproduce"):
        folders[command] = shutil.copytree(made[command], tmp_path_factory.mktemp("longer") / command)
        assert call(command, folders[command], "--epochs", "2", "--resume") == 0
    return folders
