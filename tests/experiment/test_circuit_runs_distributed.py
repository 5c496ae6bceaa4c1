"""Circuits found by several processes: they are those of one, and the processes fail together."""

import json
from pathlib import Path

import pytest
import torch.distributed as dist
from circuit_helpers import numbers, train_pair
from processes import torchrun

import modfast.experiment.circuits
from modfast.circuits import find_circuits
from modfast.circuits.folder import read_circuits
from modfast.data import load_dataset
from modfast.experiment.circuits import find_run_circuits
from modfast.experiment.trained_models import CircuitConfig
from modfast.train.distributed import RankError

CONFIG = CircuitConfig(labels=(0, 1, 2), images=5, device="cpu", threads=1)
TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The circuits that one process finds."""
    out = train_pair(tmp_path_factory.mktemp("alone") / "out")
    find_run_circuits(out, load_dataset("digits"), CONFIG)
    return out


@pytest.fixture
def out(alone, tmp_path):
    return train_pair(tmp_path / "out")


def found(folder, how):
    """Find circuits as one of several processes; ``how`` may make a rank fail or hear of progress."""
    walked, heard = [], []

    def find(*arguments, classes, criterion, **options):
        if how == "fails" and dist.get_rank() == 1:
            raise ValueError("this rank cannot")
        walked.append((criterion, list(classes)))
        return find_circuits(*arguments, classes=classes, criterion=criterion, **options)

    patch = pytest.MonkeyPatch()
    patch.setattr(modfast.experiment.circuits, "find_circuits", find)
    try:
        results = find_run_circuits(
            folder,
            load_dataset("digits"),
            CONFIG,
            on_circuits=lambda run, *_: heard.append(run),
            group=dist.group.WORLD,
        )
    except RankError as error:
        return str(error), type(error.__cause__)
    finally:
        patch.undo()
    return results, walked, heard


def test_several_processes_find_what_one_does(processes, alone, out):
    answers = processes(2).run(found, out, "well")
    assert numbers(out) == numbers(alone)
    table = read_circuits(out)
    assert table["config"]["processes"] == 2
    results, walked, heard = zip(*answers, strict=True)
    assert results[0] == results[1] == table
    # One manifest in each folder says what all of them wrote, and one process alone may replace it.
    for folder in out.rglob("circuits/*"):
        assert [path.name for path in folder.glob("manifest-*")] == ["manifest-circuits.json"]
        manifest = json.loads((folder / "manifest-circuits.json").read_text())
        assert all(manifest["files"][f"label-{label}.npz"] for label in (0, 1, 2))
    find_run_circuits(out, load_dataset("digits"), CONFIG, overwrite=True)
    assert numbers(out) == numbers(alone)
    # Three labels, two criteria and two models, one after the other in turn.
    assert walked[0] == [("loss", [0, 2]), ("balanced", [1])] * 2
    assert walked[1] == [("loss", [1]), ("balanced", [0, 2])] * 2
    assert heard == (["plain-seed42"] * 2 + ["modular-seed42"] * 2, [])
    for run in results[0]["runs"]:
        assert all(seconds > 0 for each in run["criteria"].values() for seconds in each["seconds"])


def test_a_process_that_fails_stops_all(processes, out):
    answers = processes(2).run(found, out, "fails")
    assert answers == [("rank 1: this rank cannot", type(None)), ("rank 1: this rank cannot", ValueError)]
    # What the other had found by then is kept.
    kept = sorted(str(path.relative_to(out)) for path in out.rglob("label-*"))
    assert kept == [
        "plain-seed42/circuits/balanced/label-1.npz",
        "plain-seed42/circuits/loss/label-0.npz",
        "plain-seed42/circuits/loss/label-2.npz",
    ]
    # Another number of processes goes on, and knows what both have written.
    find_run_circuits(out, load_dataset("digits"), CONFIG, resume=True)
    find_run_circuits(out, load_dataset("digits"), CONFIG, overwrite=True)
    names = {path.name for path in out.rglob("manifest-circuits*")}
    assert names == {"manifest-circuits.json"}


def test_the_command(alone, out):
    arguments = ["circuits", str(out), "--labels", "0", "1", "2", "--images", "5", "--device", "cpu"]
    done = torchrun(2, *arguments, folder=TESTS)  # where the model is
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Results and pictures") == 1
    assert numbers(out) == numbers(alone)
