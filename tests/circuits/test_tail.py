"""The linear tail, found in many kinds of models, gives what they give."""

import copy

import pytest
import torch
from gpu import needs_a_real_gpu
from hypothesis import given, settings
from hypothesis import strategies as st
from tail_models import Model, between, check_exact, names
from torch import nn
from torch.nn import functional

import modfast.circuits.linear_tail
from modfast.circuits.linear_tail import read_tail
from modfast.models import CNN, MLP


def test_the_papers_networks():
    model, images = CNN((3, 8, 8), hidden=7), torch.rand(12, 3, 8, 8)
    tail = read_tail(model, images)
    assert tail.parameters == {"fc1": "fc1.weight", "fc2": "fc2.weight", "fc3": "fc3.weight"}
    assert [layer.activation for layer in tail.layers] == ["relu", "relu", "identity"]
    assert all(layer.bias is None and layer.pruned and layer.slope == 0 for layer in tail.layers)
    assert tail.features.shape == (12, 256)
    check_exact(model, images, tail)

    model, images = MLP((1, 6, 6), hidden=5), torch.rand(12, 1, 6, 6)
    tail = read_tail(model, images)
    assert torch.equal(tail.features, images.flatten(1).double())
    check_exact(model, images, tail)


@pytest.mark.parametrize(
    ("activation", "name", "slope"),
    [
        (nn.Identity(), "identity", 0.0),
        (nn.ReLU(), "relu", 0.0),
        (nn.ReLU(inplace=True), "relu", 0.0),
        (functional.relu_, "relu", 0.0),
        (torch.relu, "relu", 0.0),
        (nn.LeakyReLU(0.25), "leaky_relu", 0.25),
        (nn.LeakyReLU(0.3, inplace=True), "leaky_relu", 0.3),
        (functional.leaky_relu, "leaky_relu", 0.01),
        (nn.GELU(), "gelu", 0.0),
        (nn.GELU(approximate="tanh"), "gelu_tanh", 0.0),
        (nn.SiLU(), "silu", 0.0),
        (nn.SiLU(inplace=True), "silu", 0.0),
        (nn.Tanh(), "tanh", 0.0),
        (torch.tanh_, "tanh", 0.0),
        (nn.Sigmoid(), "sigmoid", 0.0),
        (torch.sigmoid_, "sigmoid", 0.0),
    ],
)
def test_activations(activation, name, slope):
    model = Model(
        lambda model, x: model.head(activation(model.fc3(activation(model.fc2(activation(model.fc1(x)))))))
    )
    inputs = torch.randn(9, 6)
    tail = read_tail(model, inputs)
    assert names(tail) == ["fc1", "fc2", "fc3", "head"]
    assert {(layer.activation, layer.slope) for layer in tail.layers[:-1]} == {(name, slope)}
    check_exact(model, inputs, tail)


@pytest.mark.parametrize(
    "operation",
    [
        lambda model, x: x.contiguous(),
        lambda model, x: x.clone(),
        lambda model, x: x.detach(),
        lambda model, x: x.double(),
        lambda model, x: x.to(model.head.weight.dtype),
        lambda model, x: x.reshape(len(x), -1),
        lambda model, x: x.view(1, -1, 5).squeeze(0),
        lambda model, x: x[..., None].flatten(1),
        lambda model, x: x.view(-1).view(len(x), 5).unsqueeze(2).flatten(start_dim=1),
        lambda model, x: functional.dropout(x, 0.5, training=model.training),
        lambda model, x: functional.dropout(x, 0.5, training=model.training, inplace=True),
        lambda model, x: nn.Identity()(x),
    ],
)
def test_what_changes_no_number_may_stand_between(operation):
    model, inputs = between(operation), torch.randn(4, 6)
    tail = read_tail(model, inputs)
    assert names(tail) == ["fc1", "fc2", "fc3", "head"]
    check_exact(model, inputs, tail)


@settings(max_examples=40)
@given(
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    modules=st.lists(
        st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity]),
        min_size=4,
        max_size=4,
    ),
    biases=st.lists(st.booleans(), min_size=4, max_size=4),
    count=st.integers(1, 20),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)
def test_any_small_network(widths, modules, biases, count, dtype, seed):
    torch.manual_seed(seed)
    parts = []
    for index in range(len(widths) - 1):
        parts += [
            nn.Linear(widths[index], widths[index + 1], bias=biases[index]),
            modules[index](),
            nn.Dropout(),
        ]
    model = nn.Sequential(*parts[:-2]).to(dtype)
    inputs = torch.randn(count, widths[0])
    tail = read_tail(model, inputs)
    assert len(tail.layers) == len(widths) - 1
    assert torch.equal(tail.features, inputs.double())
    check_exact(model, inputs, tail)


def test_one_input_one_layer_one_weight():
    model = nn.Linear(1, 1)
    tail = read_tail(model, torch.ones(1, 1))
    assert tail.parameters == {"": "weight"}
    check_exact(model, torch.ones(1, 1), tail)


def test_a_fixed_part_before_is_run_in_batches(monkeypatch):
    monkeypatch.setattr(modfast.circuits.linear_tail, "_BATCH_SIZE", 10)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(12, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, 4),
        nn.Tanh(),
        nn.Linear(4, 3, bias=False),
    )
    inputs = torch.randn(33, 2, 6, 6)
    model(inputs)  # so that the running statistics are not those of the beginning
    tail = read_tail(model, inputs)
    assert tail.parameters == {"9": "9.weight", "11": "11.weight"}
    check_exact(model, inputs, tail)
    for named, walked in ((["6", "9"], ["6", "9", "11"]), ("0", ["0", "6", "9", "11"])):
        assert names(read_tail(model, inputs, named)) == walked


def test_what_comes_before_is_recorded_only_to_find_the_tail():
    seen = []

    def watch(model, x):
        seen.append((len(x), x.requires_grad))
        return x.sin()

    assert names(read_tail(between(watch), torch.randn(40, 6))) == ["fc3", "head"]
    assert seen == [(16, True), (40, False), (16, False)]


@needs_a_real_gpu
@pytest.mark.cuda
def test_a_model_on_another_device():
    model, inputs = CNN((3, 8, 8), hidden=7).cuda(), torch.rand(12, 3, 8, 8, device="cuda")
    tail = read_tail(model, inputs)
    assert names(tail) == ["fc1", "fc2", "fc3"]
    check_exact(model.cpu(), inputs.cpu(), tail)


def test_token_ids_stay_integers():
    model = nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    tokens = torch.randint(0, 9, (20, 5))
    tail = read_tail(model, tokens)
    assert names(tail) == ["1", "3"]
    check_exact(model, tokens, tail)


def test_a_weight_with_two_names_goes_by_the_first():
    model = between(lambda model, x: x)
    model.unused = nn.Linear(5, 5)
    model.unused.weight = model.fc3.weight
    tail = read_tail(model, torch.randn(4, 6), ["unused"])
    assert tail.parameters == {"fc3": "fc3.weight"}


def test_what_a_model_hides_from_gradients_is_found():
    class Hidden(Model):
        @torch.no_grad()
        def forward(self, inputs):
            return super().forward(inputs.detach())

    def last_is_hidden(model, x):
        with torch.no_grad():
            x = functional.relu(model.fc1(x)).detach()
            x = functional.relu(model.fc2(x))
        return model.head(functional.relu(model.fc3(x)))

    inputs = torch.randn(5, 6)
    for model in (Hidden(last_is_hidden), Model(last_is_hidden)):
        tail = read_tail(model, inputs)
        assert names(tail) == ["fc1", "fc2", "fc3", "head"]
        check_exact(model, inputs, tail)


def test_what_is_possible_only_without_a_record_may_come_before():
    def forward(model, x):
        with torch.no_grad():
            model.fc2.weight.clamp_(-1, 1)
        x = torch.from_numpy(functional.relu(model.fc1(x)).detach().numpy())
        return model.head(functional.relu(model.fc3(x)))

    model, inputs = Model(forward), torch.randn(5, 6)
    tail = read_tail(model, inputs)
    assert names(tail) == ["fc3", "head"]
    assert torch.equal(tail.features, copy.deepcopy(model).double().fc1(inputs.double()).relu().detach())


def test_layers_to_prune():
    model, inputs = between(lambda model, x: x), torch.randn(5, 6)

    def pruned(layers):
        tail = read_tail(model, inputs, layers)
        check_exact(model, inputs, tail)
        return {layer.name: layer.pruned for layer in tail.layers}

    assert pruned(["fc3", "fc1"]) == {"fc1": True, "fc2": False, "fc3": True, "head": False}
    assert pruned("fc[23]") == {"fc2": True, "fc3": True, "head": False}
    assert pruned(["head.weight"]) == {"head": True}
    assert read_tail(model, inputs, ["fc3", "fc1"]).parameters == {"fc1": "fc1.weight", "fc3": "fc3.weight"}
    with pytest.raises(ValueError, match="layers: 'fc9' matches no layer"):
        read_tail(model, inputs, ["fc9"])
    with pytest.raises(ValueError, match=r"layers: nothing selected by \[\]"):
        read_tail(model, inputs, [])
    # What comes before the first is fixed, whatever it is.
    model.fc1.weight = model.fc2.weight = nn.Parameter(torch.randn(6, 6))
    model.fc1.bias, model.fc2.bias, model.fc3 = None, None, nn.Linear(6, 5)
    assert pruned(["fc3"]) == {"fc3": True, "head": False}


def test_logits_rounded_to_another_dtype_are_taken_as_they_are():
    inputs = torch.randn(5, 6)
    for dtype in (torch.float32, torch.bfloat16):
        model = Model(lambda model, x, dtype=dtype: model.head(model.fc1(x).relu()).to(dtype))
        tail = read_tail(model, inputs)
        expected = copy.deepcopy(model).double()(inputs.double())
        assert expected.dtype == dtype
        assert torch.equal(tail.logits, expected.detach().double())
        assert names(tail) == ["fc1", "head"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("failing", [False, True])
def test_the_model_and_the_inputs_are_left_as_they_are(dtype, failing):
    def fail(module, arguments):
        if failing:
            raise KeyboardInterrupt

    model = nn.Sequential(
        nn.ReLU(inplace=True),
        nn.Linear(6, 5),
        nn.BatchNorm1d(5),
        nn.Dropout(),
        nn.Linear(5, 4),
        nn.Linear(4, 3),
    ).to(dtype)
    model[3].eval()
    model[1].weight.requires_grad_(False)
    model[5](torch.randn(2, 4, dtype=dtype)).sum().backward()
    model[4].register_forward_pre_hook(fail)
    inputs = torch.randn(40, 6, dtype=dtype, requires_grad=True)

    parameters = dict(model.named_parameters())
    tensors = {
        name: (tensor, tensor.detach().clone()) for name, tensor in model.state_dict(keep_vars=True).items()
    }
    gradient, copied = model[5].weight.grad, model[5].weight.grad.clone()
    if failing:
        with pytest.raises(KeyboardInterrupt):
            read_tail(model, inputs)
    else:
        assert names(read_tail(model, inputs)) == ["4", "5"]
    assert [module.training for module in model.modules()] == [True, True, True, True, False, True, True]
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert [name for name, each in parameters.items() if not each.requires_grad] == ["1.weight"]
    for name, tensor in model.state_dict(keep_vars=True).items():
        before, value = tensors[name]
        assert tensor is before
        assert tensor.dtype == value.dtype
        assert torch.equal(tensor, value)
    assert model[5].weight.grad is gradient
    assert torch.equal(gradient, copied)
    assert model[4].weight.grad is None
    assert inputs.grad is None
    assert inputs.min() < 0


def test_the_callers_mode_makes_no_difference():
    model, inputs = CNN((1, 6, 6), hidden=5), torch.rand(7, 1, 6, 6)
    expected = read_tail(model, inputs)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            made = inputs * 1  # within inference mode, what gradients can never follow
            tail = read_tail(copy.deepcopy(model), made)
            assert torch.is_grad_enabled() == isinstance(mode, torch.autocast)
        assert names(tail) == ["fc1", "fc2", "fc3"]
        assert torch.equal(tail.features, expected.features)
        assert torch.equal(tail.logits, expected.logits)


def test_random_numbers_are_not_drawn():
    before = torch.get_rng_state()
    read_tail(between(lambda model, x: x).train(), torch.ones(4, 6))
    # The network's own initial weights are drawn, so the same network again.
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    between(lambda model, x: x)
    assert torch.equal(torch.get_rng_state(), after)
