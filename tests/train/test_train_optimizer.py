"""Training by the optimiser that adds the loss in its own pass: the same steps, fewer weights, resumed."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from modfast.data import load_dataset
from modfast.models import MLP
from modfast.optim import AdamW
from modfast.train import TrainConfig, train


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def model_for(digits):
    torch.manual_seed(0)
    return MLP(digits.image_shape)


def test_both_optimizers_make_the_same_steps(digits):
    runs = {
        name: train(model_for(digits), digits, TrainConfig(epochs=1, optimizer=name, l1_weight=1e-4))
        for name in ("fused", "adam")
    }
    assert isinstance(runs["fused"].optimizer, AdamW)
    assert isinstance(runs["adam"].optimizer, torch.optim.Adam)
    assert not isinstance(runs["adam"].optimizer, torch.optim.AdamW)
    for ours, theirs in zip(*(run.model.parameters() for run in runs.values()), strict=True):
        # Steps of the size of the learning rate, whose directions small gradients decide by rounding.
        assert float((ours - theirs).detach().norm() / theirs.detach().norm()) < 1e-3
    records = [run.history[0] for run in runs.values()]
    for name in ("loss", "cross_entropy", "enmeshment"):
        assert records[0][name] == pytest.approx(records[1][name], rel=1e-3)


def test_auto_is_fused_where_there_are_kernels(digits):
    assert isinstance(train(model_for(digits), digits, TrainConfig(epochs=1)).optimizer, AdamW)


def test_the_loss_is_weighted_as_the_epoch_says(digits):
    config = TrainConfig(epochs=3, warmup_epochs=1, ramp_epochs=2, enmeshment_weight=20.0, optimizer="fused")
    plain = TrainConfig(epochs=3, warmup_epochs=1, ramp_epochs=2, enmeshment_weight=20.0, optimizer="adam")
    runs = [train(model_for(digits), digits, each) for each in (config, plain)]
    assert runs[0].optimizer.enmeshment_weight == 20.0
    for ours, theirs in zip(runs[0].history, runs[1].history, strict=True):
        assert ours["enmeshment"] == pytest.approx(theirs["enmeshment"], rel=2e-3)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)


def test_found_clusters_reach_the_optimizer(digits):
    config = TrainConfig(epochs=3, warmup_epochs=1, clusters_from="spectral", enmeshment_weight=20.0)
    run = train(model_for(digits), digits, config)
    assert run.optimizer.enmeshment.partitions["fc2"] == run.partitions["fc2"]
    assert run.history[2]["enmeshment"] < run.history[1]["enmeshment"] < 1 - run.history[1]["found"]["fc2"]


@pytest.mark.parametrize("keep", [0.1, 0.5])
def test_keep_leaves_the_share_of_the_regularised_layer(digits, keep):
    run = train(model_for(digits), digits, TrainConfig(epochs=1, keep=keep))
    weight = run.model.fc2.weight
    assert int(weight.count_nonzero()) == -int(-keep * weight.numel() // 1)
    assert int(run.model.fc1.weight.count_nonzero()) > 0.99 * run.model.fc1.weight.numel()


def test_keep_falls_to_its_share_step_by_step(digits):
    kept = {}
    config = TrainConfig(epochs=3, warmup_epochs=1, ramp_epochs=2, keep=0.2, batch_size=400)
    model = model_for(digits)

    def count(epoch, step, steps):
        kept[epoch, step] = int(model.fc2.weight.count_nonzero()) / model.fc2.weight.numel()

    train(model, digits, config, on_step=count)
    steps = max(step for _, step in kept)
    assert all(kept[1, step] == 1.0 for step in range(1, steps + 1))
    for (epoch, step), share in kept.items():
        if epoch > 1:
            done = (epoch - 2 + step / steps) / 2
            assert share == pytest.approx(1 - 0.8 * done, abs=1 / model.fc2.weight.numel())


@pytest.mark.parametrize("keep", [0.03, 0.1, 0.3, 0.7])
def test_the_share_to_keep_is_reached_exactly_where_the_ramp_ends(keep):
    config = TrainConfig(epochs=5, ramp_epochs=5, keep=keep)
    assert config.keep_at(1, 0.0) == 1.0
    assert config.keep_at(5, 1.0) == keep


@pytest.mark.parametrize("keep", [None, 0.2])
def test_a_resumed_run_has_the_same_bits(digits, tmp_path, keep):
    config = TrainConfig(epochs=2, keep=keep, optimizer="fused")
    whole = train(model_for(digits), digits, config)
    train(
        model_for(digits), digits, TrainConfig(epochs=1, keep=keep, optimizer="fused"), out=tmp_path / "run"
    )
    resumed = train(model_for(digits), digits, config, out=tmp_path / "run", resume=True)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    untimed = [{name: record[name] for name in record if name != "seconds"} for record in resumed.history]
    assert json.dumps(untimed) == json.dumps(
        [{name: record[name] for name in record if name != "seconds"} for record in whole.history]
    )


def test_a_run_of_one_optimizer_goes_on_with_the_other(digits, tmp_path):
    for first, second in (("adam", "fused"), ("fused", "adam")):
        folder = tmp_path / first
        train(model_for(digits), digits, TrainConfig(epochs=1, optimizer=first), out=folder)
        run = train(
            model_for(digits), digits, TrainConfig(epochs=2, optimizer=second), out=folder, resume=True
        )
        assert len(run.history) == 2
        assert isinstance(run.optimizer, AdamW) == (second == "fused")


def test_what_does_not_fit_is_refused(digits):
    with pytest.raises(ValueError, match=r"keep must be None with optimizer 'adam', got 0\.1"):
        TrainConfig(keep=0.1, optimizer="adam")
    for keep in (0, 1.5, -0.1, "0.1", True):
        with pytest.raises(ValueError, match="keep must be None or a number above 0 and at most 1"):
            TrainConfig(keep=keep)
    with pytest.raises(ValueError, match="optimizer must be one of"):
        TrainConfig(optimizer="sgd")

    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc2 = nn.Linear(64, 10)
            self.phase = nn.Parameter(torch.zeros(10, dtype=torch.complex64))

        def forward(self, images):
            return self.fc2(images.flatten(1)) + self.phase.real

    with pytest.raises(ValueError, match="optimizer must be 'adam' or 'auto' for the parameter 'phase' of"):
        train(Complex(), digits, TrainConfig(epochs=1, optimizer="fused"))
    with pytest.raises(ValueError, match="keep must be None: there is no fused optimizer for the parameter"):
        train(Complex(), digits, TrainConfig(epochs=1, keep=0.5))
