"""The weight of a layer is what its forward pass multiplies by, however it is kept or computed."""

import copy
import warnings

import pytest
import torch
from computed_models import ALL_MAKERS, NAME, lora, make, network, peft
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from modfast import EnmeshmentLoss, Partition, cluster_accuracy, enmeshment, reference
from modfast.layers.layer import find_layer, find_layers
from modfast.layers.plain_copy import plain_copy
from modfast.layers.readable import UnsupportedWeightError
from modfast.layers.replaced import replaced_weights

KINDS = list(ALL_MAKERS)
needs_peft = pytest.mark.skipif(peft is None, reason="needs peft")


def state_of(model):
    """All that a model holds, the tensors themselves and copies of them."""
    state = model.state_dict(keep_vars=True)
    return {name: (tensor, tensor.detach().clone()) for name, tensor in state.items()}


def assert_unchanged(model, before):
    now = model.state_dict(keep_vars=True)
    assert list(now) == list(before)
    for name, tensor in now.items():
        assert tensor is before[name][0], name
        assert torch.equal(tensor, before[name][1]), name


def multiplied_by(model):
    """The matrix that the layer's forward pass multiplies by, found by asking it."""
    layer = find_layer(model, NAME, "model").module
    with torch.no_grad():
        return (layer(torch.eye(8)) - layer(torch.zeros(8, 8))).T


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_is_what_the_forward_pass_multiplies_by(kind):
    model = make(kind)
    before = state_of(model)
    weight = find_layer(model, NAME, "model").weight()
    assert_unchanged(model, before)
    torch.testing.assert_close(weight, multiplied_by(model), rtol=1e-4, atol=1e-5)
    assert find_layer(model, NAME, "model").shape == (8, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_looking_changes_nothing_in_training_mode(kind):
    model = make(kind).train()
    before = state_of(model)
    first, second = (find_layer(model, NAME, "model").weight() for _ in range(2))
    assert torch.equal(first, second)
    assert_unchanged(model, before)
    assert all(module.training for module in model.modules())
    # It is the weight of evaluation mode: noise or a step of a power iteration would be another one.
    torch.testing.assert_close(first, multiplied_by(model.eval()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_the_loss_and_its_gradient_reach_what_the_weight_is_computed_from(kind, training):
    model = make(kind).train(training)
    partition = Partition([0, 0, 1, 1, 2, 2, -1, 0], [0, 1, 1, 2, 2, -1, 0, 0], 3)
    loss = EnmeshmentLoss(model, {NAME: partition})
    weight = find_layer(model, NAME, "model").weight()
    expected = 0.7 * reference.enmeshment(weight.double(), partition)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grads = torch.autograd.grad(expected, wanted, allow_unused=True) if expected.requires_grad else [None]
    before = state_of(model)

    (0.7 * loss()).backward() if expected.requires_grad else loss()
    assert_unchanged(model, before)
    found = [parameter.grad for parameter in wanted]
    for parameter in wanted:
        parameter.grad = None
    value = loss.accumulate_grad_(0.7)
    assert_unchanged(model, before)
    torch.testing.assert_close(0.7 * value.double(), expected.detach(), rtol=1e-5, atol=1e-7)
    for parameter, grad, by_backward in zip(wanted, grads, found, strict=False):
        if grad is None:
            assert by_backward is None
            assert parameter.grad is None
        else:
            torch.testing.assert_close(by_backward, grad, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)


def test_gradients_are_added_to_those_that_are_there():
    model = make("weight_norm")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    EnmeshmentLoss(model, 2).accumulate_grad_(0.5)
    changed = {
        name for name, each in model.named_parameters() if not torch.equal(each.grad, each.grad * 0 + 1)
    }
    weights = {"0.weight", "3.weight"}
    # The length of a row does not matter to its own share: only its direction does, and its length beside
    # others.
    assert changed == weights | {f"1.parametrizations.weight.original{i}" for i in (0, 1)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_another_weight_in_its_place(kind, training):
    model = make(kind).train(training)
    layer, other = find_layer(model, NAME, "model"), torch.randn(8, 8, requires_grad=True)
    before, inputs = state_of(model), torch.randn(5, 6)
    with replaced_weights(model, {layer: other}):
        output = model(inputs)
        torch.testing.assert_close(multiplied_by(model), other, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.weight(), other)
    assert_unchanged(model, before)
    # Gradients reach the tensor that stood in.
    (grad,) = torch.autograd.grad(output.sum(), other)
    assert grad.abs().sum() > 0
    torch.testing.assert_close(layer.weight(), multiplied_by(model.eval()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_put_back_after_an_error(kind):
    model = make(kind)
    expected = model(torch.ones(2, 6))
    layer, before = find_layer(model, NAME, "model"), state_of(model)
    with pytest.raises(ZeroDivisionError), replaced_weights(model, {layer: torch.randn(8, 8)}):
        raise ZeroDivisionError
    assert_unchanged(model, before)
    torch.testing.assert_close(model(torch.ones(2, 6)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_copy_is_the_same_function_of_plain_parameters(kind):
    model = make(kind)
    inputs = torch.randn(5, 6)
    expected = model(inputs)
    before = state_of(model)
    copied = plain_copy(model)
    assert_unchanged(model, before)
    torch.testing.assert_close(copied(inputs), expected, rtol=1e-4, atol=1e-5)
    names = [f"{layer}.{name}" for layer in (0, 1, 3) for name in ("bias", "weight")]
    assert sorted(name for name, _ in copied.named_parameters()) == names
    assert all(type(copied[i]) is nn.Linear for i in (0, 1, 3))
    with torch.no_grad():
        copied[1].weight.zero_()
    torch.testing.assert_close(model(inputs), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["only", "without"])
def test_cluster_accuracy_masks_the_weight_and_the_bias(kind, mode):
    model = make(kind).train()
    before = state_of(model)
    data = torch.randn(60, 6), torch.randint(0, 4, (60,))
    partitions = {NAME: Partition([0, 0, 0, 1, 1, 1, -1, 1], [0, 1, 0, 1, 0, 1, 0, -1], 2)}
    found = cluster_accuracy(model, data, partitions, mode)
    assert_unchanged(model, before)
    expected = cluster_accuracy(plain_copy(model), data, partitions, mode)
    assert torch.equal(found.nan_to_num(-1.0), expected.nan_to_num(-1.0))


# --- stacks of matrices


class Experts(nn.Module):
    """As transformers keeps them: (experts, out, in), or transposed."""

    def __init__(self, transposed=None):
        super().__init__()
        if transposed is not None:
            self.is_transposed = transposed
        self.up_proj = nn.Parameter(torch.randn(3, 6, 4))


@pytest.mark.parametrize("transposed", [None, False, True])
def test_each_matrix_of_a_stack_is_a_layer(transposed):
    model = nn.ModuleDict({"experts": Experts(transposed)})
    stack = model["experts"].up_proj
    matrices = stack.detach().mT if transposed else stack.detach()
    names = [f"experts.up_proj[{i}]" for i in range(3)]
    assert [layer.name for layer in find_layers(model)] == names
    loss = EnmeshmentLoss(model, 2, layers="experts.up_proj", reduction="none")
    assert list(loss.partitions) == names
    partition = Partition.blocks(matrices.shape[1:], 2)
    assert loss.partitions["experts.up_proj"] == loss.partitions[names[1]] == partition
    expected = torch.stack([enmeshment(matrix, partition) for matrix in matrices])
    torch.testing.assert_close(loss(), expected)
    loss().sum().backward()
    by_backward, stack.grad = stack.grad, None
    torch.testing.assert_close(loss.accumulate_grad_(1.0), expected)
    torch.testing.assert_close(stack.grad, by_backward)


@pytest.mark.parametrize(
    ("layers", "places"),
    [
        ("experts.up_proj[1]", [1]),
        (["experts.up_proj[2]", "*.up_proj[0]"], [0, 2]),
        ("*up_proj", [0, 1, 2]),
        ("*.up_proj[*]", [0, 1, 2]),
        (lambda name, shape: name.endswith("[2]") and shape == (6, 4), [2]),
    ],
)
def test_matrices_of_a_stack_by_name(layers, places):
    model = nn.ModuleDict({"experts": Experts()})
    loss = EnmeshmentLoss(model, 2, layers=layers)
    assert list(loss.partitions) == [f"experts.up_proj[{place}]" for place in places]
    by_mapping = EnmeshmentLoss(model, {"experts.up_proj[1]": Partition.blocks((6, 4), 2)})
    assert list(by_mapping.partitions) == ["experts.up_proj[1]"]
    with pytest.raises(ValueError, match=r"layer 'experts.up_proj\[0\]' has \(out, in\) \(6, 4\)"):
        EnmeshmentLoss(model, {"experts.up_proj": Partition.blocks((3, 6), 2)})


def test_one_matrix_of_a_stack_in_its_place():
    model = nn.ModuleDict({"experts": Experts()})
    stack = model["experts"].up_proj
    layers, others = find_layers(model), torch.randn(2, 6, 4, requires_grad=True)
    with replaced_weights(model, {layers[0]: others[0], layers[2]: others[1]}):
        inside = model["experts"].up_proj
        assert torch.equal(inside[1], stack[1])
        assert torch.equal(inside[[0, 2]], others)
        assert torch.autograd.grad(inside.sum(), others)[0].eq(1).all()
    assert model["experts"].up_proj is stack


class Kernels(nn.Module):
    """A convolution, or a stack: nothing but its forward pass tells which."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4, 3))


def test_a_weight_of_three_dimensions_in_an_unknown_module_is_asked_about():
    model = nn.ModuleDict({"kernels": Kernels(), "conv": nn.Conv1d(4, 6, 3)})
    for layers in ("kernels.weight", "kernels", "*", model["kernels"]):
        with pytest.raises(ValueError, match=r"not known whether it is a stack|matches no layer"):
            EnmeshmentLoss(model, 2, layers=layers)
    assert len(EnmeshmentLoss(model, 2, layers="kernels.weight[*]").partitions) == 6
    assert EnmeshmentLoss(model, 2, layers="conv").partitions["conv"].shape == (6, 4)


# --- adapters around other layers


@needs_peft
def test_lora_around_conv1d_and_convolutions():
    from transformers.pytorch_utils import Conv1D

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.dense = nn.Conv2d(3, 8, 3, padding=1), Conv1D(5, 8)

        def forward(self, x):
            return self.dense(self.conv(x).mean((2, 3)))

    plain = Both()
    torch.nn.init.normal_(plain.dense.weight)
    model = lora(copy.deepcopy(plain), ["conv", "dense"], fan_in_fan_out=True).eval()
    images = torch.randn(2, 3, 5, 5)
    assert not torch.allclose(model(images), plain(images), atol=1e-2)
    weights = {layer.name: layer.weight() for layer in find_layers(model)}
    assert {name: tuple(each.shape) for name, each in weights.items()} == {
        "conv": (8, 3, 3, 3),
        "dense": (5, 8),
    }
    with replaced_weights(plain, {layer: weights[layer.name] for layer in find_layers(plain)}):
        torch.testing.assert_close(plain(images), model(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain_copy(model)(images), model(images), rtol=1e-4, atol=1e-5)
    # The factors of an adapter are no layers, and never chosen.
    assert list(EnmeshmentLoss(model, 2).partitions) == ["dense"]
    with pytest.raises(ValueError, match=r"'\*lora_A\*' matches no layer .* there are: 'conv', 'dense'"):
        EnmeshmentLoss(model, 2, layers="*lora_A*")


@needs_peft
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "another kind than plain LoRA"),
        ({"lora_bias": True}, r"an adapter with a bias \(lora_bias=True\)"),
    ],
)
def test_adapters_that_are_more_than_a_product_raise(options, reason):
    model = lora(network(), ["1"], **options)
    with pytest.raises(
        UnsupportedWeightError, match=rf"layer '1' \(Linear\) cannot be read: its weight .*{reason}"
    ):
        EnmeshmentLoss(model, 2)
    assert list(EnmeshmentLoss(model, 2, exclude="1").partitions) == ["0", "3"]


@needs_peft
def test_other_adapters_of_peft_raise_until_they_are_merged():
    model = peft.get_peft_model(network(), peft.IA3Config(target_modules=["1"], feedforward_modules=[]))
    with pytest.raises(UnsupportedWeightError, match=r"layer '1' .* an adapter of peft other than LoRA"):
        EnmeshmentLoss(model, 2)
    model.merge_adapter()
    assert list(EnmeshmentLoss(model, 2).partitions) == ["0", "1", "3"]


@needs_peft
def test_a_module_that_peft_trains_as_a_whole_is_the_trained_one():
    model = lora(network(), ["1"], modules_to_save=["3"])
    trained = model.base_model.model[3].modules_to_save["default"]
    trained.weight.data.normal_()
    layer = find_layer(model, "3", "model")
    assert layer.stored() is trained.weight
    EnmeshmentLoss(model, 2, layers="3").accumulate_grad_(1.0)
    assert trained.weight.grad is not None
    with model.disable_adapter():
        assert find_layer(model, "3", "model").stored() is model.base_model.model[3].original_module.weight


# --- what cannot be read


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, dtype=torch.qint8)


class QuantLinear(nn.Module):
    """As several packages keep quantised layers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(8, 8, dtype=torch.int32))


def lazy():
    return network(nn.LazyLinear(8))


def bytes_for_weights():
    model = network()
    model[1].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.uint8), requires_grad=False)
    return model


def a_plain_tensor():
    model = network()
    del model[1].weight
    model[1].weight = torch.randn(8, 8)  # as hooks of unknown origin leave it
    return model


def hooks_on_hooks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = network(nn.utils.weight_norm(nn.Linear(8, 8)))
    prune.random_unstructured(model[1], "weight_v", 0.5)
    return model


def flat_piece():
    model = network()
    model[1].weight.data = torch.zeros(32)
    return model


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (quantised, r"'0' \(Linear\).*nothing that is known computes it"),
        (lambda: network(QuantLinear()), r"'1' \(QuantLinear\).*nothing that is known computes it"),
        (lazy, r"'1' \(LazyLinear\).*no shape yet: call the model once"),
        (bytes_for_weights, r"'1' \(Linear\).*packed or quantised \(torch.uint8\)"),
        (a_plain_tensor, r"'1' \(Linear\).*is no parameter"),
        (hooks_on_hooks, r"'1' \(Linear\).*computed from a computed tensor \(weight_v\)"),
        (flat_piece, r"'1' \(Linear\).*shape \(32,\), a flat piece"),
        (lambda: torch.jit.script(network()), r"'0' \(.*\).*belongs to TorchScript"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_what_cannot_be_read_is_named_not_left_out(make, told):
    model = make()
    with pytest.raises(UnsupportedWeightError, match=f"layer {told}"):
        EnmeshmentLoss(model, 2)
    with pytest.raises(UnsupportedWeightError, match=f"layer {told}"):
        EnmeshmentLoss(model, 2, layers="*")


def test_a_layer_that_cannot_be_read_does_not_stand_in_the_way_of_others():
    model = network(QuantLinear())
    assert list(EnmeshmentLoss(model, 2, layers=["0", "3"]).partitions) == ["0", "3"]
    assert list(EnmeshmentLoss(model, 2, exclude="1").partitions) == ["0", "3"]
    by_shape = EnmeshmentLoss(model, 2, layers=lambda name, shape: len(shape) == 2 and shape[0] == 4)
    assert list(by_shape.partitions) == ["3"]


def test_weights_that_are_kept_by_parametrize_cached_cannot_be_replaced():
    model = make("user-made")
    layer = find_layer(model, NAME, "model")
    with (
        parametrize.cached(),
        pytest.raises(RuntimeError, match=r"parametrize.cached\(\)"),
        replaced_weights(model, {layer: torch.zeros(8, 8)}),
    ):
        pass


def test_a_copy_leaves_the_class_of_a_parametrised_module_alone():
    """PyTorch makes a class for each parametrised module, which its copies share."""
    model = network(parametrizations.orthogonal(nn.Linear(8, 8)))
    plain_copy(model)
    assert parametrize.is_parametrized(model[1])
    assert torch.allclose(model[1].weight @ model[1].weight.T, torch.eye(8), atol=1e-5)
