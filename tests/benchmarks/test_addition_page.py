"""The page on modular addition: its numbers are those of the committed results, which belong to the arms."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.addition import analysis, page
from benchmarks.addition.arms import ARMS, CLUSTERS, SEEDS, blocks
from benchmarks.addition.measure import SOLVED, make
from modfast.tasks import modular_addition

with_docs = pytest.mark.skipif(not page.PAGE.exists(), reason="needs the documentation")


@with_docs
def test_the_page_is_what_the_results_give():
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


@with_docs
def test_the_pictures_of_the_page_are_there():
    text = page.PAGE.read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert set(shown) == set(page.PICTURES)
    for name in shown:
        assert page.PAGE.with_name(name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ARMS)
def test_results_belong_to_their_arm(name):
    arm, records = ARMS[name], analysis.records(name)
    kind = arm.kind
    expected = {
        "p": kind.p,
        "train_share": kind.train_share,
        "steps": kind.steps,
        "sizes": kind.sizes,
        "layers": list(arm.layers),
        "weight": arm.weight,
        "clusters": CLUSTERS,
        **arm.settings,
    }
    for record in records:
        assert record["arm"] == name
        assert record["settings"] == expected
        assert record["history"]["step"][-1] == kind.steps
        task = modular_addition(kind.p, kind.train_share, record["seed"])
        assert record["fingerprint"] == task.fingerprint
        assert math.isfinite(record["measures"]["test_loss"])
        above = [
            step
            for step, accuracy in zip(
                record["history"]["step"], record["history"]["test_accuracy"], strict=True
            )
            if accuracy > SOLVED
        ]
        assert record["solved"] == (above[0] if above else None)


def test_all_arms_have_the_same_seeds():
    assert analysis.seeds() == list(SEEDS[: len(analysis.seeds())])


def test_seeds_that_are_not_the_first_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "RESULTS", tmp_path)
    (tmp_path / "odd.json").write_text(json.dumps([{"seed": 1}]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"odd\.json must hold the first of the seeds .* got \[1\]"):
        analysis.records("odd")


def test_a_comparison_is_a_paired_t_test():
    found = analysis.compare("transformer-inside", analysis.excess("blocks"))
    values = [
        [
            record["clusterings"]["blocks"]["information"] - record["clusterings"]["blocks"]["permuted"]
            for record in analysis.records(arm)
        ]
        for arm in ("transformer-inside", "transformer-plain")
    ]
    expected = stats.ttest_rel(*values)
    low, high = expected.confidence_interval(0.95)
    assert found.pairs == len(values[0])
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.difference - found.interval, found.difference + found.interval) == pytest.approx(
        (low, high)
    )


def record_with(solved):
    return {"solved": solved}


def test_only_seeds_that_both_arms_have_are_compared(monkeypatch):
    steps = {
        "transformer-inside": [100, None, 300, 500],
        "transformer-plain": [200, 200, None, 100],
    }
    monkeypatch.setattr(analysis, "records", lambda arm: [record_with(each) for each in steps[arm]])
    found = analysis.compare("transformer-inside", analysis.at("solved"))
    assert (found.pairs, found.own, found.other, found.difference) == (2, 300, 150, 150)
    monkeypatch.setattr(analysis, "records", lambda arm: [record_with(None)])
    assert analysis.compare("transformer-inside", analysis.at("solved")) is None
    assert analysis.mean_of("transformer-inside", analysis.at("solved")) is None


def test_claims_are_corrected_together_and_judged_by_their_sign():
    claims = analysis.claims(page.CLAIMED)
    assert len(claims) == len(page.CLAIMED) * len(analysis.CLAIMS)
    for claim in claims.values():
        if claim.p_adjusted is None or claim.p_adjusted > 0.05:
            assert claim.verdict == "undecided"
        else:
            right = claim.comparison.difference * claim.sign > 0
            assert claim.verdict == ("supported" if right else "contradicted")
            assert claim.p_adjusted >= claim.comparison.p_value


def test_pictures_cut_neurons_as_training_does():
    for name in ("transformer-inside", "mlp-plain"):
        arm = ARMS[name]
        _, _, network = make(arm, 0)
        units = network.layers[arm.kind.neurons].col_units
        expected = blocks(network, arm.kind)[units].numpy()
        assert np.array_equal(analysis.blocks_of(len(units)), expected)


def test_blocks_that_spectral_clusters_find():
    spectral = (3 - analysis.blocks_of(8)).tolist()
    assert analysis.finds_blocks({"neurons": {"spectral": spectral}})
    assert not analysis.finds_blocks({"neurons": {"spectral": [0] * 8}})
    assert not analysis.finds_blocks({"neurons": {"spectral": [*spectral[1:], spectral[0]]}})


def test_pages_say_what_the_verdicts_are():
    text = page.page()
    claim = analysis.claims(page.CLAIMED)["transformer-inside", "families"]
    words = {
        "supported": rf"In the transformer they {page._how_much('transformer-inside', 'blocks')}\.",
        "contradicted": r"In the transformer they are not\.",
        "undecided": r"In the transformer it is undecided\.",
    }
    assert re.search(words[claim.verdict], text)
    assert "None" not in text
    assert "nan" not in text


@pytest.mark.parametrize(
    ("information", "word"), [(2.0, "are"), (1.5, "mostly are"), (0.5, "are in part"), (0.2, "are in part")]
)
def test_words_follow_the_numbers(monkeypatch, information, word):
    found = {"information": information, "permuted": 0.1, "most": 2.0}
    monkeypatch.setattr(analysis, "records", lambda arm: [{"clusterings": {"blocks": found}}])
    assert page._how_much("transformer-inside", "blocks") == word


def test_results_are_small():
    assert sum(path.stat().st_size for path in Path(analysis.RESULTS).glob("*.json")) < 2_000_000
