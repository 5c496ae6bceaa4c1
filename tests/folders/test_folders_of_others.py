"""What the commands do to folders with other people's files in them, from the options to the disk."""

import hashlib
import json
import os
import shutil

import pytest
from folder_helpers import COMMANDS, FLAGS, call, tree, written


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
        # Each file is in the manifest of its own folder, with what it holds.
        for name in expected[command]:
            path = made[command] / name
            manifest = json.loads((path.parent / f"manifest-{command}.json").read_text())
            assert manifest["command"] == command
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert [path.stat().st_size, digest] in manifest["files"][path.name]


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
