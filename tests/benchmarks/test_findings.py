"""The page of findings: its numbers are those of the committed results, which belong to the arms."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from scipy import stats

from benchmarks.findings import analysis, page
from benchmarks.findings.arms import ARMS, SEEDS, Arm
from benchmarks.findings.measure import measure
from modfast.data import load_dataset
from modfast.report.statistics import holm
from modfast.train import TrainConfig

WITH_RESULTS = [name for name in ARMS if analysis.has_records(name)]
ROOT = Path(__file__).parents[2]
with_docs = pytest.mark.skipif(not page.PAGE.exists(), reason="needs the documentation")


@with_docs
def test_the_page_is_what_the_results_give():
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


@with_docs
def test_the_readme_is_what_the_results_give():
    assert page.lines_of_readme() in (ROOT / "README.md").read_text(encoding="utf-8")


@with_docs
def test_the_pictures_of_the_page_are_there():
    text = page.PAGE.read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert set(shown) == set(page.PICTURES)
    for name in shown:
        assert page.PAGE.with_name(name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", WITH_RESULTS)
def test_results_belong_to_their_arm(name):
    arm, records = ARMS[name], analysis.records(name)
    settings = json.loads(json.dumps(asdict(arm.config)))
    for record in records:
        assert record["arm"] == name
        # Where, by how many threads and by which implementation it was computed is no part of the arm.
        free = ("seed", "device", "threads", "optimizer")
        # Older records lack later settings, and were made with what are their defaults.
        recorded = asdict(TrainConfig()) | record["config"]
        assert {k: v for k, v in recorded.items() if k not in free} == {
            k: v for k, v in settings.items() if k not in free
        }
        assert len(record["history"]) == arm.config.epochs
        assert math.isfinite(record["history"][-1]["test_cross_entropy"])
    assert len({record["data_fingerprint"] for record in records}) == 1


@pytest.mark.parametrize("name", [name for name in WITH_RESULTS if ARMS[name].against in WITH_RESULTS])
def test_arms_are_compared_on_the_same_data(name):
    own, other = analysis.records(name), analysis.records(ARMS[name].against)
    assert [record["seed"] for record in own] == [record["seed"] for record in other] == list(SEEDS)
    assert own[0]["data_fingerprint"] == other[0]["data_fingerprint"]


def test_a_comparison_is_a_paired_t_test():
    found = analysis.compare("blocks-20", "loss", "size")
    own = [record["measures"]["loss"]["size"] for record in analysis.records("blocks-20")]
    other = [record["measures"]["loss"]["size"] for record in analysis.records("plain")]
    expected = stats.ttest_rel(own, other)
    low, high = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.difference - found.interval, found.difference + found.interval) == pytest.approx(
        (low, high)
    )
    assert found.seeds == len(SEEDS)


def test_claims_are_corrected_for_all_of_the_page():
    claims = analysis.claims(["blocks-20", "blocks-0.7"])
    assert len(claims) == 2 * len(analysis.CLAIMS)
    assert [claim.p_adjusted for claim in claims] == holm([claim.comparison.p_value for claim in claims])
    for claim in claims:
        decided = claim.p_adjusted <= 0.05
        right = claim.comparison.difference * claim.sign > 0
        assert claim.verdict == ("undecided" if not decided else "supported" if right else "contradicted")


def test_equal_loss_takes_the_nearest_epoch():
    losses = [2.0, 1.5, 1.2, 1.0]
    theirs = {
        "history": [{"test_cross_entropy": loss} for loss in losses],
        "epochs": [{"epoch": 2, "size": 0.2}, {"epoch": 3, "size": 0.3}, {"epoch": 4, "size": 0.4}],
    }
    mine = {"history": [{"test_cross_entropy": 9.0}, {"test_cross_entropy": 1.24}]}
    assert analysis.nearest_epoch(mine, theirs) == {"epoch": 3, "size": 0.3, "test_loss": 1.2}


@pytest.fixture(scope="module")
def few_digits():
    digits = load_dataset("digits")
    return replace(digits, train_images=digits.train_images[:1000], train_labels=digits.train_labels[:1000])


ARM = Arm(
    "spectral-20",
    "",
    TrainConfig(
        enmeshment_weight=20.0,
        epochs=4,
        warmup_epochs=2,
        clusters_from="spectral",
        batch_size=32,
        learning_rate=0.003,
    ),
    data="digits",
    model="mlp",
    hidden=16,
    circuits_from=3,
)


def test_a_network_is_measured(few_digits):
    record = measure(ARM, 42, few_digits, "cpu", 1, [2.2] * 10)
    json.dumps(record, allow_nan=False)
    assert [found["epoch"] for found in record["epochs"]] == [3, 4]
    # After the last epoch stands what the whole record says.
    assert record["epochs"][-1]["size"] == record["measures"]["loss"]["size"]
    assert record["epochs"][-1]["overlap"] == record["measures"]["loss"]["overlap"]
    assert record["measures"]["model"]["test_loss"] == record["history"][-1]["test_cross_entropy"]
    # More loss is allowed than the network has, so circuits are smaller; and each keeps to what it may have.
    fixed = record["by_class"]["fixed"]
    assert record["measures"]["fixed"]["size"] < record["measures"]["loss"]["size"]
    assert max(fixed["loss_after"]) <= 2.2
    again = measure(ARM, 42, few_digits, "cpu", 1, [2.2] * 10)
    free = ("seconds", "environment")
    assert {k: v for k, v in again.items() if k not in free} == {
        k: v for k, v in record.items() if k not in free
    }


def test_no_circuit_may_have_less_loss_than_its_network(few_digits):
    record = measure(replace(ARM, circuits_from=None), 42, few_digits, "cpu", 1, [0.001] * 10)
    assert "fixed" not in record["measures"]
    assert record["epochs"] == []


def test_threads_of_the_caller_are_kept(few_digits):
    before = torch.get_num_threads()
    measure(replace(ARM, circuits_from=None), 1, few_digits, "cpu", 1, None)
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_networks_are_no_longer_trained_once_the_first_process_is_killed(tmp_path):
    # Short runs by one worker, whose parent ends after the first.
    seeds = [str(seed) for seed in range(12)]
    script = tmp_path / "short.py"
    script.write_text(
        "from dataclasses import replace\n"
        "from benchmarks.findings import run\n"
        "from benchmarks.findings.arms import ARMS\n"
        "arm = ARMS['mnist-plain']\n"
        "ARMS['mnist-plain'] = replace(arm, config=replace(arm.config, epochs=1))\n"
        "run.RESULTS = run.Path(__file__).parent\n"
        "if __name__ == '__main__':\n"
        "    run.main()\n"
    )
    out = tmp_path / "out"
    arguments = ["--arms", "mnist-plain", "--mnist", "digits", "--seeds", *seeds, "--out", str(out)]
    started = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert started.stdout.readline().startswith("1 of 12: ")
        started.kill()
        # The worker holds the other end, and ends after the network that it is at.
        started.stdout.read()
        assert len(list((out / "mnist-plain").glob("*.json"))) < len(seeds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
