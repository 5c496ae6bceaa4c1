"""Training by several processes: that it is the training of one, and that they fail together."""

import os
import re
import textwrap
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from processes import torchrun
from torch import nn

from modfast.cli import main
from modfast.data import Dataset
from modfast.experiment.runs import reproduce
from modfast.results import read_results
from modfast.train import CHECKPOINT, TrainConfig, TrainingError, read_checkpoint, train
from modfast.train.distributed import RankError, Ranks

SIZES = [2, 3]


def patterns(train_count, test_count=10):
    """Noisy 4 x 4 patterns of five classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(train_count + test_count) % 5
    noise = torch.randint(0, 128, (len(labels), 1, 4, 4), generator=generator)
    images = torch.randint(0, 128, (5, 1, 4, 4), generator=generator)[labels] + noise
    images = images.to(torch.uint8)
    return Dataset(
        "patterns",
        images[:train_count],
        labels[:train_count],
        images[train_count:],
        labels[train_count:],
        tuple("abcde"),
    )


class Net(nn.Module):
    """In float64, where another order of the same sum shows in the 16th digit, and a wrong sum before.

    One layer is not used and one frozen: neither has a gradient on any rank. It has no use for no images.
    """

    def __init__(self, seed=0, dropout=0.0):
        super().__init__()
        torch.manual_seed(seed)
        self.fc1 = nn.Linear(16, 12)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(12, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.fc3 = nn.Linear(8, 5)
        self.double()

    def forward(self, images):
        assert len(images) > 0
        hidden = self.dropout(torch.relu(self.fc1(images.double().flatten(1))))
        return self.fc3(torch.relu(self.frozen(torch.relu(self.fc2(hidden)))))


def config(**changes):
    given = {"layers": ("fc1", "fc2"), "num_clusters": 2, "epochs": 3, "batch_size": 64, "threads": 1}
    return TrainConfig(**{**given, "learning_rate": 1e-2, "device": "cpu", **changes})


def told(run):
    """What a run gives, without the time that it took."""
    history = [{name: value for name, value in record.items() if name != "seconds"} for record in run.history]
    return {name: weight.clone() for name, weight in run.model.state_dict().items()}, history, run.initial


def together(dataset, config, model=Net, **arguments):
    return told(train(model(), dataset, config, group=dist.group.WORLD, **arguments))


def assert_same_bits(results):
    weights, history, initial = results[0]
    for other_weights, other_history, other_initial in results[1:]:
        assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
        assert all(torch.equal(initial[name], other_initial[name]) for name in initial)
        assert history == other_history


def assert_close(result, expected):
    # In float64 each step rounds to 1e-16; Adam divides by the size of the gradient, so that what is almost
    # zero, a difference of rounded numbers, may move by more. A wrong share of a batch is an error of 1e-2.
    for given, wanted in zip((result[0], result[2]), (expected[0], expected[2]), strict=True):
        for name in wanted:
            torch.testing.assert_close(given[name], wanted[name], rtol=1e-9, atol=1e-11)
    for record, wanted in zip(result[1], expected[1], strict=True):
        for name, value in wanted.items():
            assert record[name] == pytest.approx(value, rel=1e-9), name


# --- the same training


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("images", "test_images", "batch_size"),
    [
        pytest.param(192, 12, 48, id="even"),
        pytest.param(200, 10, 64, id="uneven, with a smaller last batch"),
        pytest.param(7, 2, 2, id="a batch of fewer images than processes"),
        pytest.param(5, 1, 1, id="batches of one image"),
    ],
)
def test_several_processes_train_as_one(processes, size, images, test_images, batch_size):
    dataset = patterns(images, test_images)
    results = processes(size).run(together, dataset, config(batch_size=batch_size))
    assert_same_bits(results)
    assert_close(results[0], told(train(Net(), dataset, config(batch_size=batch_size))))


def from_another_seed(dataset, config):
    return together(dataset, config, lambda: Net(seed=dist.get_rank()))


def test_all_start_from_the_first_ones_weights(processes):
    results = processes(2).run(from_another_seed, patterns(100), config())
    assert_same_bits(results)
    assert_close(results[0], told(train(Net(seed=0), patterns(100), config())))


class Normed(Net):
    def __init__(self):
        super().__init__()
        self.dropout = nn.BatchNorm1d(12, dtype=torch.float64)


def with_batch_norm(dataset, config):
    return together(dataset, config, Normed)


def test_what_looks_across_the_batch_is_the_same_on_all_afterwards(processes):
    # 7 images on 3 processes: 3, 2 and 2.
    results = processes(3).run(with_batch_norm, patterns(70), config(batch_size=7))
    assert_same_bits(results)
    assert results[0][0]["dropout.num_batches_tracked"] == 30


class RememberingDropout(nn.Module):
    """Dropout that remembers what it dropped last."""

    last = None

    def forward(self, hidden):
        kept = nn.functional.dropout(torch.ones_like(hidden), 0.5, self.training)
        self.last = kept if self.training else self.last
        return kept * hidden


def dropped(dataset, config):
    model = Net()
    model.dropout = RememberingDropout()
    together(dataset, config, lambda: model)
    return model.dropout.last


def test_each_process_drops_out_other_neurons(processes):
    first, second = processes(2).run(dropped, patterns(100), config(epochs=1))
    assert not torch.equal(first, second)


def alone_on_the_first(dataset, config):
    # The other process does nothing: were anything sent, the first would wait for it.
    return told(train(Net(), dataset, config)) if dist.get_rank() == 0 else None


def test_a_process_group_that_is_not_given_is_not_used(processes):
    result, nothing = processes(2).run(alone_on_the_first, patterns(100), config())
    assert_same_bits([result, told(train(Net(), patterns(100), config()))])
    assert nothing is None


def in_a_group_of_two(dataset, config):
    group = dist.new_group([1, 2])
    if dist.get_rank() > 0:
        return told(train(Net(), dataset, config, group=group))
    with pytest.raises(ValueError, match="not one of its members"):
        Ranks(group)
    return None


def test_a_group_of_some_processes(processes):
    outside, *inside = processes(3).run(in_a_group_of_two, patterns(100), config())
    assert outside is None
    assert_same_bits(inside)
    assert_close(inside[0], told(train(Net(), patterns(100), config())))


def heard(dataset, config, out):
    calls = []
    told_of = {"on_step": lambda *step: calls.append(step), "on_epoch": lambda _: calls.append("epoch")}
    together(dataset, config, out=out, **told_of)
    return calls


def test_the_first_process_alone_tells_and_writes(processes, tmp_path):
    first, second = processes(2).run(heard, patterns(10), config(epochs=1, batch_size=5), tmp_path)
    assert first == [(1, 1, 2), (1, 2, 2), "epoch"]
    assert second == []
    assert sorted(os.listdir(tmp_path)) == [CHECKPOINT, "manifest-train.json"]


def compared(dataset, config, out):
    results = reproduce(dataset, "mlp", config, out, seeds=[1], group=dist.group.WORLD)
    return results["modular"]["accuracy"]


def test_a_comparison_by_several_processes(processes, tmp_path):
    made = config(epochs=2, layers=("fc2",))
    accuracies = processes(2).run(compared, patterns(100), made, tmp_path / "two")
    expected = reproduce(patterns(100), "mlp", made, tmp_path / "one", seeds=[1])
    assert accuracies == [expected["modular"]["accuracy"]] * 2
    assert read_results(tmp_path / "two")["config"]["processes"] == 2
    names = [sorted(path.name for path in (tmp_path / folder).rglob("*")) for folder in ("one", "two")]
    assert names[0] == names[1]


# --- resuming


def dropping_out():
    return Net(dropout=0.3)


def in_one_go_and_in_two(dataset, config, out):
    whole = together(dataset, config, dropping_out)
    together(dataset, replace(config, epochs=1), dropping_out, out=out)
    return whole, together(dataset, config, dropping_out, out=out, resume=True)


def test_resuming_gives_the_bits_of_a_run_never_stopped(processes, tmp_path):
    for whole, resumed in processes(2).run(in_one_go_and_in_two, patterns(100), config(), tmp_path):
        assert_same_bits([whole, resumed])


def resumed(dataset, config, out):
    return together(dataset, config, out=out, resume=True)


def test_resuming_with_another_number_of_processes(processes, tmp_path):
    train(Net(), patterns(100), config(epochs=1), out=tmp_path)
    for size in SIZES:
        results = processes(size).run(resumed, patterns(100), config(epochs=size), tmp_path)
        assert_same_bits(results)
    assert_close(results[0], told(train(Net(), patterns(100), config(epochs=SIZES[-1]))))


# --- failing together


def failure(dataset, configs, **arguments):
    with pytest.raises(RankError) as caught:
        together(dataset, configs[dist.get_rank() % len(configs)], **arguments)
    return str(caught.value), caught.value.rank, type(caught.value.__cause__)


def test_a_loss_that_is_not_finite_stops_all(processes):
    results = processes(2).run(failure, patterns(100), [config(learning_rate=1e300)])
    messages, ranks, causes = zip(*results, strict=True)
    assert "learning_rate" in messages[0]
    assert messages[0] == messages[1]
    assert ranks == (0, 0)
    assert causes == (TrainingError, type(None))


def test_what_fails_everywhere_is_said_by_one(processes):
    results = processes(2).run(failure, patterns(100), [config(layers=("fc9",))])
    assert [cause for _, _, cause in results] == [ValueError, type(None)]


def test_different_arguments_are_said(processes):
    different = [config(), config(learning_rate=0.5, epochs=1)]
    for message, _, _ in processes(2).run(failure, patterns(100), different):
        assert message == "rank 0: all processes must train the same, but differ in: config, epochs"


def resumed_in_folders(dataset, config, out):
    folder = out / str(dist.get_rank())
    with pytest.raises(RankError) as caught:
        together(dataset, config, out=folder, resume=True)
    return str(caught.value), type(caught.value.__cause__)


def test_a_checkpoint_that_one_process_cannot_read_stops_all(processes, tmp_path):
    for rank in range(2):
        train(Net(), patterns(100), config(epochs=1), out=tmp_path / str(rank))
    (tmp_path / "1" / CHECKPOINT).write_bytes(b"truncated")
    results = processes(2).run(resumed_in_folders, patterns(100), config(), tmp_path)
    assert [cause for _, cause in results] == [type(None), TrainingError]
    for message, _ in results:
        assert message.startswith("rank 1: ")
        assert "damaged or no checkpoint" in message


def without_writing(dataset, config, out):
    with pytest.raises(RankError, match=r"rank 0: .*file"):
        together(dataset, config, out=out)


def test_a_checkpoint_that_cannot_be_written_stops_all(processes, tmp_path):
    (tmp_path / "file").touch()
    processes(2).run(without_writing, patterns(100), config(), tmp_path / "file" / "folder")


# --- the command, under torchrun


DYING = """
    import os, signal
    from modfast.models import MLP

    class Dying(MLP):
        passes = 0

        def forward(self, images):
            self.passes += 1
            # In the middle of the third epoch: 1437 digits are 15 batches of 100, and tested in one. Two
            # passes come before: the model is tried in both modes.
            if os.environ.get("DIES") == os.environ.get("RANK", "none") and self.passes == 2 + 2 * 16 + 7:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(images)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_with_other_processes(tmp_path):
    (tmp_path / "dying.py").write_text(textwrap.dedent(DYING))
    arguments = ["train", "--layers", "fc2", "--batch-size", "100", "--epochs", "5"]
    arguments += ["--threads", "1", "--device", "cpu"]
    out = str(tmp_path / "out")
    dying = [*arguments, "--model", "dying:Dying", "--out", out]

    # torchrun ends the processes that are left when one is killed, and none waits for it.
    killed = torchrun(2, *dying, folder=tmp_path, DIES="1")
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr
    assert len(read_checkpoint(tmp_path / "out" / CHECKPOINT)["history"]) == 2

    occupied = torchrun(2, *dying, folder=tmp_path)
    assert occupied.returncode != 0
    told = f"modfast: error: {out} holds a run already ({CHECKPOINT}): "
    told += "continue it with --resume, or replace it with --overwrite"
    assert re.findall("modfast: .*", occupied.stderr) == [told], occupied.stderr
    # The other's, too, unless torchrun was fast enough to end it (-15).
    assert set(re.findall(r"exitcode *: (\d+)", occupied.stderr)) == {"1"}

    resumed = torchrun(3, *dying, "--resume", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    # No warning of a process group left open, nor anything else.
    assert resumed.stderr == ""
    assert resumed.stdout.count("epoch 5/5") == 1
    assert resumed.stdout.count("Results and pictures") == 1

    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    results, expected = read_results(out), read_results(tmp_path / "whole")
    for record, wanted in zip(results["history"], expected["history"], strict=True):
        for name in ("loss", "cross_entropy", "enmeshment", "clusterability"):
            # Float32, summed in another order, and amplified by 75 steps of Adam.
            assert record[name] == pytest.approx(wanted[name], rel=1e-4), name
    assert results["accuracy"] == expected["accuracy"]
    weights, wanted = (read_checkpoint(tmp_path / n / CHECKPOINT)["model"] for n in ("out", "whole"))
    for name in wanted:
        torch.testing.assert_close(weights[name], wanted[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "--epochs", "two", "--out", "out"], "modfast train: error: argument --epochs: "),
        (
            ["reproduce", "--seeds", "0", "--out", "out"],
            "modfast: error: seeds must be an integer in [1, 100000], got 0",
        ),
        (["train", "--out", "out"], "modfast: error: this one is broken"),
    ],
)
def test_an_error_that_all_processes_meet_is_told_once(tmp_path, arguments, told):
    if "broken" in told:
        # In the folder where the processes start, before the installed one.
        (tmp_path / "rich").mkdir()
        (tmp_path / "rich/__init__.py").write_text("raise ImportError('this one is broken')")
    failed = torchrun(2, *arguments, folder=tmp_path)
    assert failed.returncode != 0
    assert failed.stderr.count(told) == 1, failed.stderr
    assert len(re.findall("modfast.*: error: ", failed.stderr)) == 1, failed.stderr
    assert not (tmp_path / "out").exists()
