"""Several walks at once, their progress, and walks that are stopped and go on."""

import copy
import threading

import pytest
import torch
from walked_models import CRITERIA, assert_same_masks, make_model

from modfast.circuits import checkpoint as circuit_checkpoint
from modfast.circuits import find_circuit, find_circuits
from modfast.circuits.walk import Walk
from modfast.progress import progress_bar
from modfast.reference.circuits import PlainWalk


@pytest.mark.parametrize("criterion", CRITERIA)
def test_many_are_as_one_by_one(problem, criterion):
    model, inputs, labels = problem
    calls, found = [], []
    several = find_circuits(
        model,
        inputs,
        labels,
        classes=[3, 0, 4],
        criterion=criterion,
        tolerance=0.01,
        progress=lambda *call: calls.append(call),
        on_circuit=lambda circuit: found.append((circuit.label, threading.current_thread())),
    )
    assert [circuit.label for circuit in several] == [3, 0, 4]
    assert sorted(found) == [(label, threading.current_thread()) for label in (0, 3, 4)]
    assert calls[-1] == (3 * 136, 3 * 136)
    if criterion != "balanced":
        for circuit in several:
            own = inputs[labels == circuit.label]
            alone = find_circuit(model, own, circuit.label, criterion=criterion, tolerance=0.01)
            assert_same_masks(circuit, alone)


def test_balanced_inputs_are_drawn_by_the_seed(problem):
    model, inputs, _ = problem
    labels = torch.arange(40) // 10

    def masks(seed):
        (circuit,) = find_circuits(model, inputs, labels, classes=[1], criterion="balanced", seed=seed)
        assert circuit.num_inputs == 20
        return torch.cat([mask.flatten() for mask in circuit.masks.values()])

    assert torch.equal(masks(0), masks(0))
    assert any(not torch.equal(masks(0), masks(seed)) for seed in range(1, 5))
    # All others, where they are fewer.
    few = torch.cat([torch.zeros(30), torch.ones(10)]).long()
    (circuit,) = find_circuits(model, inputs, few, classes=[0], criterion="balanced")
    assert circuit.num_inputs == 40


def test_class_without_inputs_is_an_error(problem):
    model, inputs, labels = problem
    with pytest.raises(ValueError, match="at least one of class 7, got none"):
        find_circuits(model, inputs, labels, classes=[1, 7])
    assert find_circuits(model, inputs, labels, classes=[]) == []


class Interrupted:
    """Interrupts the walk when it has made so many steps."""

    def __init__(self, monkeypatch, walk, steps):
        self.left, decide = steps, walk._decide

        def decide_or_interrupt(walk, *place):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            decide(walk, *place)

        monkeypatch.setattr(walk, "_decide", decide_or_interrupt)


@pytest.mark.parametrize(("method", "walk", "steps"), [("compiled", Walk, 8), ("reference", PlainWalk, 50)])
def test_interrupted_walk_goes_on(problem, tmp_path, monkeypatch, method, walk, steps):
    model, inputs, _ = problem
    before = copy.deepcopy(model.state_dict())
    whole = find_circuit(model, inputs, 1)
    path = tmp_path / "walk.npz"
    monkeypatch.setattr(circuit_checkpoint, "_SECONDS_BETWEEN", -1.0)
    with monkeypatch.context() as context:
        Interrupted(context, walk, steps)
        with pytest.raises(KeyboardInterrupt):
            find_circuit(model, inputs, 1, method=method, checkpoint=path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with monkeypatch.context() as context:
        # It has fewer steps left than a whole walk takes.
        left = {"compiled": 13 - steps, "reference": 136 - steps}[method]
        Interrupted(context, walk, left)
        calls = []
        options = {"checkpoint": path, "method": method, "progress": lambda *call: calls.append(call)}
        assert_same_masks(find_circuit(model, inputs, 1, **options), whole)
        assert calls[-1] == (136, 136)
    with monkeypatch.context() as context:
        Interrupted(context, walk, 0)
        assert_same_masks(find_circuit(model, inputs, 1, method=method, checkpoint=path), whole)


@pytest.mark.parametrize(
    ("method", "walk", "steps", "left"),
    [("compiled", Walk, 8, 13 - 5), ("reference", PlainWalk, 50, 136 - 40)],
)
def test_finished_layer_is_not_lost(problem, tmp_path, monkeypatch, method, walk, steps, left):
    model, inputs, _ = problem
    whole, path = find_circuit(model, inputs, 1), tmp_path / "walk.npz"
    with monkeypatch.context() as context:
        Interrupted(context, walk, steps)
        with pytest.raises(KeyboardInterrupt):
            find_circuit(model, inputs, 1, method=method, checkpoint=path)
    with monkeypatch.context() as context:
        Interrupted(context, walk, left)
        assert_same_masks(find_circuit(model, inputs, 1, method=method, checkpoint=path), whole)
    with monkeypatch.context() as context:
        Interrupted(context, walk, 0)
        assert_same_masks(find_circuit(model, inputs, 1, method=method, checkpoint=path), whole)


def test_checkpoint_of_another_walk_is_an_error(problem, tmp_path):
    model, inputs, labels = problem
    path = tmp_path / "walk.npz"
    find_circuit(model, inputs, 1, checkpoint=path)
    for changed in (
        {"label": 2},
        {"inputs": inputs + 1},
        {"tolerance": 0.1},
        {"criterion": "loss_and_accuracy"},
        {"layers": ["0"]},
        {"labels": labels},
        {"method": "reference"},
        {"model": make_model([12, 8, 5])},
    ):
        with pytest.raises(ValueError, match="of a walk over another model, other inputs or with other"):
            find_circuit(**{"model": model, "inputs": inputs, "label": 1, "checkpoint": path, **changed})
    contents = path.read_bytes()
    for damaged in (contents[:-20], b"", b"PK" + contents[:30]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no file of an unfinished walk, or a damaged one"):
            find_circuit(model, inputs, 1, checkpoint=path)


def test_failure_stops_the_other_walks(problem):
    model, inputs, labels = problem

    def fail(circuit):
        raise RuntimeError("the disk is full")

    others = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="the disk is full"):
        find_circuits(model, inputs, labels, on_circuit=fail)
    assert set(threading.enumerate()) <= others


def test_progress_bar_shows_the_walk(problem, capsys):
    pytest.importorskip("rich")
    model, inputs, _ = problem
    with progress_bar("walking", "weights") as progress:
        find_circuit(model, inputs, 1, method="reference", tolerance=1.0, progress=progress)
    printed = capsys.readouterr().out
    assert "walking" in printed
    assert "136/136" in printed
    assert "left" in printed
