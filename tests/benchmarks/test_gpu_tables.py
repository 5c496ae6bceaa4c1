"""The tables of a GPU, with the CPU in its place: peers find clusters and circuits, all tables are made."""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import nn

from benchmarks.circuits import batched
from benchmarks.circuits import table as circuit_table
from benchmarks.common import device, needs, pages
from benchmarks.energy import table as energy_table
from benchmarks.spectral import cases, device_peers
from benchmarks.spectral import table as spectral_table
from benchmarks.spectral.agreement import adjusted_rand
from modfast import find_circuit
from modfast.circuits.linear_tail import read_tail

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, set_threads: Any) -> None:
    """``--device cuda`` means the CPU."""
    monkeypatch.setattr(device, "GPU", "cpu")
    set_threads(1)


def made(main: Any, family: str, tmp_path: Path, *options: str) -> tuple[dict[str, Any], str]:
    """Make a family's table; return its report and what was put into a page."""
    page, kept = tmp_path / "page.md", tmp_path / "table.json"
    begin, end = (f"<!-- {family} cuda table: {which} -->\n" for which in ("begin", "end"))
    page.write_text(f"<!-- {family} table: begin -->\nold\n<!-- {family} table: end -->\n{begin}{end}")
    common = ["--device", "cuda", "--repeats", "1", "--threads", "1"]
    main([*common, *options, "--json", str(kept), "--markdown", str(page)])
    before, inside = page.read_text().split(begin)
    assert "\nold\n" in before  # the table of the CPU stays
    report = json.loads(kept.read_text())
    assert (report["device"], report["gpu"]) == ("cuda", "cpu")
    return report, inside.removesuffix(end)


# --- The device


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("table", [energy_table, spectral_table, circuit_table])
def test_without_a_gpu_it_says_so(table: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        table.main(["--device", "cuda"])
    assert "--device cuda needs an NVIDIA GPU, and PyTorch finds none" in capsys.readouterr().err


def test_without_kernels_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device.modfast, "backend", lambda: {"cuda": False})
    with pytest.raises(SystemExit, match="2"):
        device.device_of(argparse.ArgumentParser(), "cuda")
    assert "built with its CUDA kernels" in capsys.readouterr().err


def test_a_copy_moves_so_many_bytes() -> None:
    copied = device.copy_of(1000, "cpu")()
    assert isinstance(copied, torch.Tensor)
    assert copied.nbytes == 500  # each of them read and written


@pytest.mark.parametrize("family", ["energy", "spectral", "circuits"])
def test_page_has_a_place_for_the_tables(family: str) -> None:
    page = BENCHMARKS.parent / "docs" / "speed" / f"{family}.md"
    pages.outside_markers(page.read_text(), f"{family} cuda")


# --- Energy


def test_energy(stand_in: None, tmp_path: Path) -> None:
    report, page = made(energy_table.main, "energy", tmp_path, "--sizes", "12x9x3", "--rotate", "1")
    (result,) = report["results"]
    assert result["share_of_floor"] == pytest.approx(
        result["milliseconds"]["floor"] / result["milliseconds"]["modfast"]
    )
    assert "| MB moved | copy, ms | copy / modfast |" in page


# --- Spectral


def test_adjusted_rand() -> None:
    generator = np.random.default_rng(0)
    for clusters in (1, 2, 5):
        a, b = generator.integers(clusters, size=(2, 60))
        b[:30] = a[:30]
        assert adjusted_rand(a, b) == pytest.approx(adjusted_rand_score(a, b))
    assert adjusted_rand([0], [3]) == 1.0


def test_k_means_is_weighted() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    truth = torch.arange(3).repeat_interleave(50)
    points = centres[truth] + 0.3 * torch.randn(150, 2, generator=generator)
    torch.manual_seed(0)
    labels = device_peers.k_means(points, torch.ones(150), 3)
    assert adjusted_rand(truth, labels) == 1.0
    # Two clusters for three groups: the light one joins its neighbour, whichever that is.
    line = torch.tensor([[0.0], [1.0], [10.0], [11.5]])
    heavy_left = device_peers.k_means(line, torch.tensor([1e6, 1e6, 1.0, 1.0]), 2)
    assert heavy_left[0] != heavy_left[1]
    assert device_peers.k_means(line, torch.ones(4), 2).unique_consecutive(return_counts=True)[
        1
    ].tolist() == [2, 2]


def test_k_means_of_fewer_points_than_clusters() -> None:
    labels = device_peers.k_means(torch.ones(5, 2), torch.ones(5), 3)
    assert len(labels.unique()) == 1


@pytest.mark.parametrize("pruned", ["", "smallest"])
def test_peers_find_planted_clusters(set_threads: Any, pruned: str) -> None:
    set_threads(1)
    planted = cases.plant(cases.WeightCase(300, 240, 3, spread=0.1, pruned=pruned))
    contestants = device_peers.weight_contestants(planted, "cpu")
    assert contestants.pop("floor")() is None
    assert list(contestants) == ["modfast", "svd_lowrank"]
    for name, contestant in contestants.items():
        found = contestant()
        assert found is not None
        assert adjusted_rand(planted.partition.row_labels, found.labels[0]) == 1.0, name
        assert adjusted_rand(planted.partition.col_labels, found.labels[1]) == 1.0, name


@pytest.mark.parametrize("pruned", ["", "smallest"])
def test_product_of_the_peer_is_ours(pruned: str) -> None:
    planted = cases.plant(cases.WeightCase(60, 40, 2, pruned=pruned))
    weight = planted.weight if planted.sparse is None else device_peers.on_device(planted.sparse, "cpu")
    calls, moved = device_peers.product_contestants(weight, 5, False)
    torch.testing.assert_close(calls["modfast"](), calls["matmul"](), rtol=1e-4, atol=1e-3)
    if not pruned:
        # The weight; 40 x 8 vectors and as many results; 60 x 8 numbers between the two products.
        assert moved == 4 * (60 * 40 + 2 * 40 * 8 + 60 * 8)
    adjacency, _ = cases.block_model(cases.GraphCase(200, 2))
    graph = device_peers.on_device(adjacency, "cpu")
    calls, moved = device_peers.product_contestants(graph, 2, True)
    torch.testing.assert_close(calls["modfast"](), calls["matmul"](), rtol=1e-4, atol=1e-3)
    assert moved == cases.bytes_of(adjacency) + 4 * 2 * 200 * 8


def test_spectral(stand_in: None, tmp_path: Path) -> None:
    report, page = made(spectral_table.main, "spectral", tmp_path, "--cases", "300x200x2", "400x2")
    (weight,), (graph,) = report["weights"], report["graphs"]
    for result in (weight, graph):
        assert list(result["ratios"]) == ["svd_lowrank"]
        assert min(result["adjusted_rand"]["modfast"]) > 0.98
        time = result["milliseconds"]
        assert result["time_by_copy"] == pytest.approx(time["modfast"] / time["floor"] / result["passes"])
        product = result["product"]
        assert product["ratio"] == pytest.approx(
            product["milliseconds"]["matmul"] / product["milliseconds"]["modfast"]
        )
    assert weight["clusterability"] == weight["planted_clusterability"]
    assert "| weights and graphs | modfast, ms |" in page
    assert "| product | modfast, ms |" in page
    assert "scikit-learn" not in page.splitlines()[1]


# --- Circuits


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_batched_walk_decides_alike(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    monkeypatch.setattr(batched, "_BATCH", 4)  # several batches for each row
    torch.manual_seed(3)
    widths = [12, 8, 7, 5][-depth - 1 :]
    layers = [nn.Linear(a, b, bias=b == 7) for a, b in pairwise(widths)]
    parts = [part for layer in layers for part in (layer, nn.ReLU())][:-1]
    model, inputs = nn.Sequential(*parts).double(), torch.randn(30, widths[0], dtype=torch.float64)
    before = [layer.weight.clone() for layer in layers]
    walk = batched.batched(model, inputs, 1, "cpu")
    kept = walk.run()
    circuit = find_circuit(model, inputs, 1)
    assert 0 < circuit.size < 1
    for own, mask in zip(kept, circuit.masks.values(), strict=True):
        assert torch.equal(own, mask)
    assert walk.batches < sum(mask.numel() for mask in kept)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before, strict=True))


def test_the_batched_walk_refuses_other_activations() -> None:
    tail = read_tail(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.rand(5, 3))
    with pytest.raises(ValueError, match="relu or nothing"):
        batched.BatchedWalk(tail, 0, "cpu")


def test_circuits(stand_in: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit_table, "noisy_patterns", circuit_table.digits)
    report, page = made(circuit_table.main, "circuits", tmp_path)
    for result in report["cases"]:
        assert result["batched_alike"] == 1.0
        assert result["batched_ratio"] == pytest.approx(
            result["batched_seconds"] / result["seconds"]["modfast"]
        )
    assert "| batched, s | batched / modfast | decided alike |" in page
    assert "| 100.00 % |" in page


# --- What lacks


def test_imports_are_followed_and_not_into_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "ROOT", tmp_path)
    files = {
        "modfast/__init__.py": "import numpy\n",
        "modfast/deep/__init__.py": "",
        "modfast/deep/one.py": "from . import two\nfrom ..flat import three\nimport os.path\n",
        "modfast/deep/two.py": "import lacks_one\ndef f():\n    import lacks_not\n",
        "modfast/flat.py": "from sklearn.cluster import KMeans\nwith f():\n    import lacks_not\n",
        "tests/helper.py": "import lacks_two\n",
        "tests/deep/test_one.py": "import helper\nfrom modfast.deep.one import three\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = needs.third_party([tmp_path / "tests/deep/test_one.py"])
    assert found == {"numpy", "sklearn", "lacks_one", "lacks_two"}
    assert needs.lacking([tmp_path / "tests/deep/test_one.py"]) == ["lacks_one", "lacks_two"]


def test_what_lacks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(needs, "ROOT", tmp_path)
    (tmp_path / "good.py").write_text("import os\n")
    (tmp_path / "bad.py").write_text("import lacks_one\n")
    good, bad = (str(tmp_path / name) for name in ("good.py", "bad.py"))
    assert needs.main([good]) == 0
    assert capsys.readouterr().err == ""
    assert needs.main([good, bad]) == 1
    assert f"lacks lacks_one, which {bad} needs; nothing was installed" in capsys.readouterr().err
    assert needs.main(["--runnable", bad, good]) == 0
    assert capsys.readouterr().out == f"{good}\n"
    assert needs.main(["--runnable", bad]) == 1


def test_tables_of_a_gpu_need_few_packages() -> None:
    tables = [BENCHMARKS / family / "table.py" for family in ("energy", "spectral", "circuits")]
    assert needs.third_party(tables) <= {"torch", "numpy", "rich", "scipy", "typing_extensions"}
