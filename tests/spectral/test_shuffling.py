"""The shuffle test: what it finds, what it shuffles, and its threads."""

from __future__ import annotations

import copy
import itertools
import math
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from processes import PATIENCE
from torch import Tensor, nn

from modfast import network_graph
from modfast.layers.layer import find_layers
from modfast.models import MLP
from modfast.spectral import shuffle_test, shuffling


def modular(sizes: list[int], seed: int = 0, spread: float = 0.0) -> nn.Sequential:
    """Linear layers of two modules each, even and odd neurons; ``spread`` times the weight between them."""
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)]
    for layer in layers:
        same = (torch.arange(layer.out_features)[:, None] + torch.arange(layer.in_features)) % 2 == 0
        layer.weight.data = torch.randn(same.shape) * torch.where(same, 1.0, spread)
    return nn.Sequential(*layers)


def test_modules_stand_out() -> None:
    model = modular([8, 8, 8], spread=0.05)
    result = shuffle_test(model, 2, 19, n_init=2)
    assert result.z_score < -4
    assert result.p_value == 1 / 20
    assert result.normalized_cut < 0.2 < result.shuffled.min()
    assert result.shuffled.shape == (19,)
    assert result.shuffled.dtype == torch.float64


def test_a_random_network_does_not() -> None:
    result = shuffle_test(modular([8, 8, 8], spread=1.0), 2, 19, n_init=2)
    assert abs(result.z_score) < 2
    assert result.p_value > 0.1


def test_statistics() -> None:
    result = shuffle_test(modular([6, 6], spread=0.5), 2, 7, n_init=1)
    values = result.shuffled.numpy()
    assert result.mean == pytest.approx(np.mean(values))
    assert result.std == pytest.approx(np.std(values, ddof=1))
    assert result.z_score == pytest.approx((result.normalized_cut - np.mean(values)) / np.std(values, ddof=1))
    assert result.p_value == (1 + sum(value <= result.normalized_cut for value in values)) / 8


def test_equal_weights_have_no_score() -> None:
    model = nn.Linear(4, 4)
    model.weight.data.fill_(1.0)
    result = shuffle_test(model, 2, 3)
    assert result.shuffled.unique().tolist() == [result.normalized_cut]
    assert math.isnan(result.z_score)
    assert result.p_value == 1.0


def test_seeds_and_workers() -> None:
    model = modular([6, 6, 4], spread=0.5)
    first = shuffle_test(model, 2, 6, seed=3, workers=1, n_init=1)
    second = shuffle_test(model, 2, 6, seed=3, workers=2, n_init=1)
    assert torch.equal(first.shuffled, second.shuffled)
    assert first._replace(shuffled=None) == second._replace(shuffled=None)
    assert first.shuffled.unique().numel() > 1
    # A shuffle depends on its number alone, not on how many there are, and not on its neighbour's seed.
    assert torch.equal(shuffle_test(model, 2, 3, seed=3, n_init=1).shuffled, first.shuffled[:3])
    other = shuffle_test(model, 2, 6, seed=4, n_init=1)
    assert not set(other.shuffled.tolist()) & set(first.shuffled.tolist())


def test_shuffles_keep_each_layers_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(8, 3), nn.Conv1d(3, 6, 2, groups=3)
    )
    model[3].weight.data[0] = 0.0
    own = {layer.name: layer.weight().detach() for layer in find_layers(model)}
    seen: list[Tensor] = []

    def cluster(graph: Tensor, num_clusters: int, **options: Any) -> Tensor:
        seen.append(graph.to_dense())
        return torch.arange(len(graph.to_dense())) % num_clusters

    monkeypatch.setattr(shuffling, "spectral_cluster", cluster)
    shuffle_test(model, 2, 2, layers=["0", "3", "4"], workers=1)
    expected = [network_graph(model, ["0", "3", "4"])]
    for number in range(2):
        change = shuffling.shuffle(0, number)
        shuffled = copy.deepcopy(model)
        for layer in find_layers(shuffled):
            weight = change(layer, own[layer.name])
            assert not torch.equal(weight, own[layer.name])
            assert torch.equal(weight.flatten().sort().values, own[layer.name].flatten().sort().values)
            layer.weight().data.copy_(weight)
        expected.append(network_graph(shuffled, ["0", "3", "4"]))
    for graph, other in zip(seen, expected, strict=True):
        assert torch.equal(graph, other.to_dense())
    assert not torch.equal(seen[1], seen[2])


def test_every_entry_goes_everywhere() -> None:
    (layer,) = find_layers(nn.Linear(2, 2))
    weight = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    orders = {tuple(shuffling.shuffle(0, number)(layer, weight).flatten().tolist()) for number in range(400)}
    assert len(orders) == 24


class Skipping(nn.Module):
    def __init__(self, spread: float) -> None:
        super().__init__()
        self.inside = modular([8, 16, 8], spread=spread)
        self.last = modular([8, 8], seed=1, spread=spread)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(x + self.inside(x))
        return result


def test_networks_that_are_no_chain() -> None:
    x = torch.randn(2, 8)
    with pytest.raises(ValueError, match="give example_inputs"):
        shuffle_test(Skipping(1.0), 2, 9)
    assert shuffle_test(Skipping(0.05), 2, 9, n_init=2, example_inputs=x).z_score < -5
    assert abs(shuffle_test(Skipping(1.0), 2, 9, n_init=2, example_inputs=x).z_score) < 3


def test_the_model_and_the_random_state_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    shuffle_test(model, 2, 2, n_init=1)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_layers_are_passed_on() -> None:
    model = nn.ModuleDict({"b": nn.Linear(4, 4), "a": nn.Linear(6, 4)})
    with pytest.raises(ValueError, match="how the ModuleDict joins layers is not known"):
        shuffle_test(model, 2, 2)
    assert shuffle_test(model, 2, 2, layers=["a", "b"], n_init=1).shuffled.shape == (2,)


def test_example_inputs_are_passed_on() -> None:
    model, images = MLP((1, 2, 3), num_classes=4, hidden=5), torch.randn(2, 1, 2, 3)
    found = shuffle_test(model, 2, 2, example_inputs=images, n_init=1)
    expected = shuffle_test(model, 2, 2, layers=["fc1", "fc2", "fc3"], n_init=1)
    assert torch.equal(found.shuffled, expected.shuffled)


def test_progress() -> None:
    calls = []
    shuffle_test(modular([4, 4]), 2, 5, n_init=1, progress=lambda *call: calls.append(call))
    assert calls == [(done, 5) for done in range(1, 6)]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(threads: int, set_threads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    set_threads(threads)
    within, real = [], shuffling.spectral_cluster

    def cluster(*given: Any, **options: Any) -> Tensor:
        within.append((torch.get_num_threads(), threading.current_thread()))
        return real(*given, **options)

    monkeypatch.setattr(shuffling, "spectral_cluster", cluster)
    shuffle_test(modular([4, 4]), 2, 8, n_init=1)
    assert {count for count, _ in within} == {1}
    assert len({thread for _, thread in within}) <= threads
    assert not any(thread.is_alive() for _, thread in within)
    assert torch.get_num_threads() == threads
    afterwards = []
    thread = threading.Thread(target=lambda: afterwards.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert afterwards == [threads]


def test_shuffles_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    together, calls = threading.Barrier(2, timeout=PATIENCE), iter([None])

    def cluster(graph: Tensor, num_clusters: int, **options: Any) -> Tensor:
        if next(calls, graph) is not None:  # the network itself is clustered first, alone
            together.wait()
        return torch.arange(graph.shape[0]) % num_clusters

    monkeypatch.setattr(shuffling, "spectral_cluster", cluster)
    shuffle_test(modular([4, 4]), 2, 4, workers=2)


@pytest.fixture
def clustered(monkeypatch: pytest.MonkeyPatch, pool_shut_down: threading.Event) -> Any:
    """``clustered(number, act)``: the number-th clustering does something; a list of the threads of all.

    Those after it do not end before the test of which they are a part does: none would be left to begin.
    """

    def replace(number: int, act: Callable[[], None]) -> list[threading.Thread]:
        calls: list[threading.Thread] = []
        places = itertools.count(1)

        def cluster(graph: Tensor, num_clusters: int, **options: Any) -> Tensor:
            place = next(places)
            calls.append(threading.current_thread())
            if place == number:
                act()
            if place > number:
                assert pool_shut_down.wait(PATIENCE)
            return torch.arange(graph.shape[0]) % num_clusters

        monkeypatch.setattr(shuffling, "spectral_cluster", cluster)
        return calls

    return replace


def no_memory() -> None:
    raise RuntimeError("no memory")


@pytest.mark.parametrize("fails", [1, 4])
def test_an_error_ends_the_test(fails: int, clustered: Any, set_threads: Any) -> None:
    set_threads(2)
    calls = clustered(fails, no_memory)
    with pytest.raises(RuntimeError, match="no memory"):
        shuffle_test(modular([4, 4]), 2, 500, workers=2)
    assert len(calls) <= fails + 2  # what the two workers had begun
    assert torch.get_num_threads() == 2


def test_an_error_in_progress_ends_the_test(clustered: Any) -> None:
    calls = clustered(2, lambda: None)

    def progress(done: int, total: int) -> None:
        raise OSError("closed")

    with pytest.raises(OSError, match="closed"):
        shuffle_test(modular([8, 8, 8], spread=1.0), 2, 500, workers=2, progress=progress)
    assert len(calls) <= 4


def test_an_interrupt_ends_the_test(clustered: Any, set_threads: Any) -> None:
    set_threads(2)
    main = threading.main_thread()
    if threading.current_thread() is not main:
        pytest.skip("signals arrive in the main thread")
    waiting = threading.Event()

    def interrupt() -> None:
        assert waiting.wait(PATIENCE)  # both workers run, and the caller waits for them
        signal.pthread_kill(main.ident, signal.SIGINT)

    calls = clustered(6, interrupt)
    with pytest.raises(KeyboardInterrupt):
        shuffle_test(modular([4, 4]), 2, 500, workers=2, progress=lambda *_: waiting.set())
    assert 6 <= len(calls) <= 8
    assert not any(thread.is_alive() for thread in calls)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_shuffles": 1}, ValueError, "num_shuffles must be an integer of at least 2, got 1"),
        ({"num_shuffles": 0}, ValueError, "num_shuffles must be a positive integer, got 0"),
        ({"num_shuffles": 2.0}, ValueError, "num_shuffles must be a positive integer"),
        ({"num_clusters": 0}, ValueError, "num_clusters"),
        ({"num_clusters": 9}, ValueError, "num_clusters"),
        ({"workers": 0}, ValueError, "workers must be a positive integer, got 0"),
        ({"seed": -1}, ValueError, "seed must be an integer in"),
        ({"seed": 2**63}, ValueError, "seed must be an integer in"),
        ({"seed": 1.5}, ValueError, "seed must be an integer in"),
        ({"n_init": 0}, ValueError, "n_init"),
        ({"return_info": True}, TypeError, r"got \['return_info'\]"),
        ({"restarts": 3}, TypeError, r"got \['restarts'\]"),
        ({"layers": ["fc9"]}, ValueError, "'fc9' matches no layer"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"num_clusters": 2, "num_shuffles": 2} | arguments
    with pytest.raises(error, match=message):
        shuffle_test(nn.Linear(4, 4), **given)
