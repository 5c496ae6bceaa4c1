"""The small GPT: its text, its behaviours, training that goes on, and records that add up."""

import json
import re
from dataclasses import asdict, replace

import pytest
import torch
from scipy import stats

from benchmarks.common.campaign import write_records
from benchmarks.gpt import analysis, page
from benchmarks.gpt import measure as measuring
from benchmarks.gpt.arms import ARMS, SEEDS, SIZE, Size
from benchmarks.gpt.behaviours import ANY, NAMES, examples, is_right, right_less_wrong, texts_alone
from benchmarks.gpt.data import LENGTH, python_sources
from benchmarks.gpt.pictures import draw_clusters, draw_differences
from benchmarks.gpt.training import draw, learning_rate, network_of, train
from modfast.tasks import TrainingError

TINY = Size(
    width=16,
    heads=4,
    steps=30,
    batch_size=4,
    repeated=1,
    snapshots=(20,),
    examples=8,
    windows=128,
)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for number in range(20):
        lines = [
            f"def name_{number}_{i}(self, key):\n    # a remark\n    return self[key]" for i in range(90)
        ]
        (folder / f"module{number:02}.py").write_text('"""What it does."""\n' + "\n".join(lines))
    (folder / "short.py").write_text("x = 1\n")
    return python_sources(folder)


def test_whole_files_are_held_out(task):
    assert [path.name for path in task.files[-2:]] == ["module09.py", "module19.py"]
    assert len(task.train_texts) == 18
    assert len(task.test_texts) == 2
    text = task.decode(task.test_texts[0])
    assert text.startswith("\ndef name_9_0(self, key):\n\treturn self[key]\n") or text.startswith(
        "def name_9_0(self, key):\n\treturn self[key]\n"
    )
    assert "remark" not in text
    assert "What it does" not in text


def test_too_few_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="at least 10 files"):
        python_sources(tmp_path)


def pairs_of(name, count=60):
    (batch,) = examples(count, 3)[name]
    shown = [
        (bytes(row).rstrip(b"\0").decode(), *(byte if byte == ANY else chr(byte) for byte in pair))
        for row, pair in zip(batch[0].tolist(), batch[1].tolist(), strict=True)
    ]
    return list(zip(shown[: count // 2], shown[count // 2 :], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_right_is_wrong_in_the_other_text(name):
    for (one, *answers), (other, *swapped) in pairs_of(name):
        assert one != other
        assert answers == swapped[::-1]
        assert answers[0] != answers[1]


def test_induction_repeats_the_letters():
    for pair in pairs_of("induction"):
        for text, right, wrong in pair:
            once, again = text.split("\n")
            assert once.startswith(again + right)
            assert wrong in once
            assert len(set(once)) == len(once)


def test_brackets_close_what_is_open():
    closing = dict(zip("([{", ")]}", strict=True))
    for pair in pairs_of("brackets"):
        for text, right, wrong in pair:
            assert [closing[character] for character in text if character in closing] == [right]
            assert not set(text) & set(closing.values())
            assert wrong in closing.values()
        assert pair[0][0].translate(str.maketrans("([{", "   ")) == pair[1][0].translate(
            str.maketrans("([{", "   ")
        )


def test_indentation_deepens_after_a_colon():
    for pair in pairs_of("indentation"):
        for text, right, wrong in pair:
            *_, last, indent = text.split("\n")
            assert set(indent) == {"\t"}
            assert len(last) - len(last.lstrip()) == len(indent)
            assert (right, wrong) == (("\t", ANY) if last.endswith(":") else (ANY, "\t"))


@pytest.mark.parametrize("name", NAMES)
def test_preferences_cancel(name):
    (batch,) = examples(20, 1)[name]
    logits = torch.randn(256, generator=torch.Generator().manual_seed(0)).expand(*batch[0].shape, 256)
    assert right_less_wrong(logits, batch).abs().max() < 1e-5


def test_the_answer_is_read_at_the_end_of_each_text():
    tokens, answers = torch.tensor([[7, 8, 9], [7, 8, 0]]), torch.tensor([[3, 4], [4, 3]])
    logits = torch.zeros(2, 3, 6)
    logits[0, 2, 3], logits[1, 1, 4], logits[1, 2, 3] = 3.0, 1.0, 9.0
    assert right_less_wrong(logits, (tokens, answers)).tolist() == [2.0, 2.0]
    assert is_right(logits, (tokens, answers)).tolist() == [1.0, 1.0]
    assert is_right(-logits, (tokens, answers)).tolist() == [0.0, 0.0]


def test_any_other_byte_counts_with_all_their_odds():
    tokens, answers = torch.tensor([[7], [8]]), torch.tensor([[3, ANY], [ANY, 3]])
    logits = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(0))
    odds = torch.logit(logits[:, 0].softmax(1)[:, 3])
    expected = (odds[0] - odds[1]) / 2
    assert right_less_wrong(logits, (tokens, answers)).tolist() == pytest.approx([float(expected)] * 2)


def test_texts_are_taken_without_what_fills_them_up():
    batches = examples(40, 1)["brackets"]
    found = texts_alone(batches)
    assert len(found) > 1
    assert all(bool((each != 0).all()) for each in found)
    assert sum(map(torch.Tensor.numel, found)) == int((batches[0][0] != 0).sum())


def test_pairs_must_be_whole():
    with pytest.raises(ValueError, match="count must be an even number of texts, got 3"):
        examples(3, 1)


def test_some_windows_repeat_letters(task):
    inputs, targets = draw(task, TINY, 3, 5)
    assert inputs.shape == targets.shape == (4, LENGTH)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    period = int((inputs[0] == ord("\n")).nonzero()[0]) + 1
    assert torch.equal(inputs[0, period:], inputs[0, :-period])
    assert "self" in task.decode(inputs[1])
    again = draw(task, TINY, 3, 5)
    assert torch.equal(inputs, again[0])
    assert not torch.equal(inputs, draw(task, TINY, 3, 6)[0])


def test_the_learning_rate_rises_and_falls():
    size = Size(steps=1000, learning_rate=1.0)
    rates = [learning_rate(size, step) for step in (1, 50, 150, 500, 1000)]
    assert rates[0] == 0.01
    assert rates[1] == 0.5
    assert rates[-1] == pytest.approx(0.1)
    assert rates[2] > rates[3] > rates[4]


@pytest.mark.parametrize("name", ["plain", "all"])
def test_a_run_goes_on_where_it_was_stopped(task, tmp_path, monkeypatch, name):
    arm = ARMS[name]
    whole = train(arm, TINY, 1, task, None)
    path = tmp_path / "run.pt"
    monkeypatch.setattr("benchmarks.gpt.training._SECONDS_BETWEEN", 0.0)

    def stop(size, seed, step, real=draw):
        if step == 25:
            raise KeyboardInterrupt
        return real(task, size, seed, step)

    with monkeypatch.context() as patched:
        patched.setattr("benchmarks.gpt.training.draw", lambda _, *rest: stop(*rest))
        with pytest.raises(KeyboardInterrupt):
            train(arm, TINY, 1, task, path)
    went_on = train(arm, TINY, 1, task, path)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, went_on.model.state_dict()[key])
    assert list(went_on.snapshots) == ([20] if name == "plain" else [])
    with pytest.raises(TrainingError, match="of another run"):
        train(arm, TINY, 2, task, path)


def test_the_loss_makes_its_layers_modular(task):
    size = replace(TINY, steps=60)
    found = {}
    for name in ("plain", "mlps", "all"):
        network = train(ARMS[name], size, 1, task, None).network
        labels = network.unit_labels(4)[0]
        found[name] = measuring.cluster_measures(network, labels)
        assert sum(found[name]["sizes"]) == network.num_units
    assert found["mlps"]["mlps"] > found["plain"]["mlps"] + 0.05
    assert found["all"]["attention"] > found["mlps"]["attention"] + 0.05
    assert found["plain"]["mlps"] == pytest.approx(found["plain"]["mlps_random"], abs=0.05)


@pytest.fixture(scope="module")
def record(task):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measuring, "DEMANDED", dict.fromkeys(NAMES, -10.0))
        return measuring.measure(ARMS["plain"], TINY, 1, task, None)


def test_a_network_is_measured(record):
    json.dumps(record, allow_nan=False)
    assert record["seed"] == 1
    assert record["text"]["files"] == [18, 2]
    for found in record["circuits"]["relative"]["by_behaviour"].values():
        assert found["metric_after"] >= 0.9 * found["metric_before"] - 1e-5
        counts = found["counts"]["blocks"]
        assert sum(map(sum, counts.values())) == found["units"]
    assert [state["step"] for state in record["snapshots"]] == [20]
    # The snapshot is of another network than the last one, which was put back.
    assert record["snapshots"][0]["loss"] != record["model"]["loss"]
    for answers in record["dependence"]["blocks"].values():
        if answers is not None:
            assert sum(answers["shares"]) == pytest.approx(1.0, abs=1e-4)


def test_found_clusters_hold_the_units_of_the_blocks(task):
    network = train(ARMS["plain"], replace(TINY, steps=1), 1, task, None).network
    labels = measuring.found_clusters(network)
    assert set(labels[network.spaces["residual"]].tolist()) <= {0, 1, 2, 3}
    tokens = next(space for name, space in network.spaces.items() if name.startswith("tokens"))
    assert set(labels[tokens].tolist()) == {-1}
    assert network_of(network.model).num_units == len(labels)


def test_arms_and_seeds():
    assert len(set(SEEDS)) == len(SEEDS)
    assert [name for name, arm in ARMS.items() if not arm.weight] == ["plain"]


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


@pytest.mark.skipif(not (page.PAGE.exists() and analysis.has_records("plain")), reason="needs results")
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
