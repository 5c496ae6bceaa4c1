"""The pictures in the report on circuits: marks stand at their values, and every weight is in one line."""

from __future__ import annotations

import re

import pytest
import torch

from modfast.circuit import Circuit
from modfast.partition import Partition
from modfast.report.circuits.drawing import draw_network
from modfast.report.circuits.layout import lay_out
from modfast.report.numbers import Estimate
from modfast.report.svg.charts import difference_plot, dot_plot, heat_map


class TestCharts:
    def test_dots_stand_at_their_values(self) -> None:
        rows = [
            ("cat", {"plain": Estimate(2.0, 1.0, [1.5, 2.5]), "modular": Estimate(4.0, None, [4.0])}),
            ("dog", {"plain": Estimate(1.0, None, [1.0])}),
        ]
        drawn = str(dot_plot(rows, "size (%)", "sizes"))
        ticks = re.findall(r'<text x="([0-9.]+)"[^>]*class="tick">([0-9.]+)<', drawn)
        (zero, _), (first, unit) = ticks[:2]
        scale = (float(first) - float(zero)) / float(unit)

        def value(x: str) -> float:
            return (float(x) - float(zero)) / scale

        circles = re.findall(r'<circle cx="([0-9.]+)" cy="([0-9.]+)" r="4" class="plain"/>', drawn)
        assert [value(x) for x, _ in circles] == pytest.approx([2.0, 1.0], abs=0.01)
        (square,) = re.findall(
            r'<rect x="([0-9.]+)" y="[0-9.]+" width="8" height="8" class="modular"/>', drawn
        )
        assert value(str(float(square) + 4)) == pytest.approx(4.0, abs=0.01)
        low, high = re.search(r'd="M([0-9.]+) [0-9.]+H([0-9.]+)m[^"]*" class="whisker plain"', drawn).groups()
        assert [value(low), value(high)] == pytest.approx([1.0, 3.0], abs=0.01)
        seeds = re.findall(r'<circle cx="([0-9.]+)" cy="[0-9.]+" r="2"/>', drawn)
        assert [value(x) for x in seeds] == pytest.approx([1.5, 2.5], abs=0.01)
        assert "modular" not in drawn.split(">dog<")[1]

    def test_differences_stand_beside_zero(self) -> None:
        rows = [
            ("cat", Estimate(-20.0, 10.0, [-25.0, -15.0])),
            ("dog", Estimate(30.0, None, [30.0])),
            ("a", None),
        ]
        drawn = str(difference_plot(rows, "change (%)", "changes"))
        ticks = re.findall(r'<text x="([0-9.]+)"[^>]*class="tick">([^<]+)<', drawn)
        places = {float(label.replace("\N{MINUS SIGN}", "-")): float(x) for x, label in ticks}
        assert min(places) <= -30.0
        assert max(places) >= 30.0
        scale = (max(places.values()) - min(places.values())) / (max(places) - min(places))

        def value(x: str) -> float:
            return (float(x) - places[0.0]) / scale

        (zero,) = re.findall(r'<path d="M([0-9.]+) [^"]*" class="zero"/>', drawn)
        assert value(zero) == pytest.approx(0.0, abs=0.1)
        diamonds = re.findall(r'<path d="M([0-9.]+) [^"]*z" class="difference"/>', drawn)
        assert [value(x) for x in diamonds] == pytest.approx([-20.0 - 4 / scale, 30.0 - 4 / scale], abs=0.1)
        low, high = re.search(
            r'd="M([0-9.]+) [0-9.]+H([0-9.]+)m[^"]*" class="whisker difference"', drawn
        ).groups()
        assert [value(low), value(high)] == pytest.approx([-30.0, -10.0], abs=0.1)
        seeds = re.findall(r'<circle cx="([0-9.]+)" cy="[0-9.]+" r="2"/>', drawn)
        assert [value(x) for x in seeds] == pytest.approx([-25.0, -15.0], abs=0.1)
        assert ">a<" in drawn

    def test_no_difference_at_all(self) -> None:
        drawn = difference_plot(
            [("cat", Estimate(0.0, 0.0, [0.0, 0.0])), ("dog", None)], "change (%)", "changes"
        )
        assert "nan" not in drawn
        assert ">0</text>" in drawn
        assert difference_plot([("cat", None)], "change (%)", "changes").count("difference") == 0

    def test_cells(self) -> None:
        values = [[0.0, 50.0], [None, 100.0]]
        drawn = str(
            heat_map(values, ["a", "b"], ["c", "<d>"], "table", top=100.0, unit="share (%)", framed=[(1, 1)])
        )
        assert drawn.count('class="cell empty"') == 1
        paths = dict(
            re.findall(r'<path d="M([0-9.]+ [0-9.]+)H[^"]*" class="cell" fill="(#[0-9a-f]{6})"/>', drawn)
        )
        assert set(paths.values()) >= {"#440154", "#fde725"}
        assert re.findall(r'class="on-\w+">([0-9]+)<', drawn) == ["0", "50", "100"]
        assert "&lt;d&gt;" in drawn
        (frame,) = re.findall(r'd="M([0-9.]+) ([0-9.]+)[^"]*" class="framed"', drawn)
        (bright,) = [corner.split() for corner, colour in paths.items() if colour == "#fde725"][:1]
        assert [float(x) - float(y) for x, y in zip(frame, bright, strict=True)] == [1.5, 1.5]

    def test_crowded_cells_have_no_numbers(self) -> None:
        names = [f"n{index}" for index in range(50)]
        drawn = heat_map([[1.0] * 50] * 50, names, names, "table", top=1.0, unit="share")
        assert "on-light" not in drawn
        assert len(drawn) < 100_000


class TestNetwork:
    def circuit(self, **masks: torch.Tensor) -> Circuit:
        return Circuit(0, masks, "loss", 0.0, 10, 0.5, 0.4, 0.9, 1.0)

    def test_every_weight_is_in_one_line(self) -> None:
        generator = torch.Generator().manual_seed(0)
        masks = {
            "fc1": torch.rand(70, 1000, generator=generator) < 0.05,
            "fc2": torch.rand(9, 70, generator=generator) < 0.3,
        }
        # Interleaved, the last inputs in no cluster.
        inputs = torch.where(torch.arange(1000) < 990, torch.arange(1000) % 3, -1)
        partitions = {
            "fc1": Partition(torch.arange(70) % 3, inputs, 3),
            "fc2": Partition(torch.arange(9) % 3, torch.arange(70) % 3, 3),
        }
        network = lay_out(self.circuit(**masks), partitions)
        assert [column.size for column in network.columns] == [1000, 70, 9]
        for links, (name, mask) in zip(network.links, masks.items(), strict=True):
            partition = partitions[name]
            before, after = (network.columns[index] for index in links.columns)
            expected: dict[tuple[int, int, int], int] = {}
            inside_any = partition.mask().tolist()
            for row, col in mask.nonzero().tolist():
                cluster = int(partition.row_labels[row]) if inside_any[row][col] else -1
                key = (int(before.node_of[col]), int(after.node_of[row]), cluster)
                expected[key] = expected.get(key, 0) + 1
            drawn = zip(links.starts, links.ends, links.clusters, strict=True)
            found = dict(zip(map(tuple, drawn), links.counts.tolist(), strict=True))
            assert found == expected
            assert links.kept == int(mask.sum()) / mask.numel()
            # Lines between clusters come first, so that they cover none inside.
            assert links.clusters.tolist() == sorted(links.clusters.tolist())

    def test_nodes_hold_neighbours_of_one_cluster(self) -> None:
        labels = torch.arange(4096) // 1024
        partition = Partition(torch.arange(8) // 2, labels, 4)
        column = lay_out(self.circuit(fc=torch.ones(8, 4096, dtype=torch.bool)), {"fc": partition}).columns[0]
        assert len(column.places) == 32
        assert column.most_shared == 128
        assert torch.equal(torch.from_numpy(column.clusters[column.node_of]), labels)
        assert (column.places[1:] > column.places[:-1]).all()
        assert column.places[0] > 0
        assert column.places[-1] < 1
        for cluster, top, bottom in column.bands:
            inside = (column.places > top) & (column.places < bottom)
            assert (inside == (column.clusters == cluster)).all()

    def test_sides_that_disagree_have_no_cluster(self) -> None:
        masks = {"a": torch.ones(4, 2, dtype=torch.bool), "b": torch.ones(2, 4, dtype=torch.bool)}
        partitions = {"a": Partition([0, 0, 1, 1], [0, 1], 2), "b": Partition([0, 1], [0, 1, 1, 1], 2)}
        middle = lay_out(self.circuit(**masks), partitions).columns[1]
        assert middle.clusters.tolist() == [0, -1, 1, 1]

    def test_sizes_that_do_not_follow(self) -> None:
        masks = {"a": torch.ones(4, 2, dtype=torch.bool), "b": torch.ones(2, 8, dtype=torch.bool)}
        network = lay_out(self.circuit(**masks), {})
        assert [column.size for column in network.columns] == [2, 4, 8, 2]
        assert [links.columns for links in network.links] == [(0, 1), (2, 3)]

    def test_bad_arguments(self) -> None:
        circuit = self.circuit(fc=torch.ones(4, 2, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"'fc' has the shape \(2, 2\), its mask .* \(4, 2\)"):
            lay_out(circuit, {"fc": Partition.blocks((2, 2), 2)})
        with pytest.raises(ValueError, match=r"the mask of 'c' must be \(out, in, \*kernel\), got \(4,\)"):
            lay_out(self.circuit(c=torch.ones(4, dtype=torch.bool)), {})

    def test_the_channels_of_a_convolution_are_linked_by_any_weight(self) -> None:
        mask = torch.zeros(3, 2, 3, 3, dtype=torch.bool)
        mask[0, 1, 2, 0] = mask[2, 0, 1, 1] = mask[2, 0, 1, 2] = True
        of_channels = mask.flatten(2).any(2)
        partitions = {"c": Partition([0, 1, 1], [0, 1], 2)}
        found, expected = (lay_out(self.circuit(c=each), partitions) for each in (mask, of_channels))
        assert [column.size for column in found.columns] == [2, 3]
        for name in ("starts", "ends", "clusters"):
            assert getattr(found.links[0], name).tolist() == getattr(expected.links[0], name).tolist()

    def test_drawing(self) -> None:
        mask = torch.tensor([[True, False, False], [True, True, False]])
        network = lay_out(self.circuit(fc=mask), {"fc": Partition([0, 1], [0, 1, 1], 2)})
        drawn = str(draw_network(network, ["cat", "a & b"], 0, "a circuit"))
        lines = re.findall(r'<path d="(M[^"]*)" class="line (\w+) w0"/>', drawn)
        assert [(path.count("M"), colour) for path, colour in lines] == [
            (1, "crossing"),
            (1, "c0"),
            (1, "c1"),
        ]
        # Of the three inputs one is not used, of the outputs none.
        assert drawn.count('class="node unused few"') == 1
        assert 'class="found">cat<' in drawn
        assert "a &amp; b" in drawn
        assert "50.0 %" in drawn
