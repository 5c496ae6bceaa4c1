"""The page on the small GPT: pairs of networks, words that fit the numbers, committed results."""

import json
import re
from dataclasses import asdict

import pytest
from scipy import stats

from benchmarks.common.campaign import write_records
from benchmarks.gpt import analysis, page
from benchmarks.gpt.arms import ARMS, SEEDS, SIZE
from benchmarks.gpt.behaviours import NAMES
from benchmarks.gpt.pictures import draw_clusters, draw_differences


@pytest.fixture(scope="module")
def record():
    return json.loads((analysis.RESULTS / "plain.json").read_text(encoding="utf-8"))[0]


def circuit_of(size):
    return {
        "size": size,
        "units": 10,
        "metric_before": 2.0,
        "counts": {"blocks": {"heads": [1, 0, 0, 1], "mlp": [5, 3, 0, 0]}},
        "best_cluster": {"blocks": {"share": 0.6, "random": 0.4}, "found": {"share": 0.5, "random": 0.4}},
    }


@pytest.fixture
def results(record, tmp_path, monkeypatch):
    """Writes records that differ in loss and in the sizes of circuits."""
    monkeypatch.setattr(analysis, "RESULTS", tmp_path)
    analysis.records.cache_clear()

    def write(arm, losses, sizes, seeds):
        made = []
        for seed, loss, size in zip(seeds, losses, sizes, strict=True):
            new = json.loads(json.dumps(record)) | {"arm": arm, "seed": seed}
            new["model"]["loss"] = loss
            both = {"mean": 0.3, "random": 0.1}
            bits = {"bits": 0.2, "random": 0.1}
            for kind in ("relative", "fixed"):
                new["circuits"][kind] = {
                    "by_behaviour": {name: circuit_of(size) for name in NAMES},
                    "overlap": both,
                    "information": {"blocks": bits, "found": bits},
                }
            earlier = {name: {"size": 0.9} for name in NAMES}
            new["snapshots"] = [{"step": 20, "loss": 2.5, "circuits": earlier, "overlap": both}]
            made.append(new)
        write_records(tmp_path / f"{arm}.json", made)

    yield write
    analysis.records.cache_clear()


def test_arms_are_compared_seed_by_seed(results):
    results("plain", [2.0, 2.1, 2.2], [0.5, 0.6, 0.7], [42, 43, 44])
    results("all", [2.5, 2.45], [0.45, 0.53], [43, 44])
    found = analysis.compare("all", analysis.circuit("relative", "induction", "size"))
    own, other = [0.45, 0.53], [0.6, 0.7]
    expected = stats.ttest_rel(own, other).confidence_interval(0.95)
    assert found.pairs == 2
    assert found.difference == pytest.approx(-0.16)
    assert (found.difference - found.interval, found.difference + found.interval) == pytest.approx(expected)
    # The plain networks' snapshots have a loss of 2.5.
    loss, size = analysis.at_equal_loss("all", "brackets")
    assert loss.difference == pytest.approx(-0.025)
    assert size.other == 0.9


@pytest.mark.parametrize("count", [1, 4])
def test_a_page_tells_what_there_is(results, tmp_path, count):
    seeds = SEEDS[:count]
    results("plain", [2.0] * count, [0.5] * count, seeds)
    results("all", [2.1 + 0.01 * i for i in range(count)], [0.4 + 0.01 * i for i in range(count)], seeds)
    text = page.page()
    assert f"MLPs and attention modular ({count} seed" in text
    assert ("(worse;" in text) == (count > 1)
    assert ("points (smaller;" in text) == (count > 1)
    assert "undecided" in text
    assert "not run" not in text
    for name, drawing in (
        ("clusters.png", lambda path: draw_clusters(path, ["plain", "all"])),
        ("differences.png", lambda path: draw_differences(path, ["all"], page.difference_rows())),
    ):
        drawing(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_page_needs_pairs(results):
    results("all", [2.0], [0.4], [42])
    with pytest.raises(SystemExit, match="no plain and modular networks of the same seed"):
        page.main()


def test_what_a_network_cannot_do_is_left_out(results, tmp_path):
    results("plain", [2.0, 2.0], [0.5, 0.5], [42, 43])
    results("all", [2.0, 2.0], [0.4, 0.4], [42, 43])
    made = json.loads((tmp_path / "all.json").read_text())
    del made[0]["circuits"]["relative"]["by_behaviour"]["induction"]
    write_records(tmp_path / "all.json", made)
    analysis.records.cache_clear()
    assert analysis.compare("all", analysis.circuit("relative", "induction", "size")).pairs == 1
    assert analysis.compare("all", analysis.circuit("relative", "brackets", "size")).pairs == 2


@pytest.mark.skipif(not page.PAGE.exists(), reason="needs the documentation")
class TestPage:
    def test_it_is_what_the_results_give(self):
        assert page.PAGE.read_text(encoding="utf-8") == page.page()

    def test_its_pictures_are_there(self):
        shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.PAGE.read_text(encoding="utf-8"))
        assert set(shown) == set(page.PICTURES)
        for name in shown:
            assert page.PAGE.with_name(name).read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("arm", [name for name in ARMS if analysis.has_records(name)])
    def test_results_belong_to_their_arm(self, arm):
        for each in analysis.records(arm):
            assert (each["arm"], each["weight"]) == (arm, ARMS[arm].weight)
            assert each["seed"] in SEEDS
            assert each["size"] == json.loads(json.dumps(asdict(SIZE)))
            assert each["text"]["fingerprint"] == analysis.records("plain")[0]["text"]["fingerprint"]
