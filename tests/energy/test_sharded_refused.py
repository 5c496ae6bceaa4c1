"""Where a whole tensor is needed, a DTensor is refused by name: to gather it unasked could wait for ever.

Each function that is given to ``processes(n).run`` runs in n real processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("sklearn")
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import modfast
from modfast import Circuit, Partition, compat, enmeshment, laplacian_eigenvalues
from modfast.arrays import require_whole
from modfast.estimators import SpectralClustering, SpectralCoclustering
from modfast.spectral import graph_embedding

NUMBERS = (0.0, 1, 0.0, 0.0, 1.0, 1.0)  # of a circuit, beside its masks
PLACEMENTS = (Shard(0), Replicate())


def told(call: Callable[[], Any]) -> str:
    """What a TypeError says."""
    with pytest.raises(TypeError) as raised:
        call()
    return str(raised.value)


def refusals() -> dict[str, str]:
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.rand(8, 8) + 0.1
    whole, labels = whole + whole.T, torch.arange(8) % 2
    messages = {}
    for placement in PLACEMENTS:
        weight, places = (distribute_tensor(each, mesh, [placement]) for each in (whole, labels))
        mask = distribute_tensor(whole > 1, mesh, [placement])
        calls: dict[str, Callable[[], Any]] = {
            "weight of spectral_cocluster": lambda w=weight: modfast.spectral_cocluster(w, 2),
            "adjacency of spectral_cluster": lambda w=weight: modfast.spectral_cluster(w, 2),
            "adjacency of graph_embedding": lambda w=weight: graph_embedding(w, 2),
            "adjacency of normalized_cut": lambda w=weight: modfast.normalized_cut(w, labels),
            "adjacency of normalized_cut, parted": lambda w=weight: modfast.normalized_cut(
                w, Partition(labels, labels, 2)
            ),
            "labels of normalized_cut": lambda p=places: modfast.normalized_cut(whole, p),
            "weights[0] of laplacian_eigenvalues": lambda w=weight: laplacian_eigenvalues(w, 2),
            "weights[1] of laplacian_eigenvalues": lambda w=weight: laplacian_eigenvalues([whole, w], 2),
            "layer of spectral_clustering": lambda w=weight: compat.spectral_clustering(w, 2),
            "cluster_U_indices[0] of clusterability": lambda p=places: compat.clusterability(
                whole, {0: p, 1: []}, {0: [0], 1: []}, 2
            ),
            "X of SpectralCoclustering": lambda w=weight: SpectralCoclustering(2).fit(w),
            "X of SpectralClustering": lambda w=weight: SpectralClustering(2).fit(w),
            "row_labels of Partition": lambda p=places: Partition(p, labels, 2),
            "labels of network_partitions": lambda p=places: modfast.network_partitions(
                torch.nn.Linear(4, 4), p
            ),
            "factors of block_scale": lambda w=weight: modfast.block_scale(
                whole, w, Partition(torch.arange(8), torch.arange(8), 8)
            ),
            "masks['fc'] of Circuit": lambda m=mask: Circuit(0, {"fc": m}, "loss", *NUMBERS),
        }
        for name, call in calls.items():
            messages[f"{name}, {placement}"] = told(call)
    return messages


def test_a_piece_is_refused_by_name(processes: Any) -> None:
    for messages in processes(2).run(refusals):
        assert len(messages) > 20
        for name, message in messages.items():
            argument = name.split(" of ")[0]
            assert message.startswith(f"{argument} must be a whole tensor, got a DTensor"), (name, message)
            assert "full_tensor()" in message


def refusals_of_models() -> dict[str, str]:
    mesh = init_device_mesh("cpu", (2,))
    inputs, labels = torch.randn(12, 8), torch.arange(12) % 4
    batches, partition = [(inputs, labels)], {"2": Partition.blocks((4, 6), 2)}
    messages = {}
    for placement in PLACEMENTS:
        model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 4, bias=False))
        circuit = modfast.find_circuit(model, inputs, 1)
        for layer in (model[0], model[2]):
            layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [placement]))
        calls: dict[str, Callable[[], Any]] = {
            "network_graph": lambda m=model: modfast.network_graph(m),
            "network_nodes": lambda m=model: modfast.network_nodes(m, ["0", "2"]),
            "network_graph of a run": lambda m=model: modfast.network_graph(m, example_inputs=inputs),
            "shuffle_test": lambda m=model: modfast.shuffle_test(m, 2, 2),
            "gradient_affinity": lambda m=model: modfast.gradient_affinity(
                m, "2", batches, nn.functional.cross_entropy
            ),
            "cluster_accuracy": lambda m=model: modfast.cluster_accuracy(m, batches, partition, "only"),
            "find_circuit": lambda m=model: modfast.find_circuit(m, inputs, 1),
            "find_circuit by the reference": lambda m=model: modfast.find_circuit(
                m, inputs, 1, method="reference"
            ),
            "Circuit.apply": lambda m=model, c=circuit: c.apply(m),
        }
        for name, call in calls.items():
            messages[f"{name}, {placement}"] = told(call)
    return messages


def test_a_model_of_pieces_is_refused_by_name(processes: Any) -> None:
    for messages in processes(2).run(refusals_of_models):
        for name, message in messages.items():
            assert message.startswith("model: "), (name, message)
            assert "must be a whole tensor, got a DTensor" in message, (name, message)
            assert "full_tensor()" in message


def refusals_of_the_specification() -> dict[str, str]:
    mesh, partition = init_device_mesh("cpu", (2,)), Partition.blocks((8, 8), 2)
    whole = torch.rand(8, 8) + 0.1
    weight = distribute_tensor(whole + whole.T, mesh, [Shard(0)])
    of = modfast.reference
    places = distribute_tensor(torch.arange(8) % 2, mesh, [Shard(0)])
    calls: dict[str, Callable[[], Any]] = {
        "weight of spectral_cocluster": lambda: of.spectral_cocluster(weight, 2),
        "adjacency of spectral_cluster": lambda: of.spectral_cluster(weight, 2),
        "weight of normalized_cut": lambda: of.normalized_cut(weight, partition),
        "labels of normalized_cut": lambda: of.normalized_cut(whole + whole.T, places),
        "weights[0] of laplacian_eigenvalues": lambda: of.laplacian_eigenvalues(weight, 2),
        "weight of enmeshment": lambda: of.enmeshment(weight, partition),
        "weight of clusterability": lambda: of.clusterability(weight, partition),
        "weight of block_energy": lambda: of.block_energy(weight, partition),
        "weight of block_inner": lambda: of.block_inner(weight, weight, partition),
        "weight of block_scale": lambda: of.block_scale(weight, torch.ones(2, 2), partition),
    }
    return {name: told(call) for name, call in calls.items()}


def test_the_specification_refuses_pieces_too(processes: Any) -> None:
    for messages in processes(2).run(refusals_of_the_specification):
        for name, message in messages.items():
            argument = name.split(" of ")[0]
            assert message.startswith(f"{argument} must be a whole tensor, got a DTensor"), (name, message)


def transforms() -> dict[str, str]:
    mesh, partition = init_device_mesh("cpu", (2,)), Partition.blocks((8, 6), 2)
    weight = distribute_tensor(torch.rand(8, 6), mesh, [Shard(0)])
    grad = torch.func.grad
    calls: dict[str, Callable[[], Any]] = {
        "enmeshment": lambda: grad(lambda w: enmeshment(w, partition))(weight),
        "of two orders": lambda: grad(grad(lambda w: enmeshment(w, partition)))(weight),
        "clusterability": lambda: torch.func.vjp(lambda w: modfast.clusterability(w, partition), weight),
        "block_energy": lambda: grad(lambda w: modfast.block_energy(w, partition).sum())(weight),
        "block_inner": lambda: grad(lambda w: modfast.block_inner(w, w, partition).sum())(weight),
        "block_scale": lambda: grad(lambda w: modfast.block_scale(w, torch.ones(2, 2), partition))(weight),
        "a constant": lambda: grad(lambda x: (x * enmeshment(weight, partition)).sum())(torch.tensor(2.0)),
        "laplacian_eigenvalues": lambda: grad(lambda w: laplacian_eigenvalues(w, 2).sum())(weight),
    }
    return {name: told(call) for name, call in calls.items()}


def test_transforms_of_pieces_are_refused(processes: Any) -> None:
    for messages in processes(2).run(transforms):
        for name, message in messages.items():
            assert "must be no DTensor within a transform of torch.func" in message, (name, message)
            assert "full_tensor()" in message


def one_process_alone() -> str | None:
    """Nothing is gathered: the other process calls nothing."""
    mesh = init_device_mesh("cpu", (2,))
    weight = distribute_tensor(torch.rand(8, 8), mesh, [Shard(0)])
    rank = torch.distributed.get_rank()
    return told(lambda: modfast.spectral_cocluster(weight, 2)) if rank == 0 else None


def test_one_process_alone_does_not_wait_for_the_others(processes: Any) -> None:
    message, nothing = processes(2).run(one_process_alone)
    assert "full_tensor()" in message
    assert nothing is None


def the_whole_one() -> None:
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.rand(70, 80)
    piece = distribute_tensor(whole, mesh, [Shard(0)])
    assert modfast.spectral_cocluster(piece.full_tensor(), 2) == modfast.spectral_cocluster(whole, 2)
    partition = Partition.blocks((70, 80), 2)
    torch.testing.assert_close(enmeshment(piece, partition), enmeshment(whole, partition))


def test_the_whole_tensor_is_taken(processes: Any) -> None:
    processes(2).run(the_whole_one)


def forward_mode() -> None:
    mesh, partition = init_device_mesh("cpu", (2,)), Partition.blocks((8, 6), 2)
    weight, tangent = (distribute_tensor(torch.rand(8, 6), mesh, [Shard(0)]) for _ in range(2))
    leaf = weight.detach().requires_grad_()
    value = enmeshment(leaf, partition)
    with forward_ad.dual_level():
        # PyTorch's own limit. Without a tangent the weight is a constant, with it there is no way.
        with pytest.raises(NotImplementedError):
            enmeshment(forward_ad.make_dual(weight, tangent), partition)
        torch.testing.assert_close(enmeshment(weight, partition), enmeshment(weight.full_tensor(), partition))
        slope = forward_ad.make_dual(torch.ones(()), torch.ones(()))
        with pytest.raises(NotImplementedError):
            torch.autograd.grad(value, leaf, slope)


@pytest.mark.filterwarnings("ignore")
def test_forward_mode_is_refused_for_pieces(processes: Any) -> None:
    processes(2).run(forward_mode)


def test_whole_tensors_and_other_things_pass() -> None:
    for value in (torch.ones(2), torch.nn.Parameter(torch.ones(2)), [1.0], None):
        require_whole("value", value)
