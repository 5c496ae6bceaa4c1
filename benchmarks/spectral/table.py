"""Time spectral clustering beside its peers and its floor, as two tables. See docs/speed/spectral.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import scipy
import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.common.device import add_device_option, device_of, facts, table_name, where
from benchmarks.common.pages import (
    add_options,
    add_page_option,
    as_markdown,
    at_least,
    check_page,
    put_into_page,
    show,
    versions,
    what_times_depend_on,
)
from benchmarks.spectral import device_table, peak_memory
from benchmarks.spectral.cases import (
    GRAPHS,
    WEIGHTS,
    GraphCase,
    WeightCase,
    as_cases,
    block_model,
    bytes_of,
    plant,
)
from benchmarks.spectral.measured import measure, peer_cells, time_cells
from benchmarks.spectral.peers import (
    EXPERT,
    FLOOR,
    GRAPH_PEERS,
    OURS,
    SCIKIT_LEARN_NODES,
    WEIGHT_PEERS,
    graph_contestants,
    weight_contestants,
)
from modfast import Partition, clusterability
from modfast.files import write_json

PEERS_CAPTION = (
    "Medians, with the quartiles of modfast's. Under a peer's name: how many times as long as modfast it "
    "took, and in brackets its adjusted Rand index{which}."
)
WEIGHTS_CAPTION = PEERS_CAPTION.format(which=", the lower of rows' and columns'") + (
    " Time / floor: modfast's, by the time that its passes would take if each only read the weight."
)
GRAPHS_CAPTION = PEERS_CAPTION.format(which="") + (
    " Peak: memory in use at most, the graph included, as a multiple of the graph's own."
)
WEIGHTS_HEADINGS = [
    "weights",
    f"{OURS}, ms",
    "quartiles, ms",
    "C found / planted",
    "ARI rows, columns",
    "passes",
    "floor, ms",
    "time / floor",
    *WEIGHT_PEERS,
]
GRAPHS_HEADINGS = [
    "graph",
    f"{OURS}, ms",
    "quartiles, ms",
    "ARI",
    "passes",
    *GRAPH_PEERS,
    "graph, MB",
    f"peak, {OURS}",
    f"peak, {EXPERT}",
]


def measure_weight(case: WeightCase, repeats: int, advance: Callable[[], None]) -> dict[str, Any]:
    planted = plant(case)
    truth = (planted.partition.row_labels.numpy(), planted.partition.col_labels.numpy())
    result, clusterings = measure(case, weight_contestants(planted), truth, repeats, advance)
    ours = Partition(*map(torch.from_numpy, clusterings[OURS].labels), case.clusters)
    floor = result["passes"] * result["milliseconds"][FLOOR]
    return result | {
        "clusterability": float(clusterability(planted.weight, ours)),
        "planted_clusterability": float(clusterability(planted.weight, planted.partition)),
        "time_by_floor": result["milliseconds"][OURS] / floor,
    }


def measure_graph(
    case: GraphCase, repeats: int, advance: Callable[[], None], threads: int, scikit_learn_nodes: int
) -> dict[str, Any]:
    adjacency, labels = block_model(case)
    contestants = graph_contestants(adjacency, case.clusters, scikit_learn_nodes)
    result, _ = measure(case, contestants, (labels,), repeats, advance)
    result |= {"entries": adjacency.nnz, "graph_bytes": bytes_of(adjacency)}
    del adjacency, contestants
    measured = (OURS, EXPERT) if peak_memory.available() else ()
    peaks = {name: peak_memory.peak_of(case, name, threads)["peak"] for name in measured}
    return result | {"peak_bytes": peaks}


# --- The tables


def weight_cells(result: dict[str, Any]) -> list[str]:
    """Return one row of the table of weights, under its headings."""
    return [
        *time_cells(result),
        f"{result['clusterability']:.3f} / {result['planted_clusterability']:.3f}",
        ", ".join(f"{index:.3f}" for index in result["adjusted_rand"][OURS]),
        str(result["passes"]),
        f"{result['milliseconds'][FLOOR]:.3f}",
        f"{result['time_by_floor']:.1f}",
        *peer_cells(result, WEIGHT_PEERS),
    ]


def graph_cells(result: dict[str, Any]) -> list[str]:
    """Return one row of the table of graphs, under its headings."""
    peaks, own = result["peak_bytes"], result["graph_bytes"]
    return [
        *time_cells(result),
        f"{result['adjusted_rand'][OURS][0]:.3f}",
        str(result["passes"]),
        *peer_cells(result, GRAPH_PEERS),
        f"{own / 1e6:.1f}",
        *(f"{peaks[name] / own:.2f}" if name in peaks else "-" for name in (OURS, EXPERT)),
    ]


def tables(report: dict[str, Any]) -> list[tuple[list[str], list[list[str]], str]]:
    """Return headings, rows and caption of each table that has rows."""
    if report["device"] != "cpu":
        return device_table.tables(report)
    both = [
        (WEIGHTS_HEADINGS, [weight_cells(result) for result in report["weights"]], WEIGHTS_CAPTION),
        (GRAPHS_HEADINGS, [graph_cells(result) for result in report["graphs"]], GRAPHS_CAPTION),
    ]
    return [table for table in both if table[1]]


def setting(report: dict[str, Any]) -> str:
    """Return what the times depend on, in one line."""
    peers = "" if report["device"] != "cpu" else f", scikit-learn {report['scikit_learn']}"
    return f"{report['date']}: {where(report)}; {versions(report)}, SciPy {report['scipy']}{peers}"


def markdown(report: dict[str, Any]) -> str:
    parts = [f"{as_markdown(headings, rows)}\n\n{caption}\n" for headings, rows, caption in tables(report)]
    return "\n".join([f"{setting(report)}\n", *parts])


# --- From the command line


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases",
        nargs="+",
        type=as_cases,
        default=[WEIGHTS, GRAPHS],
        metavar="CASE",
        help="weights, graphs (by default both), for example 2048x512x4 for a weight, 2000x8 for a graph",
    )
    parser.add_argument(
        "--scikit-learn-nodes",
        type=at_least(0),
        default=SCIKIT_LEARN_NODES,
        metavar="N",
        help=f"time scikit-learn on graphs of up to this many nodes; default {SCIKIT_LEARN_NODES}",
    )
    add_device_option(parser)
    add_options(parser, repeats=7)
    add_page_option(parser)
    options = parser.parse_args(arguments)
    check_page(parser, options.markdown, table_name("spectral", options.device))
    device = device_of(parser, options.device)
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        **what_times_depend_on(),
        **facts(options.device, device),
        "scipy": scipy.__version__,
        "repeats": options.repeats,
        "weights": [],
        "graphs": [],
    }
    limits: AbstractContextManager[object] = nullcontext()
    if options.device == "cpu":
        # A machine with a GPU may lack scikit-learn, and needs it for no peer.
        import sklearn
        from threadpoolctl import threadpool_limits

        report["scikit_learn"] = sklearn.__version__
        # NumPy's and scikit-learn's threads are not PyTorch's.
        limits = threadpool_limits(options.threads)
    # The display is drawn between rounds: a thread that draws in the background would be timed as well.
    progress = Progress(console=Console(stderr=True), auto_refresh=False)
    with limits, progress:
        for case in (case for cases in options.cases for case in cases):
            task = progress.add_task(str(case), total=options.repeats)

            def advance(task: Any = task) -> None:
                progress.update(task, advance=1, refresh=True)

            progress.refresh()
            kind = "weights" if isinstance(case, WeightCase) else "graphs"
            if options.device != "cpu":
                result = device_table.measure_case(case, options.repeats, advance, device)
            elif isinstance(case, WeightCase):
                result = measure_weight(case, options.repeats, advance)
            else:
                nodes = options.scikit_learn_nodes
                result = measure_graph(case, options.repeats, advance, options.threads, nodes)
            report[kind].append(result)

    for headings, rows, caption in tables(report):
        show(setting(report), caption, headings, rows)
    if options.json:
        write_json(options.json, report)
    if options.markdown:
        put_into_page(options.markdown, table_name("spectral", options.device), markdown(report))


if __name__ == "__main__":
    main()
