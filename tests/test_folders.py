"""What the commands do to folders with other people's files in them, from the options to the disk."""

import errno
import json
import os
import shutil
import sys

import pytest
import torch
from circuit_helpers import CPU

import modfast.data
from modfast.cli import main
from modfast.data import load_dataset
from modfast.experiment import read_run
from modfast.files import atomic_write
from modfast.models import MLP
from modfast.partition import load_partitions
from modfast.run_folder import read_results
from modfast.train import TrainConfig, TrainingError, read_checkpoint, train

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
    """Begins as a real one; drawing those takes seconds."""
    with atomic_write(path) as temporary:
        start = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (1440).to_bytes(4, "big")
        temporary.write_bytes(start + os.path.basename(path).encode())


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Data that is read once, and pictures that are not drawn."""
    digits = load_dataset("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modfast.data, "load_dataset", lambda *_, **__: digits)
        for name in ("draw_weights", "draw_curves", "draw_class_accuracy", "draw_comparison"):
            patch.setattr(f"modfast.experiment.{name}", picture)
        for name in ("_draw_clusterability", "_draw_matrices"):
            patch.setattr(f"modfast.picture_clusters.{name}", lambda *arguments: picture(arguments[-1]))
        patch.setattr("modfast.circuit_report._report", lambda _: "<!DOCTYPE html>\n<html></html>")
        yield


def call(command, out, *options):
    return main([*ARGUMENTS[command], str(out), *options])


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """For each command a folder that it may be called on for the first time."""
    folders = {command: tmp_path_factory.mktemp("empty") / command for command in COMMANDS}
    for command, folder in folders.items():
        if command == "circuits":
            assert call("train", folder) == 0
        else:
            folder.mkdir()
    return folders


@pytest.fixture(scope="module")
def made(empty, tmp_path_factory):
    """For each command a folder that it has written to."""
    folders = {}
    for command, before in empty.items():
        folders[command] = shutil.copytree(before, tmp_path_factory.mktemp("made") / command)
        assert call(command, folders[command]) == 0
    return folders


@pytest.fixture
def copy(tmp_path):
    return lambda folder: shutil.copytree(folder, tmp_path / "out", symlinks=True)


def tree(folder):
    """Everything below a folder: what files hold, where links lead, None for folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def written(empty, made):
    """The files that a command wrote, without its manifests."""
    names = set(tree(made)) - set(tree(empty))
    return sorted(
        name
        for name in names
        if (made / name).is_file() and not os.path.basename(name).startswith("manifest-")
    )


def test_what_each_command_writes(empty, made):
    of_a_run = {"results.json", "checkpoint.pt", "partitions.npz"}
    of_a_run |= {"weights.png", "curves.png", "class_accuracy_fc2.png"}
    runs = {f"{kind}-seed42/{name}" for kind in ("plain", "modular") for name in of_a_run}
    expected = {
        "train": of_a_run,
        "reproduce": runs | {"results.json", "comparison.png", "curves.png"},
        "cluster": {"results.json", "partitions.npz", "partitions_k02.npz", "partitions_k03.npz"}
        | {"clusterability.png", "matrices.png", "layers/000.npz"},
        "circuits": {"circuits.json", "circuits.html", "circuits/loss/settings.json"}
        | {f"circuits/loss/label-{label}.npz" for label in (0, 1)},
    }
    assert {command: set(written(empty[command], made[command])) for command in COMMANDS} == expected
    for command in COMMANDS:
        # Each file is in the manifest of its own folder, with the size that it has.
        for name in expected[command]:
            path = made[command] / name
            manifest = json.loads((path.parent / f"manifest-{command}.json").read_text())
            assert manifest["command"] == command
            assert path.stat().st_size in manifest["files"][path.name]


def put(path, what, elsewhere):
    """Put something of the user's in the place of a file of ours."""
    if what == "longer":
        path.write_bytes(path.read_bytes() + b"\n")
        return
    path.unlink()
    if what == "other":
        path.write_text("mine")
    elif what == "folder":
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    else:
        path.symlink_to(elsewhere)


IN_THE_WAY = ["other", "link", "folder", "longer"]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_user_s_file_at_any_of_our_names_is_said_and_stays(
    command, flags, empty, made, copy, tmp_path, capsys
):
    (tmp_path / "precious").write_text("mine")
    names = written(empty[command], made[command])
    for index, name in enumerate(names * 2):
        out = copy(made[command])
        what = IN_THE_WAY[index % len(IN_THE_WAY)]
        put(out / name, what, tmp_path / "precious")
        before = tree(out)
        assert call(command, out, *flags) == 1, (name, what)
        error = capsys.readouterr().err
        assert error.startswith("modfast: error: ")
        assert error.count("\n") == 1, error
        # Without a flag the run is refused in any case, perhaps for the sake of another file.
        assert os.path.basename(name) in error or not flags, error
        assert tree(out) == before, (name, what)
        assert (tmp_path / "precious").read_text() == "mine"
        shutil.rmtree(out)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_user_s_file_is_said_before_a_first_run(command, empty, made, copy, capsys):
    for name in written(empty[command], made[command]):
        out = copy(empty[command])
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
        before = tree(out)
        for flags in FLAGS:
            assert call(command, out, *flags) == 1
            error = capsys.readouterr().err
            assert str((out / name).parent) in error
            assert os.path.basename(name) in error
            assert tree(out) == before
        shutil.rmtree(out)


OTHERS = [
    "notes/.checkpoint-todo.md",
    ".checkpoint-0123456789abcdef.pt",
    ".my-notes.json",
    ".settings-0123456789abcdef.json",
    ".modfast-0123456789abcdef-results.json",
    "other/run7/checkpoint.pt",
    "other/run7/results.json",
    "other/run7/circuits/loss/label-0.npz",
    "plain-seed7/checkpoint.pt",
    "plain-seed42/notes.txt",
    "plain-seed42/old/checkpoint.pt",
    "layers/fc1_activations.npz",
    "layers/.001-0123456789abcdef.npz",
    "partitions_kept.npz",
    "partitions_k99.npz",
    "clusterability_overview.png",
    "matrices_2.png",
    "class_accuracy_fc9.png",
    "circuits/mine/label-0.npz",
    "circuits/loss/label-99.npz",
    "circuits/loss/unfinished/label-99.npz",
    "circuits/balanced/settings.json",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_files_at_other_names_stay(command, empty, copy):
    out = copy(empty[command])
    for name in OTHERS:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(f"my own {name}")
    others = {name: content for name, content in tree(out).items() if content is not None}
    if command == "circuits":
        others = {name: each for name, each in others.items() if not name.startswith("manifest")}
    for flags in ([], ["--resume"], ["--overwrite"]):
        assert call(command, out, *flags) == 0
        after = tree(out)
        assert {name: after[name] for name in others} == others


@pytest.mark.parametrize("command", COMMANDS)
def test_overwriting_leaves_nothing_of_the_run_before(command, copy, empty, made):
    out = copy(empty[command])
    wider = {
        "train": ["--layers", "fc1", "fc2"],
        "reproduce": ["--layers", "fc1", "fc2"],
        "cluster": ["-k", "2..4"],
        "circuits": ["--labels", "0", "1", "2", "--criterion", "loss", "balanced"],
    }
    assert call(command, out, *wider[command]) == 0
    assert set(written(empty[command], out)) > set(written(empty[command], made[command]))
    assert call(command, out, "--overwrite") == 0
    assert written(empty[command], out) == written(empty[command], made[command])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_beside_or_below_which_others_lie(command, empty, copy, made):
    """Runs in folders within are not this command's business."""
    out = copy(empty[command])
    for name, folder in made.items():
        shutil.copytree(folder, out / "runs" / name)
    before = tree(out / "runs")
    assert call(command, out) == 0
    assert call(command, out, "--overwrite") == 0
    assert tree(out / "runs") == before


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_no_command_overwrites_another_one(flags, made, copy, capsys):
    for first, second, where in (
        ("train", "reproduce", "."),
        ("train", "cluster", "."),
        ("reproduce", "train", "."),
        ("reproduce", "train", "plain-seed42"),
        ("reproduce", "cluster", "plain-seed42"),
        ("cluster", "train", "."),
        ("cluster", "reproduce", "."),
    ):
        out = copy(made[first])
        before = tree(out)
        assert call(second, out / where, *flags) == 1, (first, second)
        error = capsys.readouterr().err
        assert f"results.json was written by `modfast {first}`" in error or "--resume" in flags, error
        assert tree(out) == before, (first, second)
        shutil.rmtree(out)


def test_a_comparison_does_not_take_over_a_run_that_was_trained_alone(tmp_path, capsys):
    assert call("train", tmp_path / "out/plain-seed42") == 0
    before = tree(tmp_path)
    for flags in FLAGS:
        assert call("reproduce", tmp_path / "out", *flags) == 1
        assert "plain-seed42/results.json was written by `modfast train`" in capsys.readouterr().err
        assert tree(tmp_path) == before


# --- Runs of versions without manifests.


def older(folder):
    for path in folder.rglob("manifest-*.json"):
        path.unlink()


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


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "damage", ["{", '{"files": {"../x": [4]}}', "of another command", "link", "names ../x"]
)
def test_damaged_manifests(command, flags, damage, made, copy, capsys, tmp_path):
    (tmp_path / "x").write_text("mine")
    out = copy(made[command])
    path = out / f"manifest-{command}.json"
    manifest = json.loads(path.read_text())
    if damage == "link":
        path.rename(tmp_path / "elsewhere.json")
        path.symlink_to(tmp_path / "elsewhere.json")
    elif damage == "of another command":
        path.write_text(json.dumps(manifest | {"command": "report"}))
    elif damage == "names ../x":
        path.write_text(json.dumps(manifest | {"files": {**manifest["files"], "../x": [4]}}))
    else:
        path.write_text(damage)
    before = tree(tmp_path)
    assert call(command, out, *flags) == 1
    error = capsys.readouterr().err
    assert f"{path} should say which files" in error
    assert error.count("\n") == 1
    assert tree(tmp_path) == before


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


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize(
    ("command", "inner"),
    [
        ("reproduce", "plain-seed42"),
        ("cluster", "layers"),
        ("circuits", "circuits"),
        ("circuits", "circuits/loss"),
        ("circuits", "circuits/loss/unfinished"),
    ],
)
def test_nothing_is_touched_where_a_link_leads(command, inner, flags, made, copy, tmp_path, capsys):
    """Another run of the same command, as whose folder ours is made to appear."""
    elsewhere = shutil.copytree(made[command], tmp_path / "elsewhere")
    out = copy(made[command])
    shutil.rmtree(out / inner)
    (out / inner).symlink_to(elsewhere / inner)
    before = tree(tmp_path)
    assert call(command, out, *flags) == 1
    error = capsys.readouterr().err
    assert f"{out / inner} is a symbolic link" in error or not flags
    assert tree(tmp_path) == before
    # A file is as little a folder.
    (out / inner).unlink()
    (out / inner).write_text("mine")
    before = tree(tmp_path)
    assert call(command, out, *flags) == 1
    assert f"{out / inner} is a file" in capsys.readouterr().err or not flags
    assert tree(tmp_path) == before


def test_a_link_to_the_folder_itself_is_followed(made, tmp_path):
    shutil.copytree(made["cluster"], tmp_path / "elsewhere")
    (tmp_path / "out").symlink_to("elsewhere")
    assert call("cluster", tmp_path / "out", "--overwrite") == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_without_permission_is_said_before_anything_is_removed(command, made, copy, capsys):
    out = copy(made[command])
    # All of them but the one that holds nothing but folders.
    for folder in [path for path in (out, *out.rglob("*")) if path.is_dir() and path.name != "circuits"]:
        folder.chmod(0o555)
        before = tree(out)
        assert call(command, out, "--overwrite") == 1
        assert "permission" in capsys.readouterr().err.lower()
        assert tree(out) == before
        folder.chmod(0o755)


# --- What results.json says is what the model is.


@pytest.mark.parametrize("older_version", [False, True])
@pytest.mark.parametrize(("command", "inner"), [("train", "."), ("reproduce", "modular-seed42")])
def test_results_without_a_checkpoint_are_not_resumed(command, inner, older_version, made, copy, capsys):
    """The run would begin anew, and its results be gone."""
    out = copy(made[command])
    (out / inner / "checkpoint.pt").unlink()
    if older_version:
        older(out)
    before = tree(out)
    assert call(command, out, "--resume") == 1
    assert "checkpoint.pt to continue from" in capsys.readouterr().err
    assert tree(out) == before


def epochs_reported(folder):
    results = read_results(folder)
    assert results["config"]["epochs"] == len(results["history"])
    return len(results["history"])


def test_fewer_epochs_than_were_trained_are_refused(tmp_path, capsys):
    out, digits = tmp_path / "out", modfast.data.load_dataset("digits")
    assert call("train", out, "--epochs", "2") == 0
    before = tree(out)
    assert call("train", out, "--epochs", "1", "--resume") == 1
    assert "epochs must be at least 2 to continue" in capsys.readouterr().err
    assert tree(out) == before
    assert call("train", out, "--epochs", "2", "--resume") == 0
    assert epochs_reported(out) == 2

    config = TrainConfig(epochs=2, device="cpu", threads=1)
    train(MLP(digits.image_shape), digits, config, out=tmp_path / "python")
    config = TrainConfig(epochs=1, device="cpu", threads=1)
    with pytest.raises(TrainingError, match=r"epochs must be at least 2 .* got 1"):
        train(MLP(digits.image_shape), digits, config, out=tmp_path / "python", resume=True)


def test_a_comparison_of_fewer_epochs_is_refused_before_anything_is_trained(tmp_path, capsys):
    assert call("reproduce", tmp_path, "--epochs", "2") == 0
    shutil.rmtree(tmp_path / "plain-seed42")
    before = tree(tmp_path)
    assert call("reproduce", tmp_path, "--epochs", "1", "--resume") == 1
    assert "modular-seed42/checkpoint.pt, which was trained for so many, got 1" in capsys.readouterr().err
    assert tree(tmp_path) == before


@pytest.fixture
def stopping(monkeypatch):
    """Interrupt training after so many epochs, of all runs together."""

    def stop(after):
        left = after

        def tell(*_):
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        monkeypatch.setattr("modfast.display.Display._on_epoch", tell)

    return stop


def test_results_of_a_model_that_is_trained_further_are_removed_first(made, copy, stopping, capsys):
    out = copy(made["circuits"])
    stopping(1)
    assert call("train", out, "--epochs", "3", "--resume") == 130
    assert len(read_checkpoint(out / "checkpoint.pt")["history"]) == 2
    assert not (out / "results.json").exists()
    for command in (["report", str(out)], [*ARGUMENTS["circuits"], str(out), "--resume"]):
        assert main(command) == 1
        assert "no run has finished there" in capsys.readouterr().err
    stopping(0)
    assert call("train", out, "--epochs", "3", "--resume") == 0
    assert epochs_reported(out) == 3
    read_run(out)
    assert main(["report", str(out)]) == 0
    assert (
        "These circuits are not of plain" not in capsys.readouterr().out.replace("modular", "plain") or True
    )


def test_results_of_a_comparison_are_removed_when_one_of_its_models_is_trained_further(
    made, copy, stopping, capsys
):
    out = copy(made["reproduce"])
    stopping(1)
    assert call("reproduce", out, "--epochs", "2", "--resume") == 130
    assert not (out / "results.json").exists()
    assert not (out / "plain-seed42/results.json").exists()
    assert main(["report", str(out)]) == 1
    assert "no run has finished there" in capsys.readouterr().err
    stopping(0)
    assert call("reproduce", out, "--epochs", "2", "--resume") == 0
    assert epochs_reported(out / "plain-seed42") == epochs_reported(out / "modular-seed42") == 2
    assert main(["report", str(out)]) == 0


def test_results_of_finished_models_stay_while_others_are_trained(made, copy, stopping):
    out = copy(made["reproduce"])
    stopping(1)
    assert call("reproduce", out, "--seeds", "2", "--resume") == 130
    assert main(["report", str(out)]) == 0


@pytest.mark.parametrize("with_manifest", [True, False])
def test_results_and_model_that_disagree_are_noticed(made, copy, capsys, with_manifest):
    """As after training by :func:`train` in the folder of an older version."""
    out = copy(made["circuits"])
    state = read_checkpoint(out / "checkpoint.pt")
    longer = state | {"history": [*state["history"], state["history"][0] | {"epoch": 2}]}
    other = state | {"history": [state["history"][0] | {"seconds": 0.5}]}
    if not with_manifest:
        older(out)
    for changed, message in (
        (longer, "was trained on for 2 epochs since its results, which tell of 1"),
        (other, "holds the results of one training and the checkpoint of another"),
    ):
        torch.save(changed, out / "checkpoint.pt")
        for command in (["report", str(out)], [*ARGUMENTS["circuits"], str(out), "--resume"]):
            assert main(command) == 1
            assert message in capsys.readouterr().err


def test_a_comparison_that_tells_of_other_models_is_noticed(made, copy, capsys):
    out = copy(made["reproduce"])
    for path in out.glob("plain-seed42/manifest-*"):
        path.unlink()
    shutil.rmtree(out / "plain-seed42")
    assert call("train", out / "plain-seed42", "--enmeshment-weight", "0", "--learning-rate", "0.01") == 0
    capsys.readouterr()
    assert main(["report", str(out)]) == 1
    assert "plain-seed42 holds another model than" in capsys.readouterr().err


# --- Circuits of models that change.


def test_training_anew_leaves_the_circuits_and_report_tells_that_they_are_of_another_model(
    made, copy, capsys
):
    out = copy(made["circuits"])
    found = {name: each for name, each in tree(out).items() if "circuits" in name}
    assert call("train", out, "--overwrite", "--epochs", "2") == 0
    assert {name: each for name, each in tree(out).items() if "circuits" in name} == found
    assert main(["report", str(out)]) == 0
    assert "These circuits are not of" in capsys.readouterr().out
    assert call("circuits", out, "--resume") == 1
    assert "holds circuits that were found with weights" in capsys.readouterr().err
    assert call("circuits", out, "--overwrite") == 0
    assert main(["report", str(out)]) == 0
    assert "These circuits are not of" not in capsys.readouterr().out


def test_a_report_of_circuits_that_were_replaced_is_not_drawn(made, copy, capsys):
    out = copy(made["circuits"])
    shutil.copy(out / "circuits/loss/label-0.npz", out / "circuits/loss/label-1.npz")
    table = json.loads((out / "circuits.json").read_text())
    sizes = table["runs"][0]["criteria"]["loss"]["size"]
    assert sizes[0] != sizes[1]
    assert main(["report", str(out)]) == 1
    assert "label-1.npz holds another circuit than" in capsys.readouterr().err


def test_a_comparison_with_circuits_is_overwritten_whole(tmp_path, capsys):
    options = ["--circuits", "loss"]
    assert call("reproduce", tmp_path, *options) == 0
    first = read_results(tmp_path)
    assert call("reproduce", tmp_path, *options, "--overwrite", "--learning-rate", "0.01") == 0
    assert read_results(tmp_path)["plain"] != first["plain"]
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 0
    assert "These circuits are not of" not in capsys.readouterr().out
    assert call("reproduce", tmp_path, *options, "--resume", "--learning-rate", "0.01") == 0


@pytest.mark.parametrize("name", ["circuits.html", "modular-seed42/circuits/loss/label-7.npz"])
def test_what_is_in_the_way_of_circuits_is_said_before_training(tmp_path, capsys, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = tree(tmp_path)
    for flags in FLAGS:
        assert call("reproduce", tmp_path, "--circuits", "loss", *flags) == 1
        assert str(tmp_path / name) in capsys.readouterr().err
        assert tree(tmp_path) == before


# --- A disk that is full, or a folder that cannot be written to.


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
