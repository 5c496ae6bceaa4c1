"""The small GPT: its text, its behaviours, training that goes on, and records that add up."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.gpt import measure as measuring
from benchmarks.gpt.arms import ARMS, SEEDS, Size
from benchmarks.gpt.behaviours import MAKERS, NAMES, examples, is_first, is_right, right_less_wrong
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
    assert text.startswith("\ndef name_9_0(self, key):\n    return self[key]\n") or text.startswith(
        "def name_9_0(self, key):\n    return self[key]\n"
    )
    assert "remark" not in text
    assert "What it does" not in text


def test_too_few_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="at least 10 files"):
        python_sources(tmp_path)


def texts_and_answers(name, count=60):
    (batch,) = examples(count, 3)[name]
    for row, (right, wrong) in zip(batch[0].tolist(), batch[1].tolist(), strict=True):
        yield bytes(row).rstrip(b"\0").decode(), chr(right), chr(wrong)


def test_induction_repeats_the_letters():
    for text, right, wrong in texts_and_answers("induction"):
        once, again = text.split("\n")
        assert once.startswith(again + right)
        assert wrong in once
        assert wrong != right
        assert len(set(once)) == len(once)


def test_brackets_close_what_is_open():
    within = 0
    for text, right, wrong in texts_and_answers("brackets"):
        opened, closing = [], dict(zip("([{", ")]}", strict=True))
        for character in text:
            if character in closing:
                opened.append(closing[character])
            elif character in closing.values():
                assert opened.pop() == character
                within += 1
        assert opened == [right]
        assert wrong in set(closing.values()) - {right}
    assert within == 30


def test_indentation_deepens_after_a_colon():
    deeper = 0
    for text, right, wrong in texts_and_answers("indentation"):
        *_, last, indent = text.split("\n")
        assert set(indent) == {" "}
        assert len(last) - len(last.lstrip()) == len(indent)
        letter = text.strip()[0]
        assert (right, wrong) == ((" ", letter) if last.endswith(":") else (letter, " "))
        deeper += last.endswith(":")
    assert deeper == 30


@pytest.mark.parametrize("name", NAMES)
def test_who_knows_nothing_is_right_half_of_the_time(name):
    _, answers = MAKERS[name](3000, 1)
    # Whatever fixed preference among bytes: the right and the wrong ones are drawn alike.
    preference = torch.rand(256, generator=torch.Generator().manual_seed(0))
    share = (preference[answers[:, 0]] > preference[answers[:, 1]]).double().mean()
    assert share == pytest.approx(0.5, abs=0.04)


def test_the_answer_is_read_at_the_end_of_each_text():
    tokens = torch.tensor([[7, 8, 9], [7, 8, 0]])
    answers = torch.tensor([[3, 4], [4, 3]])
    logits = torch.zeros(2, 3, 6)
    logits[0, 2, 3], logits[1, 1, 4], logits[1, 2, 3] = 2.0, 1.0, 9.0
    batch = (tokens, answers)
    assert right_less_wrong(logits, batch).tolist() == [2.0, 1.0]
    assert is_right(logits, batch).tolist() == [1.0, 1.0]
    logits[1, 1, 5] = 3.0
    assert is_first(logits, batch).tolist() == [1.0, 0.0]


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
    size = replace(TINY, steps=120)
    found = {}
    for name in ("plain", "mlps", "all"):
        network = train(ARMS[name], size, 1, task, None).network
        labels = network.unit_labels(4)[0]
        found[name] = measuring.cluster_measures(network, labels)
        assert sum(found[name]["sizes"]) == network.num_units
    assert found["mlps"]["mlps"] > found["plain"]["mlps"] + 0.1
    assert found["all"]["attention"] > found["mlps"]["attention"] + 0.1
    assert found["plain"]["mlps"] == pytest.approx(found["plain"]["mlps_random"], abs=0.05)


def test_a_network_is_measured(task, monkeypatch):
    monkeypatch.setattr(measuring, "DEMANDED", dict.fromkeys(NAMES, -10.0))
    record = measuring.measure(ARMS["plain"], TINY, 1, task, None)
    json.dumps(record, allow_nan=False)
    assert record["seed"] == 1
    assert record["text"]["files"] == [18, 2]
    for name, found in record["circuits"]["relative"]["by_behaviour"].items():
        assert found["metric_after"] >= 0.9 * found["metric_before"] - 1e-5
        counts = found["counts"]["blocks"]
        assert sum(map(sum, counts.values())) == found["units"]
        assert name in NAMES
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
