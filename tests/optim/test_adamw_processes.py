"""Several processes: DistributedDataParallel, FSDP2 and tensor parallelism, beside one process."""

import copy

import pytest
import torch
from loss_models import mlp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from modfast import EnmeshmentLoss
from modfast.optim import AdamW

INPUTS, LABELS = torch.randn(32, 12, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 6


def train(model, plain, steps=10, own=slice(None), **options):
    """Train a model and its plain copy; return what all processes have of both."""
    loss, other = EnmeshmentLoss(model, 3), EnmeshmentLoss(plain, 3)
    ours = AdamW(model.parameters(), lr=1e-2, enmeshment=loss, enmeshment_weight=2.0, **options)
    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    dtype = next(plain.parameters()).dtype
    for _ in range(steps):
        for each, optimizer, rows in ((model, ours, own), (plain, theirs, slice(None))):
            optimizer.zero_grad()
            cross_entropy(each(INPUTS[rows].to(dtype)), LABELS[rows]).backward()
        other.accumulate_grad_(2.0)
        ours.step()
        theirs.step()
        value = ours.enmeshment_value
        assert not hasattr(value, "placements")
        torch.testing.assert_close(value, other().detach(), rtol=1e-9, atol=0)
    return ours, [whole(p) for p in model.parameters()], list(plain.parameters())


def whole(parameter):
    value = parameter.detach()
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def assert_alike(given, expected):
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=1e-12)


def data_parallel(rank_rows):
    plain = mlp(12, 20, 6, dtype=torch.float64)
    rank = torch.distributed.get_rank()
    model = DistributedDataParallel(copy.deepcopy(plain))
    _, given, expected = train(model, plain, own=slice(rank * rank_rows, (rank + 1) * rank_rows))
    assert_alike(given, expected)
    return [value.numpy().tobytes() for value in given]


def test_data_parallel(processes):
    first, second = processes(2).run(data_parallel, 16)
    assert first == second


def fully_sharded():
    plain = mlp(12, 21, 6, dtype=torch.float64)
    model = copy.deepcopy(plain)
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    ours, given, expected = train(model, plain)
    assert_alike(given, expected)
    # A resumed run goes on as the other does.
    state = get_optimizer_state_dict(model, ours)
    again = AdamW(model.parameters(), lr=1e-2, enmeshment=ours.enmeshment, enmeshment_weight=2.0)
    weights = [p.detach().clone() for p in model.parameters()]
    set_optimizer_state_dict(model, again, state)
    for parameter, before in zip(model.parameters(), weights, strict=True):
        assert torch.equal(parameter.full_tensor(), before.full_tensor())
    for one, two in zip(ours.state.values(), again.state.values(), strict=True):
        assert float(one["step"]) == float(two["step"])
        assert torch.equal(one["exp_avg"].full_tensor(), two["exp_avg"].full_tensor())
    return [value.numpy().tobytes() for value in given]


def test_fully_sharded(processes):
    first, second = processes(2).run(fully_sharded)
    assert first == second


def mixed_precision():
    plain = mlp(12, 20, 6)
    model = copy.deepcopy(plain)
    fully_shard(model, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    loss = EnmeshmentLoss(model, 3)
    optimizer = AdamW(model.parameters(), lr=1e-2, enmeshment=loss, enmeshment_weight=2.0)
    values = []
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(model(INPUTS).float(), LABELS).backward()
        optimizer.step()
        values.append(float(optimizer.enmeshment_value))
    torch.testing.assert_close(optimizer.enmeshment_value, loss().detach(), rtol=1e-6, atol=0)
    assert values[-1] < values[0]
    return values


def test_mixed_precision(processes):
    first, second = processes(2).run(mixed_precision)
    assert first == second


def tensor_parallel():
    plain = mlp(12, 20, 6, dtype=torch.float64)
    mesh = init_device_mesh("cpu", (2,))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    model = parallelize_module(copy.deepcopy(plain), mesh, plan)
    _, given, expected = train(model, plain)
    assert_alike(given, expected)


def test_tensor_parallel(processes):
    processes(2).run(tensor_parallel)


def overflowing():
    """Energies of weights in pieces stay what they are if a gradient is not finite."""
    model = mlp(12, 20, 6)
    fully_shard(model)
    loss = EnmeshmentLoss(model, 3)
    optimizer = AdamW(model.parameters(), enmeshment=loss, enmeshment_weight=2.0)
    for found in (0.0, 1.0, 0.0):
        cross_entropy(model(INPUTS), LABELS).backward()
        optimizer.found_inf = torch.tensor(found)
        before = [whole(p).clone() for p in model.parameters()]
        optimizer.step()
        assert found == all(map(torch.equal, before, map(whole, model.parameters())))
        torch.testing.assert_close(optimizer.enmeshment_value, loss().detach(), rtol=1e-6, atol=0)


def test_infinite_gradients_of_pieces(processes):
    processes(2).run(overflowing)


def refused():
    model = mlp(12, 20, 6)
    fully_shard(model)
    with pytest.raises(TypeError, match=r"keep: the weight .* is spread over processes \(DTensor\)"):
        AdamW(model.parameters(), keep=0.5)
    weight = model[0].weight
    optimizer = AdamW([weight])
    weight.grad = distribute_tensor(torch.ones(20, 12), weight.device_mesh, [Replicate()])
    with pytest.raises(ValueError, match="must be spread over processes as its parameter is"):
        optimizer.step()
    # A matrix that every process has as a whole is one like any other.
    copied = nn.Parameter(distribute_tensor(torch.randn(6, 6), weight.device_mesh, [Replicate()]))
    copied.grad = torch.zeros_like(copied)
    AdamW([copied], keep=0.5).step()
    assert int(copied.to_local().count_nonzero()) == 18


def test_what_is_refused(processes):
    processes(2).run(refused)
