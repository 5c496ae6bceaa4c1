"""What cannot belong to a linear tail: it begins after it, or there is none; never one that is wrong."""

import pytest
import torch
from tail_models import Model, between, check_exact, names
from torch import nn
from torch.nn import functional

from modfast.circuits.linear_tail import read_tail


@pytest.mark.parametrize(
    ("operation", "modules", "obstacle"),
    [
        (lambda model, x: x + model.fc1.bias, {}, "Add"),
        (lambda model, x: x * 2, {}, "Mul"),
        (lambda model, x: x.add_(1), {}, "Add"),
        (lambda model, x: x.flip(1), {}, "Flip"),
        (lambda model, x: x.t().reshape(-1, 5), {}, "T"),
        (lambda model, x: torch.cat([x[:, :2], x[:, 2:]], 1), {}, "Cat"),
        (lambda model, x: x.float().double(), {}, "ToCopy"),
        (lambda model, x: functional.elu(x), {}, "Elu"),
        (lambda model, x: functional.normalize(x), {}, "Div"),
        (lambda model, x: x.softmax(1), {}, "Softmax"),
        (lambda model, x: model.norm(x), {"norm": nn.LayerNorm(5)}, "NativeLayerNorm"),
        (lambda model, x: model.norm(x), {"norm": nn.PReLU()}, "PreluKernel"),
        (lambda model, x: model.conv(x[:, None])[:, 0], {"conv": nn.Conv1d(1, 1, 1)}, "Select"),
        (lambda model, x: x.where(x > 0.1, 0.0), {}, "Where"),
        (lambda model, x: x @ model.fc1.weight[:, :5], {}, "a product with a matrix"),
        (lambda model, x: torch.addmm(model.fc1.bias, x, model.fc1.weight[:, :5].t()), {}, "a product"),
        (lambda model, x: x @ model.other.weight, {"other": nn.Linear(5, 5)}, "a product with a matrix"),
        (
            lambda model, x: functional.linear(x, 2 * model.other.weight),
            {"other": nn.Linear(5, 5)},
            "a product with a matrix",
        ),
        (
            lambda model, x: functional.linear(x, model.other.weight, model.scale.weight),
            {"other": nn.Linear(5, 5), "scale": nn.PReLU()},
            "layer 'other', whose bias is no parameter",
        ),
        (
            lambda model, x: torch.addmm(model.other.bias, x, model.other.weight.t(), beta=2),
            {"other": nn.Linear(5, 5)},
            r"layer 'other', whose bias is no parameter of shape \(5,\)",
        ),
        (
            lambda model, x: functional.linear(x, model.other.weight, model.other.bias[:1].expand(5)),
            {"other": nn.Linear(5, 5)},
            "layer 'other', whose bias is no parameter",
        ),
        (
            lambda model, x: functional.linear(x, model.fc3.weight),
            {},
            "layer 'fc3', whose weight is used 2 times",
        ),
    ],
)
def test_the_tail_begins_after_anything_else(operation, modules, obstacle):
    model, inputs = between(operation, **modules), torch.randn(4, 6)
    tail = read_tail(model, inputs)
    assert names(tail) == (["head"] if "fc3" in obstacle else ["fc3", "head"])
    check_exact(model, inputs, tail)
    with pytest.raises(ValueError, match=rf"'fc2' is not among .*; before them comes {obstacle}.*reference"):
        read_tail(model, inputs, ["fc2", "head"])


def test_a_second_activation_must_be_asked_for():
    model, inputs = between(lambda model, x: torch.tanh(x)), torch.randn(4, 6)
    tail = read_tail(model, inputs)
    assert names(tail) == ["fc3", "head"]
    assert tail.obstacle == "Relu at or after layer 'fc2'"
    tail = read_tail(model, inputs, "fc2")
    assert names(tail) == ["fc2", "fc3", "head"]
    assert [stage.kind for stage in tail.layers[0].stages] == ["relu"]
    assert tail.layers[0].activation == "tanh"


def test_branches_never_belong_to_the_tail():
    inputs = torch.randn(7, 6)

    def residual(model, x):
        x = model.fc1(x)
        return model.head(functional.relu(x + functional.relu(model.fc2(x))))

    model = Model(residual)
    tail = read_tail(model, inputs)
    assert names(tail) == ["head"]
    check_exact(model, inputs, tail)
    with pytest.raises(ValueError, match="comes Add at or after layer 'fc"):
        read_tail(model, inputs, ["fc2"])

    def dense(model, x):
        x = model.fc1(x)
        return model.head(x) + model.head(functional.relu(model.fc2(x)))

    with pytest.raises(ValueError, match="it ends in Add at or after layer 'head'"):
        read_tail(Model(dense), inputs)

    def second_output(model, x):
        x = functional.relu(model.fc1(x))
        model.other = model.fc3(x)
        return model.head(model.fc2(x))

    model = Model(second_output)
    tail = read_tail(model, inputs)
    assert names(tail) == ["fc1", "fc2", "head"]
    check_exact(model, inputs, tail)
    with pytest.raises(ValueError, match="'fc3' is not among"):
        read_tail(model, inputs, ["fc3"])


def test_a_layer_whose_input_is_overwritten_does_not_count():
    def overwritten(model, x):
        x = functional.relu(model.fc1(x))
        logits = model.head(functional.relu(model.fc2(x)))
        x.zero_()
        return logits

    model, inputs = Model(overwritten), torch.randn(7, 6)
    tail = read_tail(model, inputs)
    assert names(tail) == ["head"]
    check_exact(model, inputs, tail)
    with pytest.raises(ValueError, match="before them comes layer 'fc2', whose input is overwritten"):
        read_tail(model, inputs, ["fc2"])


def test_a_layer_on_sequences_does_not_count_but_on_one_position_does():
    def sequence(model, x):
        x = functional.relu(model.fc2(functional.relu(model.fc1(x))))
        return model.head(functional.relu(model.fc3(x.mean(1))))

    inputs = torch.randn(6, 4, 6)
    model = Model(sequence)
    tail = read_tail(model, inputs)
    assert names(tail) == ["fc3", "head"]
    check_exact(model, inputs, tail)

    def positions(model, x):
        return model.head(functional.relu(model.fc1(x)).reshape(-1, 5)).view(len(x), -1)

    with pytest.raises(ValueError, match=r"layer 'head', which reads shape \(24, 5\) for 6 inputs"):
        read_tail(Model(positions), inputs)
    model = Model(positions)
    tail = read_tail(model, inputs[:, :1])
    assert names(tail) == ["fc1", "head"]
    check_exact(model, inputs[:, :1], tail)


@pytest.mark.parametrize(
    ("end", "obstacle"),
    [
        (lambda x: x.log_softmax(1), "LogSoftmax at or after layer 'head'"),
        (lambda x: x.softmax(1), "Softmax at or after layer 'head'"),
        (lambda x: x.relu(), "Relu at or after layer 'head'"),
        (lambda x: x.sigmoid_(), "Sigmoid at or after layer 'head'"),
        (lambda x: x / 2, "Div at or after layer 'head'"),
        (lambda x: x[:, :2], "Slice at or after layer 'head'"),
        (lambda x: torch.from_numpy(x.detach().numpy()), "nothing that PyTorch records"),
    ],
)
def test_a_model_must_end_in_logits(end, obstacle):
    model = Model(lambda model, x: end(model.head(functional.relu(model.fc1(x)))))
    with pytest.raises(
        ValueError, match=f"model must end in a linear layer.*it ends in {obstacle}.*reference"
    ):
        read_tail(model, torch.randn(4, 6))


def test_a_model_without_linear_layers_has_no_tail():
    inputs = torch.randn(4, 2, 6)
    with pytest.raises(ValueError, match="it ends in Convolution at or after layer '0'"):
        read_tail(nn.Sequential(nn.Conv1d(2, 3, 6), nn.Flatten()), inputs)
    with pytest.raises(ValueError, match="it ends in nothing that PyTorch records"):
        read_tail(nn.Flatten(), inputs)


def test_weights_that_are_shared_or_computed_do_not_count():
    inputs = torch.randn(5, 6)
    model = Model(
        lambda model, x: model.head(functional.relu(model.fc3(functional.relu(model.fc2(model.fc1(x))))))
    )
    model.fc2.weight = model.fc1.weight = nn.Parameter(torch.randn(6, 6))
    model.fc1.bias = model.fc2.bias = None
    model.fc3 = nn.Linear(6, 5)
    tail = read_tail(model, inputs)
    assert names(tail) == ["fc3", "head"]
    check_exact(model, inputs, tail)
    with pytest.raises(ValueError, match="before them comes layer 'fc1', whose weight is used 2 times"):
        read_tail(model, inputs, ["fc2"])

    tied = nn.Sequential(nn.EmbeddingBag(9, 4), nn.ReLU(), nn.Linear(4, 9))
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match="it ends in layer '0', whose weight is used 2 times"):
        read_tail(tied, torch.randint(0, 9, (5, 3)))

    model = Model(lambda model, x: functional.linear(model.fc1(x), 2 * model.head.weight))
    with pytest.raises(ValueError, match=r"it ends in a product with a matrix .* computed"):
        read_tail(model, inputs)


def test_what_pytorch_does_not_record_is_noticed():
    def doubled(model, x):
        x.data.mul_(2)
        return x

    with pytest.raises(ValueError, match=r"something that PyTorch does not record.*layer 'fc2'.*reference"):
        read_tail(between(doubled), torch.randn(20, 6))

    # The rest shows only in what happens when a weight changes: to the activations, or to the features.
    def kept_dense(model, x):
        x.data.mul_(1 + int((model.head.weight.data == 0).sum()))
        return x

    with pytest.raises(ValueError, match="something that PyTorch does not record"):
        read_tail(between(kept_dense), torch.randn(20, 6))

    def tied(model, x):
        x = functional.relu(model.fc1(x)) + torch.from_numpy(model.head.weight.data.numpy().sum(0))
        return model.head(functional.relu(model.fc2(x)))

    model, inputs = Model(tied), torch.randn(20, 6)
    with pytest.raises(ValueError, match="what layer 'fc2' reads must not depend on the weights"):
        read_tail(model, inputs)


def test_logits_must_be_those_of_the_input_alone():
    inputs = torch.randn(20, 6)
    changing = [
        lambda model, x: functional.dropout(x, 0.5, training=True),
        lambda model, x: x - x.mean(0),
        lambda model, x: functional.batch_norm(x, None, None, training=True),
    ]
    for operation in changing:
        with pytest.raises(ValueError, match="same logits at any time and beside any other inputs"):
            read_tail(between(operation), inputs)

    def branch(model, x):
        x = functional.relu(model.fc1(x))
        return model.head(model.fc2(x) if len(x) == 16 else model.fc3(x))

    with pytest.raises(ValueError, match="model must run the same layers"):
        read_tail(Model(branch), inputs)


def test_numbers_must_be_finite():
    for bad in (float("nan"), float("inf")):
        model, inputs = between(lambda model, x: x), torch.randn(20, 6)
        inputs[17, 0] = bad
        with pytest.raises(ValueError, match=r"inputs: what layer 'fc1' reads.* must be finite"):
            read_tail(model, inputs)
        inputs[17, 0] = 0
        model.fc2.weight.data[0, 0] = bad
        with pytest.raises(ValueError, match="model: the weights and biases of layer 'fc2' must be finite"):
            read_tail(model, inputs)
        with pytest.raises(ValueError, match=r"inputs: what layer 'fc3' reads.* must be finite"):
            read_tail(model, inputs, ["fc3"])
        model.fc2.weight.data[0, 0] = 0
        model.head.bias.data[0] = bad
        with pytest.raises(ValueError, match="weights and biases of layer 'head' must be finite"):
            read_tail(model, inputs)


def test_arguments_are_checked():
    model = nn.Linear(6, 3)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module.*, got function"):
        read_tail(functional.relu, torch.ones(2, 6))
    with pytest.raises(TypeError, match=r"model must be .* not of torch.jit, got ScriptModule"):
        read_tail(torch.jit.ScriptModule(), torch.ones(2, 6))
    with pytest.raises(TypeError, match=r"inputs must be a torch.Tensor, got list"):
        read_tail(model, [[0.0] * 6])
    for empty in (torch.ones(0, 6), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="inputs must hold at least one input, got shape"):
            read_tail(model, empty)
    with pytest.raises(TypeError, match=r"model must return a tensor of logits, got tuple without \.logits"):
        read_tail(Model(lambda model, x: (model.fc1(x), x)), torch.ones(2, 6))
    for inputs in (torch.ones(6), torch.ones(2, 4, 6)):
        with pytest.raises(ValueError, match=r"model must return logits \(n, classes\), got shape"):
            read_tail(model, inputs)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        read_tail(model, torch.ones(2, 5))
