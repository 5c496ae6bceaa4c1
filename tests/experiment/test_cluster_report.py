"""The table and the pictures of found clusters."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from report_helpers import is_picture
from rich.console import Console

from modfast import Partition
from modfast.experiment.eigengap import ClusterConfig, cluster_layer
from modfast.report import cluster_table
from modfast.report.pictures import clusters as picture_clusters
from modfast.report.pictures.clusters import draw_clusterability, draw_matrices


def record_of(k=2, gap=0.5, counts=(2, 3), converged=True):
    """A record whose gap at ``k`` is ``gap``, and at most 0.1 when shuffled."""
    values = [1.0 - 0.01 * i - (gap - 0.01 if i >= k else 0.0) for i in range(counts[-1] + 1)]
    measures = {"clusterability": 0.75, "normalized_cut": 0.5, "converged": converged}
    chance = {"clusterability": 0.5, "normalized_cut": 1.0}
    clusters = [
        {**measures, "num_clusters": each, "by_chance": chance, "gap": values[each - 1] - values[each]}
        for each in counts
    ]
    values_shuffled = [1.0 - 0.1 * i for i in range(counts[-1] + 1)]
    shuffled = {"singular_values": values_shuffled, "largest_gaps": [0.1, 0.05], **measures}
    return {
        "shape": [8, 8],
        "chosen": k,
        "clusters": clusters,
        "singular_values": values,
        "shuffled": shuffled,
    }


class TestTable:
    def shown(self, records, finished=True):
        console = Console(width=200)
        with console.capture() as captured:
            console.print(cluster_table({"clustering": records, "finished": finished}))
        return captured.get()

    def words(self, *arguments, **options):
        """Without the line breaks of the caption."""
        return " ".join(self.shown(*arguments, **options).split())

    def test_the_chosen_number_is_marked_and_doubted_where_shuffling_gives_as_much(self):
        clear = self.words({"fc": record_of(gap=0.5)})
        assert "2 *" in clear
        assert "?" not in clear
        assert "<= 0.100" in clear
        assert "0.750 (0.500)" in clear
        doubtful = self.words({"fc": record_of(gap=0.05)})
        assert "2 ?" in doubtful
        assert "? chosen, but its gap is no larger" in doubtful

    def test_what_has_not_converged_or_is_not_finished_is_said(self):
        text = self.words({"fc": record_of(converged=False)}, finished=False)
        assert "2! *" in text
        assert "have not converged" in text
        assert "not all layers are finished" in text

    def test_many_rows_are_cut_to_the_chosen_ones(self):
        text = self.shown({f"layer{i}": record_of(counts=tuple(range(2, 7))) for i in range(21)})
        assert "results.json" in text
        assert sum("layer" in line for line in text.splitlines()) == 21
        assert " 3 " not in text


class TestPictures:
    def test_many_layers_go_on_in_further_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr(picture_clusters, "MOST_CURVES", 2)
        monkeypatch.setattr(picture_clusters, "MOST_MATRICES", 2)
        records = {f"layer{i}": record_of() for i in range(5)}
        made = draw_clusterability(tmp_path / "c.png", records)
        assert [path.name for path in made] == ["c.png", "c_2.png", "c_3.png"]
        assert all(is_picture(path) for path in made)
        heights = [Image.open(path).height for path in made]
        assert heights[0] == heights[1] > heights[2]
        partition = Partition.blocks((6, 8), 2)
        weights = {f"layer{i}": torch.rand(6, 8) for i in range(3)}
        made = draw_matrices(tmp_path / "m.png", weights, dict.fromkeys(weights, partition))
        assert [path.name for path in made] == ["m.png", "m_2.png"]
        # Fewer layers leave what further files there are: they may be anybody's.
        draw_clusterability(tmp_path / "c.png", {"layer0": record_of()})
        names = ["c.png", "c_2.png", "c_3.png", "m.png", "m_2.png"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names

    def test_nothing_to_draw(self, tmp_path):
        with pytest.raises(ValueError, match="records"):
            draw_clusterability(tmp_path / "c.png", {})
        with pytest.raises(ValueError, match="partitions"):
            draw_matrices(tmp_path / "m.png", {}, {})

    def test_a_gap_that_does_not_exist_is_not_drawn(self, tmp_path):
        record, _ = cluster_layer(torch.rand(3, 6), ClusterConfig((3,), n_init=1))
        assert is_picture(draw_clusterability(tmp_path / "c.png", {"fc": record})[0])
        record, _ = cluster_layer(torch.rand(1, 6), ClusterConfig((1,), n_init=1))
        assert is_picture(draw_clusterability(tmp_path / "c.png", {"fc": record})[0])
