"""Each script in examples/ runs in an empty folder, and what it prints is true of what it shows."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))

pytestmark = pytest.mark.skipif(not SCRIPTS, reason="needs the examples of the checkout")


def run(name, folder):
    """What a script prints, run in an interpreter and a folder of its own."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(path.is_relative_to(folder / "out") for path in folder.rglob("*") if path.is_file())
    return done.stdout


def numbers(pattern, text):
    """The numbers that a pattern's groups match, place by place."""
    found = [match if isinstance(match, tuple) else (match,) for match in re.findall(pattern, text)]
    assert found, f"nothing like {pattern} in {text}"
    return [tuple(float(each) for each in match) for match in found]


@pytest.mark.slow
def test_train_a_modular_mlp(tmp_path):
    printed = run("train_a_modular_mlp", tmp_path)
    plain, modular = numbers(r"clusterability ([\d.]+) before training, ([\d.]+) after; ([\d.]+)%", printed)
    assert plain[0] == modular[0] == pytest.approx(0.25, abs=0.02)
    assert plain[1] < 0.35
    assert modular[1] > 0.95
    assert min(plain[2], modular[2]) > 90
    assert (tmp_path / "out" / "examples" / "train_a_modular_mlp.png").stat().st_size > 5000


@pytest.mark.slow
def test_find_modules(tmp_path):
    printed = run("find_modules", tmp_path)
    ((gap, count, by_chance),) = numbers(
        r"gap, ([\d.]+), is after (\d+) values; in shuffled weights the largest is ([\d.]+)", printed
    )
    assert count == 6
    assert gap > 5 * by_chance
    for right, of in numbers(r"(\d+) of (\d+) (?:rows|units)", printed):
        assert right > 0.95 * of
    ((cut, shuffled),) = numbers(r"cut ([\d.]+), that of shuffled weights ([\d.]+)", printed)
    assert cut < shuffled


@pytest.mark.slow
def test_circuits_of_classes(tmp_path):
    printed = run("circuits_of_classes", tmp_path)
    plain, modular = numbers(r"mean size ([\d.]+)%; overlap ([\d.]+)%, .* sizes ([\d.]+)%", printed)
    for size, overlap, by_chance in (plain, modular):
        assert 0 < size < 50
        assert overlap > by_chance
    inside = [share for (share,) in numbers(r"in fc2, (\d+)% lie inside", printed)]
    assert inside[0] < 40 < 80 < inside[1]


@pytest.mark.slow
def test_unit_circuit(tmp_path):
    printed = run("unit_circuit", tmp_path)
    ((kept, of, before, after),) = numbers(
        r"(\d+) of (\d+) neurons are enough .*: (-?[\d.]+) before, (-?[\d.]+) with", printed
    )
    assert 0 < kept < of / 2
    assert after >= before - 0.1
    ((one, used, all_of_them),) = numbers(
        r"one frequency is (\d+)% of .* use (\d+) of (\d+) frequencies", printed
    )
    assert one > 75
    assert used < all_of_them / 2
    ((own, *random),) = numbers(r"\(CPR\) ([\d.]+); random rankings ([\d.-]+) to ([\d.-]+)", printed)
    assert own > max(random)


@pytest.mark.slow
def test_ablate_clusters(tmp_path):
    printed = run("ablate_clusters", tmp_path)
    without = numbers(r"without each cluster: " + ", ".join([r"([\d.]+)%"] * 4), printed)
    alone = numbers(r"with each alone:      " + ", ".join([r"([\d.]+)%"] * 4), printed)
    assert min(without[0] + without[1]) > max(alone[0] + alone[1])
    assert sum(alone[1]) > sum(alone[0])
    (_, (modular, random)) = numbers(r"needs ([\d.]+) clusters, ([\d.]+) of random", printed)
    assert modular < random


@pytest.mark.slow
def test_sparse_training(tmp_path):
    found = numbers(
        r"([\d.]+)% of the weights: ([\d.]+)% .* needs ([\d.]+)%", run("sparse_training", tmp_path)
    )
    assert [left for left, _, _ in found] == [100.0, 20.0, 5.0]
    for left, accuracy, size in found:
        assert accuracy > 85
        assert size <= left
    assert found[0][2] > found[1][2] > found[2][2]


@pytest.mark.slow
def test_shared_partitions_transformer(tmp_path):
    printed = run("shared_partitions_transformer", tmp_path)
    plain, modular = printed.split("modular:")
    assert len(numbers(r"mlp_(?:in|out): ([\d.]+)\n", plain)) == 4
    assert max(numbers(r"mlp_(?:in|out): ([\d.]+)\n", plain)) < (0.4,)
    assert min(numbers(r"mlp_(?:in|out): ([\d.]+)\n", modular)) > (0.9,)
    # A model that knew nothing of the text would need log(256) = 5.5 nats.
    assert all(1 < loss < 3 for (loss,) in numbers(r"held-out loss ([\d.]+) nats", printed))


@pytest.mark.slow
def test_trainer_callback(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    printed = run("trainer_callback", tmp_path)
    rows = r"{}, step (\d+): loss [\d.]+, clusterability ([\d.]+)"
    plain, modular = (numbers(rows.format(name), printed) for name in ("plain", "modular"))
    assert plain[0] == modular[0], "before the loss sets in both trainings are the same"
    assert modular[-1][1] > 0.9 > 0.5 > plain[-1][1]
    saved = numbers(r"clusters of (\d+) layers", printed)
    assert saved == [(4,)]


@pytest.mark.slow
def test_resnet_channels(tmp_path):
    printed = run("resnet_channels", tmp_path)
    plain, modular = numbers(
        r"conv1 ([\d.]+), \d.conv2 ([\d.]+), \d.conv1 ([\d.]+), \d.conv2 ([\d.]+)", printed
    )
    assert max(plain) < 0.4
    assert min(modular) > 0.9
    assert printed.count("writes the same channels") == 2


def test_each_example_is_short_and_tested_and_in_the_table():
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{path.name} does not say what it shows"
        assert len(text.splitlines()) <= 75, f"{path.name} is long for one idea"
        assert f"[{path.name}]({path.name})" in table
        assert f"test_{path.stem}" in globals(), f"{path.name} has no test"
    assert table.count(".py](") == len(SCRIPTS)
