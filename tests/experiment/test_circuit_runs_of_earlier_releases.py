"""`modfast circuits` on results of earlier releases, which lack some measures, and on their tables."""

import json
import shutil

import pytest
from circuit_helpers import CPU, train_pair

import modfast.experiment.circuits
from modfast.circuits.folder import read_circuits
from modfast.cli import main
from modfast.experiment.circuits import trained_since
from modfast.experiment.runs import read_run
from modfast.report.circuits.claims import paper_claims

FEW = ["--images", "5", "--labels", "0", "1", "--criterion", "loss", *CPU]
LOSS = {"test_cross_entropy": 1.25}
LATER = {
    "label_semanticity": {"fc2": 0.25},
    "search_space_reduction": 0.5,
    "live": {"fc2": {"rows": 1.0, "columns": 0.75, "clusters": 2.0}},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A comparison of two seeds, without circuits."""
    return train_pair(tmp_path_factory.mktemp("trained") / "out", seeds=2)


@pytest.fixture
def out(trained, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(trained, tmp_path / "out")


def test_measures_that_they_lack(out, monkeypatch):
    for path in out.glob("*-seed4?/results.json"):
        results = {key: part for key, part in json.loads(path.read_text()).items() if key not in LATER}
        # The results of one seed have them, those of the other are of an earlier release.
        path.write_text(json.dumps(results | LATER if path.parent.name.endswith("42") else results))

    def read(folder):
        results, state = read_run(folder)
        last = {key: part for key, part in results["history"][-1].items() if key not in LOSS}
        results["history"] = [*results["history"][:-1], last | LOSS if "live" in results else last]
        return results, state

    monkeypatch.setattr("modfast.experiment.trained_models.read_run", read)
    assert main(["circuits", str(out), *FEW]) == 0
    results = read_circuits(out)
    for run in results["runs"]:
        told = {name: run[name] for name in (*LATER, "history") if name in run}
        assert told == (LATER | {"history": [LOSS]} if run["seed"] == 42 else {})
    told = results["summary"]["model"]["live_columns:fc2"]["plain"]
    assert told == {"mean": None, "interval": None, "values": [0.75, None]}
    assert trained_since(out, results) == []


def test_claims_that_they_judged_one_by_one(out, capsys, monkeypatch):
    monkeypatch.setattr("modfast.experiment.runs.draw_reproduction", lambda folder: [])

    def judge(summary):
        return [
            {name: part for name, part in claim.items() if name != "p_adjusted"}
            for claim in paper_claims(summary)
        ]

    with monkeypatch.context() as patch:
        patch.setattr(modfast.experiment.circuits, "paper_claims", judge)
        patch.setattr(modfast.experiment.circuits, "draw_circuits", lambda folder: None)
        patch.setattr("modfast.cli.circuits.show_circuits", lambda *_: None)
        assert main(["circuits", str(out), *FEW]) == 0
    assert main(["report", str(out)]) == 1
    error = capsys.readouterr().err
    assert "judges each claim as if it were the only one, as older versions of modfast did" in error
    assert f"`modfast circuits {out} --resume` writes it anew from the circuits" in error
    assert main(["circuits", str(out), *FEW, "--resume"]) == 0
    assert all("p_adjusted" in claim for claim in read_circuits(out)["claims"])
    assert main(["report", str(out)]) == 0
