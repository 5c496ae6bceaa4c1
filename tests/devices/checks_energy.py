"""The energies and the optimiser on a device without kernels: numbers, derivatives, transforms, mistakes.

``test_other_devices.py`` runs this file; see there.
"""

import copy

import pytest
import torch
from labelled import LAYOUTS, random_labels, random_partition
from stood_in import DEVICE, HAS_FLOAT64, WIDEST
from torch import nn

import modfast
from modfast import EnmeshmentLoss, Partition, reference

OPS = torch.ops.modfast
HALVES = [torch.float16, torch.bfloat16]
DTYPES = [torch.float32, *HALVES, *([torch.float64] if HAS_FLOAT64 else [])]
# Float32 results of sums in float64, or of sums in float32.
CLOSE = {"rtol": 3e-7, "atol": 1e-30} if HAS_FLOAT64 else {"rtol": 2e-6, "atol": 1e-7}


def exact(function, weight, *others):
    """What the specification finds in float64 on the CPU."""
    return function(weight.cpu().to(torch.float64), *others)


def like_on_device(tensor):
    """A copy on the device with the very strides."""
    storage = torch.empty(tensor.untyped_storage().nbytes() // tensor.element_size(), dtype=tensor.dtype)
    storage.set_(tensor.untyped_storage(), 0, (len(storage),))
    return storage.to(DEVICE).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_energies_of_every_layout(layout, dtype):
    weight, partition = LAYOUTS[layout]((130, 70, 2), torch.float32).to(dtype), random_partition((130, 70), 5)
    if weight.stride() != LAYOUTS[layout]((130, 70, 2), torch.float32).stride():
        weight = weight.clone()
    placed = like_on_device(weight)
    assert placed.stride() == weight.stride()
    found = modfast.block_energy(placed, partition)
    assert found.device == DEVICE
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = exact(reference.block_energy, weight, partition)
    torch.testing.assert_close(found.cpu().double(), expected, **CLOSE)
    value = modfast.enmeshment(placed, partition)
    torch.testing.assert_close(value.cpu().double(), exact(reference.enmeshment, weight, partition), **CLOSE)


def test_long_sums_keep_their_digits():
    # One number after the other in float32 this is off by 1e-3.
    weight = torch.full((1 << 16, 40), 0.1)
    partition = Partition([0] * (1 << 16), [0, 1] * 20, 2)
    found = modfast.block_energy(weight.to(DEVICE), partition).cpu().double()
    torch.testing.assert_close(found, exact(reference.block_energy, weight, partition), **CLOSE)
    found = modfast.block_energy(weight.T.contiguous().to(DEVICE), partition.transpose()).cpu().double()
    torch.testing.assert_close(found, exact(reference.block_energy, weight, partition).T, **CLOSE)


def losses_of(weight, partition):
    """The loss of a weight in all ways of asking for it, with its gradient."""
    found = []
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
    layer.weight = nn.Parameter(weight.clone())
    loss = EnmeshmentLoss(layer, {"": partition})
    loss().backward()
    found.append((loss().detach(), layer.weight.grad))
    layer.weight.grad = None
    value = loss.accumulate_grad_(1.0)
    found.append((value, layer.weight.grad))
    layer.weight.grad = None
    compiled = torch.compile(lambda: loss(), backend="aot_eager", fullgraph=True)
    compiled().backward()
    found.append((compiled().detach(), layer.weight.grad))
    function = lambda w: modfast.enmeshment(w, partition)  # noqa: E731
    found.append(torch.func.grad_and_value(function)(weight)[::-1])
    _, slope = torch.func.jvp(function, (weight,), (torch.ones_like(weight),))
    found.append((function(weight), slope))
    return found


def test_every_way_to_the_gradient():
    weight, partition = torch.randn(24, 18), random_partition((24, 18), 3)
    leaf = weight.double().requires_grad_()
    expected = reference.enmeshment(leaf, partition)
    expected.backward()
    for value, grad in losses_of(weight.to(DEVICE), partition):
        assert value.device == grad.device == DEVICE
        torch.testing.assert_close(value.cpu().double(), expected.detach(), **CLOSE)
        wanted = leaf.grad if grad.dim() else leaf.grad.sum()
        torch.testing.assert_close(grad.cpu().double(), wanted, rtol=1e-5, atol=1e-8)


def test_batches_and_second_derivatives():
    weights, partition = torch.randn(3, 12, 9), random_partition((12, 9), 2)
    batched = torch.func.vmap(torch.func.grad(lambda w: modfast.enmeshment(w, partition)))
    torch.testing.assert_close(batched(weights.to(DEVICE)).cpu(), batched(weights), rtol=1e-5, atol=1e-8)

    def second(weight):
        leaf = weight.detach().requires_grad_()
        (first,) = torch.autograd.grad(modfast.enmeshment(leaf, partition), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    torch.testing.assert_close(second(weights[0].to(DEVICE)).cpu(), second(weights[0]), rtol=1e-4, atol=1e-8)
    hessian = torch.func.hessian(lambda w: modfast.enmeshment(w, partition))
    torch.testing.assert_close(
        hessian(weights[0].to(DEVICE)).cpu(), hessian(weights[0]), rtol=1e-4, atol=1e-7
    )


def test_under_autocast():
    weight, partition = torch.randn(20, 30), random_partition((20, 30), 3)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        leaf = weight.to(DEVICE).requires_grad_()
        value = modfast.enmeshment(leaf, partition)
        value.backward()
    torch.testing.assert_close(
        value.detach().cpu().double(), exact(reference.enmeshment, weight, partition), **CLOSE
    )
    assert leaf.grad.dtype == torch.float32


def operands(dtype, device):
    torch.manual_seed(1)
    weights = [torch.randn(30, 20).to(device, dtype), torch.randn(8, 6, 3, 3).to(device, dtype)]
    rows = [random_labels(30, 4).to(device), random_labels(8, 2).to(device)]
    cols = [random_labels(20, 4).to(device), random_labels(6, 2).to(device)]
    return weights, rows, cols, [4, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_that_change_their_arguments(dtype):
    found = []
    for device in ("cpu", DEVICE):
        weights, rows, cols, counts = operands(dtype, device)
        parts = [
            part
            for row, col, k in zip(rows, cols, counts, strict=True)
            for part in (torch.tensor([k]), row, col)
        ]
        packed = torch.cat([part.cpu() for part in parts]).int().to(device)
        grads = [torch.ones_like(weight) for weight in weights]
        versions = [grad._version for grad in grads]
        of_all = OPS.accumulate_packed_enmeshment_grad_(weights, grads, packed, 0.3, True)
        each = OPS.accumulate_enmeshment_grad_(weights, grads, rows, cols, counts, 0.3)
        losses, energies = OPS.enmeshment(weights, rows, cols, counts)
        slopes = torch.full_like(losses, 0.5)
        OPS.add_enmeshment_grad_(weights, grads, energies, slopes, rows, cols, counts)
        fresh = OPS.enmeshment_grad(weights, energies, slopes, rows, cols, counts)
        assert all(grad._version >= version for grad, version in zip(grads, versions, strict=True))
        found.append([each.cpu().float() for each in (of_all, each, losses, energies, *grads, *fresh)])
    eps = torch.finfo(dtype).eps if dtype in HALVES else 1e-6
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=4 * eps, atol=4 * eps)


def test_mistakes_are_refused_as_on_the_cpu():
    weights, rows, cols, _ = operands(torch.float32, DEVICE)
    weight = weights[0]
    for arguments, match in [
        ((weight, None, rows[0].cpu(), cols[0], 4), "tensors must be on one device, got standin:0 and cpu"),
        ((weight, None, rows[0], cols[0][:-1], 4), "col_labels must have shape"),
        ((weight, None, rows[0], cols[0].int(), 4), "col_labels must be torch.int64"),
        ((weight, None, rows[0], cols[0], 0), "num_clusters must be a positive"),
        ((weight, weights[1], rows[0], cols[0], 4), "other must have shape"),
        ((weight.int(), None, rows[0], cols[0], 4), "weight must be torch.float32"),
    ]:
        with pytest.raises(RuntimeError, match=match):
            OPS.block_inner(*arguments)
    with pytest.raises(RuntimeError, match="one length"):
        OPS.accumulate_enmeshment_grad_(weights, weights, rows, cols, [4], 1.0)
    with pytest.raises((RuntimeError, NotImplementedError), match="weights"):
        OPS.enmeshment([], [], [], [])
    # Nothing waits for a device to look at labels: those out of range are in no cluster, as on a GPU.
    labels = torch.where(rows[0] == 3, 99, rows[0])
    expected = OPS.block_inner(weight, None, torch.where(rows[0] == 3, -1, rows[0]), cols[0], 4)
    assert torch.equal(OPS.block_inner(weight, None, labels, cols[0], 4).cpu(), expected.cpu())


def test_a_model_on_two_devices():
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(12, 9), "b": nn.Linear(9, 6), "c": nn.Linear(6, 8)})
    expected = EnmeshmentLoss(model, 3)
    placed = copy.deepcopy(model)
    placed["b"].to(DEVICE)
    loss = EnmeshmentLoss(placed, 3)
    expected().backward()
    loss().backward()
    torch.testing.assert_close(loss().detach().cpu(), expected().detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        loss.accumulate_grad_(0.5).cpu(), expected.accumulate_grad_(0.5), rtol=1e-6, atol=0
    )
    for own, other in zip(placed.parameters(), model.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(own.grad.cpu(), other.grad, rtol=1e-5, atol=1e-8)
    optimizer = modfast.optim.AdamW(placed.parameters(), enmeshment=loss, enmeshment_weight=1.0)
    same = modfast.optim.AdamW(model.parameters(), enmeshment=expected, enmeshment_weight=1.0)
    for each in (optimizer, same):
        each.step()
    torch.testing.assert_close(optimizer.enmeshment_value.cpu(), same.enmeshment_value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", [{}, {"keep": 0.3}, {"stochastic_rounding": True}], ids=str)
@pytest.mark.parametrize("dtype", [each for each in DTYPES if each != torch.float16])
def test_steps_of_the_optimiser(dtype, options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5)).to(dtype)
    placed = copy.deepcopy(model).to(DEVICE)
    runs = []
    for each in (model, placed):
        torch.manual_seed(5)
        loss = EnmeshmentLoss(each, {"0": Partition.blocks((16, 20), 4)})
        optimizer = modfast.optim.AdamW(
            each.parameters(), 0.01, enmeshment=loss, enmeshment_weight=2.0, **options
        )
        for _ in range(4):
            for parameter in each.parameters():
                parameter.grad = torch.randn(parameter.shape).to(each[0].weight.device, dtype)
            versions = [parameter._version for parameter in each.parameters()]
            optimizer.step()
            assert all(p._version > old for p, old in zip(each.parameters(), versions, strict=True))
        assert torch.allclose(optimizer.enmeshment_value, loss(), rtol=1e-5)
        runs.append(optimizer)
    own, other = (
        [parameter.detach().cpu().double() for parameter in each.parameters()] for each in (model, placed)
    )
    # A rounding of the step may round the weight to its neighbour.
    tolerance = 4 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1e-6
    for here, there in zip(own, other, strict=True):
        torch.testing.assert_close(there, here, rtol=tolerance, atol=tolerance)
    assert runs[1].state[placed[0].weight]["exp_avg"].device == DEVICE
    loaded = torch.optim.AdamW(placed.parameters(), 0.01)
    loaded.load_state_dict(runs[1].state_dict())
    runs[1].load_state_dict(loaded.state_dict())
    runs[1].step()


def test_gradients_that_are_not_finite_change_nothing():
    layer = nn.Linear(8, 6).to(DEVICE)
    optimizer = modfast.optim.AdamW(
        layer.parameters(), enmeshment=EnmeshmentLoss(layer, 2), enmeshment_weight=1.0
    )
    before = layer.weight.detach().cpu().clone()
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.found_inf = torch.ones((), device=DEVICE)
    optimizer.step()
    assert torch.equal(layer.weight.cpu(), before)
    optimizer.found_inf = torch.zeros((), device=DEVICE)
    optimizer.step()
    assert not torch.equal(layer.weight.cpu(), before)


def test_types_of_sums():
    weights, rows, cols, counts = operands(torch.float32, DEVICE)
    assert OPS.block_inner(weights[0], None, rows[0], cols[0], 4).dtype == WIDEST
    losses, energies = OPS.enmeshment(weights, rows, cols, counts)
    assert losses.dtype == energies.dtype == WIDEST
