"""The command line, end to end, as a user runs it."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from report_helpers import is_picture

import modfast
from modfast.cli import main
from modfast.models import MLP
from modfast.results import read_results
from modfast.train import read_checkpoint


@pytest.fixture
def image_folder(tmp_path):
    """Two classes that a network can tell apart: dark and bright 12 x 12 images."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label, level in (("bright", 200), ("dark", 30)):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = level + generator.integers(-20, 20, (12, 12, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce") / "out"
    assert main(["reproduce", "--data", "digits", "--out", str(out), "--seeds", "2", "--epochs", "30"]) == 0
    return out


def test_reproduce_writes_what_the_readme_promises(reproduced):
    results = json.loads((reproduced / "results.json").read_text())
    assert results["plain"]["accuracy"] > 0.9
    assert results["modular"]["accuracy"] > results["plain"]["accuracy"] - 0.03
    assert results["modular"]["clusterability"]["fc2"] > 0.9
    assert results["plain"]["clusterability"]["fc2"] < 0.5
    assert results["config"]["seeds"] == [42, 43]
    assert results["config"]["data_fingerprint"]
    assert results["environment"]["torch"] == torch.__version__
    for name in ("comparison.png", "curves.png", "modular-seed42/weights.png", "plain-seed43/curves.png"):
        assert is_picture(reproduced / name), name
    assert is_picture(reproduced / "modular-seed42/class_accuracy_fc2.png")


def test_each_run_of_a_comparison_is_whole(reproduced):
    single = read_results(reproduced / "modular-seed43")
    assert len(single["history"]) == 30
    assert len(single["class_accuracy"]) == 10
    assert np.shape(single["cluster_accuracy"]["fc2"]["only"]) == (4, 10)
    assert 0 < single["label_semanticity"]["fc2"] < 1
    # Four blocks of 16 neurons; of the ten classes they have 3, 3, 2 and 2.
    left, weights = 64 * 16 + 16 * 16 + 16 * 10 / 4, 64 * 64 + 64 * 64 + 64 * 10
    assert single["search_space_reduction"] == pytest.approx((weights - left) / weights)
    live = single["live"]["fc2"]
    assert sum(live["cluster_shares"]) == pytest.approx(single["clusterability"]["fc2"], abs=1e-6)
    assert 1 <= live["clusters"] <= 4
    assert live["effective_rows"] <= 64
    partitions = modfast.load_partitions(reproduced / "modular-seed43/partitions.npz")
    state = torch.load(reproduced / "modular-seed43/checkpoint.pt", weights_only=True)
    share = modfast.clusterability(state["model"]["fc2.weight"], partitions["fc2"])
    assert float(share) == pytest.approx(single["clusterability"]["fc2"], abs=1e-6)


def test_the_pair_of_a_seed_starts_from_the_same_weights(reproduced):
    plain, modular = (
        torch.load(reproduced / f"{kind}-seed42/checkpoint.pt", weights_only=True)["initial"]
        for kind in ("plain", "modular")
    )
    assert all(torch.equal(plain[name], modular[name]) for name in plain)


def test_report_draws_again_from_the_files_alone(reproduced, tmp_path, capsys):
    shutil.copytree(reproduced, tmp_path / "copy")
    pictures = sorted((tmp_path / "copy").rglob("*.png"))
    before = {path: path.read_bytes() for path in pictures}
    for path in pictures:
        path.unlink()
    assert main(["report", str(tmp_path / "copy")]) == 0
    for run in ("plain-seed42", "modular-seed42", "plain-seed43", "modular-seed43"):
        assert main(["report", str(tmp_path / "copy" / run)]) == 0
    assert {path: path.read_bytes() for path in pictures} == before
    assert "fc2" in capsys.readouterr().out


def test_results_are_not_lost_by_mistake(reproduced, capsys, monkeypatch):
    before = (reproduced / "results.json").read_bytes()
    arguments = ["reproduce", "--data", "digits", "--out", str(reproduced), "--seeds", "2", "--epochs", "30"]
    assert main(arguments) == 1
    assert "--resume" in capsys.readouterr().err
    assert (reproduced / "results.json").read_bytes() == before
    for name in ("draw_run", "draw_reproduction"):  # which take longer than all the rest
        monkeypatch.setattr(f"modfast.experiment.runs.{name}", lambda folder: [])
    assert main([*arguments, "--resume"]) == 0  # nothing left to train


def test_train_on_an_image_folder_with_given_partitions(image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MODFAST_CACHE", str(tmp_path / "cache"))
    partition = modfast.Partition(torch.arange(64) % 2, torch.arange(64) // 32, 2)
    modfast.save_partitions(tmp_path / "clusters.npz", {"fc2": partition})
    out = tmp_path / "out"
    arguments = ["train", "--data", f"imagefolder:{image_folder}", "--out", str(out), "--epochs", "8"]
    arguments += ["--partitions", str(tmp_path / "clusters.npz"), "--clusters", "2", "--batch-size", "8"]
    assert main(arguments) == 0
    results = read_results(out)
    assert results["accuracy"] == 1.0
    assert results["classes"] == ["bright", "dark"]
    assert modfast.load_partitions(out / "partitions.npz")["fc2"] == partition
    assert main([*arguments, "--overwrite"]) == 0


class Stopping(MLP):
    """Sends its process the signal ``STOP`` in the middle of the third epoch."""

    passes = 0

    def forward(self, images):
        self.passes += 1
        # 1437 digits are 15 batches of 100, and are tested in one.
        if self.passes == 2 * 16 + 7 and "STOP" in os.environ:
            os.kill(os.getpid(), int(os.environ["STOP"]))
        return super().forward(images)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_resumes(tmp_path, run_python, how):
    out = tmp_path / "out"
    arguments = ["train", "--model", "test_cli:Stopping", "--out", str(out), "--data", "digits"]
    arguments += ["--batch-size", "100", "--epochs", "4", "--threads", "1"]
    code = f"import sys; from modfast.cli import main; sys.exit(main({arguments!r}))"
    stopped = run_python(code, STOP=str(int(how)))
    if how == signal.SIGINT:
        assert stopped.returncode == 130
        assert "--resume" in stopped.stderr
        assert "Traceback" not in stopped.stderr
    else:
        assert stopped.returncode == -signal.SIGKILL
    assert len(read_checkpoint(out / "checkpoint.pt")["history"]) == 2
    assert not (out / "results.json").exists()
    assert main([*arguments, "--resume"]) == 0
    assert len(read_results(out)["history"]) == 4
    assert not list(out.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "cifar11"], "cifar11"),
        (["--data", "imagefolder:/nowhere/at/all"], "/nowhere/at/all"),
        (["--layers", "fc9"], "fc9"),
        (["--clusters", "65"], "num_clusters"),
        (["--epochs", "-1"], "epochs"),
        (["--device", "toaster"], "toaster"),
        (["--threads", "100000"], "threads must be None or an integer in [1, 4096], got 100000"),
        (
            ["--batch-size", str(10**30)],
            "batch_size must be an integer in [1, 9223372036854775807], got 1000",
        ),
        (["--model", "no_such_module:make"], "no_such_module"),
        (["--model", "os:getcwd"], "must accept the keyword arguments image_shape and num_classes"),
        (["--model", "os:sep"], "must name a callable"),
        (["--model", "argparse:Namespace"], "must return a torch.nn.Module"),
        (["--partitions", "nowhere.npz"], "nowhere.npz"),
        (["--resume", "--overwrite"], "exclude"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(tmp_path, capsys, arguments, message):
    assert main(["train", "--out", str(tmp_path / "out"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("modfast: error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--out", ""],
        ["train", "--out", "out", "--partitions", ""],
        ["cluster", "", "--out", "out"],
        ["circuits", ""],
        ["report", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_current_folder(tmp_path, capsys, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "must be a path, got an empty text" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("option", ["--epochs", "--clusters", "--partitions", "--layers"])
def test_two_dashes_are_no_value(tmp_path, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--out", str(tmp_path / "out"), f"{option}=--"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert option in last
    assert "error: " in last


def test_report_of_a_folder_without_results(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "no run has finished" in capsys.readouterr().err
    (tmp_path / "results.json").write_text('{"plain": ')
    assert main(["report", str(tmp_path)]) == 1
    assert "damaged" in capsys.readouterr().err


def test_the_command_is_installed():
    script = os.path.join(os.path.dirname(sys.executable), "modfast")
    shown = subprocess.run([script, "--version"], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == f"modfast {modfast.__version__}"


@pytest.mark.parametrize("name", ["train", "reproduce", "circuits", "cluster", "report"])
def test_each_command_explains_itself(capsys, name):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: modfast {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "layers"), [("cnn4", ["fc2"]), ("cnn-large", ["fc1", "fc2", "fc3"]), ("mlp", ["fc2"])]
)
def test_what_is_regularised_unless_layers_are_named(tmp_path, model, layers):
    arguments = ["train", "--data", "digits", "--model", model, "--epochs", "1", "--batch-size", "500"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert read_results(tmp_path / "out")["config"]["regularised_layers"] == layers
