"""Canonical names: the same layers, by the same names, whatever a model is wrapped in."""

import copy

import pytest
import torch
import torch.distributed as dist
from computed_models import lora, network, peft
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from modfast import (
    EnmeshmentLoss,
    Partition,
    cluster_accuracy,
    find_circuit,
    gradient_affinity,
    label_semanticity,
    load_partitions,
    network_graph,
    save_partitions,
    search_space_reduction,
)
from modfast.layers.layer import find_layers
from modfast.layers.names import match_names, named_modules, spellings


class Net(nn.Module):
    """With a child that is called as wrappers call theirs."""

    def __init__(self):
        super().__init__()
        self.module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.module(x).relu())


NAMES = ["module.0", "module.2", "head"]


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A process group of this process alone, which DDP and FSDP ask for."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def checkpointed(model):
    model.module = checkpoint_wrapper(model.module)
    model.head = checkpoint_wrapper(model.head)
    return model


def fully_sharded(model):
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


def compiled_inside(model):
    model.head = torch.compile(model.head)
    return torch.compile(model)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "compiled": torch.compile,
    "compiled inside": compiled_inside,
    "averaged": AveragedModel,
    "checkpointed": checkpointed,
    "several": lambda model: nn.DataParallel(torch.compile(checkpointed(model))),
}
if peft is not None:
    WRAPPERS["adapted"] = lambda model: lora(model, ["module.0", "module.2", "head"])
    WRAPPERS["adapted and more"] = lambda model: nn.DataParallel(lora(model, ["head"]))


@pytest.mark.parametrize("kind", WRAPPERS)
def test_names_are_those_of_the_plain_model(kind, group):
    wrapped = WRAPPERS[kind](Net())
    assert [layer.name for layer in find_layers(wrapped)] == NAMES
    assert list(EnmeshmentLoss(wrapped, 2).partitions) == NAMES
    assert [name for name, _ in named_modules(Net())] == [name for name, _ in named_modules(wrapped)]


@pytest.mark.parametrize("kind", WRAPPERS)
def test_partitions_of_a_plain_model_fit_the_wrapped_one_and_back(kind, group, tmp_path):
    plain = Net()
    path = tmp_path / "partitions.npz"
    save_partitions(path, EnmeshmentLoss(plain, 3).partitions)
    wrapped = WRAPPERS[kind](copy.deepcopy(plain))
    loss = EnmeshmentLoss(wrapped, load_partitions(path))
    assert list(loss.partitions) == NAMES
    save_partitions(path, loss.partitions)
    assert EnmeshmentLoss(plain, load_partitions(path)).partitions == loss.partitions
    # Whoever has the names that PyTorch shows may give them.
    shown = [
        name.removesuffix(".weight")
        for name, each in wrapped.named_parameters()
        if each.dim() == 2 and "lora" not in name
    ]
    partition = Partition.blocks((4, 8), 2)
    assert list(EnmeshmentLoss(wrapped, {shown[-1]: partition}).partitions) == ["head"]
    assert list(EnmeshmentLoss(wrapped, 2, layers=shown).partitions) == NAMES
    assert loss.partitions[shown[0]] == loss.partitions["module.0"]


@pytest.mark.parametrize("kind", [kind for kind in WRAPPERS if "compiled" not in kind and kind != "several"])
def test_functions_take_wrapped_models(kind, group):
    plain = Net()
    wrapped = WRAPPERS[kind](copy.deepcopy(plain)).eval()
    if "adapted" in kind:
        plain = (
            wrapped.merge_and_unload()
            if kind == "adapted"
            else copy.deepcopy(wrapped).module.merge_and_unload()
        )
        wrapped = WRAPPERS[kind](copy.deepcopy(plain)).eval()
        wrapped.load_state_dict({n: p * ("lora_B" not in n) for n, p in wrapped.state_dict().items()})
    inputs, labels = torch.randn(30, 6), torch.arange(30) % 4
    partitions = EnmeshmentLoss(plain, 2, layers="module.2").partitions
    for function in (
        lambda model: EnmeshmentLoss(model, 2)(),
        lambda model: cluster_accuracy(model, (inputs, labels), partitions, "only"),
        lambda model: label_semanticity(model, (inputs, labels), ["module.2", "head"], 5)["head"],
        lambda model: search_space_reduction(model, partitions, example_inputs=inputs),
        lambda model: gradient_affinity(model, "head", [(inputs, labels)], nn.functional.cross_entropy),
        lambda model: network_graph(model, example_inputs=inputs).to_dense(),
        lambda model: find_circuit(model, inputs, 1).masks["head"],
        lambda model: find_circuit(plain, inputs, 1).apply(model)(inputs),
    ):
        torch.testing.assert_close(function(wrapped), function(plain), rtol=1e-4, atol=1e-5)


def test_a_flattened_weight_is_named(group):
    """A process that is alone has whole weights, but in one flat parameter without use_orig_params."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = fully_sharded(Net())
    assert [layer.name for layer in find_layers(model)] == NAMES
    flat = FullyShardedDataParallel(Net(), use_orig_params=False, device_id=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"layer 'module.0' \(Linear\) cannot be read"):
        EnmeshmentLoss(flat, 2)


@pytest.mark.skipif(peft is None, reason="needs peft")
def test_pieces_of_an_adapter_are_not_shown():
    model = lora(network(), ["1"])
    assert [name for name, _ in named_modules(model)] == ["", "0", "1", "2", "3"]
    for name in ("base_model.model.1.base_layer", "base_model.model.1.base_layer.weight", "1.base_layer"):
        assert list(EnmeshmentLoss(model, 2, layers=name).partitions) == ["1"]
        assert list(EnmeshmentLoss(network(), 2, layers=name).partitions) == ["1"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fc1", ["fc1"]),
        ("module.fc1", ["module.fc1", "fc1"]),
        ("module.module.fc1", ["module.module.fc1", "module.fc1", "fc1"]),
        ("_orig_mod.net._checkpoint_wrapped_module.fc1", ["net.fc1"]),
        ("base_model.model.net.fc1.base_layer.weight", ["base_model.model.net.fc1.weight", "net.fc1.weight"]),
        (
            "module._orig_mod.base_model.model.*.fc1",
            ["module.base_model.model.*.fc1", "base_model.model.*.fc1", "*.fc1"],
        ),
    ],
)
def test_spellings(name, expected):
    assert spellings(name)[-len(expected) :] == expected
    assert spellings(name)[0] == name


def test_what_is_given_comes_before_what_is_left_of_it():
    names = [["module.fc"], ["fc"], ["other[0]"], ["other[1]"]]
    assert match_names(names, "module.fc", "layers") == [0]
    assert match_names(names, "module.f?", "layers") == [0]
    assert match_names(names, "_orig_mod.fc", "layers") == [1]
    assert match_names(names, "other[*]", "layers") == [2, 3]
    with pytest.raises(ValueError, match=r"layers: 'fc9' matches no layer .*'module.fc', 'fc', 'other\[0\]'"):
        match_names(names, "fc9", "layers")
    with pytest.raises(ValueError, match=r"'name59', and 40 more"):
        match_names([[f"name{i}"] for i in range(100)], "fc", "layers")
