"""Pictures and table of a whole network's clusters show the numbers that they are given."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from modfast import Partition
from modfast.report.network_table import largest_shuffled_gap, network_table, z_score
from modfast.report.pictures.networks import _Map, draw_layers


def test_a_map_shows_means_in_multiples_of_the_matrix_s_mean():
    partition = Partition([0, 1] * 60, [1, 0, 1, 0], 2)
    inside = partition.mask().double()
    drawn = _Map(torch.where(inside > 0, -3.0, 1.0), partition)
    assert [len(edges) - 1 for edges in drawn.edges] == [40, 4]
    ratios = 2.0**drawn.values
    assert ratios[:20, :2] == pytest.approx(np.full((20, 2), 1.5))
    assert ratios[20:, :2] == pytest.approx(np.full((20, 2), 0.5))
    # A kernel counts as the sum of its magnitudes; zeros are the darkest that is drawn.
    kernel = torch.where(inside > 0, -1.0, 0.0)[:, :, None].expand(-1, -1, 3)
    assert 2.0 ** _Map(kernel, partition).values[0] == pytest.approx([2.0, 2.0, 2.0**-8, 2.0**-8])
    assert not _Map(torch.zeros(120, 4), partition).values.any()


@pytest.mark.parametrize("count", [1, 7, 60])
def test_all_layers_are_in_one_picture(count, tmp_path):
    layers = {f"layer.{index}": {"role": "linear", "shape": [6, 6]} for index in range(count)}
    looked_up = []

    def weight(name):
        looked_up.append(name)
        return torch.rand(6, 6)

    partitions = dict.fromkeys(layers, Partition.blocks((6, 6), 3))
    draw_layers(tmp_path / "layers.png", {"layers": layers, "chosen": 3}, weight, partitions)
    assert looked_up == list(layers)
    with Image.open(tmp_path / "layers.png") as image:
        assert image.size[0] == 1440


def test_there_must_be_a_layer(tmp_path):
    with pytest.raises(ValueError, match="partitions must name at least one layer, got none"):
        draw_layers(tmp_path / "layers.png", {"layers": {}, "chosen": 2}, lambda name: None, {})


def record(gaps, shuffles):
    clusters = [
        {"num_clusters": k, "normalized_cut": 0.5 * k, "gap": gap, "sizes": [3, 9]} for k, gap in gaps.items()
    ]
    shuffled = {
        str(number): {"normalized_cuts": {str(k): k - 0.9 + 0.1 * number for k in gaps}, "largest_gap": gap}
        for number, gap in enumerate(shuffles)
    }
    chosen = max(gaps, key=lambda k: gaps[k])
    found = {
        "clusters": clusters,
        "shuffled": shuffled,
        "chosen": chosen,
        "eigenvalues": [1.0, 0.9, 0.5, 0.4],
    }
    return {**found, "units": 12, "layers": {}, "converged": True}


def text_of(results):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(network_table(results))
    return console.export_text()


def test_the_table_marks_the_chosen_number_and_doubts_it():
    text = text_of({"network_clustering": record({2: 0.4, 3: 0.1}, [0.2, 0.05, None]), "finished": True})
    assert "2 *" in text
    assert "the largest gap of 3 shuffled networks: 0.2000" in text
    assert "3 to 9" in text
    text = text_of({"network_clustering": record({2: 0.4, 3: 0.1}, [0.2, 0.6]), "finished": False})
    assert "2 ?" in text
    assert "its gap is no larger than those of shuffled weights" in text
    assert "--resume continues" in text


def test_a_z_score_needs_two_shuffles_that_differ():
    one, several = record({2: 0.4}, [0.2]), record({2: 0.4}, [0.2, 0.1, 0.1])
    assert z_score(one, one["clusters"][0]) is None
    assert z_score(several, several["clusters"][0]) == pytest.approx((1.0 - 1.2) / 0.1)
    assert largest_shuffled_gap(several) == 0.2
    assert largest_shuffled_gap(record({2: 0.4}, [None])) is None
