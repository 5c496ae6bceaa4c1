"""The small GPT: its text, its behaviours, training that goes on, and records that add up."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.common.campaign import record_of
from benchmarks.gpt import circuits, run
from benchmarks.gpt import measure as measuring
from benchmarks.gpt.arms import ARMS, SEEDS, Size
from benchmarks.gpt.behaviours import ANY, NAMES, examples, is_right, right_less_wrong, texts_alone
from benchmarks.gpt.data import LENGTH, python_sources
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
        patched.setattr(circuits, "DEMANDED", dict.fromkeys(NAMES, -10.0))
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


def test_a_run_of_some_seeds_keeps_the_records_of_the_others(tmp_path, monkeypatch):
    out, results = tmp_path / "out", tmp_path / "results"
    monkeypatch.setattr(run, "RESULTS", results)
    for arm, seeds in (("plain", SEEDS[:3]), ("all", SEEDS[1:2])):
        for seed in seeds:
            record_of(out, arm, seed).parent.mkdir(parents=True, exist_ok=True)
            record_of(out, arm, seed).write_text(json.dumps({"seed": seed}), encoding="utf-8")
    run.main(["--gather", "--out", str(out), "--arms", "plain", "--seeds", str(SEEDS[1])])
    for arm, seeds in (("plain", SEEDS[:3]), ("all", SEEDS[1:2])):
        found = json.loads((results / f"{arm}.json").read_text(encoding="utf-8"))
        assert [record["seed"] for record in found] == list(seeds)


def test_arms_and_seeds():
    assert len(set(SEEDS)) == len(SEEDS)
    assert [name for name, arm in ARMS.items() if not arm.weight] == ["plain"]
