"""Numbers on the CPU give the same results whatever PyTorch's default device and default dtype are."""

from __future__ import annotations

import ast
import copy
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from circuit_helpers import Tiny
from torch import Tensor, nn
from torch.utils._device import _device_constructors

import modfast
from modfast import Partition, compat, reference
from modfast.circuits.units.unit_circuit import UnitCircuit
from modfast.cli import main
from modfast.data import load_dataset
from modfast.estimators import SpectralClustering, SpectralCoclustering
from modfast.experiment.eigengap import ClusterConfig, cluster_layer
from modfast.models import CNN, build_model
from modfast.spectral import graph_embedding
from modfast.spectral.refinement import refine_graph
from modfast.spectral.similarity import read_similarity
from modfast.tasks import logit_frequencies, modular_addition, neuron_frequencies, next_token
from modfast.train import TrainConfig, train
from modfast.weights import read_weights

PACKAGE = Path(modfast.__file__).parent
ROOT = PACKAGE.parent


# --- the source: no tensor is made on a device that is not named

FACTORIES = {"Generator", "normal"} | {function.__name__ for function in _device_constructors()}


def makes_a_tensor(node: ast.AST) -> bool:
    function = node.func if isinstance(node, ast.Call) else None
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "torch"
        and function.attr in FACTORIES
    )


def names_a_device(call: Any) -> bool:
    # A generator's device is its only argument.
    return any(keyword.arg == "device" for keyword in call.keywords) or (
        call.func.attr == "Generator" and bool(call.args)
    )


def without_device(source: str) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(source)) if makes_a_tensor(node)]
    return [f"line {node.lineno}: {ast.unparse(node)}" for node in calls if not names_a_device(node)]


def test_a_factory_without_a_device_is_found() -> None:
    found = without_device(
        "import torch\na = torch.zeros(2)\nb = torch.ones(2, device='cpu')\ntorch.Generator()\n"
    )
    assert found == ["line 2: torch.zeros(2)", "line 4: torch.Generator()"]


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_every_factory_names_its_device(path: Path) -> None:
    assert without_device(path.read_text()) == []


# --- the functions


def plain(value: Any) -> Any:
    """Whatever a function gives, as something to compare."""
    if isinstance(value, Tensor):
        assert value.device.type == "cpu"
        return (
            value.detach().to_dense().numpy() if value.layout == torch.sparse_csr else value.detach().numpy()
        )
    if isinstance(value, Partition):
        return plain([value.row_labels, value.col_labels])
    if isinstance(value, modfast.Circuit):
        return plain([value.masks, value.size, value.sizes, value.loss_before, value.loss_after])
    if isinstance(value, nn.Module):
        return plain(dict(value.named_parameters()))
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items() if name != "seconds"}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


class Given:
    """What the functions are called with, made before the default device is another one."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.weight, self.other = torch.rand(12, 15), torch.rand(12, 15)
        self.large, self.kernels = torch.rand(200, 150), torch.rand(6, 5, 3, 3)
        self.graph = self.large[:, :100].T @ self.large[:, :100]
        self.sparse = torch.where(self.graph > self.graph.mean(), self.graph, 0.0).to_sparse_csr()
        self.partition, self.factors = Partition.blocks((12, 15), 3), torch.rand(3, 3)
        self.model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).requires_grad_(True)
        self.inputs, self.labels = torch.randn(20, 8), torch.arange(20) % 4
        self.data = [(self.inputs, self.labels)]
        self.partitions = {"0": Partition.blocks((6, 8), 2), "2": Partition.blocks((4, 6), 2)}
        self.circuits = [modfast.find_circuit(self.model, self.inputs[self.labels == 0], 0) for _ in range(2)]
        self.network = modfast.read_network(self.model, self.inputs)
        self.unit_labels = torch.arange(18) % 3
        asked = torch.zeros(18).where(torch.arange(18) % 5 > 0, torch.nan).double()
        kept = [(torch.arange(18) % number == 0) | asked.isnan() for number in (2, 3)]
        spaces = self.network.spaces
        self.of_units = [
            UnitCircuit(each, asked, spaces, "greedy", "zero", 0.0, 20, 1, 0.0, 0.0) for each in kept
        ]
        self.dataset, self.tiny = load_dataset("digits"), Tiny((1, 8, 8), 10)

    def task(self, metric: Any = modfast.accuracy) -> tuple[Any, ...]:
        """The first arguments of functions of circuits over units."""
        return self.model, self.data, metric, self.network

    def found_units(self, **options: Any) -> UnitCircuit:
        return modfast.find_unit_circuit(*self.task(modfast.class_log_likelihood), tolerance=0.05, **options)

    def ablated(self, *given: Any) -> Tensor:
        units = self.network.layers["0"].row_units[:2]
        with torch.no_grad(), modfast.ablate_units(self.model, self.network, units, *given):
            return self.model(self.inputs)

    def gradient(self, function: Callable[[Tensor], Tensor], weight: Tensor | None = None) -> list[Tensor]:
        leaf = (self.weight if weight is None else weight).clone().requires_grad_()
        value = function(leaf)
        (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        return [value, first]

    def second(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = self.weight.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(leaf).square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    def loss(self) -> list[Any]:
        for parameter in self.model.parameters():
            parameter.grad = None
        loss = modfast.EnmeshmentLoss(self.model, 2)
        loss().backward()
        loss.accumulate_grad_(0.7)
        gradients = [parameter.grad for parameter in self.model.parameters()]
        return [loss(), loss.clusterability(), loss.partitions, gradients]

    def optimised(self) -> list[Any]:
        model = copy.deepcopy(self.model)
        loss = modfast.EnmeshmentLoss(model, 2)
        optimizer = modfast.optim.AdamW(model.parameters(), enmeshment=loss, enmeshment_weight=0.7, keep=0.5)
        for _ in range(2):
            optimizer.step()
        return [model, optimizer.enmeshment_value, list(optimizer.state.values())]

    def saved(self, save: Any, load: Any, value: Any, path: Path) -> Any:
        save(path, value)
        return load(path)

    def trained(self) -> Any:
        model = copy.deepcopy(self.tiny)
        config = TrainConfig(epochs=1, device="cpu", num_clusters=2, layers=("fc2",))
        return [model, train(model, self.dataset, config).history]


# Function's name to a call of it. Each name in modfast.__all__ has one, but for what computes nothing.
CALLS: dict[str, Callable[[Given, Path], Any]] = {
    "block_energy": lambda g, _: [
        g.gradient(lambda w: modfast.block_energy(w, g.partition)),
        g.second(lambda w: modfast.block_energy(w, g.partition)),
    ],
    "block_inner": lambda g, _: g.gradient(lambda w: modfast.block_inner(w, g.other, g.partition)),
    "block_scale": lambda g, _: g.gradient(lambda w: modfast.block_scale(w, g.factors, g.partition)),
    "enmeshment": lambda g, _: [
        g.gradient(lambda w: modfast.enmeshment(w, g.partition)),
        g.second(lambda w: modfast.enmeshment(w, g.partition)),
        torch.func.grad(lambda w: modfast.enmeshment(w, g.partition))(g.weight),
        torch.func.jvp(lambda w: modfast.enmeshment(w, g.partition), (g.weight,), (g.other,)),
    ],
    "clusterability": lambda g, _: g.gradient(lambda w: modfast.clusterability(w, g.partition)),
    "EnmeshmentLoss": lambda g, _: g.loss(),
    "optim": lambda g, _: g.optimised(),
    "Partition": lambda g, _: [
        Partition([0, 1], (each for each in (1, -1)), 2),
        Partition.blocks((5, 4), 2),
        g.partition.mask(),
        g.partition.sizes(),
        g.partition.row_order(),
        g.partition.transpose(),
    ],
    "save_partitions": lambda g, path: g.saved(
        modfast.save_partitions, modfast.load_partitions, g.partitions, path / "partitions.npz"
    ),
    "load_partitions": lambda g, path: g.saved(
        modfast.save_partitions, modfast.load_partitions, g.partitions, path / "partitions.npz"
    ),
    "spectral_cocluster": lambda g, _: [
        modfast.spectral_cocluster(g.weight, 3, return_info=True),
        modfast.spectral_cocluster(g.large, 4, return_info=True),
        modfast.spectral_cocluster(g.large, 4, tol=1e-8, affinity="square"),
        modfast.spectral_cocluster(g.kernels, 2),
        modfast.spectral_cocluster(g.sparse, 3),
        modfast.spectral_cocluster(g.weight.numpy(), 3),
    ],
    "spectral_cluster": lambda g, _: [
        modfast.spectral_cluster(g.graph, 3, return_info=True),
        modfast.spectral_cluster(g.sparse, 3),
    ],
    "eigengap": lambda g, _: [
        [(e := modfast.eigengap(each, 4, shuffles=2)).values, e.shuffled_values]
        for each in (g.weight, g.kernels, modfast.read_network(g.model, g.inputs))
    ],
    "normalized_cut": lambda g, _: [
        modfast.normalized_cut(g.weight, g.partition),
        modfast.normalized_cut(g.graph, [i % 3 for i in range(100)]),
        modfast.normalized_cut(g.sparse, np.arange(100) % 3),
    ],
    "laplacian_eigenvalues": lambda g, _: [
        g.gradient(lambda w: modfast.laplacian_eigenvalues(w, 3)),
        g.gradient(lambda w: modfast.laplacian_eigenvalues([g.large, w], 3), torch.ones_like(g.large.T)),
    ],
    "describe_layers": lambda g, _: str(modfast.describe_layers(g.model)),
    "network_graph": lambda g, _: modfast.network_graph(g.model),
    "read_network": lambda g, _: [
        (n := modfast.read_network(g.model, g.inputs)).graph(),
        n.partitions(2),
        n.layers["2"].col_units,
    ],
    "network_nodes": lambda g, _: str(modfast.network_nodes(g.model)),
    "network_partitions": lambda g, _: modfast.network_partitions(g.model, [i % 2 for i in range(18)]),
    "shuffle_test": lambda g, _: modfast.shuffle_test(g.model, 2, 3),
    "gradient_affinity": lambda g, _: modfast.gradient_affinity(
        g.model, "0", g.data, torch.nn.functional.cross_entropy
    ),
    "class_accuracy": lambda g, _: modfast.class_accuracy(g.model, g.data),
    "cluster_accuracy": lambda g, _: [
        modfast.cluster_accuracy(g.model, g.data, g.partitions, mode) for mode in ("only", "without")
    ],
    "label_semanticity": lambda g, _: modfast.label_semanticity(g.model, g.data, ["0", "2"], top=7),
    "live_units": lambda g, _: [
        modfast.live_units(g.weight, g.partition),
        modfast.live_units(g.kernels),
    ],
    "search_space_reduction": lambda g, _: modfast.search_space_reduction(g.model, g.partitions),
    "find_circuit": lambda g, _: [
        modfast.find_circuit(g.model, g.inputs[g.labels == 1], 1),
        modfast.find_circuit(g.model, g.inputs, 1, criterion="balanced", labels=g.labels),
    ],
    "find_circuits": lambda g, _: modfast.find_circuits(g.model, g.inputs, g.labels, criterion="balanced"),
    "Circuit": lambda g, _: g.circuits[0].apply(g.model),
    "save_circuits": lambda g, path: g.saved(
        modfast.save_circuits, modfast.load_circuits, g.circuits, path / "circuits.npz"
    ),
    "load_circuits": lambda g, path: g.saved(
        modfast.save_circuits, modfast.load_circuits, g.circuits, path / "circuits.npz"
    ),
    "circuit_overlap": lambda g, _: [modfast.circuit_overlap(each) for each in (g.circuits, g.of_units)],
    "cluster_information": lambda g, _: [
        modfast.cluster_information(g.circuits, g.partitions),
        modfast.cluster_information(g.of_units, g.unit_labels),
    ],
    "cluster_shares": lambda g, _: [
        modfast.cluster_shares(g.circuits, g.partitions),
        modfast.cluster_shares(g.of_units, g.unit_labels),
    ],
    "random_circuits": lambda g, _: [
        modfast.random_circuits(g.circuits, 0),
        [each.kept for each in modfast.random_circuits(g.of_units, 0)],
    ],
    "ablate_units": lambda g, _: [
        g.ablated(),
        g.ablated("mean", g.inputs.flip(0)),
        g.ablated("resample", g.inputs.flip(0)),
    ],
    "unit_scores": lambda g, _: [
        modfast.unit_scores(*g.task(modfast.class_log_likelihood), **options).nan_to_num(9)
        for options in (
            {},
            {"steps": 3},
            {"ablation": "mean", "reference": g.inputs},
            {"ablation": "resample", "reference": g.inputs.flip(0)},
        )
    ],
    "find_unit_circuit": lambda g, _: [
        [(c := g.found_units(**options)).kept, c.metric_before, c.metric_after, list(c.means.values())]
        for options in ({}, {"method": "greedy"}, {"ablation": "mean", "reference": g.inputs})
    ],
    "UnitCircuit": lambda g, _: g.of_units[0].kept,
    "save_unit_circuits": lambda g, path: [
        c.scores.nan_to_num(9)
        for c in g.saved(
            modfast.save_unit_circuits, modfast.load_unit_circuits, g.of_units, path / "units.npz"
        )
    ],
    "load_unit_circuits": lambda g, path: [
        c.kept
        for c in g.saved(
            modfast.save_unit_circuits, modfast.load_unit_circuits, g.of_units, path / "units.npz"
        )
    ],
    "accuracy": lambda g, _: modfast.accuracy(g.model(g.inputs), (g.inputs, g.labels)),
    "class_log_likelihood": lambda g, _: modfast.class_log_likelihood(
        g.model(g.inputs), (g.inputs, g.labels)
    ),
    "class_log_odds": lambda g, _: modfast.class_log_odds(g.model(g.inputs), (g.inputs, g.labels)),
    "logit_difference": lambda g, _: modfast.logit_difference(0, 1)(g.model(g.inputs), (g.inputs, g.labels)),
    "next_token_log_likelihood": lambda g, _: [
        modfast.next_token_log_likelihood(g.inputs[None], (g.labels[None] * 0, None)),
        modfast.accuracy(g.inputs[None], g.labels[None] * 0),
    ],
    "cluster_ablation": lambda g, _: [
        modfast.cluster_ablation(*g.task(), 2, mode) for mode in ("without", "only")
    ],
    "cluster_dependence": lambda g, _: [
        (d := modfast.cluster_dependence(*g.task(), g.unit_labels, n_random=2)).counts,
        [d.shares, d.random_mean_shares, d.random_interval, d.mean, d.random_mean],
    ],
    "cluster_lesions": lambda g, _: [
        (found := modfast.cluster_lesions(*g.task(), 2, n_random=3)).importance,
        [found.coherence, found.importance_p, found.coherence_p, found.tested, found.sizes],
        [found.importance_effect, found.importance_combined_p, found.coherence_combined_p],
        modfast.cluster_lesions(*g.task(), 2, n_random=1, ablation="mean", reference=g.inputs).importance,
    ],
    "faithfulness_curve": lambda g, path: [
        (
            c := modfast.faithfulness_curve(*g.task(), g.unit_labels.double(), spaces="0", n_random=2)
        ).as_dict(),
        [c.faithfulness, c.random_faithfulness, c.cpr, c.cmd, c.random_cpr, c.random_cmd],
        g.saved(
            lambda file, curve: curve.save(file), modfast.FaithfulnessCurve.load, c, path / "c"
        ).as_dict(),
    ],
    "compat.clusterability": lambda g, _: [
        compat.clusterability(g.weight, None, None, 3),
        compat.clusterability(g.weight, {0: [1], 1: range(2, 5)}, {0: [0, 3], 1: np.array([1])}, 2),
    ],
    "compat.spectral_clustering": lambda g, _: compat.spectral_clustering(g.weight, 3),
    "estimators.SpectralCoclustering": lambda g, _: (
        SpectralCoclustering(3, random_state=0).fit(g.weight.numpy()).row_labels_.tolist(),
        SpectralCoclustering(14, random_state=0).fit(g.weight.T.numpy()).row_labels_.tolist(),
    ),
    "estimators.SpectralClustering": lambda g, _: [
        SpectralClustering(3, random_state=0, affinity="precomputed", assign_labels=assigned)
        .fit_predict(g.graph.numpy())
        .tolist()
        for assigned in ("kmeans", "cluster_qr", "discretize")
    ],
    "graph_embedding": lambda g, _: graph_embedding(g.graph, 3).abs().round(decimals=5),
    "refine_graph": lambda g, _: refine_graph(
        read_similarity(modfast.spectral.matrices.as_matrix(g.sparse, "graph"), "given"),
        torch.arange(100, device="cpu") % 3,
        3,
    ),
    "reference": lambda g, _: [
        reference.enmeshment(g.weight, g.partition),
        reference.spectral_cocluster(g.weight, 3),
        reference.spectral_cluster(g.graph[:20, :20], 3),
        reference.normalized_cut(g.graph[:6, :6], [0, 1, 2, 0, 1, 2]),
        reference.laplacian_eigenvalues(g.weight, 3),
    ],
    "train": lambda g, _: g.trained(),
    "modular_addition": lambda _, path: [
        (task := modular_addition(7)).train_batches,
        (model := task.model("mlp", hidden=6)),
        task.train(model, 3, batch_size=5, checkpoint=path / "addition.pt"),
        task.train(model, 4, batch_size=5, checkpoint=path / "addition.pt"),
        task.train(task.model("transformer", width=8, hidden=6), 2),
        neuron_frequencies(task.activations(model, "fc2")),
        logit_frequencies(task.logits(model)),
        (path / "addition.pt").unlink(),
    ],
    "next_token": lambda _, path: next_tokens(path / "some.txt"),
    "cluster_layer": lambda g, _: cluster_layer(g.large, ClusterConfig(num_clusters=(2, 3), device="cpu")),
    "load_dataset": lambda _, __: [
        [each.train_images[:3], each.train_labels, each.test_labels]
        for each in (load_dataset("fake"), load_dataset("digits"))
    ],
    "build_model": lambda _, __: [
        [type(each), {name: tuple(value.shape) for name, value in each.named_parameters()}, on_the_cpu(each)]
        for each in (
            build_model("mlp", (1, 8, 8), 10),
            build_model("modfast.models:CNN", (3, 8, 8), 10),
        )
    ],
}
COMPUTES_NOTHING = {
    "CannotFollowError", "ClusterDependence", "ClusterLesions", "ConvergenceWarning", "Eigengap",
    "FaithfulnessCurve",
    "LiveUnits", "Network", "NetworkLayer", "ShuffleTest", "__version__", "backend",
}  # fmt: skip


def next_tokens(path: Path) -> list[Any]:
    path.write_text("to be or not to be, that is the question. " * 5)
    task = next_token(path, 8, level="character")
    model = task.model(width=8, heads=2)
    history = task.train(model, 2, batch_size=3)
    return [task.windows("test", most=2), task.encode("to be"), history, model]


def on_the_cpu(model: nn.Module) -> bool:
    return all(parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.fixture(scope="module")
def given() -> Given:
    return Given()


def test_every_public_function_is_called() -> None:
    assert set(modfast.__all__) - COMPUTES_NOTHING <= set(CALLS)


@contextmanager
def float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", list(CALLS))
def test_results_do_not_depend_on_the_defaults(given: Given, name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = plain(CALLS[name](given, tmp_path))
    for other in (torch.device("meta"), float64_by_default()):
        with other:
            torch.manual_seed(1)
            found = plain(CALLS[name](given, tmp_path))
        np.testing.assert_equal(found, expected)


def test_weights_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = CNN((3, 8, 8), 10).state_dict()
    torch.save(state, tmp_path / "model.pt")
    safetensors.save_file(state, tmp_path / "model.safetensors")
    for name in ("model.pt", "model.safetensors"):
        expected = plain(read_weights(tmp_path / name))
        with torch.device("meta"):
            np.testing.assert_equal(plain(read_weights(tmp_path / name)), expected)


@pytest.mark.slow
def test_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for drawing in ("runs.draw_run", "runs.draw_reproduction", "clusters.draw_clustering"):
        monkeypatch.setattr(
            f"modfast.experiment.{drawing}", lambda *_: []
        )  # they take longer than all the rest
    few = ["--device", "cpu", "--threads", "1"]
    small = ["--data", "digits", "--model", "circuit_helpers:Tiny", "--layers", "fc2", "--clusters", "2"]

    def run(folder: Path) -> list[Any]:
        out = str(folder)
        for arguments in (
            ["reproduce", *small, "--epochs", "1", "--seeds", "1", "--out", out, "--circuits"],
            ["train", *small, "--epochs", "1", "--out", f"{out}/trained"],
            ["train", *small, "--epochs", "2", "--out", f"{out}/trained", "--resume"],
            ["circuits", f"{out}/trained", "--criterion", "loss", "--images", "3"],
            ["cluster", f"{out}/trained", "--clusters", "2", "--out", f"{out}/clustered"],
            ["report", f"{out}/trained"],
        ):
            options = few if arguments[0] != "report" else []
            assert main([*arguments, *options]) == 0, capsys.readouterr().err
        results = json.loads((folder / "trained" / "results.json").read_text())
        clusters = json.loads((folder / "clustered" / "results.json").read_text())["clustering"]
        return [
            results["accuracy"],
            results["class_accuracy"],
            results["cluster_accuracy"],
            {name: each["chosen"] for name, each in clusters.items()},
        ]

    expected = run(tmp_path / "before")
    with torch.device("meta"):
        assert run(tmp_path / "after") == expected


def test_a_pickled_partition_is_where_it_was(given: Given) -> None:
    file = io.BytesIO()
    torch.save(given.partition, file)
    file.seek(0)
    with torch.device("meta"):
        assert torch.load(file, weights_only=False) == given.partition
