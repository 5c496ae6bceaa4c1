"""What is no plain tensor of numbers is refused by name, wherever a weight is read."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import modfast
from modfast import EnmeshmentLoss, Partition
from modfast.layers.layer import find_layer, find_layers
from modfast.layers.readable import UnsupportedWeightError

INPUTS, LABELS = torch.linspace(-1, 1, 80).reshape(10, 8), torch.arange(10) % 4


def network():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


class Int8Linear(nn.Linear):
    """As quantisers keep it: integers, and a scale for each row."""

    def __init__(self):
        super().__init__(8, 8)
        scale = self.weight.detach().abs().amax(1, keepdim=True) / 127
        packed = (self.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def _packed():
    model = network()
    model[0] = Int8Linear()
    return model


def _float8():
    model = network()
    weight = model[0].weight.detach().to(torch.float8_e4m3fn)
    model[0].weight = nn.Parameter(weight, requires_grad=False)
    return model


def _lazy():
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 4))


def _fake_quantised():
    import torch.ao.nn.qat as qat
    from torch.ao.quantization import get_default_qat_qconfig

    model = network()
    model[0].qconfig = get_default_qat_qconfig("fbgemm")
    model[0] = qat.Linear.from_float(model[0])
    model(INPUTS)
    return model


class Failing(nn.Module):
    def forward(self, weight):
        raise RuntimeError("not today")


def _failing():
    model = network()
    parametrize.register_parametrization(model[0], "weight", Failing(), unsafe=True)
    return model


MAKERS = {
    "packed": (_packed, r"packed or quantised \(torch.int8\)"),
    "float8": (_float8, r"packed or quantised \(torch.float8_e4m3fn\)"),
    "lazy": (_lazy, "has no shape yet: call the model once"),
    "fake-quantised": (_fake_quantised, "is quantised in each forward pass"),
}

USES = {
    "loss": lambda model: EnmeshmentLoss(model, 2),
    "network_graph": modfast.network_graph,
    "network_graph of names": lambda model: modfast.network_graph(model, layers=["0", "2"]),
    "shuffle_test": lambda model: modfast.shuffle_test(model, 2, 2, n_init=1),
    "gradient_affinity": lambda model: modfast.gradient_affinity(
        model, "0", [(INPUTS, LABELS)], nn.functional.cross_entropy
    ),
    "cluster_accuracy": lambda model: modfast.cluster_accuracy(
        model, (INPUTS, LABELS), {"0": Partition.blocks((8, 8), 2)}, "only"
    ),
    "find_circuit": lambda model: modfast.find_circuit(model, INPUTS, 1, method="reference"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", MAKERS)
def test_it_is_refused_alike_everywhere(kind, use):
    make, reason = MAKERS[kind]
    with pytest.raises(
        UnsupportedWeightError, match=rf"^layer '0' \(\w+\) cannot be read: its weight.*{reason}"
    ):
        USES[use](make())


@pytest.mark.parametrize("use", ["network_graph", "shuffle_test", "gradient_affinity", "cluster_accuracy"])
def test_a_weight_without_numbers_is_refused_where_they_are_needed(use):
    with torch.device("meta"):
        model = network()
    assert EnmeshmentLoss(model, 2)().is_meta
    with pytest.raises(
        UnsupportedWeightError, match=r"layer '0' .* has no numbers: it is on the meta device"
    ):
        USES[use](model)


def test_a_lazy_model_is_not_run():
    for call in (modfast.find_circuit, lambda model, *_: modfast.network_graph(model, example_inputs=INPUTS)):
        with pytest.raises(ValueError, match=r"model: '0.weight' has no shape yet: call the model once"):
            call(_lazy(), INPUTS, 1)


def test_a_weight_that_is_packed_later_on_is_refused():
    model = network()
    loss = EnmeshmentLoss(model, 2)
    model[0].weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    for call in (loss, lambda: loss.accumulate_grad_(1.0), loss.weights, loss.clusterability):
        with pytest.raises(UnsupportedWeightError, match=r"layer '0' .*torch.int8"):
            call()


def test_what_fails_to_be_computed_raises_for_its_own_layer_only():
    model = _failing()
    plain = copy.deepcopy(model[2])
    assert EnmeshmentLoss(model, 2, layers=["2"])() == EnmeshmentLoss(plain, 2)()
    with pytest.raises(
        UnsupportedWeightError, match=r"layer '0' .* cannot be computed: RuntimeError: not today"
    ):
        EnmeshmentLoss(model, 2)


def test_a_packed_matrix_of_any_name_is_no_silent_gap():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(torch.ones(2, 8, 8, dtype=torch.int8), requires_grad=False)
            self.down = nn.Parameter(torch.ones(2, 8, 8))

    assert [layer.name for layer in find_layers(Experts())] == ["up", "down[0]", "down[1]"]
    with pytest.raises(UnsupportedWeightError, match=r"layer 'up' .*torch.int8"):
        EnmeshmentLoss(Experts(), 2, layers=["up"])


def test_a_codebook_head_of_transformers_is_stored_transposed():
    modeling = pytest.importorskip("transformers.models.csm.modeling_csm")
    model = nn.ModuleDict({"head": modeling.CsmCodebooksHead(8, 4, 20)})
    nn.init.normal_(model["head"].weight)  # which transformers leaves as the memory was
    layer = find_layer(model, "head.weight[1]", "layer")
    assert layer.shape == (20, 8)
    assert torch.equal(layer.weight(), model["head"].weight[1].T)
