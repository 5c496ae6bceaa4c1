"""FSDP keeps a model's parameters itself: nothing puts others in their place, and reading still works.

Each function that is given to ``processes(n).run`` runs in n real processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import modfast
from modfast import Circuit, EnmeshmentLoss, Partition
from modfast.layers.readable import UnsupportedWeightError

INPUTS = torch.linspace(-1, 1, 80).reshape(10, 8)
LABELS = torch.arange(10) % 4
FULL = StateDictOptions(full_state_dict=True)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def first(use_orig_params: bool) -> FullyShardedDataParallel:
    return FullyShardedDataParallel(network(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))


def part_wrapped() -> nn.Module:
    model = network()
    model[0] = FullyShardedDataParallel(model[0], use_orig_params=True, device_id=torch.device("cpu"))
    return model


def within() -> nn.Module:
    """A model inside the wrapper, which knows nothing of it."""
    wrapped = first(True)
    inner: nn.Module = wrapped.module
    inner.__dict__["_outer"] = wrapped
    return inner


def evaluated() -> nn.Module:
    """After an evaluation the root's weights are whole, until they are freed."""
    model = fully_shard(network())
    model(INPUTS)
    return model


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "FSDP1": lambda: first(True),
    "FSDP1, flat": lambda: first(False),
    "FSDP1, a part": part_wrapped,
    "FSDP1, from within": within,
    "FSDP2": lambda: fully_shard(network()),
    "FSDP2, evaluated": evaluated,
}


def uses(model: nn.Module) -> dict[str, Callable[[], object]]:
    """Everything that would put tensors in the place of the model's, or copy it."""
    masks = {"0": torch.ones(8, 8, dtype=torch.bool)}
    circuit = Circuit(0, masks, "loss", 0.0, 1, 0.0, 0.0, 1.0, 1.0)
    partitions = {"0": Partition.blocks((8, 8), 2)}
    name = next(name for name, _ in model.named_parameters())
    return {
        "cluster_accuracy": lambda: modfast.cluster_accuracy(model, (INPUTS, LABELS), partitions, "only"),
        "class_accuracy": lambda: modfast.class_accuracy(model, (INPUTS, LABELS), {name: torch.zeros(8, 8)}),
        "gradient_affinity": lambda: modfast.gradient_affinity(
            model, "0", [(INPUTS, LABELS)], nn.functional.cross_entropy
        ),
        "network_graph": lambda: modfast.network_graph(model, example_inputs=INPUTS),
        "find_circuit": lambda: modfast.find_circuit(model, INPUTS, 1),
        "apply": lambda: circuit.apply(model),
    }


def state_of(model: nn.Module) -> dict[str, Tensor]:
    model = model.__dict__.get("_outer", model)
    return {name: value.clone() for name, value in get_model_state_dict(model, options=FULL).items()}


def refusals() -> list[str]:
    faults = []
    for kind, make in MAKERS.items():
        model = make()
        before, expected = state_of(model), model.__dict__.get("_outer", model)(INPUTS)
        for use, call in uses(model).items():
            try:
                call()
                faults.append(f"{kind}, {use}: no error")
            except TypeError as error:
                if not ("FSDP" in str(error) and "get_model_state_dict" in str(error)):
                    faults.append(f"{kind}, {use}: {error}")
            after = state_of(model)
            if not all(torch.equal(before[name], after[name]) for name in before):
                faults.append(f"{kind}, {use}: changed the weights")
        if not torch.equal(model.__dict__.get("_outer", model)(INPUTS), expected):
            faults.append(f"{kind}: the model no longer works")
    return faults


@pytest.mark.parametrize("size", [1, 2])
def test_nothing_is_put_in_the_place_of_what_fsdp_keeps(processes: Any, size: int) -> None:
    for faults in processes(size).run(refusals):
        assert faults == []


def reading() -> dict[str, float | str]:
    found: dict[str, float | str] = {"right": float(EnmeshmentLoss(network(), 2)())}
    for flat in (False, True):
        model = first(not flat)
        with FullyShardedDataParallel.summon_full_params(model):
            found[f"whole, flat: {flat}"] = float(EnmeshmentLoss(model, 2)())
            modfast.network_graph(model)
        try:
            found[f"in pieces, flat: {flat}"] = float(EnmeshmentLoss(model, 2)())
        except UnsupportedWeightError as error:
            found[f"in pieces, flat: {flat}"] = str(error)
    return found


def test_a_loss_reads_what_fsdp_shows_whole(processes: Any) -> None:
    for found in processes(2).run(reading):
        right = found["right"]
        for flat in (False, True):
            assert found[f"whole, flat: {flat}"] == pytest.approx(right)
            said = found[f"in pieces, flat: {flat}"]
            assert isinstance(said, str)
            assert said.startswith("layer '0' (Linear) cannot be read")
            assert "summon_full_params" in said


def computed() -> dict[str, str]:
    utils = nn.utils
    changes: dict[str, Callable[[nn.Module], object]] = {
        "weight_norm": utils.parametrizations.weight_norm,
        "old weight_norm": utils.weight_norm,
        "spectral_norm": utils.parametrizations.spectral_norm,
        "pruned": lambda layer: utils.prune.l1_unstructured(layer, "weight", 0.4),
    }
    said = {}
    plain = float(EnmeshmentLoss(network(), 2, layers=["2"])())
    for kind, change in changes.items():
        model = network()
        change(model[0])
        fully_shard(model)
        # Another layer's loss does not ask for this one's weight.
        assert float(EnmeshmentLoss(model, 2, layers=["2"])()) == pytest.approx(plain), kind
        for step in (lambda loss: loss().backward(), lambda loss: loss.accumulate_grad_(0.7)):
            with pytest.raises(UnsupportedWeightError) as raised:
                step(EnmeshmentLoss(model, 2))
            said[kind] = str(raised.value)
    return said


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_cannot_be_computed_from_pieces_is_refused_by_name(processes: Any) -> None:
    for found in processes(2).run(computed):
        assert len(found) == 4
        for message in found.values():
            assert message.startswith("layer '0' (")
            assert "spread over processes (DTensor)" in message
