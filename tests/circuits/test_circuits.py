"""Circuits: the compiled walk against the plain one, and what callers may do to it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from walked_models import ACTIVATIONS, CRITERIA, assert_same_masks, make_model

from modfast import reference
from modfast.circuits import find_circuit, find_circuits
from modfast.circuits.jobs import ShortTailWarning
from modfast.circuits.walk import Walk
from modfast.models import CNN

# --- the walk ---


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(data=st.data())
@settings(max_examples=8)
def test_decides_as_the_reference_does(activation, criterion, data):
    torch.manual_seed(data.draw(st.integers(0, 10**6), label="seed"))
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4), label="widths")
    sizes += [data.draw(st.integers(2, 6), label="classes")]
    model = make_model(sizes, activation, data.draw(st.booleans(), label="bias"))
    zeros = data.draw(st.sampled_from([0.0, 0.5]), label="share of weights that are zero already")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand_like(parameter) >= zeros)
    inputs = torch.randn(data.draw(st.integers(2, 300), label="inputs"), sizes[0])
    labels = None
    if criterion == "balanced":
        labels = torch.arange(len(inputs)) % 2
    options = {"criterion": criterion, "labels": labels}
    options["tolerance"] = data.draw(st.sampled_from([0.0, 0.01, 0.3]), label="tolerance")
    label = data.draw(st.integers(0, 1 if labels is not None else sizes[-1] - 1), label="label")
    found = find_circuit(model, inputs, label, **options)
    expected = reference.find_circuit(model, inputs, label, **options)
    # Of all decisions; rounding would be allowed one in 200.
    assert_same_masks(found, expected)
    for name in ("loss_before", "loss_after", "accuracy_before", "accuracy_after"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12, abs=1e-14)
    assert found.loss_after <= found.loss_before + options["tolerance"] + 1e-11 * (1 + found.loss_before)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_losses_are_those_of_the_masked_model(criterion):
    torch.manual_seed(5)
    model = CNN((3, 8, 8), num_classes=5, hidden=12)
    images, labels = torch.rand(60, 3, 8, 8), torch.arange(60) % 5
    circuit = find_circuit(model, images, 2, criterion=criterion, labels=labels)
    if criterion != "balanced":
        images = images[labels == 2]
        labels = labels[labels == 2]
    assert 0 < circuit.size < 0.9
    for network, loss, accuracy in (
        (model, circuit.loss_before, circuit.accuracy_before),
        (circuit.apply(model), circuit.loss_after, circuit.accuracy_after),
    ):
        with torch.no_grad():
            logits = network(images)
        shares = logits.softmax(1)[:, 2]
        expected = -torch.where(labels == 2, shares, 1 - shares).log().mean()
        assert loss == pytest.approx(float(expected), rel=1e-5)
        taken = shares > 0.5 if criterion == "balanced" else logits.argmax(1) == 2
        assert accuracy == (taken == (labels == 2)).double().mean()
    if criterion == "loss":
        assert circuit.loss_before == pytest.approx(functional.cross_entropy(model(images), labels).item())


def test_accuracy_does_not_fall():
    torch.manual_seed(1)
    model, inputs = make_model([8, 6, 4]), torch.randn(50, 8)
    for label in range(4):
        circuit = find_circuit(model, inputs, label, criterion="loss_and_accuracy")
        assert circuit.accuracy_after >= circuit.accuracy_before


def test_tolerance_makes_circuits_smaller(problem):
    model, inputs, _ = problem
    sizes = [find_circuit(model, inputs, 1, tolerance=tolerance).size for tolerance in (0.0, 0.1, 10.0)]
    assert sizes[0] > sizes[1] > sizes[2] == 0.0


def test_same_bits_for_any_number_of_threads(set_threads):
    torch.manual_seed(2)
    # Several chunks of inputs, so that threads share them.
    model, inputs = make_model([20, 12, 5], "silu"), torch.randn(1500, 20)
    found = []
    for threads in (1, 2, 3, 5):
        set_threads(threads)
        found.append(find_circuit(model, inputs, 1))
    for each in found[1:]:
        assert_same_masks(each, found[0])
        assert each.loss_after == found[0].loss_after


CODE = """
import hashlib, torch
from modfast.circuits import find_circuit
from torch import nn
digest = hashlib.sha256()
for activation in (nn.ReLU(), nn.GELU(), nn.Tanh(), nn.SiLU()):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 9), activation, nn.Linear(9, 7), activation, nn.Linear(7, 5))
    circuit = find_circuit(model, torch.randn(100, 20), 2)
    digest.update(repr(circuit.loss_after).encode())
    for mask in circuit.masks.values():
        digest.update(mask.numpy().tobytes())
print(digest.hexdigest())
"""


def test_same_bits_in_every_instruction_set(run_python):
    from modfast import backend

    found = set()
    for level in backend()["cpu_available"]:
        done = run_python(CODE, MODFAST_CPU=level)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_large_pre_activations_do_not_overflow():
    torch.manual_seed(0)
    model, inputs = make_model([6, 5, 4], scale=500.0), torch.randn(20, 6)
    for criterion, labels in (("loss", None), ("balanced", torch.arange(20) % 2)):
        options = {"criterion": criterion, "labels": labels}
        found = find_circuit(model, inputs, 1, **options)
        assert found.loss_before > 100
        assert_same_masks(found, reference.find_circuit(model, inputs, 1, **options))


def test_what_overflows_is_kept():
    # Both logits of the last input are infinite without one of the first layer's weights: no loss is known.
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1e200, -1e200]], dtype=torch.float64))
        model[1].weight.copy_(torch.tensor([[3e200], [2e200]], dtype=torch.float64))
    inputs = torch.tensor([[1e-200, 0.0], [-1e-200, 0.0]] * 8 + [[1.0, 1.0]], dtype=torch.float64)
    found = find_circuit(model, inputs, 0)
    assert found.masks["0"].all()
    assert_same_masks(found, reference.find_circuit(model, inputs, 0))


def test_what_only_zero_inputs_would_do_does_not_matter():
    # The kernels compute on eight inputs at once. Three are given, and an input of zeros would overflow.
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1e200, 0.0], [0.0, 1.0]], dtype=torch.float64))
        model[0].bias.copy_(torch.tensor([-1e200, 0.0], dtype=torch.float64))
        model[1].weight.copy_(torch.tensor([[3e200, 1.0], [2e200, -1.0]], dtype=torch.float64))
    inputs = torch.tensor([[1.0, 2.0], [1.0, 1.0], [1.0, -0.5]], dtype=torch.float64)
    found = find_circuit(model, inputs, 0)
    assert 0 < found.size < 1
    assert_same_masks(found, reference.find_circuit(model, inputs, 0))


# --- which models ---


def test_model_is_not_changed(problem):
    model, inputs, labels = problem
    model.train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    find_circuit(model, inputs, 1)
    find_circuits(model, inputs, labels)
    find_circuit(model, inputs, 1, method="reference", tolerance=1.0)
    assert model.training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_training_mode_does_not_matter():
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    inputs = torch.randn(30, 8)
    model(inputs)
    training = find_circuit(model.train(), inputs, 1, layers="4")
    assert_same_masks(training, find_circuit(model.eval(), inputs, 1, layers="4"))
    with pytest.warns(ShortTailWarning, match="it comes NativeBatchNorm at or after layer '0'"):
        assert list(find_circuit(model, inputs, 1).masks) == ["4"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_of_the_model_is_of_its_values_alone(problem, dtype):
    model, inputs, _ = problem
    model, inputs = model.to(dtype), inputs.to(dtype)
    found = find_circuit(model, inputs, 1)
    assert_same_masks(found, find_circuit(copy.deepcopy(model).float().double(), inputs.double(), 1))
    assert found.apply(model)[0].weight.dtype == dtype


def test_only_named_layers_are_pruned():
    torch.manual_seed(0)
    model, inputs = make_model([9, 8, 7, 5]), torch.randn(30, 9)
    for layers in (["2"], ["0", "4"], "0"):
        found = find_circuit(model, inputs, 1, layers=layers)
        expected = reference.find_circuit(model, inputs, 1, layers=list(layers))
        assert_same_masks(found, expected)
        masked = found.apply(model)
        for name in {"0", "2", "4"} - set(layers):
            assert torch.equal(masked.get_submodule(name).weight, model.get_submodule(name).weight)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, inputs):
        return self.last(inputs + self.inner(inputs).relu())


def test_what_is_not_a_tail_needs_the_reference():
    torch.manual_seed(0)
    model, inputs = Residual(), torch.randn(20, 6)
    with pytest.raises(ValueError, match="inner"):
        find_circuit(model, inputs, 1, layers=["inner", "last"])
    found = find_circuit(model, inputs, 1, layers=["inner", "last"], method="reference")
    assert_same_masks(found, reference.find_circuit(model, inputs, 1))
    with pytest.warns(ShortTailWarning, match="it comes Add at or after layer 'inner'"):
        assert list(find_circuit(model, inputs, 1).masks) == ["last"]


def test_reference_takes_tied_weights_and_models_that_write_to_their_input():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[3].weight = model[1].weight
    inputs = torch.randn(20, 4, dtype=torch.float64)
    before = inputs.clone()
    found = find_circuit(model, inputs, 1, method="reference")
    assert torch.equal(inputs, before)
    assert len(found.masks) == 2
    with torch.no_grad():
        loss = functional.cross_entropy(
            found.apply(model).double()(before), torch.ones(20, dtype=torch.int64)
        )
    assert found.loss_after == pytest.approx(float(loss))


# --- bad and odd input ---


def test_weights_that_are_zero_are_in_no_circuit(problem):
    model, inputs, _ = problem
    with torch.no_grad():
        model[0].weight[::2] = 0.0
    circuit = find_circuit(model, inputs, 1, tolerance=0.0)
    assert not circuit.masks["0"][::2].any()


def test_constant_inputs_and_one_input(problem):
    model, inputs, _ = problem
    for few in (inputs[:1], inputs[:1].expand(20, -1), torch.zeros(10, 12)):
        assert_same_masks(find_circuit(model, few, 1), reference.find_circuit(model, few, 1))
    assert find_circuit(model, torch.zeros(10, 12), 1).size == 0.0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
        ({"inputs": [1.0]}, TypeError, "inputs must be a tensor, got list"),
        ({"inputs": torch.tensor(1.0)}, ValueError, "inputs must have a first dimension"),
        (
            {"inputs": torch.zeros(0, 12)},
            ValueError,
            "inputs must hold at least one of class 1, got none of 0",
        ),
        ({"inputs": torch.full((4, 12), torch.nan)}, ValueError, "inputs"),
        ({"label": 5}, ValueError, r"label must lie in \[0, 4\], got 5"),
        ({"label": -1}, ValueError, r"label must lie in \[0, 4\], got -1"),
        ({"label": 2**70}, ValueError, "label must fit into 64 bits, got 1180591620717411303424"),
        ({"inputs": torch.ones(4, 12).to_sparse()}, ValueError, "inputs must be dense numbers, got torch.sp"),
        ({"inputs": torch.ones(4, 12, device="meta")}, ValueError, "inputs must be dense .* on meta"),
        (
            {"labels": torch.ones(40, dtype=torch.int64, device="meta")},
            ValueError,
            "labels must be dense numbers, got .* on meta",
        ),
        ({"model": nn.Linear(12, 5, device="meta")}, ValueError, "model must hold numbers, .* meta"),
        ({"model": nn.Flatten()}, ValueError, "model must (end in|have) a linear layer"),
        ({"layers": []}, ValueError, "layers"),
        ({"label": 1.0}, TypeError, "label must be a whole number, got 1.0"),
        ({"criterion": "accuracy"}, ValueError, "criterion must be one of .*, got 'accuracy'"),
        ({"tolerance": -0.1}, ValueError, "tolerance must be finite and at least 0, got -0.1"),
        ({"tolerance": float("nan")}, ValueError, "tolerance must be finite and at least 0, got nan"),
        ({"tolerance": "0"}, TypeError, "tolerance must be a number, got '0'"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels must have shape \(40,\)"),
        ({"labels": torch.zeros(40)}, TypeError, "labels must be a tensor of whole numbers"),
        (
            {"labels": torch.zeros(40, dtype=torch.int64)},
            ValueError,
            "at least one of class 1, got none of 40",
        ),
        ({"criterion": "balanced"}, ValueError, "labels must name inputs of other classes.* got None"),
        (
            {"criterion": "balanced", "labels": torch.ones(40, dtype=torch.int64)},
            ValueError,
            "labels must name inputs of other classes.* all are of class 1",
        ),
        ({"layers": "conv*"}, ValueError, r"layers: 'conv\*' matches no layer"),
        ({"method": "fast"}, ValueError, "method must be one of .*, got 'fast'"),
    ],
)
@pytest.mark.parametrize("method", ["compiled", "reference"])
def test_bad_arguments(problem, change, error, message, method):
    model, inputs, _ = problem
    arguments = {"model": model, "inputs": inputs, "label": 1, "method": method} | change
    with pytest.raises(error, match=message):
        find_circuit(**arguments)


@pytest.mark.parametrize("method", ["compiled", "reference"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_must_be_finite(problem, bad, method):
    model, inputs, _ = problem
    with torch.no_grad():
        model[2].weight[1, 2] = bad
    with pytest.raises(ValueError, match="'2'"):
        find_circuit(model, inputs, 1, method=method)


@pytest.mark.parametrize("method", ["compiled", "reference"])
def test_one_class_is_no_choice(method):
    with pytest.raises(ValueError, match="at least two classes"):
        find_circuit(nn.Linear(4, 1), torch.randn(5, 4), 0, method=method)


def test_operators_refuse_what_would_crash(problem):
    walk = Walk.__new__(Walk)
    state = make_state()
    walk._state = state
    good = (0, 0, 0, 3, 1.0, None)
    state.walk_row_(*good)
    for place, message in (
        ((2, 0, 0, 3), "layer must be in"),
        ((0, 9, 0, 3), "row must be in"),
        ((0, 0, 0, 99), "end must be in"),
        ((0, 0, 4, 3), "begin must be in"),
    ):
        with pytest.raises(RuntimeError, match=message):
            state.walk_row_(*place, 1.0, None)
    for name, value, message in (
        ("features", torch.zeros(6, 15, dtype=torch.float64), "features must have a multiple of 8"),
        ("features", torch.zeros(6, 16), "features must be Double"),
        ("signs", torch.zeros(8, dtype=torch.float64), "signs must be contiguous"),
        ("weights", state.weights[::-1], "weights must be contiguous"),
        ("biases", state.biases[:1], "must be lists of one length"),
        ("activations", [1, 1], "the last layer's outputs must be the logits"),
        ("activations", [9, 0], "activations must be in"),
        ("before", state.before[::-1], "pre must be contiguous"),
        ("label", 4, "label must be in"),
        ("threads", 0, "threads must be at least 1"),
    ):
        with pytest.raises(RuntimeError, match=message):
            copy_with(state, **{name: value}).forward_()


def make_state(**changes):
    from modfast.circuits.operators import TailState

    def doubles(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    state = {
        "features": doubles(6, 16),
        "signs": torch.ones(16, dtype=torch.float64),
        "weights": [doubles(5, 6), doubles(4, 5)],
        "biases": [doubles(5), doubles(4)],
        "activations": [1, 0],
        "slopes": [0.0, 0.0],
        "sources": [],
        "groups": [],
        "stage_layers": [],
        "stage_kinds": [],
        "stage_numbers": [],
        "stage_tables": [],
        "before": [doubles(5, 16), doubles(4, 16)],
        "after": [doubles(5, 16), doubles(4, 16)],
        "label": 1,
        "threads": 1,
    }
    return TailState(**{**state, **changes})


def copy_with(state, **changes):
    return type(state)(**{**vars(state), **changes})


def test_opcheck():
    for name, rest in (("tail_forward_", ()), ("walk_row_", (1, 2, 0, 5, 100.0, None))):
        operator = getattr(torch.ops.modfast, name).default
        torch.library.opcheck(operator, (*make_state()._arguments(), *rest))
