"""The picture of circuits shows the weights that they keep."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from circuit_report_helpers import CLASSES, SHAPES, random_circuit
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from modfast import picture_circuits
from modfast.circuit import Circuit
from modfast.partition import Partition
from modfast.picture_circuits import CLUSTERS, draw_circuits
from modfast.picture_style import save_figure

PARTITIONS = {name: Partition.blocks(shape, 3) for name, shape in SHAPES.items()}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    collected: list[Figure] = []

    def keep(figure: Figure, path: Path) -> None:
        collected.append(figure)
        save_figure(figure, path)

    monkeypatch.setattr(picture_circuits, "save_figure", keep)
    return collected


def of(label: int, mask: torch.Tensor) -> Circuit:
    return Circuit(label, {"fc": mask}, "loss", 0.0, 10, 0.5, 0.4, 0.9, 1.0)


def test_plain_above_modular(tmp_path: Path, figures: list[Figure]) -> None:
    circuits = {
        kind: [random_circuit(label, "loss", PARTITIONS, SHAPES, kind == "modular", 0) for label in (0, 2)]
        for kind in ("plain", "modular")
    }
    draw_circuits(tmp_path / "c.png", circuits, dict.fromkeys(circuits, PARTITIONS), CLASSES)
    image = matplotlib.image.imread(tmp_path / "c.png")
    assert image.shape[1] == 1440
    panels = figures[0].axes
    titles = [axes.get_title().splitlines()[0] for axes in panels]
    assert titles == [f"{kind}, class {CLASSES[label]}" for kind in circuits for label in (0, 2)]
    for axes, circuit in zip(panels, [each for row in circuits.values() for each in row], strict=True):
        lines = [each for each in axes.collections if isinstance(each, LineCollection)]
        # With so few neurons each has a dot, and so each weight a line.
        assert [len(each.get_segments()) for each in lines] == [
            int(mask.sum()) for mask in circuit.masks.values()
        ]
        assert f"{circuit.num_weights:,} weights" in axes.get_title()
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend == ["inside cluster 0", "inside cluster 1", "inside cluster 2", "between clusters"]


def test_colours_and_places(tmp_path: Path, figures: list[Figure]) -> None:
    mask = torch.tensor([[True, False, False], [True, True, False]])
    partition = Partition([1, 0], [1, 0, 0], 2)
    draw_circuits(tmp_path / "c.png", {"plain": [of(1, mask)]}, {"plain": {"fc": partition}}, ["cat", "dog"])
    (axes,) = figures[0].axes
    lines, before, after = axes.collections
    # Sorted by cluster the second input comes first, the second output too.
    found = {
        to_hex(colour).upper(): [tuple(end) for end in segment]
        for colour, segment in zip(lines.get_colors(), lines.get_segments(), strict=True)
    }
    (left, right) = (each.get_offsets()[:, 1] for each in (before, after))
    assert found == {
        "#8B949E": [(0, left[2]), (1, right[0])],
        CLUSTERS[0]: [(0, left[0]), (1, right[0])],
        CLUSTERS[1]: [(0, left[2]), (1, right[1])],
    }
    dots = [to_hex(colour).upper() for colour in before.get_facecolors()]
    assert dots == [CLUSTERS[0], "#D5DBE1", CLUSTERS[1]]
    bold = [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"]
    assert bold == ["dog"]


def test_several_weights_make_a_broad_line(tmp_path: Path, figures: list[Figure]) -> None:
    mask = torch.zeros(2, 4096, dtype=torch.bool)
    mask[0, :100] = True
    mask[1, 4000] = True
    draw_circuits(tmp_path / "c.png", {"plain": [of(0, mask)]}, {"plain": {}}, ["cat", "dog"])
    lines = figures[0].axes[0].collections[0]
    assert sorted(lines.get_linewidths()) == [0.4, 1.7]


@pytest.mark.parametrize("kept", [False, True])
def test_nothing_and_everything_kept(kept: bool, tmp_path: Path, figures: list[Figure]) -> None:
    mask = torch.full((100, 70), kept)
    draw_circuits(tmp_path / "c.png", {"plain": [of(0, mask)]}, {"plain": {}}, ["cat"])
    # Both columns have more neurons than are drawn one by one: two or four to a dot.
    assert len(figures[0].axes[0].collections[0].get_segments()) == kept * 25 * 24


def test_the_same_bytes(tmp_path: Path) -> None:
    circuits = {"modular": [of(0, torch.eye(2, dtype=torch.bool))]}
    for name in ("a.png", "b.png"):
        draw_circuits(tmp_path / name, circuits, {"modular": {}}, ["cat", "dog"])
    first = np.frombuffer((tmp_path / "a.png").read_bytes(), dtype=np.uint8)
    assert np.array_equal(first, np.frombuffer((tmp_path / "b.png").read_bytes(), dtype=np.uint8))


def test_bad_arguments(tmp_path: Path) -> None:
    path, mask = tmp_path / "c.png", torch.eye(2, dtype=torch.bool)
    names = ["cat", "dog"]
    for circuits in ({}, {"plain": []}):
        with pytest.raises(ValueError, match="circuits must hold at least one"):
            draw_circuits(path, circuits, {"plain": {}}, names)
    with pytest.raises(ValueError, match=r"circuits\['modular'\] must be of the classes \[0\], got \[1\]"):
        draw_circuits(path, {"plain": [of(0, mask)], "modular": [of(1, mask)]}, {"plain": {}}, names)
    with pytest.raises(ValueError, match=r"partitions must hold 'plain', got \[\]"):
        draw_circuits(path, {"plain": [of(0, mask)]}, {}, names)
    with pytest.raises(ValueError, match=r"classes must name every label of \[2\], got 2 names"):
        draw_circuits(path, {"plain": [of(2, mask)]}, {"plain": {}}, names)
    with pytest.raises(ValueError, match="partitions: 'fc' has the shape"):
        draw_circuits(path, {"plain": [of(0, mask)]}, {"plain": {"fc": Partition.blocks((3, 2), 2)}}, names)
    assert list(tmp_path.iterdir()) == []
