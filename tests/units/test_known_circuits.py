"""Units that are known to matter are found: by attribution, by the greedy choice, by ablating clusters."""

import copy
from functools import cache

import pytest
import torch
from known_circuits import MAKERS, Known
from rankings import auroc
from torch import Tensor, nn

import modfast

SEEDS = range(3)
FINE, COARSE = torch.float64, torch.float32


@cache
def made(kind: str, seed: int, dtype: torch.dtype = FINE) -> Known:
    return MAKERS[kind](seed, dtype)


def auroc_of(known: Known, scores: Tensor) -> float:
    return auroc(scores[known.asked], known.matters[known.asked])


# --- by hand: the columns that read a unit


def value_of(known: Known, model: nn.Module) -> float:
    with torch.no_grad():
        return torch.cat([known.metric(model(batch[0]), batch) for batch in known.batches]).mean().item()


def channels_last(module: nn.Module, values: Tensor) -> Tensor:
    """What a layer reads with its columns at the end; of itself the inverse."""
    return values.transpose(1, -1) if isinstance(module, nn.Conv2d) else values


def means_by_hand(known: Known) -> dict[str, Tensor]:
    """The mean of each column that a layer reads, over examples and places."""
    read: dict[str, list[Tensor]] = {}
    names = {module: name for name, module in known.model.named_modules()}

    def keep(module, inputs):
        values = channels_last(module, inputs[0])
        read.setdefault(names[module], []).append(values.reshape(-1, values.shape[-1]))

    hooks = [
        module.register_forward_pre_hook(keep)
        for module in names
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    value_of(known, known.model)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(values).mean(0) for name, values in read.items()}


def without(known: Known, units: Tensor, means: dict[str, Tensor] | None = None) -> float:
    """The metric with some units ablated, by hooks that replace what layers read."""
    model = copy.deepcopy(known.model)
    for name, layer in known.network.layers.items():
        module = model.get_submodule(name)
        if isinstance(module, nn.Embedding):
            continue
        off = units[layer.col_units]

        def replaced(module, inputs, off=off, name=name):
            values = channels_last(module, inputs[0])
            other = torch.zeros_like(values) if means is None else means[name].expand_as(values)
            return (channels_last(module, torch.where(off, other, values)),)

        module.register_forward_pre_hook(replaced)
    return value_of(known, model)


def one(known: Known, unit: int) -> Tensor:
    return torch.arange(known.network.num_units) == unit


# --- the truth is true


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", MAKERS)
def test_what_matters_matters_and_nothing_else(kind, seed, ablation):
    known = made(kind, seed)
    means = None if ablation == "zero" else means_by_hand(known)
    before = value_of(known, known.model)
    falls = torch.tensor(
        [
            before - without(known, one(known, unit), means) if known.asked[unit] else torch.nan
            for unit in range(known.network.num_units)
        ]
    )
    others = known.asked & ~known.matters
    assert falls[known.matters].min() > 2 * known.tolerance
    assert falls[others].abs().max() < known.tolerance
    assert before - without(known, others, means) < known.tolerance  # all of them at once
    assert before - without(known, known.matters, means) > 1
    assert 0 < int(known.matters.sum()) < int(others.sum())


@pytest.mark.parametrize("kind", MAKERS)
def test_the_models_do_their_tasks(kind):
    known = made(kind, 0)
    inputs, targets = known.batches[0]
    logits = known.model(inputs)
    counts = targets >= 0
    right = (logits.argmax(-1) == targets)[counts].double().mean()
    assert right > 0.98
    assert value_of(known, known.model) > -0.25


# --- the measure of it


def test_auroc_of_known_rankings():
    positive = torch.tensor([True, False, True, False, False])
    assert auroc(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0]), positive) == 1
    assert auroc(-torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0]), positive) == 0
    assert auroc(torch.zeros(5), positive) == 0.5
    assert auroc(torch.tensor([3.0, 1.0, 1.0, 1.0, 2.0]), positive) == pytest.approx((3 + 1) / 6)
    scores = torch.randint(5, (40,), generator=torch.Generator().manual_seed(0)).double()
    positive = torch.arange(40) % 3 == 0
    pairs = scores[positive][:, None] - scores[~positive]
    assert auroc(scores, positive) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).double().mean().item())


@pytest.mark.parametrize("kind", MAKERS)
def test_random_scores_find_nothing(kind):
    known = made(kind, 0)
    generator = torch.Generator().manual_seed(0)
    found = [auroc_of(known, torch.rand(known.network.num_units, generator=generator)) for _ in range(400)]
    assert sum(found) / len(found) == pytest.approx(0.5, abs=0.03)
    # What is asked for below would rarely come by chance.
    assert sum(value >= 0.95 for value in found) < 8


# --- what finds it


def scored(known, steps, ablation):
    reference = None if ablation == "zero" else known.batches
    return modfast.unit_scores(
        known.model,
        known.batches,
        known.metric,
        known.network,
        ablation=ablation,
        reference=reference,
        steps=steps,
    )


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", MAKERS)
def test_scores_find_what_matters(kind, seed, steps, ablation):
    known = made(kind, seed)
    scores = scored(known, steps, ablation)
    assert torch.equal(~scores.isnan(), known.asked)
    assert auroc_of(known, scores) >= 0.95


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("kind", MAKERS)
def test_scores_in_float32(kind, ablation):
    known = made(kind, 0, COARSE)
    scores = scored(known, 1, ablation)
    assert auroc_of(known, scores) >= 0.95
    fine = scored(made(kind, 0), 1, ablation)
    torch.testing.assert_close(scores, fine, rtol=1e-3, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("kind", MAKERS)
def test_scores_of_many_steps_sum_to_the_whole_fall(kind):
    known = made(kind, 0)
    scores = scored(known, 40, "zero")
    fall = value_of(known, known.model) - without(known, known.asked)
    assert scores.nansum().item() == pytest.approx(fall, rel=0.01)


def circuit_of(known, method, ablation):
    reference = None if ablation == "zero" else known.batches
    return modfast.find_unit_circuit(
        known.model,
        known.batches,
        known.metric,
        known.network,
        tolerance=known.tolerance,
        method=method,
        ablation=ablation,
        reference=reference,
    )


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", MAKERS)
def test_greedy_finds_exactly_what_matters(kind, seed, ablation):
    known = made(kind, seed)
    circuit = circuit_of(known, "greedy", ablation)
    assert torch.equal(circuit.kept & known.asked, known.matters)
    before = value_of(known, known.model)
    means = None if ablation == "zero" else means_by_hand(known)
    assert circuit.metric_before == pytest.approx(before, abs=1e-9)
    assert circuit.metric_after == pytest.approx(without(known, ~circuit.kept, means), abs=1e-9)


@pytest.mark.parametrize("kind", MAKERS)
def test_greedy_in_float32(kind):
    known = made(kind, 0, COARSE)
    circuit = circuit_of(known, "greedy", "zero")
    assert torch.equal(circuit.kept & known.asked, known.matters)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", MAKERS)
def test_attribution_keeps_all_that_matters_and_few_others(kind, seed, ablation):
    known = made(kind, seed)
    kept = circuit_of(known, "attribution", ablation).kept & known.asked
    assert bool(kept[known.matters].all())
    assert int(kept.sum()) <= 1.5 * int(known.matters.sum())
