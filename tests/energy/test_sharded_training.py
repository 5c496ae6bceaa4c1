"""Training with the loss under DistributedDataParallel, FSDP2 and tensor parallelism, as in one process.

A layer under FSDP2 has two weights. At rest it is its piece, a DTensor, which the optimiser knows. For the
passes it becomes the whole weight, an ordinary tensor; what that has as .grad, the layer's next backward
pass averages over the processes, so that enmeshment's, the same on all, stays what it is. It is whole
- between forward and backward, unless resharded after the forward pass, as all but the outermost module is;
- after a forward pass that no backward pass follows, an evaluation: the outermost module stays so;
- after a backward pass too, with set_reshard_after_backward(False).
In the last two cases a gradient that is put there reaches the optimiser with the next backward pass of the
model, or else never.
"""

import pytest
import torch
import torch.distributed as dist
from sharded_helpers import S0, S1, R, count, layout_name
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from modfast import EnmeshmentLoss


class MLP(nn.Module):
    def __init__(self, hidden=7):
        super().__init__()
        torch.manual_seed(1)
        self.fc1 = nn.Linear(6, hidden)
        self.fc2 = nn.Linear(hidden, 6)
        self.fc3 = nn.Linear(6, 4)
        self.double()

    def forward(self, inputs):
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(inputs)))))


BATCH = 12  # the same number for each of two, three or four processes
STEPS = 3


def data():
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(STEPS, BATCH, 6, dtype=torch.float64, generator=generator)
    return zip(inputs, torch.randint(0, 4, (STEPS, BATCH), generator=generator), strict=True)


def mine(batch, rank, size):
    return batch.tensor_split(size)[rank]


def train(model, loss, how, rank=0, size=1, evaluated=False):
    """Steps of Adam on cross-entropy plus 0.7 times enmeshment, on this rank's share of the data."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for inputs, labels in data():
        optimizer.zero_grad()
        if evaluated:
            with torch.no_grad():
                model(inputs)
            loss.clusterability()
        value = loss() if how == "loss before forward" else None
        entropy = cross_entropy(model(mine(inputs, rank, size)), mine(labels, rank, size))
        value = loss() if how == "loss after forward" else value
        if how == "accumulated before backward":
            loss.accumulate_grad_(0.7)
        (entropy if value is None else entropy + 0.7 * value).backward()
        if how == "accumulated":
            loss.accumulate_grad_(0.7)
        if how == "backward of its own":
            (0.7 * loss()).backward()
        optimizer.step()


HOW = ["loss before forward", "loss after forward", "accumulated"]
MORE = ["accumulated before backward", "backward of its own"]
LAYERS = ["*fc1", "*fc2"]


def assert_trained(model, hidden=7):
    """The model has the gradients and the weights that one process has after the same steps."""
    whole = MLP(hidden)
    train(whole, EnmeshmentLoss(whole, 3, LAYERS), "loss after forward")
    for weight, expected in zip(model.parameters(), whole.parameters(), strict=True):
        for given, wanted in ((weight.grad, expected.grad), (weight.detach(), expected.detach())):
            if isinstance(given, DTensor):
                given = given.full_tensor()
            # Float64 after three steps of Adam, which divide by the size of the gradient.
            torch.testing.assert_close(given, wanted, rtol=1e-9, atol=1e-11)


def data_parallel(how, bucket_views):
    model = DistributedDataParallel(MLP(), gradient_as_bucket_view=bucket_views)
    train(model, EnmeshmentLoss(model, 3, LAYERS), how, dist.get_rank(), dist.get_world_size())
    assert_trained(model.module)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("bucket_views", [False, True])
def test_distributed_data_parallel(processes, how, bucket_views):
    processes(2).run(data_parallel, how, bucket_views)


def shard(model, mesh, each_layer=True, **options):
    """FSDP2, the layers for themselves or all as one."""
    if each_layer:
        fully_shard(model.fc1, mesh=mesh, **options)
        fully_shard(model.fc2, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)


def fully_sharded(how, loss_first, options):
    size = dist.get_world_size()
    model, mesh = MLP(), init_device_mesh("cpu", (size,))
    if loss_first:
        loss = EnmeshmentLoss(model, 3, LAYERS)
    shard(model, mesh, **options)
    if not loss_first:
        loss = EnmeshmentLoss(model, 3, LAYERS)
    train(model, loss, how, dist.get_rank(), size)
    assert isinstance(model.fc1.weight, DTensor)
    assert_trained(model)


@pytest.mark.parametrize("how", [*HOW, *MORE])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="each layer"),
        # After the forward pass the weights are whole, ordinary tensors until the backward pass.
        pytest.param({"each_layer": False}, id="all as one"),
        pytest.param({"reshard_after_forward": False}, id="kept whole"),
    ],
)
def test_fsdp2(processes, how, size, options):
    processes(size).run(fully_sharded, how, True, options)


def test_fsdp2_before_the_loss_is_made(processes):
    processes(2).run(fully_sharded, "loss after forward", False, {})


def micro_batches(accumulated):
    """The gradients of several backward passes are reduced at the last."""
    model, whole, size = MLP(), MLP(), dist.get_world_size()
    shard(model, init_device_mesh("cpu", (size,)))
    loss, expected = EnmeshmentLoss(model, 3, LAYERS), EnmeshmentLoss(whole, 3, LAYERS)
    for step, (inputs, labels) in enumerate(data(), start=1):
        (cross_entropy(whole(inputs), labels) + 0.7 * expected()).backward()
        model.set_requires_gradient_sync(step == STEPS)
        rank = dist.get_rank()
        entropy = cross_entropy(model(mine(inputs, rank, size)), mine(labels, rank, size))
        if accumulated:
            entropy.backward()
            loss.accumulate_grad_(0.7)
        else:
            (entropy + 0.7 * loss()).backward()
    for weight, wanted in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(weight.grad.full_tensor(), wanted.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("accumulated", [False, True])
def test_fsdp2_with_gradients_reduced_once_for_several_batches(processes, accumulated):
    processes(2).run(micro_batches, accumulated)


def from_meta():
    size = dist.get_world_size()
    with torch.device("meta"):
        model = MLP()
    loss = EnmeshmentLoss(model, 3, LAYERS)
    shard(model, init_device_mesh("cpu", (size,)))
    model.to_empty(device="cpu")
    for weight, whole in zip(model.parameters(), MLP().parameters(), strict=True):
        weight.data.copy_(distribute_tensor(whole.data, weight.device_mesh, weight.placements))
    train(model, loss, "accumulated", dist.get_rank(), size)
    assert_trained(model)


def test_fsdp2_of_a_model_made_without_memory(processes):
    processes(2).run(from_meta)


def evaluated_between(how):
    model, size = MLP(), dist.get_world_size()
    shard(model, init_device_mesh("cpu", (size,)), each_layer=False)
    loss = EnmeshmentLoss(model, 3, LAYERS)
    before = loss.clusterability()
    train(model, loss, how, dist.get_rank(), size, evaluated=True)
    assert_trained(model)
    after = loss.clusterability()
    with torch.no_grad():
        model(next(data())[0])
    assert not isinstance(model.fc1.weight, DTensor)
    assert loss.clusterability() == pytest.approx(after, rel=1e-12) != before


@pytest.mark.parametrize("how", HOW)
def test_fsdp2_after_an_evaluation_which_leaves_weights_whole(processes, how):
    processes(2).run(evaluated_between, how)


PLAN = {"fc1": ColwiseParallel, "fc2": RowwiseParallel}


def tensor_parallel(how):
    # All see all data, and have one part of each layer.
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = parallelize_module(MLP(hidden=12), mesh, {name: style() for name, style in PLAN.items()})
    assert model.fc1.weight.placements == (S0,)
    assert model.fc2.weight.placements == (S1,)
    train(model, EnmeshmentLoss(model, 3, LAYERS), how)
    assert_trained(model, hidden=12)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("size", [2, 3])
def test_tensor_parallel(processes, how, size):
    processes(size).run(tensor_parallel, how)


def two_dimensional(mesh, how):
    mesh = init_device_mesh("cpu", mesh, mesh_dim_names=("data", "tensor"))
    model = MLP(hidden=12)
    parallelize_module(model, mesh["tensor"], {name: style() for name, style in PLAN.items()})
    shard(model, mesh["data"])
    loss = EnmeshmentLoss(model, 3, LAYERS)
    train(model, loss, how, mesh["data"].get_local_rank(), mesh["data"].size())
    assert len(model.fc1.weight.placements) == 2
    assert_trained(model, hidden=12)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("mesh", [(1, 2), (2, 1), (2, 2)], ids=layout_name)
def test_fsdp2_with_tensor_parallelism(processes, mesh, how):
    processes(count(mesh)).run(two_dimensional, mesh, how)


def hybrid(how):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = MLP()
    shard(model, mesh)
    assert model.fc1.weight.placements == (R, S0)
    train(model, EnmeshmentLoss(model, 3, LAYERS), how, dist.get_rank(), 4)
    assert_trained(model)


@pytest.mark.parametrize("how", HOW)
def test_fsdp2_in_groups_of_copies(processes, how):
    processes(4).run(hybrid, how)
