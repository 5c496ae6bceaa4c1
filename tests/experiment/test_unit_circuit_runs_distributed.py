"""Unit circuits found by several processes: they are those of one, and the processes fail together."""

import json

import pytest
import torch
import torch.distributed as dist
from circuit_helpers import train_pair

import modfast.experiment.unit_circuits
from modfast.circuits.units.find import find_unit_circuit
from modfast.circuits.units.folder import read_unit_circuits
from modfast.circuits.units.unit_circuit import UnitCircuit
from modfast.data import load_dataset
from modfast.experiment.unit_circuits import find_run_unit_circuits
from modfast.experiment.unit_models import UnitCircuitConfig
from modfast.train.distributed import RankError

CONFIG = UnitCircuitConfig(labels=(0, 1, 2), images=5, tolerance=0.05, device="cpu", threads=1)
FILE = "{}/unit-circuits/label-{}.npz"


def found(folder, how):
    """Find unit circuits as one of several processes; ``how`` may make a rank fail."""
    searched, heard = [], []

    def find(*arguments, name, **options):
        if how == "fails" and dist.get_rank() == 1:
            raise ValueError("this rank cannot")
        searched.append(name)
        return find_unit_circuit(*arguments, name=name, **options)

    patch = pytest.MonkeyPatch()
    patch.setattr(modfast.experiment.unit_circuits, "find_unit_circuit", find)
    try:
        results = find_run_unit_circuits(
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
    return results, searched, heard


def test_several_processes_find_what_one_does(processes, tmp_path):
    alone, out = train_pair(tmp_path / "alone"), train_pair(tmp_path / "out")
    find_run_unit_circuits(alone, load_dataset("digits"), CONFIG)
    answers = processes(2).run(found, out, "well")
    table = read_unit_circuits(out)
    assert table["config"]["processes"] == 2
    results, searched, heard = zip(*answers, strict=True)
    assert results[0] == results[1] == table
    # Three labels and two models, one after the other in turn.
    assert searched == (["0", "2", "1"], ["1", "0", "2"])
    assert heard == (["plain-seed42", "modular-seed42"], [])
    for run in ("plain-seed42", "modular-seed42"):
        for label in (0, 1, 2):
            ours, theirs = (UnitCircuit.load(each / FILE.format(run, label)) for each in (out, alone))
            assert torch.equal(ours.kept, theirs.kept)
        # One manifest in each folder says what all of them wrote, and one process alone may replace it.
        folder = out / run / "unit-circuits"
        assert [path.name for path in folder.glob("manifest-*")] == ["manifest-unit-circuits.json"]
        manifest = json.loads((folder / "manifest-unit-circuits.json").read_text())
        assert all(manifest["files"][f"label-{label}.npz"] for label in (0, 1, 2))
        assert (out / run / "unit-circuits.html").exists()
    find_run_unit_circuits(out, load_dataset("digits"), CONFIG, overwrite=True)
    assert read_unit_circuits(out)["summary"] == read_unit_circuits(alone)["summary"]


def test_a_process_that_fails_stops_all(processes, tmp_path):
    out = train_pair(tmp_path / "out")
    answers = processes(2).run(found, out, "fails")
    assert answers == [("rank 1: this rank cannot", type(None)), ("rank 1: this rank cannot", ValueError)]
    # What the other had found by then is kept, and one process goes on from there.
    kept = sorted(str(path.relative_to(out)) for path in out.rglob("label-*"))
    assert kept == [FILE.format("plain-seed42", label) for label in (0, 2)]
    results = find_run_unit_circuits(out, load_dataset("digits"), CONFIG, resume=True)
    assert [seconds is None for seconds in results["runs"][0]["seconds"]] == [True, False, True]
    assert {path.name for path in out.rglob("manifest-unit-*")} == {"manifest-unit-circuits.json"}
