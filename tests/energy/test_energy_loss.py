"""EnmeshmentLoss: which weights it takes, what it returns, and the gradients it leaves."""

import copy
import io
import itertools
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from modfast import EnmeshmentLoss, Partition, enmeshment, reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


class Conv1D(nn.Module):
    """As in transformers: y = x W + b, with W of (in, out)."""

    def __init__(self, out, into):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(into, out))
        self.bias = nn.Parameter(torch.zeros(out))


class TheirConv1D(Conv1D):
    pass


TheirConv1D.__module__ = "transformers.pytorch_utils"
TheirConv1D.__name__ = "Conv1D"


class TheirOwnConv1D(TheirConv1D):
    """A subclass by the user, as adapters make them."""


def mlp(*sizes, dtype=torch.float32):
    layers = [nn.Linear(a, b, dtype=dtype) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x * x


# --- which weights


def test_every_linear_by_default():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.Linear(6, 4), nn.Embedding(8, 4), nn.Sequential(nn.Linear(4, 4))
    )
    assert list(EnmeshmentLoss(model, 2).partitions) == ["1", "3.0"]


def test_a_bare_layer():
    assert list(EnmeshmentLoss(nn.Linear(4, 4), 2).partitions) == [""]
    assert list(EnmeshmentLoss(nn.Linear(4, 4), 2, layers=["weight"]).partitions) == [""]
    assert list(EnmeshmentLoss(nn.Linear(4, 4), {"": Partition.blocks((4, 4), 2)}).partitions) == [""]


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        (["0"], ["0"]),
        ("4", ["4"]),
        (["4", "0"], ["0", "4"]),
        (["[02]"], ["0", "2"]),
        (["*"], ["0", "2", "4"]),
        (["0.weight", "0", "?"], ["0", "2", "4"]),
        (("2.weight",), ["2"]),
    ],
)
def test_layers_by_name_or_glob(layers, chosen):
    assert list(EnmeshmentLoss(mlp(4, 4, 4, 4), 2, layers=layers).partitions) == chosen


def test_names_with_brackets():
    model = nn.ModuleDict({"a[0]": nn.Linear(4, 4), "a0": nn.Linear(4, 4)})
    assert list(EnmeshmentLoss(model, 2, layers=["a[0]"]).partitions) == ["a[0]"]


def test_a_mapping_chooses_its_layers():
    model, partition = mlp(4, 4, 4), Partition.blocks((4, 4), 2)
    for name in ("2", "2.weight"):
        assert EnmeshmentLoss(model, {name: partition}).partitions == {"2": partition}
    both = {"2": partition, "0": Partition.blocks((4, 4), 4)}
    assert list(EnmeshmentLoss(model, both).partitions) == ["0", "2"]
    assert list(EnmeshmentLoss(model, both, layers=["2"]).partitions) == ["2"]
    assert EnmeshmentLoss(model, both).partitions == both


def test_other_parameters_by_their_name():
    model = nn.MultiheadAttention(4, 2)
    partition = Partition.blocks((12, 4), 2)
    assert list(EnmeshmentLoss(model, {"in_proj_weight": partition}).partitions) == ["in_proj_weight"]
    nested = nn.ModuleDict({"attention": model})
    loss = EnmeshmentLoss(nested, 2, layers=["attention.in_proj_weight"])
    torch.testing.assert_close(loss(), enmeshment(model.in_proj_weight, partition))


def test_partitions_fit_the_stored_orientation():
    weights = {
        "their Conv1D": (TheirConv1D(6, 4), True),
        "a subclass of it": (TheirOwnConv1D(6, 4), True),
        "another Conv1D": (Conv1D(4, 6), False),
        "linear": (nn.Linear(4, 6), False),
        "convolution": (nn.Conv2d(4, 6, (3, 2)), False),
        "grouped convolution": (nn.Conv2d(8, 6, 3, groups=2), False),
        "transposed 1d": (nn.ConvTranspose1d(4, 6, 3), True),
        "transposed 2d": (nn.ConvTranspose2d(4, 6, (3, 2)), True),
        "transposed 3d": (nn.ConvTranspose3d(4, 6, 2), True),
        "channels last": (nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), False),
    }
    partition = Partition([0, 1, -1, 1, 0, 0], [1, 0, 0, -1], 2)
    for name, (module, transposed) in weights.items():
        weight = module.weight.detach().clone().double()
        weight = weight.transpose(0, 1) if transposed else weight
        assert weight.shape[:2] == (6, 4), name
        loss = EnmeshmentLoss(module, {"": partition})
        value = loss()
        torch.testing.assert_close(value.double(), reference.enmeshment(weight, partition), rtol=1e-6, atol=0)
        value.backward()
        expected = module.weight.grad.clone()
        module.weight.grad = None
        torch.testing.assert_close(loss.accumulate_grad_(1.0), value.detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(module.weight.grad, expected, rtol=1e-5, atol=1e-8)
        blocks = EnmeshmentLoss(module, 2, layers=[""]).partitions[""]
        assert blocks == Partition.blocks((6, 4), 2)
        assert loss.weights()[""].shape[:2] == (6, 4)


def test_tied_weights_count_once():
    model = mlp(4, 4, 4)
    model[2].weight = model[0].weight
    assert list(EnmeshmentLoss(model, 2).partitions) == ["0"]
    for arguments in (
        {"partitions": 2, "layers": ["0", "2"]},
        {"partitions": dict.fromkeys(("0", "2"), Partition.blocks((4, 4), 2))},
    ):
        with pytest.raises(ValueError, match="'2' and '0' are one tied weight"):
            EnmeshmentLoss(model, **arguments)


def test_parametrised_weights_are_the_computed_ones():
    model = mlp(*[4] * 9)  # so many that the address of a computed weight is used again
    for layer in model[::2]:
        parametrize.register_parametrization(layer, "weight", Doubled())
    names = [str(i) for i in range(0, 16, 2)]
    partition = Partition.blocks((4, 4), 2)
    for loss in (
        EnmeshmentLoss(model, 2),
        EnmeshmentLoss(model, 2, layers=["*"]),
        EnmeshmentLoss(model, dict.fromkeys(names, partition)),
    ):
        assert list(loss.partitions) == names
        expected = torch.stack([enmeshment(layer.weight, partition) for layer in model[::2]]).mean()
        torch.testing.assert_close(loss(), expected)
    loss().backward()
    by_backward = [layer.parametrizations.weight.original.grad.clone() for layer in model[::2]]
    assert all(grad.abs().sum() > 0 for grad in by_backward)
    model.zero_grad()
    loss.accumulate_grad_(1.0)
    for layer, grad in zip(model[::2], by_backward, strict=True):
        torch.testing.assert_close(layer.parametrizations.weight.original.grad, grad)


# --- errors


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"module": "model"}, TypeError, "module must be a torch.nn.Module, got str"),
        ({"partitions": 2.0}, TypeError, "partitions must be a number .* got float"),
        ({"partitions": True}, TypeError, "partitions must be a number .* got bool"),
        ({"partitions": None}, TypeError, "partitions must be a number .* got NoneType"),
        ({"partitions": [2]}, TypeError, "partitions must be a number .* got list"),
        ({"partitions": {"0": 2}}, TypeError, r"partitions\['0'\] must be a Partition, got int"),
        (
            {"partitions": 0},
            ValueError,
            "partitions: layer '0': num_clusters must be a positive integer, got 0",
        ),
        ({"partitions": -3}, ValueError, "got -3"),
        ({"partitions": 5}, ValueError, "layer '0': num_clusters must be at most 4 for shape .*, got 5"),
        ({"partitions": {}}, ValueError, "partitions: nothing selected"),
        (
            {"partitions": {"fc9": Partition.blocks((4, 4), 2)}},
            ValueError,
            "'fc9' is no layer .* there are: '0', '2'",
        ),
        ({"partitions": {3: Partition.blocks((4, 4), 2)}}, ValueError, "3 is no layer"),
        ({"partitions": {"1": Partition.blocks((4, 4), 2)}}, ValueError, "'1' is no layer"),
        (
            {"partitions": {"0": Partition.blocks((4, 6), 2)}, "layers": ["2"]},
            ValueError,
            "no partition for layer '2'",
        ),
        (
            {"partitions": {"0": Partition.blocks((6, 4), 2)}},
            ValueError,
            r"layer '0' has \(out, in\) \(4, 6\).* \(6, 4\)",
        ),
        (
            {"partitions": dict.fromkeys(("0", "0.weight"), Partition.blocks((4, 6), 2))},
            ValueError,
            "'0.weight' is named twice",
        ),
        ({"layers": ["fc9"]}, ValueError, "layers: 'fc9' matches no layer .* there are: '0', '2'"),
        ({"layers": ["0", "x*"]}, ValueError, r"layers: 'x\*' matches no layer"),
        ({"layers": ["0.bias"]}, ValueError, "layers: '0.bias' matches no layer"),
        ({"layers": []}, ValueError, "layers: nothing selected"),
        ({"module": nn.ReLU()}, ValueError, "layers: nothing selected"),
        ({"module": nn.Conv2d(4, 4, 3)}, ValueError, "layers: nothing selected"),
        ({"module": nn.ReLU(), "layers": ["a"]}, ValueError, "there are: none"),
        ({"module": nn.LSTM(4, 4), "layers": ["weight_ih"]}, ValueError, "there are: 'weight_ih_l0'"),
        ({"reduction": "max"}, ValueError, r"reduction must be one of \('mean', 'sum', 'none'\), got 'max'"),
        ({"reduction": None}, ValueError, "reduction must be one of .* got None"),
    ],
    ids=repr,
)
def test_errors(arguments, error, told):
    with pytest.raises(error, match=told):
        EnmeshmentLoss(**{"module": mlp(6, 4, 4), "partitions": 2, **arguments})


@pytest.mark.parametrize("scale", ["0.7", None, [0.7], 1j, b"1"])
def test_scale_is_a_number(scale):
    model = mlp(4, 4)
    with pytest.raises(TypeError, match=f"scale must be a real number, got {type(scale).__name__}"):
        EnmeshmentLoss(model, 2).accumulate_grad_(scale)
    assert model[0].weight.grad is None


# --- what it returns


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(reduction):
    model = mlp(6, 5, 4, 3)
    values = torch.stack(
        [enmeshment(model[i].weight, Partition.blocks(model[i].weight.shape, 3)) for i in (0, 2, 4)]
    )
    expected = {"mean": values.mean(), "sum": values.sum(), "none": values}[reduction]
    assert torch.equal(EnmeshmentLoss(model, 3, reduction=reduction)(), expected)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float32] * 2, torch.float32),
        ([torch.float64] * 2, torch.float64),
        ([torch.float16, torch.bfloat16], torch.float32),
        ([torch.float32, torch.float64], torch.float64),
        ([torch.bfloat16, torch.float64], torch.float64),
    ],
    ids=str,
)
def test_mixed_dtypes(dtypes, expected):
    model = nn.Sequential(*(nn.Linear(6, 6, dtype=dtype) for dtype in dtypes))
    loss = EnmeshmentLoss(model, 2)
    value = loss()
    assert value.dtype == expected
    accumulated = loss.accumulate_grad_(1.0)
    assert accumulated.dtype == expected
    torch.testing.assert_close(accumulated, value.detach(), rtol=1e-6, atol=0)


def test_clusterability():
    model = mlp(6, 5, 4)
    loss = EnmeshmentLoss(model, 2, reduction="none")
    found = loss.clusterability()
    assert list(found) == ["0", "2"]
    assert all(type(value) is float for value in found.values())
    assert list(found.values()) == pytest.approx((1 - loss()).tolist(), rel=1e-6)


def test_registers_nothing_of_the_model():
    model = mlp(4, 4)
    loss = EnmeshmentLoss(model, 2)
    assert list(loss.parameters()) == []
    assert list(loss.buffers()) == []
    assert list(loss.children()) == []
    trainer = nn.ModuleDict({"model": model, "loss": loss})
    assert list(trainer.state_dict()) == ["model.0.weight", "model.0.bias", "loss._extra_state"]
    loss.half()
    assert model[0].weight.dtype == torch.float32


def test_prints_its_layers():
    assert repr(EnmeshmentLoss(mlp(4, 4, 4), 2)) == "EnmeshmentLoss(layers=[0, 2], reduction='mean')"


def test_copies_hold_together():
    model = mlp(4, 4)
    loss = EnmeshmentLoss(model, 2)
    pickled_model, pickled_loss = pickle.loads(pickle.dumps((model, loss)))
    pairs = copy.deepcopy((model, loss)), (pickled_model, pickled_loss.attach(pickled_model))
    for other_model, other_loss in (*pairs, reversed(copy.deepcopy((loss, model)))):
        assert torch.equal(other_loss(), loss())
        with torch.no_grad():
            other_model[0].weight[0, 3] += 5.0
        assert other_loss() > loss()


def test_a_pickled_loss_holds_no_weights():
    model = mlp(500, 500)
    loss = EnmeshmentLoss(model, 2, reduction="sum")
    pickled = pickle.dumps(loss)
    assert len(pickled) < 50_000 < model[0].weight.numel()
    restored = pickle.loads(pickled)
    assert restored.partitions == loss.partitions
    assert repr(restored) == repr(loss)
    for call in (restored, restored.clusterability, restored.weights, lambda: restored.accumulate_grad_(1.0)):
        with pytest.raises(RuntimeError, match=r"pickled, which keeps no model: .* loss.attach\(model\)"):
            call()
    assert torch.equal(restored.attach(model)(), loss())
    with pytest.raises(ValueError, match="'0' is no layer"):
        pickle.loads(pickled).attach(nn.ReLU())
    with pytest.raises(ValueError, match=r"layer '0' has \(out, in\) \(4, 4\)"):
        pickle.loads(pickled).attach(mlp(4, 4))


def test_state_dict_carries_the_partitions():
    model = mlp(6, 5, 4)
    random = {
        "0": Partition(torch.arange(5) % 3 - 1, torch.arange(6) % 2, 3),
        "2": Partition.blocks((4, 5), 4),
    }
    loss = EnmeshmentLoss(model, random)
    file = io.BytesIO()
    torch.save(nn.ModuleDict({"loss": loss}).state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = EnmeshmentLoss(model, 2)
    nn.ModuleDict({"loss": other}).load_state_dict(state)
    assert other.partitions == random
    assert torch.equal(other(), loss())
    # Other labels of the same layers take as much room, as formats that load in place expect.
    assert other.state_dict()["_extra_state"].shape == EnmeshmentLoss(model, 2).get_extra_state().shape


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (lambda: EnmeshmentLoss(mlp(6, 5, 4), 2, layers="0"), r"of the layers \['0'\], .* has \['0', '2'\]"),
        (lambda: EnmeshmentLoss(mlp(6, 5, 3), 2), r"layer '2' has shape \(3, 5\), not \(4, 5\)"),
    ],
)
def test_partitions_of_other_layers_are_not_loaded(other, told):
    loss = EnmeshmentLoss(mlp(6, 5, 4), 2)
    before = loss.partitions
    with pytest.raises(ValueError, match=told):
        loss.load_state_dict(other().state_dict())
    assert loss.partitions == before


@pytest.mark.parametrize(
    "packed",
    [
        None,
        "text",
        torch.zeros(3),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        torch.tensor([2, 0]),
        torch.tensor([1, 1]),
        torch.tensor([1, 1, 1, 9, 9, 2, 65]),
        torch.tensor([1, 1, -1, 1, 1, 2, 65, 0, 0]),
        torch.tensor([1, 1, 1, 1, 1, 2, 255, 0, 0]),
        torch.tensor([1, 1, 1, 1, 1, 2, 300, 0, 0]),
        torch.tensor([1, 1, 1, 1, 1, 2, 65, 0, 2]),
    ],
    ids=str,
)
def test_damaged_partitions_are_not_loaded(packed):
    with pytest.raises(ValueError, match=r"packed must be partitions|must lie in"):
        EnmeshmentLoss(mlp(4, 4), 2).set_extra_state(packed)


def test_looks_the_weights_up_at_each_call():
    model = mlp(4, 4)
    loss = EnmeshmentLoss(model, 2)
    model[0].weight = nn.Parameter(torch.eye(4))
    assert loss().item() == 0.0
    model[0].weight.data = torch.ones(4, 4)
    assert loss().item() == 0.5
    model.double()
    assert loss().dtype == torch.float64
    model[0] = nn.Linear(4, 4)  # the layer itself was chosen, not its place in the model
    assert loss().item() == 0.5


def test_a_weight_of_another_shape_later_on_is_an_error():
    model = mlp(4, 4)
    loss = EnmeshmentLoss(model, 2)
    model[0].weight = nn.Parameter(torch.ones(4, 5))
    for call in (loss, loss.clusterability, lambda: loss.accumulate_grad_(1.0)):
        with pytest.raises((ValueError, RuntimeError), match=r"\(4, 5\)|labels"):
            call()


def test_a_model_that_is_materialised_later():
    with torch.device("meta"):
        model = mlp(4, 4)
        loss = EnmeshmentLoss(model, 2)
    assert loss().is_meta
    model.to_empty(device="cpu")
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    assert loss().item() == 0.5
    assert loss.accumulate_grad_(1.0).item() == 0.5


def test_functional_call():
    class Objective(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.loss = EnmeshmentLoss(model, 2)

        def forward(self):
            return self.loss()

    objective = Objective(nn.Linear(4, 4))
    weights = torch.randn(3, 4, 4)

    def value(weight):
        return torch.func.functional_call(objective, {"model.weight": weight}, ())

    partition = Partition.blocks((4, 4), 2)
    for weight in weights:
        torch.testing.assert_close(value(weight), reference.enmeshment(weight, partition))
    expected = torch.stack(
        [torch.func.grad(lambda w: reference.enmeshment(w, partition))(w) for w in weights]
    )
    torch.testing.assert_close(torch.vmap(torch.func.grad(value))(weights), expected)


# --- gradients without autograd


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accumulates_what_autograd_does(dtype, reduction):
    model = nn.ModuleDict(
        {
            "fc1": nn.Linear(130, 70, dtype=dtype),
            "conv": nn.Conv2d(8, 6, 3, dtype=dtype),
            "up": nn.ConvTranspose2d(8, 6, 3, dtype=dtype),
            "fc2": nn.Linear(70, 9, dtype=dtype),
        }
    )
    loss = EnmeshmentLoss(model, 3, layers=["*"], reduction=reduction)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    model["fc2"].weight.grad = None
    before = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    before_copy = copy.deepcopy(before)
    (50.0 * loss()).sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = before[name]
    value = loss.accumulate_grad_(50.0)
    assert not value.requires_grad
    torch.testing.assert_close(value, loss().detach(), rtol=1e-6, atol=0)
    for name, parameter in model.named_parameters():
        # Autograd rounds the product to the weight's dtype and then the sum, the fused pass the sum alone:
        # three half eps of the larger of the two. In float64 the order of the sums in E counts for more.
        old = torch.zeros_like(parameter) if before_copy[name] is None else before_copy[name]
        size = torch.maximum(old.abs(), (expected[name] - old).abs()).double()
        difference = (parameter.grad.double() - expected[name].double()).abs()
        assert (difference <= 2 * max(torch.finfo(dtype).eps, 1e-13) * size + torch.finfo(dtype).tiny).all()
        assert name.endswith("bias") or before[name] is None or parameter.grad is before[name]


def test_a_second_call_adds():
    model = mlp(6, 6)
    loss = EnmeshmentLoss(model, 2)
    loss.accumulate_grad_(1.0)
    once = model[0].weight.grad.clone()
    loss.accumulate_grad_(2.0)
    torch.testing.assert_close(model[0].weight.grad, 3.0 * once)
    loss.accumulate_grad_(-3.0)
    torch.testing.assert_close(model[0].weight.grad, torch.zeros(6, 6), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [2, torch.tensor(2.0), True + 1])
def test_scale_may_be_any_real(scale):
    model, other = mlp(6, 6), mlp(6, 6)
    other.load_state_dict(model.state_dict())
    EnmeshmentLoss(model, 2).accumulate_grad_(scale)
    EnmeshmentLoss(other, 2).accumulate_grad_(2.0)
    assert torch.equal(model[0].weight.grad, other[0].weight.grad)


def test_scale_0_and_not_finite():
    model = mlp(6, 6)
    loss = EnmeshmentLoss(model, 2)
    loss.accumulate_grad_(0.0)
    assert (model[0].weight.grad == 0.0).all()
    loss.accumulate_grad_(float("nan"))
    assert model[0].weight.grad.isnan().all()


def test_gradients_of_another_layout():
    partition = Partition([0, 1, -1, 1, 0, 0], [1, 0, 0, -1], 2)
    expected = None
    for weight_format, grad_format in itertools.product(
        (torch.contiguous_format, torch.channels_last), repeat=2
    ):
        torch.manual_seed(1)
        model = nn.Conv2d(4, 6, 3).to(memory_format=weight_format)
        model.weight.grad = torch.ones(6, 4, 3, 3).to(memory_format=grad_format)
        EnmeshmentLoss(model, {"": partition}).accumulate_grad_(10.0)
        expected = model.weight.grad.clone() if expected is None else expected
        assert model.weight.grad.is_contiguous(memory_format=grad_format)
        torch.testing.assert_close(model.weight.grad, expected)
    linear = nn.Linear(4, 6)
    linear.weight.grad = torch.zeros(4, 6).T
    loss = EnmeshmentLoss(linear, {"": partition})
    loss.accumulate_grad_(1.0)
    (expected,) = torch.autograd.grad(loss(), linear.weight)
    torch.testing.assert_close(linear.weight.grad, expected)


def test_counts_versions():
    model = mlp(6, 6, 6)
    loss = EnmeshmentLoss(model, 2)
    loss.accumulate_grad_(1.0)
    grads = [model[i].weight.grad for i in (0, 2)]
    before = [grad._version for grad in grads]
    weight_version = model[0].weight._version
    loss.accumulate_grad_(1.0)
    assert all(grad._version > version for grad, version in zip(grads, before, strict=True))
    assert model[0].weight._version == weight_version
    # So a gradient that autograd has saved is not silently another one.
    factor = torch.ones(6, 6, requires_grad=True)
    product = (factor * grads[0]).sum()
    loss.accumulate_grad_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_frozen_weights_count_and_get_nothing():
    model = mlp(6, 6, 6)
    model[0].weight.requires_grad_(False)
    loss = EnmeshmentLoss(model, 2)
    value = loss.accumulate_grad_(1.0)
    torch.testing.assert_close(value, loss().detach())
    assert model[0].weight.grad is None
    found = model[2].weight.grad.clone()
    model[2].weight.grad = None
    loss().backward()
    torch.testing.assert_close(found, model[2].weight.grad)
    model[2].weight.requires_grad_(False)
    model[2].weight.grad = None
    torch.testing.assert_close(loss.accumulate_grad_(1.0), value)
    assert model[2].weight.grad is None


def test_no_weight_at_all():
    model = mlp(6, 6)
    with torch.no_grad():
        model[0].weight.zero_()
    loss = EnmeshmentLoss(model, 2)
    assert loss.accumulate_grad_(1.0).item() == 0.0
    assert (model[0].weight.grad == 0.0).all()
    assert loss.clusterability() == {"0": 1.0}


def test_gradients_that_share_memory_are_refused():
    model = mlp(6, 6, 6)
    model[0].weight.grad = model[2].weight.grad = torch.zeros(6, 6)
    with pytest.raises(RuntimeError, match="gradients of different weights must not share memory"):
        EnmeshmentLoss(model, 2).accumulate_grad_(1.0)
    model[0].weight.grad = model[0].weight.data
    with pytest.raises(RuntimeError, match="a gradient must not share memory with a weight"):
        EnmeshmentLoss(model, 2, layers=["0"]).accumulate_grad_(1.0)
    model[0].weight.grad = torch.zeros(1, 6).expand(6, 6)
    with pytest.raises(RuntimeError, match="a gradient's elements must not share memory"):
        EnmeshmentLoss(model, 2, layers=["0"]).accumulate_grad_(1.0)


def test_a_gradient_that_is_sparse_becomes_dense_as_by_autograd():
    grads = []
    for step in (lambda loss: (0.7 * loss()).backward(), lambda loss: loss.accumulate_grad_(0.7)):
        torch.manual_seed(0)
        model = nn.Embedding(6, 6, sparse=True)
        model(torch.tensor([1, 2])).sum().backward()
        assert model.weight.grad.is_sparse
        step(EnmeshmentLoss(model, 2, layers=[""]))
        assert model.weight.grad.layout == torch.strided
        grads.append(model.weight.grad)
    torch.testing.assert_close(*grads)


# --- in a training loop


def test_training_makes_modules():
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    loss = EnmeshmentLoss(model, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = loss.clusterability()["0"]
    for _ in range(150):
        optimizer.zero_grad()
        loss.accumulate_grad_(1.0)
        optimizer.step()
    assert before < 0.5
    assert loss.clusterability()["0"] > 0.95


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns about itself
def test_a_compiled_training_step():
    torch._dynamo.reset()
    model = nn.ModuleDict({"fc1": nn.Linear(12, 8), "fc2": nn.Linear(8, 8), "conv": nn.Conv1d(1, 4, 5)})
    model["out"] = TheirConv1D(4, 8)
    loss = EnmeshmentLoss(model, 4, layers=["fc2", "out"])
    inputs, labels = torch.randn(5, 12), torch.tensor([0, 1, 2, 3, 0])

    def step():
        hidden = torch.relu(model["fc2"](torch.relu(model["fc1"](inputs))))
        cross_entropy = nn.functional.cross_entropy(hidden @ model["out"].weight, labels)
        return cross_entropy + 0.7 * loss()

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True)):
        model.zero_grad()
        value = function()
        value.backward()
        gradients.append(
            [value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
    assert len(gradients[0]) == 6
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-7)
    explained = torch._dynamo.explain(step)()
    assert re.search(r"\b0\b", str(explained.graph_break_count))
