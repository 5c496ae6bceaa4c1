"""The training loop: what it optimises, and that a killed run goes on as if it had not been."""

import os
import random
import signal
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from modfast import EnmeshmentLoss, Partition, clusterability
from modfast.data import load_dataset
from modfast.experiment.runs import train_run
from modfast.models import MLP
from modfast.run_folder import OutputExistsError
from modfast.train import CHECKPOINT, TrainConfig, TrainingError, read_checkpoint, train


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def make(digits, seed=0):
    torch.manual_seed(seed)
    return MLP(digits.image_shape)


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_it_is_adam_on_cross_entropy_plus_lambda_times_enmeshment(digits):
    config = TrainConfig(epochs=1, batch_size=500, layers=("fc1", "fc2"), threads=1)
    run = train(make(digits), digits, config)

    model = make(digits)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    loss = EnmeshmentLoss(model, 4, layers=["fc1", "fc2"])
    order = torch.randperm(
        len(digits.train_images), generator=torch.Generator().manual_seed(42 * 1_000_003 + 1)
    )
    for batch in order.split(500):
        logits = model(digits.train_images[batch].float() / 255)
        optimizer.zero_grad()
        (cross_entropy(logits, digits.train_labels[batch]) + 0.7 * loss()).backward()
        optimizer.step()
    for trained, expected in zip(run.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-6)


def test_the_record_says_what_was_trained(digits):
    run = train(make(digits), digits, TrainConfig(epochs=2))
    assert [record["epoch"] for record in run.history] == [1, 2]
    last = run.history[-1]
    assert set(last["clusterability"]) == {"fc1", "fc2", "fc3"}
    assert last["enmeshment"] == pytest.approx(1 - last["clusterability"]["fc2"], abs=1e-6)
    logits = run.model(digits.normalize(digits.test_images))
    accuracy = (logits.argmax(1) == digits.test_labels).double().mean()
    assert last["test_accuracy"] == pytest.approx(float(accuracy))
    assert last["loss"] > last["cross_entropy"]
    assert torch.equal(run.initial["fc2"], make(digits).fc2.weight.detach())


def test_the_loss_makes_the_chosen_layer_modular_and_no_other(digits):
    run = train(make(digits), digits, TrainConfig(epochs=30))
    shares = run.history[-1]["clusterability"]
    assert shares["fc2"] > 0.9
    assert shares["fc1"] < 0.5
    assert shares["fc3"] < 0.5
    plain = train(make(digits), digits, TrainConfig(epochs=30, enmeshment_weight=0.0))
    assert plain.history[-1]["clusterability"]["fc2"] < 0.5
    assert plain.history[-1]["test_accuracy"] > 0.9


def test_partitions_of_any_shape_can_be_given(digits):
    generator = torch.Generator().manual_seed(1)
    partition = Partition(torch.randint(0, 3, (64,), generator=generator), torch.arange(64) % 3, 3)
    config = TrainConfig(epochs=30, layers=None)
    run = train(make(digits), digits, config, partitions={"fc2": partition})
    assert run.partitions == {"fc2": partition}
    assert run.history[-1]["clusterability"]["fc2"] > 0.9


def test_any_module_trains(digits):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(288, 10)
    )
    run = train(model, digits, TrainConfig(epochs=2, layers=("0", "5"), num_clusters=1, precision="bfloat16"))
    assert set(run.history[-1]["clusterability"]) == {"0", "5"}


def test_the_same_run_twice_gives_the_same_bits(digits):
    config = TrainConfig(epochs=2)
    assert same_weights(train(make(digits), digits, config).model, train(make(digits), digits, config).model)
    other = train(make(digits), digits, TrainConfig(epochs=2, seed=43))
    assert not same_weights(other.model, train(make(digits), digits, config).model)


def test_resuming_gives_the_bits_of_a_run_never_stopped(digits, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(epoch, step, steps):
        if (epoch, step) == (3, 5):
            raise StoppedError

    def dropout_model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Dropout(0.2), nn.ReLU(), nn.Linear(64, 10))

    config = TrainConfig(epochs=5, layers=("1",))
    whole = train(dropout_model(), digits, config)
    with pytest.raises(StoppedError):
        train(dropout_model(), digits, config, out=tmp_path, on_step=stop)
    resumed = train(dropout_model(), digits, config, out=tmp_path, resume=True)
    assert same_weights(whole.model, resumed.model)
    assert [record["epoch"] for record in resumed.history] == [1, 2, 3, 4, 5]
    timeless = [{k: v for k, v in record.items() if k != "seconds"} for record in resumed.history]
    assert timeless == [{k: v for k, v in record.items() if k != "seconds"} for record in whole.history]


class Chance(nn.Module):
    """Draws from every global generator while it is trained."""

    def __init__(self):
        super().__init__()
        self.start = random.random() + np.random.rand()
        self.fc = nn.Linear(64, 10)

    def forward(self, images):
        logits = self.fc(images.flatten(1))
        if self.training:
            logits = logits * (1 + random.gauss(0, 0.1) + np.random.randn() / 10) + 0.1 * torch.rand(())
        return logits


def test_numbers_from_every_generator_are_seeded_and_resumed(digits, tmp_path):
    def run(epochs, **more):
        # Whatever was drawn before.
        for _ in range(epochs):
            random.random(), np.random.rand(), torch.rand(())
        torch.manual_seed(0)
        return train(Chance(), digits, TrainConfig(epochs=epochs, layers=("fc",), threads=1), **more).model

    whole = run(3)
    assert same_weights(whole, run(3))
    run(1, out=tmp_path)
    assert same_weights(whole, run(3, out=tmp_path, resume=True))
    other = TrainConfig(epochs=3, layers=("fc",), threads=1, seed=43)
    torch.manual_seed(0)
    assert not same_weights(whole, train(Chance(), digits, other).model)


def test_a_checkpoint_of_an_older_version_resumes(digits, tmp_path):
    config = TrainConfig(epochs=2, threads=1)
    train(make(digits), digits, replace(config, epochs=1), out=tmp_path)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    for name in ("python_random_state", "numpy_random_state"):
        del state[name]
    torch.save(state, tmp_path / CHECKPOINT)
    for path in tmp_path.glob("manifest-*"):
        path.unlink()
    resumed = train(make(digits), digits, config, out=tmp_path, resume=True)
    assert same_weights(resumed.model, train(make(digits), digits, config).model)


def test_a_model_made_by_name_is_seeded_too(digits, tmp_path):
    made = []

    class Remembered(Chance):
        def __init__(self, image_shape, num_classes):
            super().__init__()
            made.append(self.start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modfast.models.MLP", Remembered)
        for name in ("one", "two"):
            train_run(digits, "mlp", TrainConfig(epochs=1, layers=("fc",)), tmp_path / name)
    assert made[0] == made[1]


KILLED = """
    import torch
    from processes import signal_at_call
    from modfast.data import load_dataset
    from modfast.models import MLP
    from modfast.train import TrainConfig, train

    digits = load_dataset("digits")
    torch.manual_seed(0)
    config = TrainConfig(epochs={epochs}, threads=1)
    train(MLP(digits.image_shape), digits, config, out={out!r}, resume=True, on_epoch=lambda _: {then})
"""


def test_a_run_killed_again_and_again_ends_as_one_never_killed(digits, tmp_path, run_python):
    code, reached = textwrap.dedent(KILLED), 0
    # Each goes on from where the last one was killed, and is killed somewhere in its second epoch.
    for calls in (100, 1000, 5000):
        then = f"signal_at_call({calls})"
        killed = run_python(code.format(epochs=6, out=str(tmp_path), then=then))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        before, reached = reached, len(read_checkpoint(tmp_path / CHECKPOINT)["history"])
        assert before < reached < 6
    finished = run_python(code.format(epochs=6, out=str(tmp_path), then=None))
    assert finished.returncode == 0, finished.stderr
    whole = train(make(digits), digits, TrainConfig(epochs=6, threads=1))
    resumed = read_checkpoint(tmp_path / CHECKPOINT)
    assert len(resumed["history"]) == 6
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed["model"][name])


def test_a_finished_run_may_be_given_more_epochs(digits, tmp_path):
    train(make(digits), digits, TrainConfig(epochs=2), out=tmp_path)
    longer = train(make(digits), digits, TrainConfig(epochs=3), out=tmp_path, resume=True)
    assert same_weights(longer.model, train(make(digits), digits, TrainConfig(epochs=3)).model)


def test_a_checkpoint_is_replaced_only_if_that_is_asked_for(digits, tmp_path):
    config = TrainConfig(epochs=1, threads=1)
    train(make(digits), digits, config, out=tmp_path)
    with pytest.raises(OutputExistsError, match=r"holds a run already \(checkpoint\.pt\)"):
        train(make(digits), digits, config, out=tmp_path)
    train(make(digits), digits, replace(config, seed=1), out=tmp_path, overwrite=True)
    (tmp_path / CHECKPOINT).write_bytes(b"somebody else's")
    for flag in ({}, {"overwrite": True}):
        with pytest.raises(OutputExistsError, match=r"checkpoint\.pt is no longer what"):
            train(make(digits), digits, config, out=tmp_path, **flag)
    assert (tmp_path / CHECKPOINT).read_bytes() == b"somebody else's"


def test_the_checkpoint_holds_the_measured_weights_as_out_by_in(digits, tmp_path):
    torch.manual_seed(0)
    # Square and stored as (in, out): its shape does not tell which way round it is.
    first = nn.Linear(64, 16)
    second = nn.ConvTranspose1d(16, 16, 1)
    model = nn.Sequential(
        nn.Flatten(), first, nn.Unflatten(1, (16, 1)), second, nn.Flatten(), nn.Linear(16, 10)
    )
    partition = Partition(torch.arange(16) % 2, torch.arange(16) // 8, 2)
    config = TrainConfig(epochs=5, layers=None, num_clusters=2)
    run = train(model, digits, config, partitions={"3": partition}, out=tmp_path)
    weights = read_checkpoint(tmp_path / CHECKPOINT)["weights"]
    assert torch.equal(weights["3"], second.weight.detach().transpose(0, 1))
    for name, share in run.history[-1]["clusterability"].items():
        assert float(clusterability(weights[name], run.measured[name])) == share


def test_a_checkpoint_of_another_run_is_refused(digits, tmp_path):
    train(make(digits), digits, TrainConfig(epochs=1), out=tmp_path)
    with pytest.raises(TrainingError, match=r"learning_rate 0\.001, not 0\.01"):
        train(make(digits), digits, TrainConfig(epochs=2, learning_rate=0.01), out=tmp_path, resume=True)
    with pytest.raises(TrainingError, match="another data"):
        train(make(digits), replace(digits, std=0.5), TrainConfig(epochs=2), out=tmp_path, resume=True)


@pytest.mark.parametrize("contents", [b"", b"\x89PNG\r\n\x1a\n", b"truncated"])
def test_a_damaged_checkpoint_is_said(digits, tmp_path, contents):
    if contents == b"truncated":
        train(make(digits), digits, TrainConfig(epochs=1), out=tmp_path)
        contents = (tmp_path / CHECKPOINT).read_bytes()[:-100]
    (tmp_path / CHECKPOINT).write_bytes(contents)
    with pytest.raises(TrainingError, match="damaged or no checkpoint"):
        train(make(digits), digits, TrainConfig(epochs=1), out=tmp_path, resume=True)


def test_a_foreign_checkpoint_runs_no_code(digits, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save(Payload(), tmp_path / CHECKPOINT)
    with pytest.raises(TrainingError):
        read_checkpoint(tmp_path / CHECKPOINT)
    assert not (tmp_path / "executed").exists()
    torch.save({"weights": torch.ones(2)}, tmp_path / CHECKPOINT)
    with pytest.raises(TrainingError, match="no checkpoint of this version"):
        read_checkpoint(tmp_path / CHECKPOINT)


def test_a_loss_that_is_not_finite_stops_the_run(digits):
    with pytest.raises(TrainingError, match="learning_rate"):
        train(make(digits), digits, TrainConfig(epochs=3, learning_rate=1e30))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", True),
        ("num_clusters", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("threads", 0),
        ("enmeshment_weight", -0.1),
        ("enmeshment_weight", float("nan")),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("precision", "float16"),
        ("layers", ()),
    ],
)
def test_configuration_errors_name_the_argument(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        TrainConfig(**{name: value})


def test_threads_are_those_of_before_afterwards(digits):
    before = torch.get_num_threads()
    train(make(digits), digits, TrainConfig(epochs=1, threads=1))
    assert torch.get_num_threads() == before
