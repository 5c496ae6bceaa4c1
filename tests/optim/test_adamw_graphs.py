"""What a GPU asks of a step: nothing that waits for it, and nothing that a CUDA graph would leave out.

But for the last, the tests pretend that a graph is captured: what PyTorch then records is done here as well.
"""

import copy
import gc
import weakref

import pytest
import torch
from gpu import DEVICE, needs_a_real_gpu
from loss_models import mlp
from optim_pairs import assert_value
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from modfast import EnmeshmentLoss, Partition
from modfast.optim import AdamW, call, energies

INPUTS, LABELS = torch.randn(32, 12, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 6


class FromTheHost(TorchFunctionMode):
    """Notes calls that bring numbers of the host to the device, for which a GPU's host waits."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy) and not isinstance(
            args[0], torch.Tensor
        ):
            self.calls.append(func)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[1], list):
            self.calls.append(func)
        return func(*args, **(kwargs or {}))


def trained(layers=None, **options):
    """A model after its first step, with the gradients of the next one."""
    torch.manual_seed(0)
    model = mlp(12, 20, 16, 6)
    loss = EnmeshmentLoss(model, 2, layers=layers)
    optimizer = AdamW(model.parameters(), enmeshment=loss, enmeshment_weight=2.0, **options)
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(model(INPUTS), LABELS).backward()
        if not optimizer.state:
            optimizer.step()
    return model, optimizer


def without_gradients_of_the_loss(model, optimizer):
    optimizer.enmeshment_weight = 0.0
    model[0].weight.grad = None


def a_changed_weight(model, _):
    with torch.no_grad():
        model[0].weight.mul_(2.0)


def all_changed(model, _):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)


def a_frozen_weight(model, _):
    model[0].weight.requires_grad_(False)


@pytest.mark.parametrize(
    "change", [None, without_gradients_of_the_loss, a_changed_weight, all_changed, a_frozen_weight]
)
def test_a_step_takes_no_numbers_from_the_host(change):
    model, optimizer = trained(keep=0.5)
    if change is a_frozen_weight:
        change(model, optimizer)
        optimizer.step()  # makes a new plan
        assert_value(optimizer)
        with FromTheHost() as host:
            assert optimizer.enmeshment_value is not None  # of layers in another order
        assert not host.calls
        return
    if change is not None:
        change(model, optimizer)
    with FromTheHost() as host:
        optimizer.step()
    assert not host.calls
    assert_value(optimizer)


@pytest.fixture
def graph(monkeypatch):
    """Begin and end to pretend that a graph is captured."""
    state = {"captured": False}
    for module in (call, energies):
        monkeypatch.setattr(module, "is_captured", lambda device: state["captured"])
    return state


def test_a_first_step_cannot_be_captured(graph):
    model, optimizer = trained()
    fresh = AdamW(model.parameters(), enmeshment=optimizer.enmeshment, enmeshment_weight=2.0)
    graph["captured"] = True
    with pytest.raises(
        RuntimeError, match=r"^parameter 0 of group 0 needs a step before one is captured in a CUDA graph"
    ):
        fresh.step()
    assert not fresh.state
    optimizer.step()
    graph["captured"] = False
    fresh.step()


def test_energies_that_a_graph_finds_are_not_taken_for_known(graph):
    model, optimizer = trained()
    a_changed_weight(model, optimizer)
    graph["captured"] = True
    optimizer.step()
    graph["captured"] = False
    # A real capture would have recorded the pass over the changed weight, and not made it.
    (terms,) = optimizer._plan.calls
    terms.energies.values.fill_(7.0)
    assert_value(optimizer)
    optimizer.step()
    terms.energies.values[:, 0].mul_(3.0)
    with pytest.raises(AssertionError):  # from now on they are known
        assert_value(optimizer)


def test_what_a_graph_uses_outlives_its_plan(graph):
    model, optimizer = trained()
    model[0].bias.grad = None
    graph["captured"] = True
    optimizer.step()
    graph["captured"] = False
    (terms,) = optimizer._plan.calls
    used = [
        weakref.ref(each)
        for each in (terms.labels, terms.energies.values, optimizer.state[model[0].weight]["exp_avg"])
    ]
    del terms
    optimizer.load_state_dict(optimizer.state_dict())
    flipped = {
        name: Partition(each.row_labels.flip(0), each.col_labels, each.num_clusters)
        for name, each in optimizer.enmeshment.partitions.items()
    }
    optimizer.enmeshment.load_state_dict(EnmeshmentLoss(model, flipped).state_dict())
    optimizer.step()
    gc.collect()
    assert all(each() is not None for each in used)


@pytest.mark.cuda
@needs_a_real_gpu
def test_replays_are_steps():
    torch.manual_seed(0)
    model = mlp(12, 20, 16, 6).to(DEVICE)
    models = model, copy.deepcopy(model)
    optimizers = [
        AdamW(
            each.parameters(),
            lr=torch.tensor(0.01, device=DEVICE),
            enmeshment=EnmeshmentLoss(each, 2),
            enmeshment_weight=2.0,
            keep=0.5,
        )
        for each in models
    ]
    gradients = [[torch.randn_like(parameter) for parameter in model.parameters()] for _ in range(5)]

    def give(grads):
        for each in models:
            for parameter, grad in zip(each.parameters(), grads, strict=True):
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(grad)

    give(gradients[0])
    for optimizer in optimizers:
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizers[0].step()
    for grads in gradients[1:]:
        give(grads)
        graph.replay()
        optimizers[1].step()
    for one, other in zip(*(each.parameters() for each in models), strict=True):
        assert torch.equal(one, other)
    assert_value(optimizers[0])
