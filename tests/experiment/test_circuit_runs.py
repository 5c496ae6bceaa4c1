"""`modfast circuits`: what it writes, what it refuses, and that nothing that was found is lost."""

import json
import shutil

import pytest
import torch
from circuit_helpers import CPU, TRAINING, Tiny, numbers, train_pair

import modfast.experiment.circuits
from modfast.circuit import CRITERIA, Circuit
from modfast.circuits import circuit_overlap, find_circuit, find_circuits
from modfast.circuits.folder import CircuitFolder, read_circuits
from modfast.cli import main
from modfast.cli.parsers import make_parser
from modfast.data import load_dataset
from modfast.results import as_lists
from modfast.train import read_checkpoint

FEW = ["--images", "5", "--labels", "0", "1", *CPU]
RUNS = ["plain-seed42", "modular-seed42", "plain-seed43", "modular-seed43"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A comparison without pictures and without circuits."""
    return train_pair(tmp_path_factory.mktemp("trained") / "out", seeds=2)


@pytest.fixture(scope="module")
def examined(trained, tmp_path_factory):
    """The same with the circuits of two labels."""
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


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_model(folder):
    model = Tiny((1, 8, 8), 10)
    model.load_state_dict(read_checkpoint(folder / "checkpoint.pt")["model"])
    return model


def few_images():
    """The first five test images of each digit."""
    digits = load_dataset("digits")
    chosen = (
        torch.cat([torch.nonzero(digits.test_labels == c).flatten()[:5] for c in range(10)]).sort().values
    )
    return digits.normalize(digits.test_images[chosen]), digits.test_labels[chosen]


class TestTable:
    def test_the_circuits_are_those_of_the_models(self, examined):
        images, labels = few_images()
        for run in ("plain-seed43", "modular-seed42"):
            model = read_model(examined / run)
            found = Circuit.load(examined / run / "circuits/loss/label-1.npz")
            expected = find_circuit(model, images[labels == 1], 1)
            assert found.num_inputs == 5
            assert all(torch.equal(found.masks[name], mask) for name, mask in expected.masks.items())
            found = Circuit.load(examined / run / "circuits/balanced/label-0.npz")
            (expected,) = find_circuits(model, images, labels, classes=[0], criterion="balanced", seed=0)
            assert found.num_inputs == 10
            assert all(torch.equal(found.masks[name], mask) for name, mask in expected.masks.items())

    def test_it_says_of_what_it_is(self, examined):
        results = read_circuits(examined)
        config = results["config"]
        assert [run["name"] for run in results["runs"]] == [run["folder"] for run in results["runs"]] == RUNS
        assert config["labels"] == [0, 1]
        assert config["criteria"] == ["loss", "balanced"]
        assert config["layers"] == ["fc1", "fc2", "fc3"]
        assert config["seeds"] == [42, 43]
        assert config["kinds"] == ["plain", "modular"]
        assert config["images"] == 5
        assert config["classes"] == [str(digit) for digit in range(10)]
        assert config["data_fingerprint"] == load_dataset("digits").fingerprint()
        assert config["regularised_layers"] == ["fc2"]
        assert results["environment"]["torch"] == torch.__version__

    def test_its_numbers_are_those_of_the_files(self, examined):
        results = read_circuits(examined)
        for run in results["runs"]:
            trained = json.loads((examined / run["folder"] / "results.json").read_text())
            for name in ("accuracy", "clusterability", "class_accuracy", "cluster_accuracy"):
                assert run[name] == trained[name]
            for criterion, found in run["criteria"].items():
                folder = examined / run["folder"] / "circuits" / criterion
                circuits = [Circuit.load(folder / f"label-{label}.npz") for label in (0, 1)]
                assert found["size"] == [circuit.size for circuit in circuits]
                assert found["overlap"]["fc1"] == as_lists(circuit_overlap(circuits, "fc1"))
                assert all(seconds > 0 for seconds in found["seconds"])
        sizes = [
            sum(run["criteria"]["loss"]["size"]) / 2 for run in results["runs"] if run["kind"] == "modular"
        ]
        assert results["summary"]["loss"]["size"]["modular"]["values"] == pytest.approx(sizes)

    def test_what_is_shown(self, examined, capsys, monkeypatch):
        drawn = []
        monkeypatch.setattr("modfast.experiment.runs.draw_reproduction", lambda folder: [])
        monkeypatch.setattr("modfast.report.circuits.report.write_circuit_report", drawn.append)
        assert main(["report", str(examined)]) == 0
        assert drawn == [examined]
        shown = capsys.readouterr().out
        results = read_circuits(examined)
        size = 100 * results["summary"]["loss"]["size"]["difference"]["mean"]
        assert f"{size:+.2f}" in next(line for line in shown.splitlines() if "Size (% of weights) " in line)
        for claim in results["claims"]:
            assert claim["text"] in shown
        assert results["note"] in shown

    def test_a_single_run(self, plain_run, capsys):
        assert main(["circuits", str(plain_run), "--criterion", "loss", *FEW]) == 0
        results = read_circuits(plain_run)
        assert [(run["name"], run["folder"]) for run in results["runs"]] == [("plain-seed42", ".")]
        assert results["claims"] == []
        assert results["config"]["kinds"] == ["plain"]
        assert "Modular" not in capsys.readouterr().out

    def test_all_labels_and_images_unless_said(self, plain_run):
        arguments = ["--criterion", "loss", "--layers", "fc3", *CPU]
        assert main(["circuits", str(plain_run), *arguments]) == 0
        results = read_circuits(plain_run)
        assert results["config"]["labels"] == list(range(10))
        assert results["config"]["layers"] == ["fc3"]
        counts = torch.bincount(load_dataset("digits").test_labels).tolist()
        assert results["runs"][0]["criteria"]["loss"]["num_inputs"] == counts


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--labels", "10"], "labels must lie in [0, 10), got 10"),
            (["--labels", "1", "1"], "labels must be None or one or more, none of them twice"),
            (["--layers", "fc9"], "'fc9' matches no layer"),
            (["--images", "0"], "images must be None or an integer in [1, 9223372036854775807], got 0"),
            (["--tolerance", "-1"], "tolerance must be a finite number of at least 0, got -1.0"),
            (
                ["--criterion", "loss", "loss"],
                "criteria must be one or more, none of them twice",
            ),
            (["--device", "toaster"], "toaster"),
            (["--threads", "0"], "threads must be None or an integer in [1, 4096], got 0"),
            (["--data", "fake"], "data: fake is not what"),
            (["--data", "cifar11"], "cifar11"),
            (["--resume", "--overwrite"], "exclude each other"),
        ],
    )
    def test_are_one_line_and_change_nothing(self, plain_run, capsys, arguments, message):
        before = contents(plain_run)
        assert main(["circuits", str(plain_run), *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("modfast: error: ")
        assert message in error
        assert error.count("\n") == 1
        assert contents(plain_run) == before

    def test_before_hours_of_training(self, tmp_path, capsys):
        arguments = ["reproduce", *TRAINING, "--out", str(tmp_path / "out"), "--circuits", "loss", "loss"]
        assert main(arguments) == 1
        assert "criteria" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_model_without_a_tail_is_told_before_training(self, tmp_path, capsys, monkeypatch):
        class Normalised(Tiny):
            def forward(self, images):
                return torch.softmax(super().forward(images), dim=1)

        monkeypatch.setattr("circuit_helpers.Tiny", Normalised)
        assert main(["reproduce", *TRAINING, "--out", str(tmp_path / "out"), "--circuits"]) == 1
        assert "model must end in a linear layer" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_nor_are_circuits_removed_for_layers_that_cannot_be_walked(self, out, capsys, monkeypatch):
        class Twice(Tiny):
            def forward(self, images):
                return super().forward(images) + super().forward(images)

        monkeypatch.setattr("circuit_helpers.Tiny", Twice)
        before = contents(out)
        assert main(["circuits", str(out), *FEW, "--overwrite"]) == 1
        assert "model" in capsys.readouterr().err
        assert contents(out) == before

    def test_a_folder_without_a_finished_run(self, tmp_path, capsys):
        assert main(["circuits", str(tmp_path)]) == 1
        assert "no run has finished there" in capsys.readouterr().err

    def test_a_folder_of_clusters(self, tmp_path, capsys):
        (tmp_path / "results.json").write_text('{"clustering": {}}')
        assert main(["circuits", str(tmp_path)]) == 1
        assert "what train or reproduce wrote" in capsys.readouterr().err

    def test_another_model_by_the_same_name(self, plain_run, capsys, monkeypatch):
        monkeypatch.setattr("circuit_helpers.Tiny", lambda image_shape, num_classes: torch.nn.Linear(3, 10))
        assert main(["circuits", str(plain_run)]) == 1
        assert "does not fit the model 'circuit_helpers:Tiny'" in capsys.readouterr().err

    def test_a_model_that_was_trained_on(self, plain_run, capsys):
        results = json.loads((plain_run / "results.json").read_text())
        results["history"].pop()
        (plain_run / "results.json").write_text(json.dumps(results))
        assert main(["circuits", str(plain_run)]) == 1
        assert "was trained for 10 epochs, and its results describe 9" in capsys.readouterr().err

    def test_a_label_without_images(self, plain_run, capsys, monkeypatch):
        digits = load_dataset("digits")
        monkeypatch.setattr("modfast.data.dataset.Dataset.fingerprint", lambda _: fingerprint)
        fingerprint = json.loads((plain_run / "results.json").read_text())["config"]["data_fingerprint"]
        object.__setattr__(digits, "test_labels", digits.test_labels.clamp(min=1))
        monkeypatch.setattr("modfast.cli.machine.load_dataset", lambda *_, **__: digits)
        assert main(["circuits", str(plain_run), "--labels", "0"]) == 1
        assert "there is no test image of 0 (0)" in capsys.readouterr().err

    def test_a_damaged_table(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"holds no circuits.json: `modfast circuits"):
            read_circuits(tmp_path)
        (tmp_path / "circuits.json").write_text('{"runs": ')
        with pytest.raises(ValueError, match="is damaged"):
            read_circuits(tmp_path)
        (tmp_path / "circuits.json").write_text("[]")
        with pytest.raises(ValueError, match="is no table of circuits"):
            read_circuits(tmp_path)

    def test_the_parser_knows_the_criteria(self):
        parsed = make_parser().parse_args(["circuits", "out", "--criterion", *CRITERIA])
        assert tuple(parsed.criterion) == CRITERIA
        with pytest.raises(SystemExit):
            make_parser().parse_args(["circuits", "out", "--criterion", "gain"])


@pytest.fixture
def walks(monkeypatch):
    """What is walked: a list of criteria and labels, in order."""
    made = []

    def find(*arguments, classes, criterion, **options):
        made.append((criterion, list(classes)))
        return find_circuits(*arguments, classes=classes, criterion=criterion, **options)

    monkeypatch.setattr(modfast.experiment.circuits, "find_circuits", find)
    return made


class TestResuming:
    def test_results_are_not_lost_by_mistake(self, out, capsys):
        before = contents(out)
        assert main(["circuits", str(out), *FEW]) == 1
        assert "holds circuits already (circuits.json): continue with --resume" in capsys.readouterr().err
        assert contents(out) == before

    def test_only_what_is_missing_is_found(self, out, walks):
        expected = numbers(out)
        (out / "plain-seed43/circuits/balanced/label-1.npz").unlink()
        (out / "circuits.json").unlink()
        manifest = json.loads((out / "plain-seed43/circuits/balanced/manifest-circuits.json").read_text())
        unfinished = out / f"plain-seed43/circuits/balanced/.modfast-{manifest['token']}-label-1.npz"
        unfinished.touch()
        not_ours = out / "plain-seed43/circuits/balanced/.label-1-0123.npz"
        not_ours.touch()
        assert main(["circuits", str(out), *FEW, "--resume"]) == 0
        assert walks == [("balanced", [1])]
        assert numbers(out) == expected
        assert not unfinished.exists()
        assert not_ours.exists()
        seconds = read_circuits(out)["runs"][2]["criteria"]["balanced"]["seconds"]
        assert seconds[0] is None
        assert seconds[1] > 0

    def test_more_labels_join_those_that_are_there(self, out, walks):
        arguments = ["circuits", str(out / "plain-seed42"), "--images", "5", "--labels", "2", "1"]
        assert main([*arguments, "--criterion", "loss", *CPU, "--resume"]) == 0
        assert walks == [("loss", [2])]
        assert read_circuits(out / "plain-seed42")["config"]["labels"] == [1, 2]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--images", "4"], "images 5, not 4"),
            (["--tolerance", "0.5"], "tolerance 0.0, not 0.5"),
            (["--layers", "fc3"], "layers None, not ['fc3']"),
            (["--seed", "1"], "seed 0, not 1"),
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
            "plain-seed43/circuits/loss holds circuits that were found with weights"
            in capsys.readouterr().err
        )

    def test_nor_a_file_in_the_place_of_another(self, out, capsys):
        folder = out / "plain-seed43/circuits/loss"
        shutil.copy(folder / "label-1.npz", folder / "label-0.npz")
        assert main(["circuits", str(out), *FEW, "--resume"]) == 1
        assert "holds a circuit of {'label': 1" in capsys.readouterr().err
        (folder / "label-0.npz").write_bytes(b"PK")
        assert main(["circuits", str(out), *FEW, "--resume"]) == 1
        assert "is no circuits file, or a damaged one" in capsys.readouterr().err
        (folder / "settings.json").unlink()
        assert main(["circuits", str(out), *FEW, "--resume"]) == 1
        assert "holds circuits but no settings.json" in capsys.readouterr().err

    def test_overwriting_finds_all_again(self, out, walks):
        arguments = ["--images", "4", "--labels", "0", "--criterion", "loss", *CPU]
        assert main(["circuits", str(out), *arguments, "--overwrite"]) == 0
        assert walks == [("loss", [0])] * 4
        assert [path.name for path in sorted(out.rglob("*.npz")) if "label" in path.name] == [
            "label-0.npz"
        ] * 4
        # Those of the criterion that was not asked for again are gone, too.
        assert not list(out.rglob("balanced/settings.json"))

    def test_an_interrupt_loses_no_finished_circuit(self, trained, examined, tmp_path, capsys, monkeypatch):
        out = shutil.copytree(trained, tmp_path / "out")

        def find(model, *arguments, on_circuit, **options):
            def keep(circuit):
                on_circuit(circuit)
                if circuit.criterion == "balanced":
                    raise KeyboardInterrupt

            return find_circuits(model, *arguments, on_circuit=keep, **options)

        with monkeypatch.context() as patch:
            patch.setattr(modfast.experiment.circuits, "find_circuits", find)
            assert main(["circuits", str(out), *FEW]) == 130
        assert "--resume continues" in capsys.readouterr().err
        run = out / "plain-seed42" / "circuits"
        found = sorted(str(path.relative_to(run)) for path in out.rglob("circuits/*/label-*"))
        # Whichever of the two was finished first.
        assert found[0] in ("balanced/label-0.npz", "balanced/label-1.npz")
        assert found[1:] == ["loss/label-0.npz", "loss/label-1.npz"]
        assert not (out / "circuits.json").exists()
        assert main(["circuits", str(out), *FEW, "--resume"]) == 0
        assert numbers(out) == numbers(examined)

    def test_a_report_tells_of_models_that_were_trained_since(self, out, capsys, monkeypatch):
        monkeypatch.setattr("modfast.experiment.runs.draw_reproduction", lambda folder: [])
        monkeypatch.setattr("modfast.report.circuits.report.write_circuit_report", lambda folder: folder)
        assert main(["report", str(out)]) == 0
        assert "trained further" not in capsys.readouterr().out
        path = out / "plain-seed43/results.json"
        results = json.loads(path.read_text())
        results["class_accuracy"][0] += 0.01
        path.write_text(json.dumps(results))
        assert main(["report", str(out)]) == 0
        shown = capsys.readouterr().out
        assert "plain-seed43 was trained further after its circuits were found: `modfast circuits" in shown


def test_progress_counts_the_weights_of_all_walks(trained, tmp_path, monkeypatch):
    out = shutil.copytree(trained, tmp_path / "out")

    def find(*arguments, classes, progress, **options):
        total = 120 * len(classes)
        progress(1, total)
        progress(total, total)
        return find_circuits(*arguments, classes=classes, **options)

    told = []
    monkeypatch.setattr(modfast.experiment.circuits, "find_circuits", find)
    monkeypatch.setattr("modfast.cli.display.Display.on_walk", lambda _, *step: told.append(step))
    assert main(["circuits", str(out), *FEW, "--criterion", "loss", "balanced"]) == 0
    each = 120 * 2
    starts = [(run, criterion) for run in RUNS for criterion in ("loss", "balanced")]
    assert told == [
        (run, criterion, index * each + done, 8 * each)
        for index, (run, criterion) in enumerate(starts)
        for done in (1, each)
    ]


def test_circuits_after_training(tmp_path, monkeypatch, capsys):
    for name in ("draw_run", "draw_reproduction"):
        monkeypatch.setattr(f"modfast.experiment.runs.{name}", lambda folder: [])
    arguments = ["reproduce", *TRAINING, "--seeds", "1", "--out", str(tmp_path), "--circuits", "loss"]
    assert main(arguments) == 0
    results = read_circuits(tmp_path)
    assert results["config"]["criteria"] == ["loss"]
    assert {claim["verdict"] for claim in results["claims"]} == {"undecided"}
    assert "No claim can be decided" in capsys.readouterr().out
    assert main([*arguments, "--resume"]) == 0  # nothing left to train or to find
    assert read_circuits(tmp_path)["summary"] == results["summary"]


def test_circuits_of_one_model_and_criterion_keep_how_they_were_found(tmp_path):
    kept = CircuitFolder(tmp_path, {"criterion": "loss", "tolerance": 0.0, "weights": "abc"})
    kept.check()  # nothing is there
    kept.save(Circuit(0, {"fc": torch.ones(1, 1, dtype=torch.bool)}, "loss", 0.0, 1, 0.5, 0.5, 1.0, 1.0))
    kept.check()
    with pytest.raises(ValueError, match="found with weights 'abc', not 'abd': --overwrite"):
        CircuitFolder(tmp_path, kept.settings | {"weights": "abd"}).check()
    (tmp_path / "circuits/loss/settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings.json is damaged"):
        kept.check()
