"""Training for a task with the enmeshment loss: each step has its gradient, and a resumed run repeats it."""

import copy

import pytest
import torch
from torch import nn

from modfast import EnmeshmentLoss, read_network
from modfast.tasks import TrainingError, modular_addition, next_token, training
from modfast.train.checkpoint import read_state, write_state


@pytest.fixture
def task():
    return modular_addition(7)


def mlp(task, seed=0):
    return task.model("mlp", hidden=8, seed=seed)


def with_loss(model, weight=0.7, clusters=2, **options):
    return {"enmeshment": EnmeshmentLoss(model, clusters, **options), "enmeshment_weight": weight}


def assert_same(one, other):
    for (name, value), (_, expected) in zip(
        one.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert torch.equal(value, expected), name


def test_each_step_has_the_loss_s_gradient(task):
    model = mlp(task)
    other = copy.deepcopy(model)
    history = task.train(model, 6, evaluate_every=3, **with_loss(model, 3.0, layers=["fc2"]))
    loss = EnmeshmentLoss(other, 2, layers=["fc2"])
    optimizer = torch.optim.AdamW(other.parameters(), 0.005, (0.9, 0.98), weight_decay=1.0)
    ((inputs, targets),) = task.train_batches
    for _ in range(6):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(other(inputs).double(), targets) + 3.0 * loss()).backward()
        optimizer.step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, other.get_parameter(name), msg=name)
    assert history[-1]["enmeshment"] == pytest.approx(loss().item(), rel=1e-5)
    assert history[-1]["enmeshment"] < history[0]["enmeshment"]
    plain = mlp(task)
    assert "enmeshment" not in task.train(plain, 6)[-1]
    assert not torch.allclose(plain.fc2.weight, model.fc2.weight, rtol=1e-3)


def test_a_weight_of_zero_measures_and_changes_nothing(task):
    plain, measured = mlp(task), mlp(task)
    task.train(plain, 4)
    (record,) = task.train(measured, 4, **with_loss(measured, 0.0))
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(weight, measured.get_parameter(name), msg=name)
    assert record["enmeshment"] == pytest.approx(EnmeshmentLoss(measured, 2)().item(), rel=1e-5)


def test_a_resumed_run_is_an_uninterrupted_one(task, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SECONDS_BETWEEN", -1.0)
    whole, killed, resumed = (mlp(task) for _ in range(3))
    history = task.train(whole, 9, evaluate_every=2, **with_loss(whole))
    path = tmp_path / "run.pt"

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task.train(killed, 9, evaluate_every=2, checkpoint=path, progress=stop, **with_loss(killed))
    found = task.train(resumed, 9, evaluate_every=2, checkpoint=path, **with_loss(resumed))
    assert found == history
    assert_same(resumed, whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: with_loss(model, 0.5), r"with enmeshment_weight 0\.7, not 0\.5$"),
        (lambda model: with_loss(model, clusters=3), "with another enmeshment loss$"),
        (lambda model: with_loss(model, layers=["fc2"]), "with another enmeshment loss$"),
        (lambda model: with_loss(model, reduction="sum"), "with another enmeshment loss$"),
        (lambda _: {}, r"with enmeshment_weight 0\.7, not None; another enmeshment loss$"),
    ],
)
def test_a_checkpoint_of_another_loss(task, tmp_path, change, message):
    path, model, other = tmp_path / "run.pt", mlp(task), mlp(task)
    task.train(model, 2, checkpoint=path, **with_loss(model))
    with pytest.raises(TrainingError, match=message):
        task.train(other, 2, checkpoint=path, **change(other))
    assert_same(other, mlp(task))


def test_checkpoints_of_earlier_releases(task, tmp_path):
    path, whole = tmp_path / "run.pt", mlp(task)
    task.train(mlp(task), 2, checkpoint=path)
    state = read_state(path, training._FORMAT, training._PARTS)
    for key in ("enmeshment_weight", "enmeshment loss"):
        del state["identity"][key]
    write_state(path, state)
    again, other = mlp(task), mlp(task)
    assert task.train(again, 4, checkpoint=path)[-1] == task.train(whole, 4)[-1]
    assert_same(again, whole)
    write_state(path, state)
    with pytest.raises(TrainingError, match=r"enmeshment_weight None, not 0\.7; another enmeshment loss"):
        task.train(other, 4, checkpoint=path, **with_loss(other))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (lambda model: {"enmeshment_weight": 0.7}, ValueError, "enmeshment_weight needs enmeshment"),
        (
            lambda model: {"enmeshment": EnmeshmentLoss(model, 2)},
            ValueError,
            "enmeshment needs enmeshment_weight",
        ),
        (lambda model: with_loss(model, -1.0), ValueError, "enmeshment_weight must be .* got -1"),
        (lambda model: with_loss(copy.deepcopy(model)), ValueError, "fc1"),
        (
            lambda model: {"enmeshment": 0.3, "enmeshment_weight": 0.7},
            TypeError,
            "enmeshment must be a modfast.EnmeshmentLoss or None, got float",
        ),
    ],
)
def test_bad_arguments(task, options, error, message):
    model = mlp(task)
    with pytest.raises(error, match=message):
        task.train(model, 1, **options(model))
    assert_same(model, mlp(task))


def test_clusters_that_layers_share(task):
    model = task.model("transformer", width=8, heads=2, hidden=8)
    network = read_network(model, task.pairs[:2])
    layers = network.select("mlp_input", "mlp_output")
    loss = EnmeshmentLoss(model, network.partitions(2, layers=layers))
    before = loss().item()
    (record,) = task.train(model, 20, enmeshment=loss, enmeshment_weight=20.0)
    assert record["enmeshment"] < before - 0.05


def test_texts(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("to be or not to be, that is the question. " * 20)
    task = next_token(path, 8)
    model, plain = (task.model(width=8, heads=2, layers=1) for _ in range(2))
    (record,) = task.train(model, 3, **with_loss(model, 20.0, layers="*mlp*"))
    (other,) = task.train(plain, 3)
    assert record["enmeshment"] == pytest.approx(
        1 - sum(EnmeshmentLoss(model, 2, layers="*mlp*").clusterability().values()) / 2, rel=1e-5
    )
    assert record["test_loss"] != other["test_loss"]
