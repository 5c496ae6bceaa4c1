"""Scores of models that compute parts anew on the way back, or run parts without gradients."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from modfast import read_network, unit_scores

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).double()
OTHER = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).double()


def first_logit(output, batch):
    return output[:, 0]


class Blocks(nn.Module):
    def __init__(self, run, times=1):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.run, self.times = run, times
        self.double()

    def block(self, x):
        return nn.functional.gelu(self.c(nn.functional.gelu(self.b(x))))

    def forward(self, x):
        x = nn.functional.gelu(self.a(x))
        for _ in range(self.times):
            x = self.run(self.block, x)
        return self.d(x)


def plainly(block, x):
    return block(x)


def computed_anew(block, x):
    return checkpoint(block, x, use_reentrant=False)


def reentrant(block, x):
    return checkpoint(block, x, use_reentrant=True)


def without_gradients(block, x):
    with torch.no_grad():
        return block(x)


OPTIONS = [
    {},
    {"steps": 3},
    {"steps": 3, "ablation": "mean", "reference": [OTHER]},
    {"steps": 3, "ablation": "resample", "reference": [OTHER]},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_checkpoints_change_no_score(options):
    network = read_network(Blocks(plainly), X)
    expected = unit_scores(Blocks(plainly), X, first_logit, network, **options)
    found = unit_scores(Blocks(computed_anew), X, first_logit, network, **options)
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_a_layer_that_runs_twice_in_checkpoints():
    network = read_network(Blocks(plainly, 2), X)
    for options in OPTIONS[:3]:
        expected = unit_scores(Blocks(plainly, 2), X, first_logit, network, **options)
        found = unit_scores(Blocks(computed_anew, 2), X, first_logit, network, **options)
        torch.testing.assert_close(found, expected, equal_nan=True)
    # On the way back its runs come in another order.
    with pytest.raises(ValueError, match="which times are paired"):
        unit_scores(Blocks(computed_anew, 2), X, first_logit, network, **OPTIONS[3])


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("run", [reentrant, without_gradients])
def test_parts_without_gradients_raise(run):
    """They would score 0, as if the units in them did nothing."""
    network = read_network(Blocks(plainly), X)
    with pytest.raises(ValueError, match="layer 'b' must run with gradients"):
        unit_scores(Blocks(run), X, first_logit, network)
    # Those behind are scored.
    scores = unit_scores(Blocks(run), X, first_logit, network, spaces="c")
    expected = unit_scores(Blocks(plainly), X, first_logit, network, spaces="c")
    torch.testing.assert_close(scores, expected, equal_nan=True)


@pytest.mark.parametrize(("batches", "total"), [([X[:3], X[3:]], 4), (X, 2), ((b for b in [X, X]), 4)])
def test_progress_says_how_many_batches_there_are(batches, total):
    seen = []
    model = Blocks(plainly)
    unit_scores(
        model, batches, first_logit, read_network(model, X), steps=2, progress=lambda *at: seen.append(at)
    )
    assert seen == [(done, total) for done in range(1, total + 1)]
