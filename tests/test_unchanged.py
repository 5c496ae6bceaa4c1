"""No function changes a model: parameters, buffers, gradients, modes and hooks are the same afterwards."""

import functools
import inspect

import pytest
import torch
from computed_models import ALL_MAKERS
from torch import nn
from torch.nn.functional import cross_entropy

import modfast
from modfast import EnmeshmentLoss, Partition
from modfast.layers.layer import find_layers

CLASSES = 4
INPUTS, LABELS = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % CLASSES
BATCHES = [(INPUTS[:12], LABELS[:12]), (INPUTS[12:], LABELS[12:])]
CLUSTERS = {"3": Partition([0, 1, 0, 1], torch.arange(8) % 2, 2)}


def accumulated(model):
    """Gradients are what this one is for; nothing else changes."""
    before = {name: parameter.grad for name, parameter in model.named_parameters()}
    EnmeshmentLoss(model, 2).accumulate_grad_(0.7)
    for name, parameter in model.named_parameters():
        parameter.grad = before[name]


# Each takes a model whose layers "0", "1" and "3" are linear.
CALLS = {
    "Circuit": lambda model: circuit(model).apply(model),
    "EnmeshmentLoss": lambda model: EnmeshmentLoss(model, 2)(),
    "EnmeshmentLoss.accumulate_grad_": accumulated,
    "EnmeshmentLoss.clusterability": lambda model: EnmeshmentLoss(model, 2).clusterability(),
    "EnmeshmentLoss.weights": lambda model: EnmeshmentLoss(model, 2).weights(),
    "EnmeshmentLoss.state_dict": lambda model: EnmeshmentLoss(model, 2).state_dict(),
    "UnitCircuit": lambda model: units(model).apply(model)(INPUTS),
    "ablate_units": lambda model: [ablated(model, *given) for given in ((), ("mean", [INPUTS, INPUTS]))],
    "class_accuracy": lambda model: modfast.class_accuracy(model, BATCHES),
    "cluster_ablation": lambda model: [
        modfast.cluster_ablation(*task(model, modfast.accuracy), 2, mode) for mode in ("without", "only")
    ],
    "cluster_accuracy": lambda model: modfast.cluster_accuracy(model, iter(BATCHES), CLUSTERS, "only"),
    "cluster_dependence": lambda model: modfast.cluster_dependence(*task(model, right), 2, n_random=1),
    "cluster_lesions": lambda model: modfast.cluster_lesions(
        *task(model, modfast.class_log_likelihood), 2, n_random=1, ablation="mean", reference=INPUTS
    ),
    "faithfulness_curve": lambda model: modfast.faithfulness_curve(
        *(given := task(model, modfast.class_log_likelihood)),
        torch.rand(given[-1].num_units),
        spaces=sorted(set(given[-1].spaces) - {"3"}),
        sizes=[2],
        n_random=1,
    ),
    "find_circuit": lambda model: circuit(model),
    "find_circuits": lambda model: modfast.find_circuits(model, INPUTS, LABELS, layers="3"),
    "find_unit_circuit": lambda model: [
        units(model),
        modfast.find_unit_circuit(
            *(given := task(model, modfast.class_log_likelihood)),
            method="greedy",
            spaces=given[-1].layers["0"].name,
        ),
    ],
    "gradient_affinity": lambda model: [
        modfast.gradient_affinity(model, layer, BATCHES, cross_entropy) for layer in "13"
    ],
    "label_semanticity": lambda model: modfast.label_semanticity(model, iter(BATCHES), ["0", "3"], top=5),
    "network_graph": lambda model: modfast.network_graph(model, example_inputs=INPUTS),
    "network_nodes": lambda model: modfast.network_nodes(model, example_inputs=INPUTS),
    "network_partitions": lambda model: modfast.network_partitions(
        model, torch.arange(26) % 2, example_inputs=INPUTS
    ),
    "describe_layers": lambda model: [
        str(modfast.describe_layers(model, inputs)) for inputs in (None, INPUTS)
    ],
    "read_network": lambda model: [
        use(modfast.read_network(model, INPUTS))
        for use in (lambda network: network.graph(), lambda network: network.partitions(2))
    ],
    "optim.AdamW": lambda model: (
        modfast.optim.AdamW(
            model.parameters(), enmeshment=EnmeshmentLoss(model, 2), enmeshment_weight=0.7
        ).enmeshment_value
    ),
    "search_space_reduction": lambda model: modfast.search_space_reduction(
        model, CLUSTERS, example_inputs=INPUTS
    ),
    "shuffle_test": lambda model: modfast.shuffle_test(model, 2, 2, example_inputs=INPUTS, n_init=1),
    "unit_scores": lambda model: [
        modfast.unit_scores(*task(model, modfast.class_log_likelihood), steps=steps, **given)
        for steps in (1, 2)
        for given in ({}, {"ablation": "resample", "reference": [INPUTS[12:], INPUTS[:12]]})
    ],
    "eigengap": lambda model: modfast.eigengap(read(model), 4, shuffles=1),
    "weights": lambda model: [
        (modfast.spectral_cocluster(weight, 2), modfast.laplacian_eigenvalues(weight, 2).sum())
        for weight in (layer.weight() for layer in find_layers(model))
    ],
}


def circuit(model):
    return modfast.find_circuit(model, INPUTS[LABELS == 1], 1, layers="3")


@functools.lru_cache(maxsize=1)
def read(model):
    """Read once for each model: it takes longer than what is then tried on it."""
    return modfast.read_network(model, INPUTS)


def task(model, metric):
    """The first arguments of functions of circuits over units."""
    return model, BATCHES, metric, read(model)


def units(model):
    return modfast.find_unit_circuit(
        *task(model, modfast.class_log_likelihood), tolerance=0.1, ablation="mean", reference=INPUTS
    )


def ablated(model, *given):
    network = read(model)
    first = network.layers[next(iter(network.layers))]
    with modfast.ablate_units(model, network, first.row_units[:2], *given):
        pass


def right(output, batch):
    """Every answer is right."""
    return torch.ones(len(output))


# These have no model; some are tried on its weights.
WITHOUT_A_MODEL = {
    "CannotFollowError", "ClusterDependence", "ClusterLesions", "ConvergenceWarning", "Eigengap",
    "FaithfulnessCurve", "LiveUnits", "Network", "NetworkLayer", "Partition",
    "ShuffleTest", "__version__", "backend", "block_energy", "block_inner", "block_scale",
    "accuracy", "circuit_overlap", "class_log_likelihood", "class_log_odds", "cluster_information",
    "cluster_shares", "clusterability", "enmeshment", "laplacian_eigenvalues", "live_units", "load_circuits",
    "load_partitions", "load_unit_circuits", "logit_difference", "next_token_log_likelihood",
    "normalized_cut", "random_circuits", "save_circuits", "save_partitions", "save_unit_circuits",
    "spectral_cluster", "spectral_cocluster",
}  # fmt: skip


class Normed(nn.Sequential):
    """Layers 0, 1 and 3, and a batch norm whose statistics move in training mode."""

    def __init__(self):
        super().__init__(
            nn.Linear(6, 8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4), nn.Dropout(0.1)
        )
        self.register_buffer("kept", torch.ones(3), persistent=False)


class Switching(Normed):
    """Adds something to a weight in evaluation mode, and takes it out in training mode."""

    def __init__(self):
        super().__init__()
        self.added = False

    def train(self, mode=True):
        super().train(mode)
        if self.added is mode:
            self[0].weight.data += -0.1 if mode else 0.1
            self.added = not mode
        return self


MAKERS = {**ALL_MAKERS, "batch norm": Normed, "train of its own": Switching}


def picture(model):
    """All of a model that must not change: tensors by identity and by value, and the rest by value."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    plain = {
        f"{name}.{attribute}": value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    }
    return {
        "tensors": {name: (id(each), each._version, each.detach().clone()) for name, each in tensors.items()},
        "attributes": {name: (id(each), each.detach().clone()) for name, each in plain.items()},
        "gradients": {name: each.grad for name, each in tensors.items()},
        "required": {name: each.requires_grad for name, each in tensors.items()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: [
                list(hooks.items())
                for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
            ]
            for name, module in model.named_modules()
        },
        "classes": {name: type(module) for name, module in model.named_modules()},
        "state_dict": list(model.state_dict()),
    }


def assert_same(now, before, what):
    if isinstance(before, dict):
        assert list(now) == list(before), what
        for name in before:
            assert_same(now[name], before[name], f"{what} {name}")
    elif isinstance(before, tuple):
        for each, old in zip(now, before, strict=True):
            assert_same(each, old, what)
    elif isinstance(before, torch.Tensor):
        assert torch.equal(now, before), what
    else:
        assert now == before, what


def made(kind):
    torch.manual_seed(0)
    return MAKERS[kind]().train()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", MAKERS)
def test_nothing_changes(kind, call):
    model = made(kind)
    output = model(INPUTS).sum()
    if output.requires_grad:  # not where every adapter is switched off
        output.backward()  # gradients and statistics that could be lost
    before = picture(model)
    CALLS[call](model)
    assert_same(picture(model), before, "")


@pytest.mark.parametrize("kind", MAKERS)
def test_training_goes_on_as_if_nothing_had_been_called(kind):
    """Between the forward pass and the backward pass, and from one step to the next."""
    model, other = made(kind), made(kind)
    for called, each in ((True, model), (False, other)):
        optimizer = torch.optim.SGD(
            [p for p in each.parameters() if p.requires_grad] or each.parameters(), lr=0.1
        )
        for step in range(2):
            torch.manual_seed(step)
            loss = cross_entropy(each(INPUTS), LABELS)
            if called:
                state = torch.get_rng_state()
                for name in ("EnmeshmentLoss", "cluster_accuracy", "network_graph", "find_circuit"):
                    CALLS[name](each)
                torch.set_rng_state(state)
            if loss.requires_grad:
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for (name, found), (_, expected) in zip(
        model.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert torch.equal(found, expected), name


def test_every_public_function_is_tried():
    tried = {name.partition(".")[0] for name in CALLS} - {"weights"}
    assert tried | WITHOUT_A_MODEL == set(modfast.__all__)
    for name in WITHOUT_A_MODEL - {"__version__"}:
        if not inspect.isclass(getattr(modfast, name)):
            assert "model" not in inspect.signature(getattr(modfast, name)).parameters
