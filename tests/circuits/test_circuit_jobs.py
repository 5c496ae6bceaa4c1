"""What callers, models and files do to the walks that find circuits, and what that must not change."""

import copy
import itertools
import signal
import threading
import warnings

import pytest
import torch
from processes import PATIENCE
from torch import nn
from torch.nn.utils import parametrizations, prune

from modfast import reference
from modfast.circuits import find_circuit, find_circuits
from modfast.circuits.jobs import ShortTailWarning
from modfast.circuits.linear_tail import read_tail
from modfast.circuits.walk import Walk

METHODS = ["compiled", "reference"]
INPUTS = (40, 12)


def make_model(middle=None):
    return nn.Sequential(nn.Linear(12, 8), middle or nn.ReLU(), nn.Linear(8, 5))


# --- models ---


def pruned(model):
    prune.l1_unstructured(model[0], "weight", 0.3)


def normed(model):
    nn.utils.weight_norm(model[0])


def remembering(model):
    model.remembered = model[0](torch.randn(3, 12))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", [pruned, normed, remembering])
def test_a_model_may_keep_what_it_has_computed(change, method):
    model, inputs = make_model(), torch.randn(INPUTS)
    change(model)
    model(inputs)
    found = find_circuit(model, inputs, 1, layers="2", method=method)
    with torch.no_grad():
        logits = found.apply(model)(inputs)
    loss = nn.functional.cross_entropy(logits, torch.ones(len(inputs), dtype=torch.int64))
    assert found.loss_after == pytest.approx(float(loss), rel=1e-5)
    assert found.size < 1


@pytest.mark.parametrize("method", METHODS)
def test_a_computed_weight_is_what_the_layer_multiplies_by(method):
    model, inputs = make_model(), torch.randn(INPUTS)
    plain = copy.deepcopy(model)
    parametrizations.weight_norm(model[0])
    prune.random_unstructured(model[2], "weight", 0.4)
    plain[0].weight.data, plain[2].weight.data = model[0].weight.data, model[2].weight.data
    found, expected = (find_circuit(each, inputs, 1, method=method) for each in (model, plain))
    assert list(found.masks) == ["0", "2"]
    assert all(torch.equal(mask, expected.masks[name]) for name, mask in found.masks.items())
    torch.testing.assert_close(found.apply(model)(inputs), expected.apply(plain)(inputs))
    assert "parametrizations" in dict(model[0].named_children())  # the model itself is as it was


class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 5)

    def forward(self, inputs):
        return self.layer(inputs.half().float())


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_fails_in_float64_is_an_error_that_says_so(method):
    with pytest.raises(
        ValueError, match=r"model must run in float64 on the CPU, where its copy fails: .*dtype"
    ):
        find_circuit(Rounded(), torch.randn(INPUTS), 1, method=method)


class Answering(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.layer, self.answer = nn.Linear(12, 5), answer

    def forward(self, inputs):
        return self.answer(self.layer(inputs))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_must_give_logits(method):
    inputs = torch.randn(INPUTS)
    with pytest.raises(TypeError, match=r"model must return a tensor of logits, got tuple without \.logits"):
        find_circuit(Answering(lambda logits: (logits,)), inputs, 1, method=method)
    for answer in (lambda logits: logits[0], lambda logits: logits[:-1], lambda logits: logits[:, :1]):
        with pytest.raises(ValueError, match=r"model must .*logits \(n, classes\)|it ends in"):
            find_circuit(Answering(answer), inputs, 1, method=method)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_what_is_compiled_to_torchscript_has_no_layers():
    scripted = torch.jit.trace(make_model(), torch.randn(INPUTS))
    with pytest.raises(ValueError, match=r"layer '0' .* its weight belongs to TorchScript"):
        find_circuit(scripted, torch.randn(INPUTS), 1, method="reference")


# --- the caller's modes ---


@pytest.mark.parametrize("method", METHODS)
def test_everything_may_happen_in_inference_mode(method):
    with torch.inference_mode():
        model, inputs = make_model(), torch.randn(INPUTS)
        found = find_circuit(model, inputs, 1, method=method)
    assert found == find_circuit(model, inputs, 1, method=method)


def test_the_default_device_makes_no_difference():
    model, inputs, labels = make_model(), torch.randn(INPUTS), torch.arange(40) % 5
    expected = find_circuits(model, inputs, labels)
    with torch.device("meta"):
        assert find_circuits(model, inputs, labels) == expected
        plain = reference.find_circuit(model, inputs[labels == 1], 1)
    assert all(torch.equal(plain.masks[name], mask) for name, mask in expected[1].masks.items())


# --- what is left out is said ---


def test_a_tail_of_the_last_layer_only_is_said_and_why():
    inputs = torch.randn(INPUTS)
    with pytest.warns(ShortTailWarning, match=r"only the last layer, '2', .* it comes NativeLayerNorm .*'0'"):
        find_circuit(make_model(nn.LayerNorm(8)), inputs, 1)
    labels = torch.arange(len(inputs)) % 5
    with pytest.warns(ShortTailWarning, match="only the last layer") as told:
        find_circuits(make_model(nn.LayerNorm(8)), inputs, labels)
    assert {warning.filename for warning in told} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_circuit(make_model(nn.LayerNorm(8)), inputs, 1, layers="2")
        find_circuit(make_model(), inputs, 1)
        find_circuit(nn.Sequential(nn.Conv1d(1, 1, 3), nn.Flatten(), nn.Linear(10, 5)), inputs[:, None], 1)


# --- checkpoints ---


class Shifted(nn.Module):
    """Adds a number that the state_dict does not hold."""

    def __init__(self, shift):
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, inputs):
        return inputs + self.shift

    def get_extra_state(self):
        return {"no": "tensor"}


# Of the second pair only the last layer can be walked along, which does not matter here.
@pytest.mark.filterwarnings("ignore:only the last layer")
def test_a_checkpoint_is_of_what_the_model_does(tmp_path):
    inputs = torch.randn(INPUTS)
    states = {}
    for first, second in ((nn.ReLU(), nn.GELU()), (Shifted(0.0), Shifted(1.0))):
        path = tmp_path / f"{type(second).__name__}.npz"
        for middle in (first, second):
            model = make_model(middle)
            model.load_state_dict({**model.state_dict(), **states}, strict=False)
            states = {name: value for name, value in model.state_dict().items() if "extra" not in name}
            if middle is first:
                found = find_circuit(model, inputs, 1, checkpoint=path)
                assert find_circuit(model, inputs, 1, checkpoint=path) == found
                continue
            with pytest.raises(ValueError, match="of a walk over another model"):
                find_circuit(model, inputs, 1, checkpoint=path)


def test_that_nothing_can_be_written_is_known_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(Walk, "_decide", lambda *arguments: pytest.fail("it has begun"))
    with pytest.raises(OSError, match="file"):
        find_circuit(make_model(), torch.randn(INPUTS), 1, checkpoint=tmp_path / "file" / "walk.npz")


def test_labels_may_be_of_any_type_of_whole_numbers(tmp_path):
    model, inputs, labels = make_model(), torch.randn(INPUTS), torch.arange(40) % 2
    expected = find_circuits(model, inputs, labels)
    for dtype in (torch.bool, torch.uint8, torch.int32, torch.uint64):
        assert find_circuits(model, inputs, labels.to(dtype), checkpoint=tmp_path / str(dtype)) == expected
        assert {path.name for path in (tmp_path / str(dtype)).iterdir()} == {"label-0.npz", "label-1.npz"}


# --- Ctrl-C ---


@pytest.mark.parametrize("most", [1, 50_000])
def test_steps_are_short_where_trials_are_long(monkeypatch, most):
    torch.manual_seed(4)
    model, inputs = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 9)), torch.randn(16, 30)
    expected = find_circuit(model, inputs, 1, layers="0")
    walk = Walk(read_tail(model, inputs, "0"), 1, torch.ones(16, dtype=torch.bool), "loss", 0.0, "cpu", 1)
    assert {count for count, _ in walk.steps()} == {30}
    monkeypatch.setattr("modfast.circuits.walk._MOST_WORK", most)
    # Each of 16 inputs: a trial, 9 logits, and a weight to each from the one of 20 neurons that moves.
    counts = [count for count, _ in walk.steps()]
    assert sum(counts) == 600
    assert max(counts) == max(1, most // (16 * (32 * 10 + 9)))
    assert find_circuit(model, inputs, 1, layers="0") == expected


def test_ctrl_c_ends_a_walk_at_its_next_step(monkeypatch, set_threads, pool_shut_down):
    set_threads(2)
    model, inputs, labels = make_model(), torch.randn(INPUTS), torch.arange(40) % 5
    before = [parameter.clone() for parameter in model.parameters()]
    main, steps, decide = threading.main_thread(), itertools.count(1), Walk._decide
    if threading.current_thread() is not main:
        pytest.skip("signals arrive in the main thread")
    walking, begun, waiting = set(), [], threading.Event()
    others = set(threading.enumerate())  # torch.compile keeps a pool of its own once a test has called it

    def wait_for_both(*_):
        if len(walking) == 2:
            waiting.set()

    def interrupted(walk, place):
        walking.add(threading.get_ident())
        assert waiting.wait(PATIENCE)  # all threads run, and the caller waits for them
        begun.append(step := next(steps))
        if step == 4:
            signal.pthread_kill(main.ident, signal.SIGINT)
        if step >= 4:  # the walks go on once the interrupt has arrived
            assert pool_shut_down.wait(PATIENCE)
        decide(walk, place)

    monkeypatch.setattr(Walk, "_decide", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_circuits(model, inputs, labels, progress=wait_for_both)
    assert 4 <= len(begun) <= 5  # the step of either thread
    assert all(map(torch.equal, before, model.parameters()))
    assert set(threading.enumerate()) <= others


def test_reading_a_model_can_be_stopped():
    batches = []

    def stop():
        batches.append(1)
        if len(batches) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_tail(make_model(), torch.randn(1000, 12), before_batch=stop)
    read_tail(make_model(), torch.randn(1000, 12), before_batch=lambda: batches.append(1))
    assert len(batches) > 8


class Interrupted(nn.Module):
    """Ctrl-C is pressed while it runs."""

    def __init__(self):
        super().__init__()
        self.layer, self.passes = nn.Linear(12, 5), []

    def forward(self, inputs):
        self.passes.append("begun")
        signal.raise_signal(signal.SIGINT)
        self.passes.append("ended")
        return self.layer(inputs)

    def __deepcopy__(self, memo):
        copied = Interrupted()
        copied.passes = self.passes
        return copied


@pytest.mark.parametrize("method", METHODS)
def test_the_first_forward_pass_can_be_interrupted(method):
    model = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        find_circuit(model, torch.randn(INPUTS), 1, method=method)
    assert model.passes == ["begun"]
