"""Every argument takes a layer's name in every way that others take it, and any iterable of names."""

import copy

import pytest
import torch
from computed_models import lora, peft
from torch import nn

import modfast
from modfast import Circuit, EnmeshmentLoss, Partition

INPUTS, LABELS = torch.linspace(-1, 1, 80).reshape(10, 8), torch.arange(10) % 4
HALVES = Partition.blocks((8, 8), 2)
SPELLINGS = ["0", "0.weight", "module.0", "_orig_mod.0", "module._orig_mod.0.weight"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def some_circuits():
    masks = [{"0": torch.rand(8, 8) < 0.5, "2": torch.rand(4, 8) < 0.5} for _ in range(2)]
    return [Circuit(label, mask, "loss", 0.0, 1, 0.0, 0.0, 1.0, 1.0) for label, mask in enumerate(masks)]


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_layer_goes_by_the_same_names_everywhere(name):
    model, circuits = network(), some_circuits()
    data = (INPUTS, LABELS)
    expected = modfast.cluster_accuracy(model, data, {"0": HALVES}, "only")
    assert torch.equal(modfast.cluster_accuracy(model, data, {name: HALVES}, "only"), expected)
    shares = modfast.cluster_shares(circuits, {name: HALVES})
    assert list(shares) == [name]
    assert torch.equal(shares[name], modfast.cluster_shares(circuits, {"0": HALVES})["0"])
    told = modfast.cluster_information(circuits, {"0": HALVES})
    assert modfast.cluster_information(circuits, {name: HALVES}) == told
    assert modfast.cluster_information(circuits, {"0": HALVES}, name) == told
    assert modfast.cluster_information(circuits, {name: HALVES}, "0") == told
    assert torch.equal(modfast.circuit_overlap(circuits, name), modfast.circuit_overlap(circuits, "0"))


def test_a_layer_of_circuits_is_named_once():
    for call in (modfast.cluster_shares, modfast.cluster_information):
        with pytest.raises(ValueError, match=r"partitions: layer '0' is named twice, as '0.weight' too"):
            call(some_circuits(), {"0": HALVES, "0.weight": HALVES})


@pytest.mark.parametrize(
    "wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel, lambda model: model]
)
@pytest.mark.parametrize("name", ["0.weight", "module.0.weight", "_orig_mod.0.weight"])
def test_a_parameter_goes_by_the_names_with_and_without_wrappers(wrap, name):
    zeros = torch.zeros(8, 8)
    expected = modfast.class_accuracy(network(), (INPUTS, LABELS), {"0.weight": zeros})
    model = wrap(network())
    assert torch.equal(modfast.class_accuracy(model, (INPUTS, LABELS), {name: zeros}), expected)
    with pytest.raises(ValueError, match=r"parameters: '0' is no parameter or buffer of the model"):
        modfast.class_accuracy(model, (INPUTS, LABELS), {"0": zeros})


def test_a_models_own_part_may_be_called_as_a_wrapper():
    model = nn.ModuleDict({"module": nn.ModuleDict({"fc": nn.Linear(8, 4)}), "fc": nn.Linear(8, 4)})
    model.forward = lambda x: model["fc"](x) + 0 * model["module"]["fc"](x)
    zeros = {"fc.weight": torch.zeros(4, 8), "fc.bias": torch.tensor([0.0, 1, 0, 0])}
    assert modfast.class_accuracy(model, (INPUTS, LABELS), zeros).tolist() == [0, 1, 0, 0]


@pytest.mark.skipif(peft is None, reason="needs peft")
def test_what_an_adapter_wraps_is_replaced_by_its_own_name_only():
    model = lora(network(), ["0"])
    data, zeros = (INPUTS, LABELS), torch.zeros(8, 8)
    with pytest.raises(ValueError, match=r"'0.weight' is no parameter or buffer"):
        modfast.class_accuracy(model, data, {"0.weight": zeros})
    modfast.class_accuracy(model, data, {"base_model.model.0.base_layer.weight": zeros})


def test_one_tensor_by_two_names_is_given_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    data = (torch.rand(10, 4), LABELS)
    same = model.state_dict() | {"0.weight": torch.eye(4), "1.weight": torch.eye(4)}
    modfast.class_accuracy(model, data, same)
    with pytest.raises(ValueError, match=r"parameters: '0.weight' and '1.weight' are one tensor"):
        modfast.class_accuracy(model, data, same | {"1.weight": torch.zeros(4, 4)})


WANTED = {
    "list": lambda: ["0", "2"],
    "tuple": lambda: ("0", "2"),
    "keys": lambda: {"0": 1, "2": 2}.keys(),
    "mapping": lambda: {"0": 1, "2": 2},
    "generator": lambda: (name for name in ("0", "2")),
}


@pytest.mark.parametrize("kind", [*WANTED, "set"])
def test_names_come_in_any_iterable(kind):
    make = (WANTED | {"set": lambda: {"2", "0"}})[kind]
    model = network()
    assert list(EnmeshmentLoss(model, 2, layers=make()).partitions) == ["0", "2"]
    assert list(EnmeshmentLoss(model, 2, layers=["*"], exclude=iter(["2"])).partitions) == ["0"]
    circuits = modfast.find_circuits(model, INPUTS, LABELS, layers=make())
    assert [list(circuit.masks) for circuit in circuits] == [["0", "2"]] * 4


@pytest.mark.parametrize("kind", WANTED)
def test_a_chain_is_named_in_any_ordered_iterable(kind):
    model = network()
    expected = modfast.network_graph(model).to_dense()
    assert torch.equal(modfast.network_graph(model, layers=WANTED[kind]()).to_dense(), expected)
    assert modfast.shuffle_test(model, 2, 2, layers=WANTED[kind](), n_init=1).p_value > 0


def test_a_chain_is_not_named_in_a_set():
    with pytest.raises(TypeError, match=r"layers must be in order, got a set, which has none"):
        modfast.network_graph(network(), layers={"0", "2"})


@pytest.mark.parametrize("given", [nn.Linear, [nn.Linear], 3, ["0", 3], None.__class__])
def test_what_chooses_no_layer(given):
    with pytest.raises(
        TypeError, match=r"layers must hold names, globs, modules or functions of name and shape"
    ):
        EnmeshmentLoss(network(), 2, layers=given)


@pytest.mark.skipif(peft is None, reason="needs peft")
@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns about itself
def test_the_loss_of_an_adapted_layer_compiles_as_one_graph():
    torch._dynamo.reset()
    loss = EnmeshmentLoss(lora(copy.deepcopy(network()), ["0"]), 2)
    compiled = torch.compile(lambda: loss(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(), loss())
