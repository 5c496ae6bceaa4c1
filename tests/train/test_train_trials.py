"""A model that fails as soon as it is run costs no finished run: it is tried before anything is replaced."""

import pytest
import torch
from folder_helpers import tree
from torch import nn

from modfast.data import load_dataset
from modfast.train import TrainConfig, train


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


class Failing(nn.Module):
    """Fails in one of its modes, and writes to a buffer in both."""

    def __init__(self, failing=None):
        super().__init__()
        self.failing = failing
        self.fc = nn.Linear(64, 10)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, images):
        self.calls += 1
        if self.failing == ("training" if self.training else "evaluation"):
            raise NameError(f"a slip in the {self.failing} branch")
        # Draws random numbers in both modes.
        noise = torch.rand(len(images), 1, device=images.device)
        return self.fc(self.dropout(images.flatten(1)) + 1e-3 * noise)


CONFIG = TrainConfig(epochs=1, layers=("fc",), num_clusters=2, device="cpu", threads=1)


@pytest.mark.parametrize("flags", [{"overwrite": True}, {"resume": True}, {}], ids=str)
@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_a_slip_in_either_mode_changes_no_folder(digits, tmp_path, mode, flags):
    if flags:
        train(Failing(), digits, CONFIG, out=tmp_path / "out")
    before = tree(tmp_path)
    model = Failing(mode)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NameError, match=f"a slip in the {mode} branch"):
        train(model, digits, CONFIG, out=tmp_path / "out", **flags)
    assert tree(tmp_path) == before
    assert model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_trials_change_no_bit_of_the_training(digits, monkeypatch):
    def trained():
        torch.manual_seed(3)
        return train(Failing(), digits, CONFIG).model.state_dict()

    tried = trained()
    for trial in ("check_batches", "check_evaluation"):
        monkeypatch.setattr(f"modfast.train.loop.{trial}", lambda *_: None)
    untried = trained()
    assert all(torch.equal(value, untried[name]) for name, value in tried.items())
