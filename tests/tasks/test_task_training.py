"""Training for a task: repeatable, resumed bit for bit, and refused where it cannot go on."""

import copy

import pytest
import torch
from torch import nn

from modfast.tasks import TrainingError, modular_addition, next_token, training
from modfast.train.checkpoint import write_state


class Dropped(nn.Module):
    """Draws random numbers in each step, and has a buffer that moves."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.dropout = nn.Embedding(7, 16), nn.Dropout(0.3)
        self.norm, self.linear = nn.BatchNorm1d(16), nn.Linear(16, 7)

    def forward(self, pairs):
        return self.linear(self.norm(self.dropout(self.embedding(pairs).sum(1))))


class StoppedError(Exception):
    pass


def stop_after(step):
    def progress(done, total):
        if done == step:
            raise StoppedError

    return progress


@pytest.fixture
def task():
    return modular_addition(7)


@pytest.fixture
def always_saving(monkeypatch):
    monkeypatch.setattr(training, "_SECONDS_BETWEEN", -1.0)


def assert_same(one, other):
    for (name, value), (_, expected) in zip(
        one.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert torch.equal(value, expected), name


OPTIONS = {"batch_size": 10, "evaluate_every": 3}


@pytest.mark.usefixtures("always_saving")
def test_a_resumed_run_is_an_uninterrupted_one(task, tmp_path):
    whole, killed = Dropped(), Dropped()
    history = task.train(whole, 11, **OPTIONS)
    assert [record["step"] for record in history] == [3, 6, 9, 11]
    path = tmp_path / "run.pt"
    with pytest.raises(StoppedError):
        task.train(killed, 11, checkpoint=path, progress=stop_after(5), **OPTIONS)
    again = tmp_path / "again.pt"
    again.write_bytes(path.read_bytes())
    torch.manual_seed(123)  # a new process has another random state
    resumed, seen = Dropped(), []
    found = task.train(
        resumed, 11, checkpoint=path, progress=lambda done, total: seen.append((done, total)), **OPTIONS
    )
    assert seen == [(step, 11) for step in range(6, 12)]
    assert found == history
    assert_same(resumed, whole)
    # The model that was stopped can go on as well, as it is; and a finished run has nothing more to do.
    assert task.train(killed, 11, checkpoint=again, **OPTIONS) == history
    assert_same(killed, whole)
    assert task.train(Dropped(), 11, checkpoint=path, progress=stop_after(1), **OPTIONS) == history


@pytest.mark.usefixtures("always_saving")
def test_the_last_step_has_a_record_even_if_it_was_one_of_more(task, tmp_path):
    expected = task.train(Dropped(), 5, **OPTIONS)
    assert [record["step"] for record in expected] == [3, 5]
    path = tmp_path / "run.pt"
    with pytest.raises(StoppedError):
        task.train(Dropped(), 11, checkpoint=path, progress=stop_after(5), **OPTIONS)
    assert task.train(Dropped(), 5, checkpoint=path, **OPTIONS) == expected


def test_a_finished_run_can_be_trained_further(task, tmp_path):
    path, model, whole = tmp_path / "run.pt", Dropped(), Dropped()
    task.train(model, 4, checkpoint=path, **OPTIONS)
    longer = task.train(model, 8, checkpoint=path, **OPTIONS)  # with the model as it is now
    assert longer == task.train(whole, 8, **OPTIONS)
    assert_same(model, whole)
    # The file is still that of the run's beginning: a new process goes on from there, too.
    again = Dropped()
    assert task.train(again, 8, checkpoint=path, **OPTIONS) == longer
    assert_same(again, whole)


def test_training_changes_no_random_state_and_no_mode(task):
    model = Dropped()
    model.dropout.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    task.train(model, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes


class Logits(nn.Module):
    """Returns an object that has logits, as models of transformers do."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pairs):
        return {"logits": self.model(pairs), "loss": None}


def test_models_may_return_more_than_logits(task):
    plain, wrapped = task.model("mlp", hidden=8), Logits(task.model("mlp", hidden=8))
    assert task.train(plain, 3) == task.train(wrapped, 3)
    assert_same(plain, wrapped.model)
    assert torch.equal(task.logits(plain), task.logits(wrapped))


def test_frozen_weights_stay(task):
    model = task.model("mlp", hidden=8)
    model.fc1.weight.requires_grad_(False)
    before = copy.deepcopy(model)
    task.train(model, 3)
    assert torch.equal(model.fc1.weight, before.fc1.weight)
    assert not torch.equal(model.fc2.weight, before.fc2.weight)


def test_reading_a_model_changes_nothing(task):
    model = Dropped()
    before = copy.deepcopy(model)
    task.logits(model)
    task.activations(model, "linear")
    assert_same(model, before)
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_the_seed_decides_what_is_drawn(task):
    models = [task.model("mlp", hidden=8) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        task.train(model, 3, batch_size=5, seed=seed)
    assert_same(models[0], models[1])
    assert not torch.equal(models[0].fc2.weight, models[2].fc2.weight)


def test_the_record_is_what_the_model_does(task):
    model = task.model("mlp", hidden=8)
    (record,) = task.train(model, 2)
    ((inputs, targets),) = task.test_batches
    logits = model(inputs).double()
    assert record["test_loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets).item())
    assert record["test_accuracy"] == (logits.argmax(1) == targets).double().mean().item()


def test_evaluation_weighs_batches_by_their_targets(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("to be or not to be, that is the question. " * 40)
    task = next_token(path, 8, test_share=0.4)
    model = task.model(width=8, heads=2, layers=1)
    batches = task.windows("test", 50)
    assert len(batches[-1][0]) != 50
    loss, accuracy = training.evaluate(model, batches)
    inputs, targets = (torch.cat(each) for each in zip(*batches, strict=True))
    logits = model(inputs).double().flatten(0, 1)
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, targets.flatten()).item())
    assert accuracy == pytest.approx((logits.argmax(1) == targets.flatten()).double().mean().item())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.1}, "is of a run with learning_rate 0.005, not 0.1$"),
        ({"seed": 1, "weight_decay": 0}, "with weight_decay 1.0, not 0; seed 0, not 1$"),
        ({"steps": 2}, "steps must be at least 3 to continue .*, which was trained for so many, got 2"),
    ],
)
def test_a_checkpoint_of_another_run(task, tmp_path, change, message):
    path = tmp_path / "run.pt"
    task.train(task.model("mlp", hidden=8), 3, checkpoint=path)
    with pytest.raises(TrainingError, match=message):
        task.train(task.model("mlp", hidden=8), **{"steps": 3, "checkpoint": path, **change})


def test_a_checkpoint_of_another_model_or_task(task, tmp_path):
    path = tmp_path / "run.pt"
    task.train(task.model("mlp", hidden=8), 3, checkpoint=path)
    contents = path.read_bytes()
    for other in (
        task.model("mlp", hidden=9),
        task.model("mlp", hidden=8, seed=1),
        task.model("transformer"),
    ):
        before = copy.deepcopy(other)
        with pytest.raises(TrainingError, match="is of a model that began with other weights"):
            task.train(other, 3, checkpoint=path)
        assert_same(other, before)
    with pytest.raises(TrainingError, match="is of a run with another task"):
        modular_addition(7, seed=1).train(task.model("mlp", hidden=8), 3, checkpoint=path)
    assert path.read_bytes() == contents


def test_a_damaged_checkpoint(task, tmp_path):
    path = tmp_path / "run.pt"
    task.train(task.model("mlp", hidden=8), 3, checkpoint=path)
    whole = path.read_bytes()
    for contents in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(contents)
        with pytest.raises(TrainingError, match=r"run\.pt is damaged or no checkpoint"):
            task.train(task.model("mlp", hidden=8), 3, checkpoint=path)
    write_state(path, {"format": "another"})
    with pytest.raises(TrainingError, match="no checkpoint of this version"):
        task.train(task.model("mlp", hidden=8), 3, checkpoint=path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run.pt"]


def test_a_loss_that_is_not_finite(task):
    with pytest.raises(TrainingError, match=r"a smaller learning_rate \(now 1e\+30\) may help"):
        task.train(task.model("mlp", hidden=8), 5, learning_rate=1e30, evaluate_every=1)


class Narrow(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.logits = logits

    def forward(self, pairs):
        return self.logits + self.weight


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda pairs: pairs, TypeError, "model must be a torch.nn.Module, got function"),
        (nn.Identity(), ValueError, "model must have parameters that learn, got none"),
        (Narrow(torch.zeros(3, 7)), ValueError, r"logits of shape \(24, 'classes'\), got \(3, 7\)"),
    ],
)
def test_models_that_cannot_be_trained(task, model, error, message):
    with pytest.raises(error, match=message):
        task.train(model, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"learning_rate": 0}, "learning_rate must be a finite number above 0, got 0"),
        ({"weight_decay": -1}, "weight_decay must be a finite number of at least 0, got -1"),
        ({"batch_size": 25}, r"batch_size must be an integer in \[1, 24\] pairs to train on, got 25"),
        ({"evaluate_every": 0}, "evaluate_every must be a positive integer, got 0"),
        ({"seed": 0.5}, "seed must be an integer in"),
    ],
)
def test_bad_settings(task, options, message):
    with pytest.raises(ValueError, match=message):
        task.train(task.model("mlp", hidden=8), **{"steps": 1, **options})
