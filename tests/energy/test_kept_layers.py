"""What a loss keeps from call to call: it notices whatever changes in between.

Each result is held against that of a copy, which keeps nothing and reads everything anew.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import modfast
from modfast import EnmeshmentLoss, Partition, reference
from modfast.energy.kept import packed_labels

compiled_only = pytest.mark.skipif(
    modfast.backend()["backend"] != "compiled", reason="other backends keep nothing"
)


class Exponential(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.exp()


def make() -> tuple[nn.Sequential, EnmeshmentLoss]:
    """A model and a loss that has been called, and has kept what it can use again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 6))
    partitions = {
        "0": Partition(torch.randint(-1, 3, (8,)), torch.randint(3, (12,)), 3),
        "1": Partition(torch.randint(2, (6,)), torch.randint(-1, 2, (8,)), 2),
    }
    loss = EnmeshmentLoss(model, partitions)
    loss.accumulate_grad_(1.0)
    loss.accumulate_grad_(1.0)
    loss().backward()
    return model, loss


def twins(model: nn.Module, loss: EnmeshmentLoss) -> tuple[nn.Module, EnmeshmentLoss]:
    """Copies with the same gradients."""
    other, other_loss = copy.deepcopy((model, loss))
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        theirs.grad = None if ours.grad is None else ours.grad.clone()
    return other, other_loss


def new_weight(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    model[0].weight = nn.Parameter(torch.randn(8, 12))


def new_layer_weight_of_other_dtype(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    model[0].weight = nn.Parameter(torch.randn(8, 12, dtype=torch.float64))


def new_data(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    model[1].weight.data = torch.randn(6, 8)


def transposed_data(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    model[1].weight.data = torch.randn(8, 6).T


def new_grad(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    model[0].weight.grad = torch.randn(8, 12)


def no_grad(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    model[0].weight.grad = None


def sparse_grad(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    model[0].weight.grad = torch.eye(8, 12).to_sparse()


def frozen(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    model[0].weight.requires_grad_(False)


def half(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    model.half()


def double(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    model.double()


def double_by_swapping(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def parametrized(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    nn.utils.parametrize.register_parametrization(model[0], "weight", Exponential())


def parametrized_all(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    for layer in model:
        nn.utils.parametrize.register_parametrization(layer, "weight", Exponential())


def weight_normed(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    nn.utils.parametrizations.weight_norm(model[1])


def other_partitions(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    blocks = {name: Partition.blocks(own.shape, 2) for name, own in loss.partitions.items()}
    loss.load_state_dict(EnmeshmentLoss(model, blocks).state_dict())


def relabelled_in_place(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    # Partitions are immutable by agreement alone.
    loss.partitions["0"].row_labels.copy_(torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))


def other_reduction(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    loss.reduction = "sum"


def each_loss(model: nn.Sequential, loss: EnmeshmentLoss) -> None:
    loss.reduction = "none"


CHANGES: list[Callable[[nn.Sequential, EnmeshmentLoss], None]] = [
    new_weight,
    new_layer_weight_of_other_dtype,
    new_data,
    transposed_data,
    new_grad,
    no_grad,
    sparse_grad,
    frozen,
    half,
    double,
    double_by_swapping,
    parametrized,
    parametrized_all,
    weight_normed,
    other_partitions,
    relabelled_in_place,
    other_reduction,
    each_loss,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_noticed(change: Callable[[nn.Sequential, EnmeshmentLoss], None]) -> None:
    model, loss = make()
    change(model, loss)
    other, other_loss = twins(model, loss)
    for _ in range(2):  # the second call may keep what is new
        expected, found = other_loss.accumulate_grad_(0.7), loss.accumulate_grad_(0.7)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        expected, found = other_loss(), loss()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        for result in (expected, found):
            result.sum().backward()
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)
            if ours.grad is not None:
                torch.testing.assert_close(ours.grad.to_dense(), theirs.grad.to_dense(), rtol=2e-3, atol=1e-7)
        other_loss._kept = None


@compiled_only
@pytest.mark.parametrize("change", [frozen, parametrized, relabelled_in_place, other_partitions])
def test_these_tests_would_fail_without_the_checks(
    change: Callable[[nn.Sequential, EnmeshmentLoss], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loss = make()
    weights = loss._kept.weights()
    monkeypatch.setattr(modfast.energy.kept.KeptLayers, "weights", lambda self: list(weights))
    monkeypatch.setattr(modfast.energy.kept.KeptLayers, "is_of", lambda self, layers, partitions: True)
    if change is other_partitions:
        kept = loss._kept
        change(model, loss)
        loss._kept = kept
    else:
        change(model, loss)
    other, other_loss = twins(model, loss)
    same = torch.allclose(loss.accumulate_grad_(0.7), other_loss._accumulate_all(0.35), rtol=1e-6)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        same = same and (ours.grad is None) == (theirs.grad is None)
        same = same and (ours.grad is None or torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-7))
    assert not same


class Counting(nn.Module):
    """A parametrization that, like spectral_norm's, changes whenever it computes a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight


@pytest.mark.parametrize("call", [lambda loss: loss(), lambda loss: loss.accumulate_grad_(1.0)])
def test_a_computed_weight_is_computed_once_for_each_call(
    call: Callable[[EnmeshmentLoss], Tensor],
) -> None:
    model, loss = make()
    counting = Counting()
    nn.utils.parametrize.register_parametrization(model[0], "weight", counting)
    for new in (loss, EnmeshmentLoss(model, 2)):
        for _ in range(2):
            before = counting.calls
            call(new)
            assert counting.calls == before + 1


@compiled_only
def test_the_loss_keeps_anew_what_has_changed() -> None:
    model, loss = make()
    model.half()
    assert loss._kept.weights() is None
    loss()
    assert loss._kept.weights() == [layer.weight for layer in model]


def test_a_weight_of_another_shape_is_refused() -> None:
    model, loss = make()
    model[0].weight.data = torch.randn(8, 13)
    model[0].weight.grad = None
    with pytest.raises((RuntimeError, ValueError), match="13"):
        loss.accumulate_grad_(1.0)


def test_a_flat_piece_is_refused_by_name() -> None:
    model, loss = make()
    model[0].weight = nn.Parameter(torch.randn(96))
    with pytest.raises(ValueError, match="flat piece"):
        loss.accumulate_grad_(1.0)


def test_attaching_reads_the_other_model() -> None:
    _, loss = make()
    other, _ = make()
    with torch.no_grad():
        other[0].weight.mul_(torch.arange(12.0))
    expected = EnmeshmentLoss(other, loss.partitions)()
    torch.testing.assert_close(loss.attach(other)(), expected)
    torch.testing.assert_close(loss.accumulate_grad_(0.0), expected.detach())


@compiled_only
def test_keeps_what_it_can_and_no_weights() -> None:
    model, loss = make()
    assert loss._kept is not None
    assert loss._kept.weights() == [layer.weight for layer in model]
    assert copy.deepcopy(loss)._kept is None
    assert pickle.loads(pickle.dumps(loss))._kept is None
    old = {name: value for name, value in loss.__getstate__().items() if name != "_kept"}
    restored = EnmeshmentLoss.__new__(EnmeshmentLoss)
    restored.__setstate__(old)
    restored.attach(model)
    torch.testing.assert_close(restored.accumulate_grad_(1.0), loss().detach())


@compiled_only
def test_nothing_is_kept_of_tensors_that_stand_for_others() -> None:
    for call in (
        lambda loss: torch.func.grad(lambda x: x * loss())(torch.tensor(2.0)),
        lambda loss: torch.func.jacrev(lambda x: x * loss())(torch.tensor(2.0)),
        lambda loss: within_fake_tensors(loss),
    ):
        _, loss = make()
        loss._kept = None
        expected = copy.deepcopy(loss)().detach()
        call(loss)
        assert loss._kept is None
        torch.testing.assert_close(loss.accumulate_grad_(1.0), expected)
        torch.testing.assert_close(loss().detach(), expected)


def within_fake_tensors(loss: EnmeshmentLoss) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert loss().shape == ()


@compiled_only
def test_grad_mode_is_as_before_even_after_an_error() -> None:
    model, loss = make()
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            loss.accumulate_grad_(1.0)
            assert torch.is_grad_enabled() == enabled
    model[0].weight.grad = model[0].weight.detach()
    with pytest.raises(RuntimeError, match="must not share memory"):
        loss.accumulate_grad_(1.0)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_packed_labels_are_those_of_the_lists(dtype: torch.dtype, mean: bool) -> None:
    torch.manual_seed(1)
    shapes = [(70, 130), (40, 8, 3, 3), (1, 5), (0, 4), (300, 70)]
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    weights[4] = torch.randn(70, 300).to(dtype).T
    grads = [torch.randn(weight.shape).to(dtype) for weight in weights]
    partitions = [
        Partition(torch.randint(-1, 3, shape[:1]), torch.randint(-1, 3, shape[1:2]), 3) for shape in shapes
    ]
    expected_grads = [grad.double() for grad in grads]
    labels = packed_labels(partitions)
    expected = reference.accumulate_packed_enmeshment_grad_(
        [weight.double() for weight in weights], expected_grads, labels, 0.7, mean
    )
    found = torch.ops.modfast.accumulate_packed_enmeshment_grad_(weights, grads, labels, 0.7, mean)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rounding = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=2 * rounding, atol=0)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        eps = torch.finfo(dtype).eps
        assert ((grad.double() - wanted).abs() <= 2 * eps * (wanted.abs() + 1)).all()
