"""`report` shows what it can, of folders that cannot be written to and of circuits that are others now."""

import json
import os
import re
import shlex
from dataclasses import replace

import pytest
from folder_helpers import COMMANDS, TINY, call, tree

from modfast.circuit import Circuit
from modfast.cli import main
from modfast.experiment.clusters import check_out
from modfast.train.checkpoint import read_checkpoint

CIRCUITS = ["--criterion", "loss", "--labels", "0", "1", "--threads", "1", "--device", "cpu"]
FOUND_ANEW = ["circuits", "--labels", "1", "--criterion", "loss", "--images", "2", "--overwrite"]


def refuse_to_create(monkeypatch, folder):
    """No new file below the folder, as on a read-only disk; root could write to any other one."""
    create = os.open

    def refuse(path, flags, *more, **named):
        if flags & os.O_CREAT and str(path).startswith(str(folder)):
            raise OSError(30, "Read-only file system", str(path))
        return create(path, flags, *more, **named)

    monkeypatch.setattr("os.open", refuse)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_written_to_is_shown(command, made, copy, monkeypatch, capsys):
    out = copy(made[command])
    before = tree(out)
    assert main(["report", str(out)]) == 0
    told = capsys.readouterr().out
    after = tree(out)
    assert before.items() <= {**after, **before}.items()
    refuse_to_create(monkeypatch, out)
    assert main(["report", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "pictures are left as they are, since they cannot be written" in shown
    assert "Read-only file system" in shown
    assert tree(out) == after
    # The table is the same.
    rows = [line for line in told.splitlines() if line.startswith(("│", "┃"))]
    assert rows
    assert rows == [line for line in shown.splitlines() if line.startswith(("│", "┃"))]


def test_a_command_that_writes_says_that_it_cannot(made, copy, monkeypatch, capsys):
    out = copy(made["train"])
    refuse_to_create(monkeypatch, out)
    assert call("train", out, "--epochs", "2", "--resume") == 1
    assert "Read-only file system" in capsys.readouterr().err


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(made, copy, monkeypatch, capsys):
    out = copy(made["train"])
    read = os.open

    def refuse(path, flags, *more, **named):
        if os.path.basename(path) == "checkpoint.pt":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, flags, *more, **named)

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(PermissionError, match=r"checkpoint\.pt"):
        read_checkpoint(out / "checkpoint.pt")
    for command in (["report", str(out)], ["train", *TINY, "--out", str(out), "--resume"]):
        assert main(command) == 1
        told = capsys.readouterr().err
        assert "Permission denied" in told
        assert "damaged" not in told


CHANGES = {
    "found anew": lambda path: main([*FOUND_ANEW, str(path.parents[2])]),
    "removed": os.unlink,
    "damaged": lambda path: path.write_bytes(b"PK"),
    "another": lambda path: inverted(path),
}


def inverted(path):
    circuit = Circuit.load(path)
    replace(circuit, masks={name: ~mask for name, mask in circuit.masks.items()}).save(path)


@pytest.mark.parametrize("change", CHANGES)
def test_circuits_that_are_others_now_are_said_and_the_rest_is_shown(change, made, copy, capsys):
    out = copy(made["reproduce"]).rename(made["reproduce"].parent / f"with a space {change}")
    assert main(["circuits", str(out), *CIRCUITS, "--images", "3"]) == 0
    CHANGES[change](out / "plain-seed42/circuits/loss/label-1.npz")
    page = (out / "circuits.html").read_bytes()
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "circuits.html is left as it is: " in shown
    assert "label-" in shown
    assert "Results and pictures" in shown.split("circuits.html is left as it is")[1]
    assert (out / "circuits.html").read_bytes() == page
    remedy = re.findall("`modfast (circuits .* --overwrite)`", shown)
    if change in ("found anew", "removed"):
        assert main([*shlex.split(remedy[0]), *CIRCUITS]) == 0
        capsys.readouterr()
        assert main(["report", str(out)]) == 0
        assert "is left as it is" not in capsys.readouterr().out
    else:
        assert remedy


def test_clusters_may_be_put_above_the_model_but_not_beside_it(tmp_path):
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "checkpoint.pt").write_bytes(b"PK")
    (tmp_path / "link").symlink_to(run)
    for out in (tmp_path, tmp_path / "runs", run / "clusters", tmp_path / "elsewhere"):
        check_out(run, out)
        check_out(run / "checkpoint.pt", out)
    for model in (run, run / "checkpoint.pt", tmp_path / "link"):
        for out in (run, tmp_path / "link", run / ".." / "one"):
            with pytest.raises(ValueError, match="out must be another folder than the model's"):
                check_out(model, out)


@pytest.mark.parametrize(
    ("command", "key"), [("train", "accuracy"), ("reproduce", "modular"), ("cluster", "clustering")]
)
def test_results_that_were_altered_are_named(command, key, made, copy, capsys):
    out = copy(made[command])
    path = out / "results.json"
    results = json.loads(path.read_text())
    results[key] = dict.fromkeys(results[key]) if isinstance(results[key], dict) else None
    path.write_text(json.dumps(results))
    capsys.readouterr()
    assert main(["report", str(out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"modfast: error: {path}: damaged, or of another version: a part is missing")


def test_a_defect_in_a_report_keeps_its_traceback(made, copy, monkeypatch):
    def defect(*_):
        return {}["no such key"]

    monkeypatch.setattr("modfast.cli.report.run_table", defect)
    with pytest.raises(KeyError, match="no such key"):
        main(["report", str(copy(made["train"]))])


def test_circuits_that_were_altered_are_named(made, copy, capsys):
    out = copy(made["circuits"])
    path = out / "circuits.json"
    results = json.loads(path.read_text())
    for run in results["runs"]:
        run["criteria"] = None
    path.write_text(json.dumps(results))
    capsys.readouterr()
    assert main(["report", str(out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"modfast: error: {path}: damaged, or of another version: a part is missing")
