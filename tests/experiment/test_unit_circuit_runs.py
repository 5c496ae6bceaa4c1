"""`modfast circuits --units`: what it writes, what it refuses, and that nothing that was found is lost."""

import json
import shutil

import pytest
import torch
from circuit_helpers import CPU, Tiny, train_pair

import modfast.experiment.unit_circuits
from modfast.circuits.units.find import find_unit_circuit
from modfast.circuits.units.folder import read_unit_circuits
from modfast.circuits.units.unit_circuit import UnitCircuit
from modfast.cli import main
from modfast.data import load_dataset
from modfast.experiment.unit_models import UnitCircuitConfig
from modfast.metrics import class_log_likelihood
from modfast.network.reading import read_network
from modfast.report.unit_circuits.measures import describe_unit_circuits, unit_overlap
from modfast.results import as_lists
from modfast.train import read_checkpoint

FEW = ["--units", "--images", "5", "--labels", "0", "1", *CPU]
RUNS = ["plain-seed42", "modular-seed42", "plain-seed43", "modular-seed43"]
FILE = "unit-circuits/label-{}.npz"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A comparison without pictures and without circuits."""
    return train_pair(tmp_path_factory.mktemp("trained") / "out", seeds=2)


@pytest.fixture(scope="module")
def examined(trained, tmp_path_factory):
    """The same with the unit circuits of two labels."""
    out = tmp_path_factory.mktemp("examined") / "out"
    shutil.copytree(trained, out)
    assert main(["circuits", str(out), *FEW]) == 0
    return out


@pytest.fixture
def out(examined, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(examined, tmp_path / "out")


@pytest.fixture
def plain_run(trained, tmp_path):
    """One model, without circuits."""
    return shutil.copytree(trained / "plain-seed42", tmp_path / "run")


@pytest.fixture
def searches(monkeypatch):
    """What is searched for: the name of each circuit, in order."""
    made = []

    def find(*arguments, name, **options):
        made.append(name)
        return find_unit_circuit(*arguments, name=name, **options)

    monkeypatch.setattr(modfast.experiment.unit_circuits, "find_unit_circuit", find)
    return made


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def numbers(folder):
    """The results, without what differs from run to run."""
    results = read_unit_circuits(folder)
    del results["environment"], results["config"]["command"], results["config"]["processes"]
    for run in results["runs"]:
        del run["seconds"]
    return results


def read_model(folder):
    model = Tiny((1, 8, 8), 10)
    model.load_state_dict(read_checkpoint(folder / "checkpoint.pt")["model"])
    return model.eval()


def few_images():
    """The first five test images of each digit, and their labels."""
    digits = load_dataset("digits")
    chosen = [torch.nonzero(digits.test_labels == digit).flatten()[:5] for digit in range(10)]
    order = torch.cat(chosen).sort().values
    return digits.normalize(digits.test_images[order]), digits.test_labels[order]


class TestResults:
    @pytest.mark.parametrize(("method", "ablation"), [("attribution", "zero"), ("greedy", "mean")])
    def test_the_circuits_are_those_of_the_model(self, plain_run, method, ablation):
        chosen = ["--units-method", method, "--ablation", ablation, "--tolerance", "0.1"]
        assert main(["circuits", str(plain_run), *FEW, *chosen]) == 0
        model, (images, labels) = read_model(plain_run), few_images()
        found = UnitCircuit.load(plain_run / FILE.format(1))
        expected = find_unit_circuit(
            model,
            [(images[labels == 1], labels[labels == 1])],
            class_log_likelihood,
            read_network(model, images[:2]),
            tolerance=0.1,
            method=method,
            ablation=ablation,
            reference=[(images, labels)] if ablation == "mean" else None,
            name="1",
        )
        assert torch.equal(found.kept, expected.kept)
        assert found.scores[found.asked] == pytest.approx(expected.scores[found.asked], rel=1e-4)
        assert (found.name, found.method, found.ablation, found.num_examples) == ("1", method, ablation, 5)
        assert found.metric_after >= found.metric_before - 0.1 - 1e-5
        # Hidden neurons alone may be ablated: 6 in fc1 and 6 in fc2.
        assert int(found.asked.sum()) == 12
        # The file of an unfinished walk is gone.
        assert not list(plain_run.glob("unit-circuits/unfinished/label-*"))

    def test_they_say_of_what_they_are(self, examined):
        results = read_unit_circuits(examined)
        config = results["config"]
        assert [run["name"] for run in results["runs"]] == [run["folder"] for run in results["runs"]] == RUNS
        told = ("labels", "method", "ablation", "tolerance", "images", "seeds", "kinds", "spaces")
        assert {name: config[name] for name in told} == {
            "labels": [0, 1],
            "method": "attribution",
            "ablation": "zero",
            "tolerance": 0.0,
            "images": 5,
            "seeds": [42, 43],
            "kinds": ["plain", "modular"],
            "spaces": ["fc1", "fc2"],
        }
        assert results["environment"]["torch"] == torch.__version__

    def test_their_numbers_are_those_of_the_files(self, examined):
        results = read_unit_circuits(examined)
        for run in results["runs"]:
            circuits = [UnitCircuit.load(examined / run["folder"] / FILE.format(label)) for label in (0, 1)]
            found = run["circuits"]
            assert found["size"] == [circuit.size for circuit in circuits]
            assert found["sizes"]["fc2"] == [circuit.sizes["fc2"] for circuit in circuits]
            assert found["metric_after"] == [circuit.metric_after for circuit in circuits]
            kept = torch.stack([circuit.kept & circuit.asked for circuit in circuits])
            assert found["overlap"] == as_lists(unit_overlap(kept))
            largest = [circuit.scores[circuit.spaces["fc1"]].max().item() for circuit in circuits]
            assert [scores["largest"] for scores in found["scores"]["fc1"]] == largest
            assert found == describe_unit_circuits(circuits, torch.tensor(run["clusters"]), seed=0)
            assert all(seconds > 0 for seconds in run["seconds"])
            # Clusters of fc2's two blocks: of its rows and of the units that its columns read.
            fc1, fc2 = (slice(*run["spaces"][name]) for name in ("fc1", "fc2"))
            assert run["clusters"][fc1] == run["clusters"][fc2] == [0, 0, 0, 1, 1, 1]
        sizes = [sum(run["circuits"]["size"]) / 2 for run in results["runs"] if run["kind"] == "modular"]
        summary = results["summary"]["size"]
        assert summary["modular"]["values"] == pytest.approx(sizes)
        plain = summary["plain"]["values"]
        change = sum(sizes) / 2 - sum(plain) / 2
        assert summary["difference"]["mean"] == pytest.approx(change)

    def test_each_model_has_a_page(self, examined):
        for run in RUNS:
            page = (examined / run / "unit-circuits.html").read_text()
            assert f"<title>Unit circuits of {run}: digits</title>" in page
        assert not (examined / "unit-circuits.html").exists()

    def test_what_is_shown(self, examined, capsys, monkeypatch):
        monkeypatch.setattr("modfast.cli.report.draw_reproduction", lambda folder: [])
        assert main(["report", str(examined)]) == 0
        shown = capsys.readouterr().out
        summary = read_unit_circuits(examined)["summary"]
        size = 100 * summary["size"]["difference"]["mean"]
        (line,) = [line for line in shown.splitlines() if "Units kept (%) " in line]
        assert f"{size:+.2f}" in line
        assert "Units kept (%), fc2" in shown
        assert "units by attribution, zero" in " ".join(shown.split())
        assert f"The units of modular-seed43: {examined / 'modular-seed43' / 'unit-circuits.html'}" in shown

    def test_a_single_run_and_all_labels(self, plain_run, capsys):
        assert main(["circuits", str(plain_run), "--units", *CPU]) == 0
        results = read_unit_circuits(plain_run)
        assert [(run["name"], run["folder"]) for run in results["runs"]] == [("plain-seed42", ".")]
        assert results["config"]["labels"] == list(range(10))
        counts = torch.bincount(load_dataset("digits").test_labels).tolist()
        assert results["runs"][0]["circuits"]["num_examples"] == counts
        assert "Modular" not in capsys.readouterr().out
        assert (plain_run / "unit-circuits.html").exists()

    def test_nothing_changes_the_model(self, examined, trained):
        for run in RUNS:
            for name in ("checkpoint.pt", "results.json", "partitions.npz"):
                assert (examined / run / name).read_bytes() == (trained / run / name).read_bytes()


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--labels", "10"], "labels must lie in [0, 10), got 10"),
            (["--labels", "1", "1"], "labels must be None or one or more, none of them twice"),
            (["--images", "0"], "images must be None or an integer in [1, 9223372036854775807], got 0"),
            (["--tolerance", "-1"], "tolerance must be a finite number of at least 0, got -1.0"),
            (
                ["--criterion", "loss"],
                "--criterion and --layers are for circuits of weights: leave --units out",
            ),
            (["--layers", "fc1"], "--criterion and --layers are for circuits of weights: leave --units out"),
            (["--device", "toaster"], "toaster"),
            (["--threads", "0"], "threads must be None or an integer in [1, 4096], got 0"),
            (["--data", "fake"], "data: fake is not what"),
            (["--resume", "--overwrite"], "exclude each other"),
        ],
    )
    def test_are_one_line_and_change_nothing(self, plain_run, capsys, arguments, message):
        before = contents(plain_run)
        assert main(["circuits", str(plain_run), "--units", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("modfast: error: ")
        assert message in error
        assert error.count("\n") == 1
        assert contents(plain_run) == before

    @pytest.mark.parametrize("arguments", [["--ablation", "mean"], ["--units-method", "greedy"]])
    def test_options_of_units_need_units(self, plain_run, capsys, arguments):
        before = contents(plain_run)
        assert main(["circuits", str(plain_run), *arguments]) == 1
        assert (
            "--units-method and --ablation are for circuits of units: add --units" in capsys.readouterr().err
        )
        assert contents(plain_run) == before

    def test_another_example_is_no_ablation_of_runs(self, plain_run, capsys):
        with pytest.raises(SystemExit):
            main(["circuits", str(plain_run), "--units", "--ablation", "resample"])
        assert "invalid choice: 'resample'" in capsys.readouterr().err
        with pytest.raises(ValueError, match=r"ablation must be .*, got 'resample'"):
            UnitCircuitConfig(ablation="resample")

    def test_a_model_that_cannot_be_followed(self, plain_run, capsys, monkeypatch):
        class Sorting(Tiny):
            def forward(self, images):
                hidden = self.fc1(self.pool(images).flatten(1)).sort(dim=1).values
                return self.fc3(self.fc2(hidden))

        monkeypatch.setattr("circuit_helpers.Tiny", Sorting)
        before = contents(plain_run)
        assert main(["circuits", str(plain_run), *FEW]) == 1
        assert "module 'fc2'" in capsys.readouterr().err
        assert contents(plain_run) == before

    def test_a_folder_without_a_finished_run(self, tmp_path, capsys):
        assert main(["circuits", str(tmp_path), "--units"]) == 1
        assert "no run has finished there" in capsys.readouterr().err

    def test_a_damaged_table(self, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"holds no unit-circuits.json: `modfast circuits .* --units`"
        ):
            read_unit_circuits(tmp_path)
        (tmp_path / "unit-circuits.json").write_text('{"runs": ')
        with pytest.raises(ValueError, match="is damaged"):
            read_unit_circuits(tmp_path)
        for text in ("[]", '{"runs": {}, "config": {}, "summary": {}}'):
            (tmp_path / "unit-circuits.json").write_text(text)
            with pytest.raises(ValueError, match="is no table of unit circuits"):
                read_unit_circuits(tmp_path)


class TestResuming:
    def test_results_are_not_lost_by_mistake(self, out, capsys):
        before = contents(out)
        assert main(["circuits", str(out), *FEW]) == 1
        error = capsys.readouterr().err
        assert "holds circuits already (unit-circuits.json): continue with --resume" in error
        assert contents(out) == before

    def test_only_what_is_missing_is_found(self, out, searches):
        expected = numbers(out)
        (out / "plain-seed43" / FILE.format(1)).unlink()
        (out / "unit-circuits.json").unlink()
        (out / "modular-seed42/unit-circuits.html").unlink()
        assert main(["circuits", str(out), *FEW, "--resume"]) == 0
        assert searches == ["1"]
        assert numbers(out) == expected
        assert (out / "modular-seed42/unit-circuits.html").exists()
        seconds = read_unit_circuits(out)["runs"][2]["seconds"]
        assert seconds[0] is None
        assert seconds[1] > 0

    def test_more_labels_join_those_that_are_there(self, out, searches):
        arguments = ["--units", "--images", "5", "--labels", "2", "1", *CPU, "--resume"]
        assert main(["circuits", str(out / "plain-seed42"), *arguments]) == 0
        assert searches == ["2"]
        assert read_unit_circuits(out / "plain-seed42")["config"]["labels"] == [1, 2]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--images", "4"], "images 5, not 4"),
            (["--tolerance", "0.5"], "tolerance 0.0, not 0.5"),
            (["--ablation", "mean"], "ablation 'zero', not 'mean'"),
            (["--units-method", "greedy"], "method 'attribution', not 'greedy'"),
        ],
    )
    def test_circuits_of_other_settings_are_not_reused(self, out, capsys, arguments, message):
        before = contents(out)
        assert main(["circuits", str(out), *FEW, *arguments, "--resume"]) == 1
        assert message in capsys.readouterr().err
        assert contents(out) == before

    def test_nor_those_of_other_weights(self, out, capsys):
        path = out / "plain-seed43/checkpoint.pt"
        state = torch.load(path, weights_only=True)
        state["model"]["fc3.weight"][0, 0] += 1
        torch.save(state, path)
        assert main(["circuits", str(out), *FEW, "--resume"]) == 1
        assert (
            "plain-seed43/unit-circuits holds circuits that were found with weights"
            in capsys.readouterr().err
        )

    def test_nor_a_file_in_the_place_of_another(self, out, capsys):
        run = out / "plain-seed43"
        shutil.copy(run / FILE.format(1), run / FILE.format(0))
        assert main(["circuits", str(out), *FEW, "--resume"]) == 1
        assert "holds a circuit of {'name': '1'" in capsys.readouterr().err
        (run / FILE.format(0)).write_bytes(b"PK")
        assert main(["circuits", str(out), *FEW, "--resume"]) == 1
        assert "is no unit circuits file, or a damaged one" in capsys.readouterr().err
        (run / "unit-circuits/settings.json").unlink()
        assert main(["circuits", str(out), *FEW, "--resume"]) == 1
        assert "holds circuits but no settings.json" in capsys.readouterr().err

    def test_overwriting_finds_all_again(self, out, searches):
        arguments = ["--units", "--images", "4", "--labels", "0", *CPU, "--overwrite"]
        assert main(["circuits", str(out), *arguments]) == 0
        assert searches == ["0"] * 4
        assert [path.name for path in sorted(out.rglob("label-*.npz"))] == ["label-0.npz"] * 4

    def test_circuits_of_weights_and_of_units_leave_each_other_alone(self, plain_run, capsys):
        weights = ["--criterion", "loss", "--images", "5", "--labels", "0", "1", *CPU]
        assert main(["circuits", str(plain_run), *weights]) == 0
        of_weights = contents(plain_run)
        assert main(["circuits", str(plain_run), *FEW]) == 0
        of_units = {name: held for name, held in contents(plain_run).items() if name not in of_weights}
        assert main(["circuits", str(plain_run), *FEW, "--overwrite"]) == 0
        assert of_weights.items() <= contents(plain_run).items()
        before = contents(plain_run)
        assert main(["circuits", str(plain_run), *weights, "--overwrite"]) == 0
        after = contents(plain_run)
        assert all(after[name] == before[name] for name in of_units)
        # A file of the one in the place of one of the other's stops it.
        (plain_run / "unit-circuits.json").write_text("mine")
        assert main(["circuits", str(plain_run), *FEW, "--overwrite"]) == 1
        assert "is no longer what `modfast circuits --units` wrote" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "name",
        [
            "unit-circuits.json",
            "unit-circuits.html",
            "unit-circuits/settings.json",
            "unit-circuits/label-1.npz",
            "unit-circuits/unfinished/label-0.npz",
        ],
    )
    @pytest.mark.parametrize("flag", [None, "--overwrite"])
    def test_a_file_of_somebody_else_stops_it(self, plain_run, capsys, name, flag):
        (plain_run / name).parent.mkdir(parents=True, exist_ok=True)
        (plain_run / name).write_text("mine")
        before = contents(plain_run)
        assert main(["circuits", str(plain_run), *FEW, *([flag] if flag else [])]) == 1
        assert f"{plain_run / name} is in no manifest of modfast" in capsys.readouterr().err
        assert contents(plain_run) == before

    def test_an_interrupted_greedy_walk_goes_on(self, plain_run, searches, monkeypatch, capsys):
        greedy = [*FEW, "--units-method", "greedy"]
        reference = shutil.copytree(plain_run, plain_run.parent / "reference")
        assert main(["circuits", str(reference), *greedy]) == 0
        searches.clear()
        steps = []

        def interrupt(walk):
            steps.append(walk.done)
            if len(steps) > 2:
                raise KeyboardInterrupt
            real(walk)

        with monkeypatch.context() as patch:
            from modfast.circuits.units.greedy import GreedyWalk

            real = GreedyWalk.step
            patch.setattr(GreedyWalk, "step", interrupt)
            patch.setattr("modfast.circuits.units.greedy._SECONDS_BETWEEN", 0.0)
            assert main(["circuits", str(plain_run), *greedy]) == 130
        assert "--resume continues" in capsys.readouterr().err
        unfinished = [path.name for path in plain_run.glob("unit-circuits/unfinished/label-*")]
        assert len(unfinished) == 1
        assert main(["circuits", str(plain_run), *greedy, "--resume"]) == 0
        assert not list(plain_run.glob("unit-circuits/unfinished/label-*"))
        for label in (0, 1):
            found, expected = (UnitCircuit.load(each / FILE.format(label)) for each in (plain_run, reference))
            assert torch.equal(found.kept, expected.kept)

    def test_a_report_tells_of_models_that_were_trained_since(self, out, capsys, monkeypatch):
        monkeypatch.setattr("modfast.cli.report.draw_reproduction", lambda folder: [])
        page = out / "plain-seed43/unit-circuits.html"
        page.unlink()
        assert main(["report", str(out)]) == 0
        assert "trained further" not in capsys.readouterr().out
        assert page.exists()
        page.unlink()
        path = out / "plain-seed43/results.json"
        results = json.loads(path.read_text())
        results["class_accuracy"][0] += 0.01
        path.write_text(json.dumps(results))
        assert main(["report", str(out)]) == 0
        shown = capsys.readouterr().out
        assert (
            "plain-seed43 was trained further after its unit circuits were found: `modfast circuits" in shown
        )
        assert not page.exists()

    def test_a_report_leaves_the_page_of_somebody_else(self, out, capsys, monkeypatch):
        monkeypatch.setattr("modfast.cli.report.draw_reproduction", lambda folder: [])
        page = out / "plain-seed42/unit-circuits.html"
        page.write_text("mine")
        assert main(["report", str(out)]) == 0
        assert "pages of units are left as they are" in capsys.readouterr().out
        assert page.read_text() == "mine"


def test_progress_counts_circuits(trained, tmp_path, monkeypatch):
    out, told = shutil.copytree(trained, tmp_path / "out"), []
    monkeypatch.setattr("modfast.cli.display.Display.on_unit_search", lambda _, *step: told.append(step))
    assert main(["circuits", str(out), *FEW]) == 0
    assert [total for *_, total in told] == [8] * len(told)
    assert list(dict.fromkeys(name for name, *_ in told)) == RUNS
    done = [done for _, done, _ in told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 8)
    assert len(set(done)) > 9  # also within a circuit
