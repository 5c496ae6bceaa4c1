"""The page on the ResNet: its numbers are those of the committed results, which belong to the arms."""

import json
import math
import re
from dataclasses import asdict

import pytest
from scipy import stats

from benchmarks.resnet import analysis, page
from benchmarks.resnet.arms import ARMS, CLUSTERS, EPOCHS
from modfast import Partition

WITH_RESULTS = analysis.arms()
with_results = pytest.mark.skipif(not WITH_RESULTS, reason="needs the results of the experiment")
with_docs = pytest.mark.skipif(not page.PAGE.exists(), reason="needs the documentation")


@with_docs
def test_the_page_is_what_the_results_give():
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


@with_docs
def test_the_pictures_of_the_page_are_there():
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.PAGE.read_text(encoding="utf-8"))
    assert set(shown) == set(page.PICTURES)
    for name in shown:
        assert page.PAGE.with_name(name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", WITH_RESULTS)
def test_results_belong_to_their_arm(name):
    settings = json.loads(json.dumps(asdict(ARMS[name].config)))
    for record in analysis.records(name):
        assert record["arm"] == name
        assert {k: v for k, v in record["config"].items() if k != "seed"} == {
            k: v for k, v in settings.items() if k != "seed"
        }
        assert len(record["history"]) == EPOCHS
        assert math.isfinite(record["history"][-1]["test_cross_entropy"])


@with_results
def test_arms_are_compared_on_the_same_data_and_seeds():
    all_records = [analysis.records(name) for name in WITH_RESULTS]
    assert len({record["data_fingerprint"] for records in all_records for record in records}) == 1
    seeds = [[record["seed"] for record in records] for records in all_records]
    assert seeds[0] == seeds[WITH_RESULTS.index("modular")]
    assert all(set(own) <= set(seeds[0]) for own in seeds)


@with_results
def test_all_measures_are_numbers_or_missing():
    for name in WITH_RESULTS:
        for measure in analysis.MEASURES:
            found = analysis.mean(name, measure)
            assert found is None or math.isfinite(found.mean), measure


@pytest.mark.skipif(
    "modular" not in WITH_RESULTS or len(analysis.records("modular")) < 2, reason="needs two seeds"
)
def test_a_difference_is_that_of_a_paired_t_test():
    found = analysis.difference("modular", "accuracy")
    own, other = (
        [record["history"][-1]["test_accuracy"] for record in analysis.records(name)]
        for name in ("modular", "plain")
    )
    low, high = stats.ttest_rel(own, other).confidence_interval(0.95)
    assert (found.mean - found.interval, found.mean + found.interval) == pytest.approx((low, high))
    assert found.seeds == len(own)


def test_classes_have_the_clusters_of_their_rows():
    rows = Partition.blocks((10, 64), CLUSTERS).row_labels
    assert [analysis.cluster_of(label, 10) for label in range(10)] == rows.tolist()


@pytest.mark.parametrize(
    ("mean", "interval", "sign"), [(0.2, 0.1, 1), (-0.2, 0.1, -1), (0.1, 0.2, 0), (0.1, None, 0)]
)
def test_a_difference_is_decided_if_its_interval_does_not_hold_zero(mean, interval, sign):
    assert analysis.Estimate(mean, interval, 5).sign == sign


def test_words_follow_the_numbers(monkeypatch):
    for mean, word in ((2.0, "more"), (-2.0, "less"), (0.5, "undecided")):
        found = analysis.Estimate(mean, 1.0, 5)
        monkeypatch.setattr(analysis, "difference", lambda *_, found=found: found)
        assert page._word("modular", "accuracy", "more", "less", "undecided") == word
