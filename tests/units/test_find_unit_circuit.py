"""Unit circuits: greedy as a plain loop decides, the shortest part of a ranking, resuming, files."""

import copy
import functools
import itertools
import math

import pytest
import torch
from small_transformers import gpt2
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from modfast import (
    UnitCircuit,
    ablate_units,
    accuracy,
    class_log_likelihood,
    find_unit_circuit,
    load_unit_circuits,
    next_token_log_likelihood,
    read_network,
    save_unit_circuits,
    unit_scores,
)
from modfast.batches import inputs_of

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(30, 6, generator=GENERATOR).double(), torch.arange(30) % 3
OTHER = torch.randn(30, 6, generator=GENERATOR).double()
BATCHES = [(X[:12], Y[:12]), (X[12:], Y[12:])]
ABLATIONS = {
    "zero": {},
    "mean": {"ablation": "mean", "reference": [OTHER]},
    "resample": {"ablation": "resample", "reference": [OTHER[:12], OTHER[12:]]},
}


def trained(model, inputs, metric):
    """Without training the metric would be no worse without any unit."""
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(40):
        for batch in inputs:
            optimizer.zero_grad()
            (-metric(call(model, inputs_of(batch)), batch).mean()).backward()
            optimizer.step()
    return model


@functools.cache
def trained_mlp():
    torch.manual_seed(0)
    layers = nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 3)
    return trained(nn.Sequential(*layers).double().eval(), BATCHES, class_log_likelihood)


def mlp():
    return copy.deepcopy(trained_mlp())


def cnn():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 3),
    ).double().eval()  # fmt: skip
    return trained(model, IMAGES, class_log_likelihood)


def text():
    torch.manual_seed(1)
    model, inputs = gpt2()
    batches = [{**inputs, "input_ids": torch.randint(0, 50, (3, 8))} for _ in range(2)]
    return trained(model.double().eval(), batches, next_token_log_likelihood), batches


IMAGES = [(torch.randn(9, 1, 8, 8, generator=GENERATOR).double(), torch.arange(9) % 3)]


def call(model, inputs):
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def plain_loop(model, batches, metric, network, scores, tolerance, **options):
    """One unit after the other, from the lowest score on, with one forward pass for each."""

    def measure(ablated):
        values = []
        for place, batch in enumerate(batches):
            settings = dict(options)
            if settings.get("ablation") == "resample":
                settings["reference"] = settings["reference"][place]
            with torch.no_grad(), ablate_units(model, network, ablated, **settings):
                values.append(metric(call(model, inputs_of(batch)), batch).double())
        return float(torch.cat(values).mean())

    ablated = torch.zeros(network.num_units, dtype=torch.bool)
    before = measure(ablated)
    asked = ~scores.isnan()
    for unit in sorted(asked.nonzero().flatten().tolist(), key=lambda u: (float(scores[u]), -u)):
        ablated[unit] = True
        if not measure(ablated) >= before - tolerance - 1e-12 * (1 + abs(before)):
            ablated[unit] = False
    return ablated, before, measure(ablated)


@pytest.mark.parametrize(
    ("make", "kind", "tolerance"),
    [
        *[(mlp, kind, tolerance) for kind in ABLATIONS for tolerance in (0.0, 0.02, 0.3)],
        *[(cnn, "zero", tolerance) for tolerance in (0.0, 0.1)],
        *[(text, "zero", tolerance) for tolerance in (0.0, 0.05)],
    ],
)
def test_greedy_decides_as_a_plain_loop_does(make, kind, tolerance):
    if make is text:
        (model, batches), metric = text(), next_token_log_likelihood
    else:
        model, metric = make(), class_log_likelihood
        batches = IMAGES if make is cnn else BATCHES
    options = ABLATIONS[kind]
    network = read_network(model, inputs_of(batches[0]))
    scores = unit_scores(model, batches, metric, network, **options)
    expected, before, after = plain_loop(model, batches, metric, network, scores, tolerance, **options)
    circuit = find_unit_circuit(
        model, batches, metric, network, method="greedy", tolerance=tolerance, **options
    )
    assert torch.equal(~circuit.kept, expected)
    assert circuit.metric_before == pytest.approx(before, abs=1e-12)
    assert circuit.metric_after == pytest.approx(after, abs=1e-12)
    assert circuit.num_units > 0, "an empty circuit shows little"
    assert circuit.num_units < int(circuit.asked.sum()) or tolerance == 0
    assert torch.equal(circuit.scores.nan_to_num(9), scores.nan_to_num(9))


@pytest.mark.parametrize("kind", ABLATIONS)
def test_attribution_keeps_the_fewest_of_the_ranking(kind):
    model = mlp()
    network = read_network(model, X)
    options = ABLATIONS[kind]
    seen = []
    circuit = find_unit_circuit(
        model,
        BATCHES,
        class_log_likelihood,
        network,
        tolerance=0.5,
        progress=lambda *at: seen.append(at),
        **options,
    )
    order = torch.where(circuit.asked, circuit.scores, -torch.inf).argsort(descending=True, stable=True)
    kept = order[: circuit.num_units]
    assert bool(circuit.kept[kept].all())
    assert 0 < circuit.num_units < 40
    assert circuit.metric_after >= circuit.metric_before - 0.5 - 1e-9
    # With one unit less the metric is missed.
    fewer = circuit.asked.clone()
    fewer[order[: circuit.num_units - 1]] = False
    values = []
    for place, (x, y) in enumerate(BATCHES):
        settings = dict(options)
        if kind == "resample":
            settings["reference"] = settings["reference"][place]
        with torch.no_grad(), ablate_units(model, network, fewer, **settings):
            values.append(class_log_likelihood(model(x), (x, y)))
    assert float(torch.cat(values).mean()) < circuit.metric_before - 0.5
    # The scores, the whole model, bisection over 40 units, and the circuit.
    assert circuit.num_passes == 1 + 1 + len(seen) + 1
    assert len(seen) <= 6


def test_units_without_effect_are_not_kept():
    model = mlp()
    with torch.no_grad():
        model[2].weight[:, 5:] = 0
        model[4].weight[:, 3:] = 0
    network = read_network(model, X)
    for method in ("greedy", "attribution"):
        circuit = find_unit_circuit(model, BATCHES, class_log_likelihood, network, method=method)
        assert not bool(circuit.kept[network.spaces["0"]][5:].any())
        assert not bool(circuit.kept[network.spaces["2"]][3:].any())


def test_scores_of_ones_own_and_a_metric_without_gradient():
    model = mlp()
    network = read_network(model, X)
    scores = unit_scores(model, BATCHES, class_log_likelihood, network)
    scores[network.spaces["0"]] = math.nan
    circuit = find_unit_circuit(
        model, BATCHES, accuracy, network, scores=scores, tolerance=0.2, method="greedy", name="three"
    )
    assert bool(circuit.kept[network.spaces["0"]].all())
    assert circuit.sizes.keys() == {"2"}
    assert circuit.name == "three"
    assert circuit.metric_after >= circuit.metric_before - 0.2
    assert circuit.num_examples == 30


def test_numbers_that_are_not_there():
    model = mlp()
    network = read_network(model, X)
    scores = torch.ones(network.num_units)
    for given, message in (
        (scores.to("meta"), "scores must hold numbers, got a tensor on the meta device"),
        (scores.to_sparse(), "scores must be dense, got layout torch.sparse_coo"),
    ):
        with pytest.raises(ValueError, match=message):
            find_unit_circuit(model, BATCHES, accuracy, network, scores=given)
    with pytest.raises(ValueError, match="metric must hold numbers, got a tensor on the meta device"):
        find_unit_circuit(model, BATCHES, lambda output, batch: output.mean().to("meta"), network)
    units = torch.zeros(1, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match="units must hold numbers, got a tensor on the meta device"):
        ablate_units(model, network, units)


class Branching(nn.Module):
    """What it does depends on numbers, which torch.vmap cannot have."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        h = self.inner[:4](x)
        if float(h.detach().sum()) > 1e9:
            h = h * 2
        return self.inner[4:](h)


def test_a_model_that_cannot_run_on_many_ablations_at_once():
    model, plain = Branching().eval(), mlp()
    network = read_network(plain, X)
    renamed = read_network(nn.Sequential(mlp()), X)  # layers named 0.0, 0.2, 0.4
    assert set(renamed.layers) == {"0.0", "0.2", "0.4"}
    expected = find_unit_circuit(
        plain, BATCHES, class_log_likelihood, network, method="greedy", tolerance=0.1
    )

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            for name, layer in model.inner.named_children():
                setattr(self, name, layer)

        def forward(self, x):
            return model(x)

    with pytest.warns(UserWarning, match="they run one by one"):
        circuit = find_unit_circuit(
            Named().eval(), BATCHES, class_log_likelihood, network, method="greedy", tolerance=0.1
        )
    assert torch.equal(circuit.kept, expected.kept)


class StopError(Exception):
    pass


def test_a_walk_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("modfast.circuits.units.greedy._SECONDS_BETWEEN", -1.0)
    model = mlp()
    network = read_network(model, X)
    options = {"method": "greedy", "tolerance": 0.1}
    expected = find_unit_circuit(model, BATCHES, class_log_likelihood, network, **options)
    path = tmp_path / "walk.npz"

    def stop(done, total):
        assert total == 40
        if done > 10:
            raise StopError

    with pytest.raises(StopError):
        find_unit_circuit(
            model, BATCHES, class_log_likelihood, network, **options, checkpoint=path, progress=stop
        )
    seen = []
    circuit = find_unit_circuit(
        model, BATCHES, class_log_likelihood, network, **options, checkpoint=path,
        progress=lambda done, total: seen.append(done),
    )  # fmt: skip
    assert seen[0] > 10
    assert seen[-1] == 40
    assert torch.equal(circuit.kept, expected.kept)
    assert circuit.metric_after == expected.metric_after

    def again(model=model, batches=BATCHES, **changed):
        return find_unit_circuit(
            model, batches, class_log_likelihood, network, **{**options, **changed}, checkpoint=path
        )

    assert again() == circuit
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].bias[0] += 1e-3
    for call_it in (
        lambda: again(other),
        lambda: again(batches=BATCHES[::-1]),
        lambda: again(tolerance=0.2),
        lambda: again(**ABLATIONS["mean"]),
    ):
        with pytest.raises(ValueError, match="another model"):
            call_it()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="unfinished choice of units"):
        again()


def test_apply_save_and_load(tmp_path):
    model = mlp()
    network = read_network(model, X)
    for kind in ("zero", "mean"):
        options = ABLATIONS[kind]
        circuit = find_unit_circuit(model, BATCHES, class_log_likelihood, network, tolerance=1, **options)
        circuit.save(tmp_path / "one.npz")
        loaded = UnitCircuit.load(tmp_path / "one.npz")
        assert loaded == circuit
        assert hash(loaded) == hash(circuit)
        with torch.no_grad(), ablate_units(model, network, ~circuit.kept, **options):
            expected = model(X)
        for each in (circuit, loaded):
            ablated = each.apply(model)
            with torch.no_grad():
                torch.testing.assert_close(ablated(X), expected, rtol=0, atol=0)
        assert not torch.allclose(model(X), expected, atol=1e-3)
        with torch.no_grad():
            model[0].weight[0, 0] += 1  # the copy is another model
            torch.testing.assert_close(ablated(X), expected, rtol=0, atol=0)
            model[0].weight[0, 0] -= 1
    save_unit_circuits(tmp_path / "two.npz", [circuit, loaded])
    assert load_unit_circuits(tmp_path / "two.npz") == [circuit, loaded]
    with pytest.raises(ValueError, match="it holds 2"):
        UnitCircuit.load(tmp_path / "two.npz")
    with pytest.raises(ValueError, match="no layer"):
        circuit.apply(nn.Sequential(nn.Flatten()))
    resampled = find_unit_circuit(
        model, BATCHES, class_log_likelihood, network, tolerance=0.1, **ABLATIONS["resample"]
    )
    with pytest.raises(ValueError, match="ablate_units"):
        resampled.apply(model)


def test_batches_must_be_the_same_each_time():
    model = mlp()
    network = read_network(model, X)
    steady = DataLoader(TensorDataset(X, Y), batch_size=12)
    shuffled = DataLoader(TensorDataset(X, Y), batch_size=12, shuffle=True)
    circuit = find_unit_circuit(model, steady, class_log_likelihood, network, tolerance=0.1)
    again = find_unit_circuit(model, iter(steady), class_log_likelihood, network, tolerance=0.1)
    assert torch.equal(circuit.kept, again.kept)
    with pytest.raises(ValueError, match="same batches at each iteration"):
        find_unit_circuit(model, shuffled, class_log_likelihood, network, tolerance=0.1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tolerance": -0.1}, ValueError, "tolerance"),
        ({"tolerance": math.nan}, ValueError, "tolerance"),
        ({"method": "random"}, ValueError, "method must be"),
        ({"checkpoint": "walk"}, ValueError, "checkpoint is for"),
        ({"scores": torch.zeros(3)}, ValueError, "scores must be"),
        ({"scores": [0.0]}, TypeError, "scores"),
        ({"scores": torch.full((49,), math.nan)}, ValueError, "scores must be numbers"),
        ({"scores": torch.full((49,), math.inf)}, ValueError, "scores must be finite"),
        (
            {"scores": torch.full((49,), math.nan).index_fill(0, torch.arange(46, 49), 0.0)},
            ValueError,
            "reads",
        ),
        ({"name": 3}, TypeError, "name"),
    ],
)
def test_bad_input(options, error, message):
    model = mlp()
    network = read_network(model, X)
    assert network.num_units == 49
    with pytest.raises(error, match=message):
        find_unit_circuit(model, BATCHES, class_log_likelihood, network, **options)


def test_windows_of_every_size_decide_alike(monkeypatch):
    model = mlp()
    network = read_network(model, X)
    found = []
    for most, apart in itertools.product((8, 64), (1, 8, 100)):
        monkeypatch.setattr("modfast.circuits.units.candidates._MOST_SETS", most)
        monkeypatch.setattr("modfast.circuits.units.candidates._FEWEST_APART", apart)
        circuit = find_unit_circuit(
            model, BATCHES, class_log_likelihood, network, method="greedy", tolerance=0.05
        )
        found.append(circuit.kept)
    assert all(torch.equal(each, found[0]) for each in found)
