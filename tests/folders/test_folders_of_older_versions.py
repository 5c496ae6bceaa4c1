"""Runs of versions that kept no manifest are read and continued, and never deleted."""

import os
import shutil

import pytest
from folder_helpers import COMMANDS, FLAGS, call, older, tree, written

from modfast.cli import main
from modfast.results import read_results


@pytest.mark.parametrize("command", COMMANDS)
def test_an_older_run_stays_readable_and_is_never_deleted(command, made, copy, capsys):
    out = copy(made[command])
    older(out)
    before = tree(out)
    assert main(["report", str(out)]) == 0
    shown = capsys.readouterr().out
    assert tree(out) == before
    assert "is in no manifest of modfast: it is left as it is" in shown
    for flags in ([], ["--overwrite"]):
        assert call(command, out, *flags) == 1
        assert "--resume" in capsys.readouterr().err
        assert tree(out) == before
    if command == "reproduce":
        assert main(["report", str(out / "plain-seed42")]) == 0
        assert call("train", out / "plain-seed42", "--overwrite") == 1
        assert tree(out) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_an_older_run_is_continued_and_then_like_any_other(command, made, copy):
    out = copy(made[command])
    older(out)
    assert call(command, out, "--resume") == 0
    assert set(tree(out)) == set(tree(made[command])) - (
        {"manifest-train.json"} if command == "circuits" else set()
    )
    assert main(["report", str(out)]) == 0
    assert call(command, out, "--overwrite") == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_report_draws_what_an_older_run_lacks(command, made, copy):
    out = copy(made[command])
    older(out)
    pictures = [path for path in out.iterdir() if path.suffix in (".png", ".html")]
    before = tree(out)
    pictures[0].unlink()
    assert main(["report", str(out)]) == 0
    assert tree(out).items() > before.items()
    # It then knows that this one is its own, but still of no other.
    pictures[0].write_text("mine")
    assert main(["report", str(out)]) == 0
    assert pictures[0].read_text() == "mine"


@pytest.mark.parametrize("finished", [True, False])
def test_an_older_run_that_was_interrupted_is_continued(finished, made, copy):
    out = copy(made["train"])
    older(out)
    if not finished:
        for path in out.iterdir():
            if path.name != "checkpoint.pt":
                path.unlink()
    assert call("train", out, "--epochs", "2", "--resume") == 0
    assert len(read_results(out)["history"]) == 2
    assert call("train", out, "--overwrite") == 0


def test_an_older_comparison_is_continued_with_its_circuits(tmp_path):
    options = ["--circuits", "loss"]
    assert call("reproduce", tmp_path, *options) == 0
    older(tmp_path)
    assert call("reproduce", tmp_path, *options, "--resume") == 0
    assert call("reproduce", tmp_path, *options, "--overwrite") == 0


def test_circuits_of_an_older_run(made, copy):
    out = copy(made["train"])
    older(out)
    assert call("circuits", out) == 0
    assert main(["report", str(out)]) == 0
    assert call("circuits", out, "--overwrite") == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_report_leaves_a_picture_that_was_changed(command, made, empty, copy, capsys):
    out = copy(made[command])
    pictures = [
        out / name for name in written(empty[command], made[command]) if name.endswith(("png", "html"))
    ]
    pictures = [path for path in pictures if path.parent == out]
    for path in pictures:
        path.write_text("annotated")
    assert main(["report", str(out)]) == 0
    shown = capsys.readouterr().out
    for path in pictures:
        assert f"{path.name} is no longer what `modfast {command}` wrote: it is left as it is" in shown
        assert path.read_text() == "annotated"


@pytest.mark.parametrize("command", ["train", "reproduce", "cluster"])
def test_clusters_of_a_user_s_own_are_not_taken_for_an_older_run_s(command, empty, made, copy, capsys):
    """A file of the right kind at one of our names, where nothing else is of a run."""
    partitions = [name for name in written(empty[command], made[command]) if name.endswith(".npz")]
    assert partitions
    for name in partitions:
        out = copy(empty[command])
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copy(made[command] / name, out / name)
        before = tree(out)
        for flags in FLAGS:
            assert call(command, out, *flags) == 1, name
            assert os.path.basename(name) in capsys.readouterr().err
            assert tree(out) == before
        shutil.rmtree(out)
