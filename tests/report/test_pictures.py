"""Pictures show what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from report_helpers import CONFIG, MODULAR, PLAIN, history

from modfast import report
from modfast.partition import Partition
from modfast.report.pictures import classes as picture_classes
from modfast.report.pictures import runs as pictures
from modfast.report.pictures import weights as picture_weights
from modfast.report.pictures.classes import draw_class_accuracy
from modfast.report.pictures.style import save_figure
from modfast.report.pictures.weights import draw_weights

LOW = np.array(matplotlib.colormaps["viridis"](0.0))
HIGH = np.array(matplotlib.colormaps["viridis"](1.0))


def pixels_of(path: Path) -> np.ndarray:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = matplotlib.image.imread(path)
    assert image.shape[1] == 1440
    assert 400 <= image.shape[0] <= 4000
    return image


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collects the figures behind the files, to know where on the picture a value is drawn."""
    collected: list[Figure] = []

    def keep(figure: Figure, path: Path) -> None:
        collected.append(figure)
        save_figure(figure, path)

    for module in (picture_classes, picture_weights, pictures):
        monkeypatch.setattr(module, "save_figure", keep)
    return collected


def colour_at(image: np.ndarray, axes: Axes, x: float, y: float) -> np.ndarray:
    column, row = axes.transData.transform((x, y))
    return image[image.shape[0] - 1 - int(row), int(column)]


def texts(figure: Figure) -> str:
    figure_texts = [item.get_text() for item in figure.findobj(Text)]
    return "\n".join(figure_texts)


class TestWeights:
    def test_sorted_blocks(self, tmp_path: Path, figures: list[Figure]) -> None:
        generator = torch.Generator().manual_seed(0)
        # Interleaved clusters: only sorting makes the blocks that are looked for below.
        rows = torch.arange(4).repeat(6)[torch.randperm(24, generator=generator)]
        cols = torch.arange(4).repeat(8)[torch.randperm(32, generator=generator)]
        partition = Partition(rows, cols, 4)
        after = partition.mask().float()
        before = torch.full((24, 32), 0.5)
        draw_weights(tmp_path / "w.png", {"fc": before}, {"fc": after}, {"fc": partition})
        image = pixels_of(tmp_path / "w.png")
        left, right = figures[0].axes[:2]
        half = np.array(matplotlib.colormaps["viridis"](0.5))
        for row in range(24):
            for column in range(32):
                expected = HIGH if row // 6 == column // 8 else LOW
                for axes, colour in ((left, half), (right, expected)):
                    found = colour_at(image, axes, column + 0.5, row + 0.5)
                    assert np.abs(found - colour).max() < 1.5 / 255, (row, column)
        # Between the clusters there is a border, one pixel wide: which one is matplotlib's choice.
        near = [colour_at(image, right, 8 + shift, 20.5)[:3].min() for shift in (-0.06, 0.0, 0.06)]
        assert max(near) > 0.5
        assert "clusterability 0.250" in left.get_title()
        assert "clusterability 1.000" in right.get_title()
        assert "|weight|" in texts(figures[0])

    def test_one_crossing_weight_survives_reduction(self, tmp_path: Path, figures: list[Figure]) -> None:
        partition = Partition.blocks((8, 4096), 2)
        before = partition.mask().float()
        after = before.clone()
        after[1, 3000] = 1.0
        draw_weights(tmp_path / "w.png", {"fc": before}, {"fc": after}, {"fc": partition})
        image = pixels_of(tmp_path / "w.png")
        left, right = figures[0].axes[:2]
        # Columns 2992 to 3008 share the cell of column 3000.
        assert np.allclose(colour_at(image, left, 3000, 1.5), LOW, atol=0.01)
        assert np.allclose(colour_at(image, right, 3000, 1.5), HIGH, atol=0.01)
        assert np.allclose(colour_at(image, right, 3040, 1.5), LOW, atol=0.01)
        assert "maximum of up to 16 neurons" in texts(figures[0])

    def test_convolution_is_the_norm_over_its_kernel(self, tmp_path: Path, figures: list[Figure]) -> None:
        partition = Partition.blocks((4, 4), 2)
        weight = torch.zeros(4, 4, 1, 2)
        weight[0, 0] = torch.tensor([[3.0, -4.0]])
        weight[3, 0] = 5.0 / 2**0.5
        draw_weights(tmp_path / "w.png", {"c": weight}, {"c": weight}, {"c": partition})
        image = pixels_of(tmp_path / "w.png")
        right = figures[0].axes[1]
        assert np.allclose(colour_at(image, right, 0.5, 0.5), HIGH, atol=0.01)
        assert np.allclose(colour_at(image, right, 0.5, 3.5), HIGH, atol=0.01)
        assert np.allclose(colour_at(image, right, 1.5, 1.5), LOW, atol=0.01)
        # Both kernels have norm 5, one of them inside its cluster.
        assert "clusterability 0.500" in right.get_title()
        assert "norm over kernel" in texts(figures[0])

    @pytest.mark.parametrize("scale", [0.0, 1e-200, 1.0, 1e200])
    def test_clusterability(self, scale: float) -> None:
        partition = Partition([0, 1, -1], [0, 1], 2)
        weight = scale * np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 1.0]])
        expected = 13.0 / 31.0 if scale else 1.0
        assert picture_weights._clusterability(weight, partition) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_dtypes_unassigned_and_gradients(self, dtype: torch.dtype, tmp_path: Path) -> None:
        partition = Partition([0, 1, -1], [-1, 0, 1, 1, 0], 2)
        weight = torch.ones(3, 5, dtype=dtype, requires_grad=True)
        draw_weights(tmp_path / "w.png", {"fc": weight}, {"fc": weight}, {"fc": partition})
        pixels_of(tmp_path / "w.png")

    def test_bad_arguments(self, tmp_path: Path) -> None:
        path, partition, weight = tmp_path / "w.png", Partition.blocks((4, 6), 2), torch.ones(4, 6)
        with pytest.raises(ValueError, match="partitions must name at least one layer"):
            draw_weights(path, {}, {}, {})
        with pytest.raises(
            ValueError, match=r"partitions\['fc'\] must have rows and columns, got shape \(0, 2\)"
        ):
            draw_weights(path, {"fc": weight}, {"fc": weight}, {"fc": Partition([], [0, 0], 1)})
        with pytest.raises(ValueError, match=r"after must hold layer 'fc', got \['other'\]"):
            draw_weights(path, {"fc": weight}, {"other": weight}, {"fc": partition})
        with pytest.raises(ValueError, match=r"before\['fc'\] must have the partition's shape \(4, 6\)"):
            draw_weights(path, {"fc": weight.T}, {"fc": weight}, {"fc": partition})
        with pytest.raises(ValueError, match=r"after\['fc'\] must be finite"):
            draw_weights(path, {"fc": weight}, {"fc": weight / 0}, {"fc": partition})
        assert list(tmp_path.iterdir()) == []


class TestCurves:
    def test_plain_and_modular(self, tmp_path: Path, figures: list[Figure]) -> None:
        runs = {
            "plain": [history(3, seed) for seed in range(3)],
            "modular": [history(6, seed, 0.9) for seed in range(3)],
        }
        pictures.draw_curves(tmp_path / "c.png", runs, regularised=["fc2"])
        pixels_of(tmp_path / "c.png")
        entropy, accuracy, fc1, fc2 = figures[0].axes
        plain, modular = accuracy.get_lines()
        assert plain.get_xdata().tolist() == [1, 2, 3]
        # Seeds are 2 points apart, so the mean is the middle one's.
        assert np.allclose(modular.get_ydata(), [100 - 50 / epoch - 2 for epoch in range(1, 7)])
        assert np.allclose(entropy.get_lines()[0].get_ydata(), [2.1, 1.1, 2 / 3 + 0.1])
        assert fc2.get_title() == "fc2, regularised"
        assert fc1.get_title() == "fc1"
        band = entropy.collections[0].get_paths()[0].vertices
        assert band[:, 1].max() == pytest.approx(2.2)
        assert "plain, mean and range of 3 seeds" in texts(figures[0])

    def test_one_epoch_of_one_seed(self, tmp_path: Path) -> None:
        pictures.draw_curves(tmp_path / "c.png", {"modular": [history(1)]})
        pixels_of(tmp_path / "c.png")

    def test_bad_arguments(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="runs must name at least one kind of run"):
            pictures.draw_curves(tmp_path / "c.png", {})
        with pytest.raises(ValueError, match=r"runs\['plain'\] must hold at least one epoch"):
            pictures.draw_curves(tmp_path / "c.png", {"plain": [[]]})


class TestClassAccuracy:
    def test_cells(self, tmp_path: Path, figures: list[Figure]) -> None:
        full = torch.tensor([1.0, 0.9, float("nan")])
        only = torch.tensor([[1.0, 0.0, float("nan")], [0.0, 0.85, float("nan")]])
        draw_class_accuracy(tmp_path / "a.png", ["cat", "dog", "cow"], full, only, 1.0 - only, "fc2")
        image = pixels_of(tmp_path / "a.png")
        alone, off = figures[0].axes[:2]
        # Beside the number in the cell's middle.
        for axes, row, column, colour in (
            (alone, 1, 0, HIGH),
            (alone, 1, 1, LOW),
            (off, 1, 0, LOW),
            (off, 1, 1, HIGH),
        ):
            assert np.allclose(colour_at(image, axes, column + 0.3, row + 0.2), colour, atol=0.01)
        assert [text.get_text() for text in alone.texts] == [
            "100",
            "90",
            "n/a",
            "100",
            "0",
            "n/a",
            "0",
            "85",
            "n/a",
        ]
        # One frame for cat with cluster 0 alone, one for dog with cluster 1; both are lost without.
        assert len(alone.patches) == 2
        assert len(off.patches) == 2
        labels = texts(figures[0])
        for label in ("cat", "cow", "only cluster 1", "without cluster 0", "whole network", "(%)"):
            assert label in labels

    def test_many_classes_show_every_nth_name(self, tmp_path: Path, figures: list[Figure]) -> None:
        shares = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
        names = [f"a class with the very long name {index}" for index in range(50)]
        draw_class_accuracy(tmp_path / "a.png", names, shares[0], shares, shares, "fc2")
        pixels_of(tmp_path / "a.png")
        assert len(figures[0].axes[0].get_xticklabels()) == 17
        assert not figures[0].axes[0].texts

    def test_bad_arguments(self, tmp_path: Path) -> None:
        path, names = tmp_path / "a.png", ["cat", "dog"]
        full, table = torch.zeros(2), torch.zeros(3, 2)
        with pytest.raises(ValueError, match="classes must name at least one class"):
            draw_class_accuracy(path, [], full, table, table, "fc")
        with pytest.raises(ValueError, match=r"full must have the shape \(2,\), got \(3,\)"):
            draw_class_accuracy(path, names, torch.zeros(3), table, table, "fc")
        with pytest.raises(ValueError, match=r"only must have the shape \(clusters, 2\), got \(2, 3\)"):
            draw_class_accuracy(path, names, full, table.T, table, "fc")
        with pytest.raises(ValueError, match=r"without must have only's shape \(3, 2\), got \(1, 2\)"):
            draw_class_accuracy(path, names, full, table, table[:1], "fc")
        with pytest.raises(ValueError, match=r"only must be in \[0, 1\], got 97"):
            draw_class_accuracy(path, names, full, table + 97, table, "fc")
        assert list(tmp_path.iterdir()) == []


class TestComparison:
    def test_means_intervals_and_seeds(self, tmp_path: Path, figures: list[Figure]) -> None:
        results = {**report.summarize(PLAIN, MODULAR), "config": CONFIG}
        pictures.draw_comparison(tmp_path / "c.png", results)
        pixels_of(tmp_path / "c.png")
        left, right = figures[0].axes
        assert "-0.33 ± 1.43 percentage points" in left.get_title()
        assert [text.get_text() for text in right.get_yticklabels()] == ["fc1", "fc2\n(regularised)"]
        dots = [line.get_ydata().tolist() for line in left.get_lines() if len(line.get_xdata()) == 3]
        assert np.allclose(dots, [[95, 96, 97], [94, 96, 97]])
        bars = left.collections[0].get_segments()[0]
        assert np.allclose(bars[:, 1], [96 - 2.484, 96 + 2.484], atol=1e-3)

    def test_one_seed_has_no_bar(self, tmp_path: Path, figures: list[Figure]) -> None:
        pictures.draw_comparison(tmp_path / "c.png", report.summarize(PLAIN[:1], MODULAR[:1]))
        pixels_of(tmp_path / "c.png")
        assert not figures[0].axes[0].collections
        assert "plain (one seed)" in texts(figures[0])

    @pytest.mark.parametrize("missing", ["plain", "modular", "difference"])
    def test_incomplete_results(self, missing: str, tmp_path: Path) -> None:
        results = report.summarize(PLAIN, MODULAR)
        del results[missing]
        with pytest.raises(ValueError, match=f"results must hold '{missing}'"):
            pictures.draw_comparison(tmp_path / "comparison.png", results)
        assert list(tmp_path.iterdir()) == []


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    results = report.summarize(PLAIN, MODULAR)
    for name in ("a.png", "b.png"):
        pictures.draw_comparison(tmp_path / name, results)
    first = (tmp_path / "a.png").read_bytes()
    assert first == (tmp_path / "b.png").read_bytes()
    assert b"Matplotlib" not in first
    assert b"tEXt" not in first


def test_pictures_leave_pyplot_alone(run_python: Any) -> None:
    done = run_python("import sys, modfast.report; print('matplotlib.pyplot' in sys.modules)")
    assert done.stdout == "False\n", done.stderr
