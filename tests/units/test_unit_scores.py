"""Scores of units: what they sum to, how they agree with ablations, what may be asked."""

import copy
import math

import pytest
import torch
from small_transformers import gpt2, llama
from test_unchanged import picture
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from modfast import (
    ablate_units,
    accuracy,
    class_log_likelihood,
    logit_difference,
    next_token_log_likelihood,
    read_network,
    unit_scores,
)
from modfast.circuits.units.evaluation import Evaluation

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(20, 6, generator=GENERATOR).double(), torch.arange(20) % 3
OTHER = torch.randn(20, 6, generator=GENERATOR).double()
BATCHES = [(X[:8], Y[:8]), (X[8:], Y[8:])]


def mlp(*between):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.ReLU(), *between, nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)]
    return nn.Sequential(*layers).double().eval()


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)).double().eval()


def score_and_fall(model, batches, metric, network, units, **options):
    """A unit's score, and how much the metric falls if it is ablated, for some units."""
    scores = unit_scores(model, batches, metric, network, **options)
    task = Evaluation(model, batches, metric, network, **options)
    nothing = torch.zeros(network.num_units, dtype=torch.bool)
    before = task.metric(nothing)
    falls = []
    for unit in units:
        ablated = nothing.clone()
        ablated[unit] = True
        falls.append(before - task.metric(ablated))
    return scores[units], torch.tensor(falls, dtype=torch.float64)


ABLATIONS = {
    "zero": {},
    "mean": {"ablation": "mean", "reference": [OTHER[:5], OTHER[5:]]},
    "resample": {"ablation": "resample", "reference": [OTHER[:8], OTHER[8:]]},
}


@pytest.mark.parametrize("kind", ABLATIONS)
def test_where_all_is_linear_a_score_is_the_fall(kind):
    model = linear()
    network = read_network(model, X)
    units = torch.arange(network.num_units)[network.spaces["0"]]
    metric = logit_difference(0, 2)
    scores, falls = score_and_fall(model, BATCHES, metric, network, units, **ABLATIONS[kind])
    torch.testing.assert_close(scores, falls, rtol=1e-12, atol=1e-12)
    assert float(falls.abs().max()) > 0.01


@pytest.mark.parametrize("kind", ABLATIONS)
def test_integrated_gradients_sum_to_the_fall_of_all_units(kind):
    model = mlp()
    network = read_network(model, X)
    options = ABLATIONS[kind]
    scores = unit_scores(model, BATCHES, class_log_likelihood, network, steps=400, **options)
    task = Evaluation(model, BATCHES, class_log_likelihood, network, **options)
    fall = task.metric(torch.zeros_like(task.asked)) - task.metric(task.asked)
    assert float(scores.nansum()) == pytest.approx(fall, rel=2e-3)
    once = unit_scores(model, BATCHES, class_log_likelihood, network, **options)
    assert abs(float(once.nansum()) - fall) > abs(float(scores.nansum()) - fall)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_scores_of_transformers_are_derivatives(make):
    """The score by one step is the derivative of the metric by a factor on what weights read."""
    model, inputs = make()
    model = model.double().eval()
    network = read_network(model, inputs)
    scores = unit_scores(model, inputs, next_token_log_likelihood, network)
    assert torch.equal(scores.isnan(), ~Evaluation(model, inputs, accuracy, network).asked)
    names = [name for name in network.spaces if bool(scores[network.spaces[name]].isfinite().all())]
    assert len(names) == 4
    for name in names:  # heads and hidden neurons of both blocks
        unit = network.spaces[name].start
        small = 1e-2  # parts of these models compute in float32
        with torch.no_grad():
            values = []
            for factor in (1 - small, 1 + small):
                scaled = copy.deepcopy(model)
                layers = dict(scaled.named_modules())
                for layer in network.layers.values():
                    off = layer.col_units == unit
                    if bool(off.any()) and layer.reads == ("columns",):
                        weight = layers[layer.name].weight
                        is_conv1d = type(layers[layer.name]).__name__ == "Conv1D"
                        (weight.T if is_conv1d else weight)[:, off] *= factor
                values.append(float(next_token_log_likelihood(scaled(**inputs), inputs).mean()))
        derivative = (values[1] - values[0]) / (2 * small)
        assert float(scores[unit]) == pytest.approx(derivative, rel=2e-3, abs=1e-6)


def test_batches_in_every_form_give_the_same_scores():
    model = mlp()
    network = read_network(model, X)
    loader = DataLoader(TensorDataset(X, Y), batch_size=7)
    expected = unit_scores(model, [(X, Y)], class_log_likelihood, network)
    scalar = lambda output, batch: class_log_likelihood(output, batch).mean()  # noqa: E731
    for batches, metric in (
        (BATCHES, class_log_likelihood),
        (BATCHES, scalar),
        (loader, class_log_likelihood),
        (loader, scalar),
        ((X, Y), scalar),
        (iter(BATCHES), class_log_likelihood),
        ([((x,), y) for x, y in BATCHES], class_log_likelihood),
    ):
        scores = unit_scores(model, batches, metric, network)
        torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-14, equal_nan=True)


def test_nothing_of_the_model_changes_and_dropout_is_off():
    model = mlp(nn.Dropout(0.5), nn.BatchNorm1d(8))
    network = read_network(model, X)
    expected = unit_scores(model, BATCHES, class_log_likelihood, network, steps=3)
    model.train()
    before = picture(model)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(7)
        found = unit_scores(model, BATCHES, class_log_likelihood, network, steps=3)
    assert torch.equal(found.nan_to_num(9), expected.nan_to_num(9))
    after = picture(model)
    assert repr(before) == repr(after)
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.inference_mode():
        found = unit_scores(model, [X.clone()], logit_difference(0, 1), network)
    assert bool(found.isfinite().any())


def test_compiled_and_half_precision():
    model = mlp()
    network = read_network(model, X)
    expected = unit_scores(model, BATCHES, class_log_likelihood, network)
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    found = unit_scores(compiled, BATCHES, class_log_likelihood, network)
    assert torch.equal(found.nan_to_num(9), expected.nan_to_num(9))
    half = copy.deepcopy(model).bfloat16()
    batches = [(x.bfloat16(), y) for x, y in BATCHES]
    found = unit_scores(half, batches, class_log_likelihood, network)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0.2, atol=0.02, equal_nan=True)


def test_spaces():
    model = mlp()
    network = read_network(model, X)
    assert set(network.spaces) == {".input", "0", "2", "4"}

    def scored(**options):
        scores = unit_scores(model, BATCHES, class_log_likelihood, network, **options)
        return {name for name, space in network.spaces.items() if bool(scores[space].isfinite().all())}

    assert scored() == {"0", "2"}
    assert scored(spaces="2") == {"2"}
    assert scored(spaces=["0", ".in*"]) == {"0", ".input"}
    for spaces, message in (("9", "spaces"), ("4", "no unit of '4'"), ([], "no unit")):
        with pytest.raises(ValueError, match=message):
            scored(spaces=spaces)


def test_progress_counts_batches():
    seen = []
    model = mlp()
    unit_scores(
        model,
        BATCHES,
        class_log_likelihood,
        read_network(model, X),
        steps=2,
        progress=lambda *at: seen.append(at),
    )
    assert [done for done, _ in seen] == [1, 2, 3, 4]


def bad(metric=class_log_likelihood, batches=BATCHES, model=None, **options):
    model = model or mlp()
    return lambda: unit_scores(model, batches, metric, read_network(mlp(), X), **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (bad(lambda output, batch: output.sum() * math.nan), ValueError, "metric must be finite, got nan"),
        (bad(lambda output, batch: torch.tensor(1.0)), ValueError, "metric must depend on the units"),
        (bad(lambda output, batch: 1.0), ValueError, "metric must depend on the units"),
        (bad(lambda output, batch: output.detach().sum()), ValueError, "metric must depend"),
        (bad(accuracy), ValueError, "metric must depend on the units"),
        (bad(lambda output, batch: output), ValueError, "one per example"),
        (bad(lambda output, batch: "good"), TypeError, "metric must return a tensor"),
        (bad("loss"), TypeError, "metric must be callable"),
        (bad(batches=[]), ValueError, "at least one batch"),
        (bad(batches=[(X[:0], Y[:0])]), ValueError, "empty one"),
        (bad(batches=3), TypeError, "batches must be an iterable"),
        (bad(batches=["text"]), TypeError, "first dimension counts examples"),
        (bad(steps=0), ValueError, "steps"),
        (bad(steps=1.5), ValueError, "steps"),
        (bad(ablation="mean"), ValueError, "reference must be given"),
        (bad(ablation="resample", reference=[X[:8]]), ValueError, "reference must pair each batch"),
        (bad(ablation="resample", reference=[X[:8], X[8:], X]), ValueError, "it has more"),
        (bad(ablation="resample", reference=[X[:8] * math.inf, X[8:]]), ValueError, "must be finite"),
        (bad(spaces=[]), ValueError, r"no unit of \[\]"),
        (bad(ablation="resample", reference=[X[:8], X[8:11]]), ValueError, "batches have one of 12"),
        (bad(model=nn.Flatten()), ValueError, "no layer"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_metric_that_misses_the_units_raises():
    """The gradient flows, but past the units that were asked for."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(6, 3)

        def forward(self, x):
            return self.b(self.a(x).relu()), self.c(x)

    model = Two().double()
    network = read_network(model, X)
    with pytest.raises(ValueError, match="depends on none of them"):
        unit_scores(model, [X], lambda output, batch: output[1].mean(), network)


def test_scores_agree_with_ablations():
    """Nonlinear, but small effects: the first order tells them apart."""
    model = mlp()
    network = read_network(model, X)
    units = torch.arange(network.num_units)[Evaluation(model, BATCHES, accuracy, network).asked]
    scores, falls = score_and_fall(model, BATCHES, class_log_likelihood, network, units)
    correlation = torch.corrcoef(torch.stack([scores, falls]))[0, 1]
    assert float(correlation) > 0.9
    with torch.no_grad(), ablate_units(model, network, units[:1]):
        logits = model(X)
    by_hand = class_log_likelihood(model(X), (X, Y)).mean() - class_log_likelihood(logits, (X, Y)).mean()
    assert float(falls[0]) == pytest.approx(float(by_hand.detach()), abs=1e-12)


def test_a_metric_may_write_to_its_batch():
    model = mlp()
    network = read_network(model, X)
    batches = [(X.clone(), Y.clone())]

    def metric(output, batch):
        value = class_log_likelihood(output, batch)
        batch[0].zero_()
        return value

    scores = unit_scores(model, batches, metric, network)
    assert torch.equal(batches[0][0], X)
    expected = unit_scores(model, batches, class_log_likelihood, network)
    assert torch.equal(scores.nan_to_num(9), expected.nan_to_num(9))
