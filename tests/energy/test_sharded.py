"""Weights that lie in pieces on several processes (DTensor): the loss and gradient of the whole weight.

Each function that is given to ``processes(n).run`` runs in n real processes, of which each also knows the
whole weights and computes what is expected.
"""

import copy

import pytest
import torch
from sharded_helpers import S0, S1, R, count, layout_name
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from modfast import EnmeshmentLoss, Partition, block_energy, clusterability, enmeshment

# Sums of float64 in another order, and for float32 also rounded to it at the end.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
# (mesh, placements on it). The meshes of four have both sides above one, as FSDP with tensor parallelism has.
LAYOUTS = [
    *[((size,), (placement,)) for size in (2, 3) for placement in (S0, S1, R)],
    *[((2, 1), pair) for pair in ((S0, S1), (S0, S0), (R, S1))],
    *[((1, 3), pair) for pair in ((S1, S0), (S1, S1), (S0, R))],
    *[((2, 2), pair) for pair in ((S0, S0), (S0, S1), (S1, S1), (R, S0), (S1, R))],
]


def random_partition(shape, num_clusters=3):
    """Some rows and columns are in no cluster."""
    return Partition(*(torch.randint(-1, num_clusters, (length,)) for length in shape[:2]), num_clusters)


def assert_same(given, expected, whole):
    """``given``, of a tensor in pieces, is ``expected`` of the whole one; pieces where it is a gradient."""
    if isinstance(given, DTensor):
        given = given.full_tensor()
    assert type(given) is Tensor
    tolerance = TOLERANCE[whole.dtype]
    torch.testing.assert_close(given, expected, rtol=tolerance, atol=0)


def assert_same_gradient(given, weight, expected):
    if isinstance(weight, DTensor):
        assert isinstance(given, DTensor)
        assert given.placements == weight.placements
        assert given.device_mesh == weight.device_mesh
        assert given.shape == weight.shape
    assert_same(given, expected, expected)


def in_all(values):
    """What every process has, as bits: a step that differed by rounding would let the weights drift apart."""
    return [value.detach().numpy().tobytes() for value in values]


# --- the functions


def functions_of_pieces(mesh, placements, shape):
    mesh, values = init_device_mesh("cpu", mesh), []
    for dtype in TOLERANCE:
        whole = torch.randn(shape, dtype=dtype, requires_grad=True)
        pieces = distribute_tensor(whole.detach(), mesh, placements).requires_grad_()
        partition = random_partition(shape)
        for function in (block_energy, enmeshment, clusterability):
            expected, given = function(whole, partition), function(pieces, partition)
            assert type(given) is Tensor
            assert_same(given, expected, whole)
            towards = torch.randn_like(expected)
            (wanted,) = torch.autograd.grad(expected, whole, towards)
            (gradient,) = torch.autograd.grad(given, pieces, towards)
            assert_same_gradient(gradient, pieces, wanted)
            values.append(given)
    return in_all(values)


@pytest.mark.parametrize(("mesh", "placements"), LAYOUTS, ids=layout_name)
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((7, 5), id="uneven"),
        pytest.param((2, 9), id="a process without a row"),
        pytest.param((9, 1), id="a process without a column"),
        pytest.param((4, 6, 3, 2), id="convolution"),
    ],
)
def test_functions_of_pieces_are_those_of_the_whole(processes, mesh, placements, shape):
    first, *others = processes(count(mesh)).run(functions_of_pieces, mesh, placements, shape)
    assert all(other == first for other in others)


def special_weights(mesh, placements):
    mesh = init_device_mesh("cpu", mesh)
    partition = random_partition((6, 6))
    for whole in (torch.zeros(6, 6), torch.full((6, 6), float("inf")), torch.eye(6) * float("nan")):
        pieces = distribute_tensor(whole, mesh, placements).requires_grad_()
        expected = enmeshment(whole.requires_grad_(), partition)
        given = enmeshment(pieces, partition)
        torch.testing.assert_close(given, expected, equal_nan=True)
        expected.backward()
        given.backward()
        torch.testing.assert_close(pieces.grad.full_tensor(), whole.grad, equal_nan=True)


def test_zero_and_not_finite_weights(processes):
    processes(2).run(special_weights, (2,), (S0,))


def twice_differentiated(mesh, placements):
    mesh = init_device_mesh("cpu", mesh)
    whole = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    pieces = distribute_tensor(whole.detach(), mesh, placements).requires_grad_()
    direction = torch.randn_like(whole)
    partition = random_partition((7, 5))
    (gradient,) = torch.autograd.grad(enmeshment(whole, partition), whole, create_graph=True)
    (wanted,) = torch.autograd.grad((gradient * direction).sum(), whole)
    (gradient,) = torch.autograd.grad(enmeshment(pieces, partition), pieces, create_graph=True)
    along = (gradient * distribute_tensor(direction, mesh, placements)).sum().full_tensor()
    (given,) = torch.autograd.grad(along, pieces)
    assert given.placements == pieces.placements
    torch.testing.assert_close(given.full_tensor(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("mesh", "placements"), [LAYOUTS[0], LAYOUTS[4]], ids=layout_name)
def test_second_derivatives(processes, mesh, placements):
    processes(count(mesh)).run(twice_differentiated, mesh, placements)


class Traffic(TorchDispatchMode):
    """How many numbers each message between processes holds."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented  # until it has become operations on pieces, and messages
        if "c10d" in func.namespace and not func.name().endswith(("wait_tensor", "_wrap_tensor_autograd")):
            flat = [each for arg in args for each in (arg if isinstance(arg, (list, tuple)) else [arg])]
            self.messages.append((func.name(), sum(x.numel() for x in flat if isinstance(x, Tensor))))
        return func(*args, **(kwargs or {}))


def traffic(placements):
    mesh = init_device_mesh("cpu", (2,))
    weight = distribute_tensor(torch.randn(64, 48), mesh, placements)
    model = nn.Linear(48, 64)
    model.weight = nn.Parameter(weight)
    loss = EnmeshmentLoss(model, 3)
    found = []
    for what in (lambda: loss().backward(), lambda: loss.accumulate_grad_(0.7), loss.clusterability):
        with Traffic() as seen:
            what()
        found.append(seen.messages)
    with Traffic() as seen:  # that it sees what it should
        weight.full_tensor()
    return found, seen.messages


@pytest.mark.parametrize("placement", [S0, S1], ids=str)
def test_block_energies_cross_the_network_and_weights_do_not(processes, placement):
    for found, everything in processes(2).run(traffic, (placement,)):
        assert sum(numbers for _, numbers in everything) >= 64 * 48 // 2
        for messages in found:
            assert messages
            # Three clusters, and one for what is in none.
            assert all(numbers <= 4 * 4 for _, numbers in messages), messages
            assert not any("gather" in name for name, _ in messages), messages


# --- EnmeshmentLoss


def layers(dtype=torch.float64):
    """One of each kind; the transposed convolution is stored as (in, out)."""
    return nn.ModuleDict(
        {
            "linear": nn.Linear(5, 7),
            "conv": nn.Conv2d(4, 6, (3, 2)),
            "transposed": nn.ConvTranspose2d(7, 5, 2),
            "thin": nn.Linear(6, 2),
        }
    ).to(dtype)


def spread(model, mesh, placements):
    """A copy of the model whose weights of these names are in pieces."""
    model = copy.deepcopy(model)
    for name, each in placements.items():
        weight = model[name].weight
        pieces = distribute_tensor(weight.detach(), mesh, each)
        model[name].weight = nn.Parameter(pieces, requires_grad=weight.requires_grad)
    return model


def partitions_of(model):
    weights = EnmeshmentLoss(model, 1, "*").weights()
    return {name: random_partition(weight.shape) for name, weight in weights.items()}


def assert_same_gradients(pieces, whole):
    for (name, weight), expected in zip(pieces.named_parameters(), whole.parameters(), strict=True):
        if expected.grad is None:
            assert weight.grad is None, name
        else:
            assert_same_gradient(weight.grad, weight, expected.grad)


def losses_of_pieces(mesh, placements, reduction):
    mesh, values = init_device_mesh("cpu", mesh), []
    for dtype in TOLERANCE:
        whole = layers(dtype)
        pieces = spread(whole, mesh, placements)
        partitions = partitions_of(whole)
        expected = EnmeshmentLoss(whole, partitions, reduction=reduction)
        given = EnmeshmentLoss(pieces, partitions, reduction=reduction)
        assert_same(given(), expected(), whole["linear"].weight)
        expected().sum().backward()
        given().sum().backward()
        assert_same_gradients(pieces, whole)
        # Added to the gradients of just now.
        wanted = expected.accumulate_grad_(0.7)
        assert_same(given.accumulate_grad_(0.7), wanted, whole["linear"].weight)
        assert_same_gradients(pieces, whole)
        for name, share in expected.clusterability().items():
            assert given.clusterability()[name] == pytest.approx(share, rel=TOLERANCE[dtype])
        values.append(given())
        # The first gradient of all.
        whole.zero_grad()
        pieces.zero_grad()
        expected.accumulate_grad_(-2.0)
        given.accumulate_grad_(-2.0)
        assert_same_gradients(pieces, whole)
    return in_all(values)


MIXTURES = [
    ((2,), {"linear": [S0], "conv": [S1], "transposed": [S0], "thin": [R]}),
    ((3,), {"linear": [S1], "conv": [S0], "transposed": [S1], "thin": [S0]}),
    ((3,), {"linear": [S0], "thin": [S0]}),  # the others are ordinary tensors
    ((1, 2), {"linear": [S0, S1], "conv": [R, S0], "transposed": [S1, S0], "thin": [S0, S0]}),
    ((2, 2), {"linear": [S0, S1], "conv": [S0, S0], "transposed": [S1, S0], "thin": [S0, R]}),
]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("mesh", "placements"), MIXTURES, ids=["0", "1", "2", "3", "4"])
def test_layers_of_different_placements_in_one_loss(processes, mesh, placements, reduction):
    first, *others = processes(count(mesh)).run(losses_of_pieces, mesh, placements, reduction)
    assert all(other == first for other in others)


def with_a_frozen_layer():
    mesh = init_device_mesh("cpu", (2,))
    whole = layers()
    whole["conv"].weight.requires_grad_(False)
    pieces = spread(whole, mesh, {"linear": [S0], "conv": [S0], "transposed": [S0], "thin": [S0]})
    partitions = partitions_of(whole)
    expected, given = (EnmeshmentLoss(model, partitions) for model in (whole, pieces))
    wanted = expected.accumulate_grad_(0.7)
    assert_same(given.accumulate_grad_(0.7), wanted, wanted)
    assert_same_gradients(pieces, whole)
    assert pieces["conv"].weight.grad is None


def test_a_frozen_layer_in_pieces_counts_and_gets_no_gradient(processes):
    processes(2).run(with_a_frozen_layer)
