"""Batches of one image: refused before the first step where the model cannot be trained on them."""

import re
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from modfast.data import load_dataset
from modfast.train import TrainConfig, train
from modfast.train.batches import check_batches
from modfast.train.distributed import RankError


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def first(digits, count):
    return replace(digits, train_images=digits.train_images[:count], train_labels=digits.train_labels[:count])


def normed():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 10)
    )


def config(batch_size, **more):
    return TrainConfig(
        **{"epochs": 1, "layers": ("1",), "num_clusters": 1, "threads": 1, "device": "cpu", **more},
        batch_size=batch_size,
    )


def state(model):
    """All that a trial must leave as it was."""
    modules = {name: module.training for name, module in model.named_modules()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    gradients = [parameter.grad for parameter in model.parameters()]
    return {name: value.clone() for name, value in model.state_dict().items()}, modules, hooks, gradients


def same(one, other):
    tensors, others = one[0], other[0]
    return all(torch.equal(tensors[name], others[name]) for name in others) and one[1:] == other[1:]


@pytest.mark.parametrize(("count", "batch_size"), [(41, 20), (20, 1), (41, 5), (1, 64)])
def test_batchnorm_on_one_image_is_refused_before_the_first_step(digits, tmp_path, count, batch_size):
    model, steps = normed(), []
    model[2].eval()  # a mode of its own, which training will not keep, but a refusal does
    before = state(model)
    with pytest.raises(ValueError, match=rf"batch_size {batch_size} .*layer '2' \(BatchNorm1d\)") as error:
        train(
            model,
            first(digits, count),
            config(batch_size),
            out=tmp_path / "out",
            on_step=lambda *step: steps.append(step),
        )
    assert steps == []
    assert same(state(model), before)
    assert not (tmp_path / "out").exists()
    advised = re.findall("that work: (.*)", str(error.value))
    if count == 1:
        assert "no batch size works with so few" in str(error.value)
        return
    sizes = [int(size) for size in advised[0].split(", ")]
    assert len(sizes) == 3
    for size in sizes:
        assert len(train(normed(), first(digits, count), config(size)).history) == 1


class Squeezing(nn.Module):
    """Loses the dimension of a single image."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, images):
        return self.fc(images.flatten(1)).squeeze(0)


def test_whatever_else_fails_on_one_image_is_refused(digits):
    with pytest.raises(ValueError, match=r"the model needs more .*of 5 images the smallest batch has 1"):
        train(Squeezing(), first(digits, 5), config(2, layers=("fc",)))
    pooled = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10)
    )
    with pytest.raises(ValueError, match=r"layer '2' \(BatchNorm2d\)"):
        train(pooled, first(digits, 5), config(4, layers=("4",)))


def test_what_can_be_trained_on_one_image_is(digits):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    pixels = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    for model, layer in ((plain, "1"), (pixels, "3")):
        for batch_size in (1, 4):
            assert len(train(model, first(digits, 5), config(batch_size, layers=(layer,))).history) == 1
    assert pixels[1].num_batches_tracked == 5 + 2  # the trials are not among them


def test_a_trial_changes_no_bit_of_the_training(digits):
    def model():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 10)
        )

    tried = train(model(), first(digits, 9), config(4, layers=("4",))).model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modfast.train.loop.check_batches", lambda *_: None)
        untried = train(model(), first(digits, 9), config(4, layers=("4",))).model
    for name, value in untried.state_dict().items():
        assert torch.equal(value, tried.state_dict()[name])


def test_a_model_that_fails_anyway_tells_why_itself(digits):
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(63, 10))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(wrong, first(digits, 5), config(2))


def test_one_trial_of_the_smallest_share_without_a_batch_of_one():
    for images, batch_size, processes, share in (
        (10, 5, 1, 5),
        (12, 5, 1, 2),
        (10, 10, 5, 2),
        (3, 64, 1, 3),
        (8, 4, 2, 2),
    ):
        tried = []
        check_batches(
            normed(), images, batch_size, processes, lambda _, count, tried=tried: tried.append(count)
        )
        assert tried == [share]


def shared(dataset, batch_size):
    model = normed()
    before = state(model)
    try:
        train(model, dataset, config(batch_size), group=dist.group.WORLD)
    except RankError as error:
        return str(error), same(state(model), before)
    return "trained", True


def test_a_share_of_one_is_refused_by_all(processes, digits):
    # Two processes share the last batch of 2, or of 3; or 5 images as 3 and 2.
    for count, batch_size in ((42, 20), (43, 20), (40, 2), (3, 64)):
        answers = processes(2).run(shared, first(digits, count), batch_size)
        for message, unchanged in answers:
            assert message.startswith("rank 0: batch_size")
            assert "which 2 processes share" in message
            assert unchanged
    assert processes(2).run(shared, first(digits, 45), 20) == [("trained", True)] * 2
