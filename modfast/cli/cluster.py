"""``modfast cluster``: the clusters of a network's layers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from modfast.experiment.clusters import check_out, check_weights, cluster_model
from modfast.experiment.network_clusters import cluster_network, read_chosen, unused_layers
from modfast.experiment.settings import ClusterConfig
from modfast.machine import choose_device
from modfast.report.network_table import network_table
from modfast.report.tables import cluster_table
from modfast.train.distributed import Ranks
from modfast.weights.read import Weights, read_weights
from modfast.weights.whole_models import example_for, whole_model

from .display import Display
from .machine import load_data
from .parsers.options import as_tuple, parse_counts

_MOST_NAMED = 5


def _notes(weights: Weights) -> Iterator[str]:
    """What a user must know of the weights that a model's file gave."""
    if weights.left_out:
        yield f"Not clustered unless --layers names them: {_some(weights.left_out)}"
    if weights.assumed:
        yield (
            "Taken as (out, in), as plain convolutions are, since the file does not show whether they are "
            f"transposed ones or no convolutions: {_some(weights.assumed)}"
        )
    for reason in dict.fromkeys(weights.unmatched.values()):
        names = [name for name, why in weights.unmatched.items() if why == reason]
        yield (
            f"Under the names of the file, which the model in memory may not have ({reason}): {_some(names)}"
        )


def _some(names: Sequence[str]) -> str:
    """The first of many names, and how many there are."""
    more = ", ..." if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more} ({len(names)} matrices)"


def run(options: argparse.Namespace, ranks: Ranks) -> None:
    """Cluster every layer, and show the chosen numbers of clusters."""
    sizes = None
    if options.data is not None:
        dataset = load_data(options.data, ranks)
        sizes = (dataset.image_shape, dataset.num_classes)
    if not ranks.is_first:  # there is nothing to share
        return
    config = ClusterConfig(
        num_clusters=parse_counts(options.clusters),
        layers=as_tuple(options.layers),
        affinity=options.affinity,
        n_init=options.n_init,
        shuffles=options.shuffles,
        tol=options.tol,
        seed=options.seed,
        device=options.device,
        threads=options.threads,
    )
    choose_device(config.device)
    if options.network:
        _cluster_network(options, config, sizes)
        return
    if options.example is not None:
        raise ValueError("example needs --network: single layers are clustered without inputs")
    weights = read_weights(options.model, config.layers, sizes=sizes, seed=config.seed)
    check_weights(weights, config.num_clusters)
    check_out(options.model, options.out)
    with Display() as display:
        for note in _notes(weights):
            display.note(note)
        results = cluster_model(
            weights,
            config,
            options.out,
            model=options.model,
            sizes=sizes,
            resume=options.resume,
            overwrite=options.overwrite,
            on_step=display.on_clustering,
            on_layer=display.on_layer,
        )
        display.table(cluster_table(results), Path(options.out))


def _cluster_network(
    options: argparse.Namespace, config: ClusterConfig, sizes: tuple[Sequence[int], int] | None
) -> None:
    """Cluster the units that all layers share, and show all numbers of clusters."""
    model = whole_model(options.model, sizes=sizes, seed=config.seed)
    network = read_chosen(model, example_for(model, options.example, sizes), config)
    check_out(options.model, options.out)
    with Display() as display:
        unused = unused_layers(network) if config.layers is None else []
        if unused:
            display.note(f"Not used on the example, so not in the network: {_some(unused)}")
        display.note(repr(network))
        results = cluster_network(
            network,
            config,
            options.out,
            source={"model": options.model, "sizes": sizes, "example": options.example},
            resume=options.resume,
            overwrite=options.overwrite,
            on_step=display.on_clustering,
        )
        record = results["network_clustering"]
        if record["without_partition"]:
            display.note(f"Without a partition of their own: {_some(record['without_partition'])}")
        display.table(network_table(results), Path(options.out))
